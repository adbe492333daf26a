"""Write a label store as files of other tools.

autolabel export labels/final out/ --format masks                    trainIds, 255 = ignore
autolabel export labels/raw out/ --format released --policy F        NAME.png (ids) and NAME_prob.png, by city
autolabel export labels/final out/ --format cityscapes               labelIds, labelTrainIds and colour, by city
autolabel export labels/raw pred.zip --format cityscapes-submission  ids at every pixel, for the test server
autolabel export labels/raw task/ --format cvat --policy F --queue 50  the images most worth a look, to correct them

Formats cvat, label-studio, coco-panoptic, huggingface and fiftyone write the photographs, too; corrections come back
with `autolabel import RETURNED STORE --corrections-of OUT`.

What formats lose: `released` and `released-flat` hold floor(255 p) of the code's lower edge, three values above 0.99.
They have no 255 label: ignored pixels get the ignored id and probability 0. `fiftyone` holds the same bytes of
confidence, `huggingface` the codes. The others hold no confidence.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmsa_core.io.errors import ConfigError

if TYPE_CHECKING:
    from hmsa_core.labels.store.reader import LabelStore

FILES = ("masks", "released", "released-flat", "cityscapes", "cityscapes-submission")
TOOLS = ("cvat", "label-studio", "coco-panoptic", "huggingface", "fiftyone")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    add = parser.add_argument
    add("store", metavar="STORE", help="folder or address of a label store")
    add("out", type=Path, metavar="OUT", help="folder to write (a .zip file for a submission)")
    add("--format", choices=FILES + TOOLS, default="masks", help="default: %(default)s")
    add("--threshold", metavar="T", help="of a raw store: keep what reaches this")
    add("--policy", type=Path, metavar="F", help="of a raw store: keep what this policy keeps")
    add("--suffix", default="gtCoarse", help="middle of Cityscapes file names (default: %(default)s)")
    add("--name", action="append", metavar="NAME", help="only this image; may be repeated")
    add("--queue", type=int, metavar="N", help="only the N images most worth a look that nobody reviewed")
    add("--sort", default="uncertain", metavar="ORDER", help="of --queue, as in `inspect` (%(default)s)")
    told = "folder of the photographs, as in `serve` (default: the workspace's)"
    add("--images", type=Path, metavar="ROOT", help=told)


def run(args: argparse.Namespace) -> int:
    """Export."""
    from hmsa_core.io.remote import local_folder
    from hmsa_core.labels.exporting import export_store
    from hmsa_core.labels.store.format import refuse_in_store
    from hmsa_core.labels.store.reader import LabelStore
    from hmsa_core.runtime.progress import Progress
    from pipeline.cli.diff import policy_for

    _check_out(args.out, args.format)
    args.store = local_folder(args.store)
    store = LabelStore.open(args.store)
    refuse_in_store(args.out)
    policy = policy_for(store, args.threshold, args.policy)
    names = _queue(args) if args.queue is not None else args.name and list(dict.fromkeys(args.name))
    with Progress(len(names or store.names()), what="export") as progress:
        given: dict[str, Any] = {"policy": policy, "names": names, "advance": progress.update}
        if args.format in TOOLS:
            count = _to_tool(args, store, given)
        else:
            count = export_store(store, args.out, args.format, suffix=args.suffix, **given)
    sys.stderr.write(f"{args.out}: {count} images as {args.format}\n")
    return 0


def _to_tool(args: argparse.Namespace, store: LabelStore, given: dict[str, Any]) -> int:
    from hmsa_core.labels.exchange.folder import export_to_tool
    from pipeline.review.session import image_root
    from pipeline.review.view import StoreView

    root = args.images if args.images is not None else image_root(args.store)
    picture = StoreView(args.store, images=root).pictures.picture_path
    return export_to_tool(store, args.out, args.format, picture=picture, **given)


def _queue(args: argparse.Namespace) -> list[str]:
    """Names of the first N images (`--queue N`) that the inspector page lists, without reviewed ones."""
    from pipeline.review.session import Session
    from pipeline.review.stats import ImageQuery, image_rows, parse_sort

    if args.queue < 1 or args.name:
        raise ConfigError("--queue N: expected at least 1, and no --name")
    session = Session(args.store, policy=args.policy)
    query, statuses = ImageQuery(parse_sort(args.sort), review="none"), session.review.statuses()
    rows = image_rows(session.view, session.cuts(args.threshold), query, limit=args.queue, statuses=statuses)[1]
    if not rows:
        raise ConfigError(f"{args.store}: all images are reviewed", hint="leave --queue out")
    return [row["name"] for row in rows]


def _check_out(out: Path, fmt: str) -> None:
    if fmt == "cityscapes-submission":
        if out.is_dir():
            raise ConfigError(f"{out}: is a folder, a submission is one zip file", hint=f"for example {out}.zip")
    elif out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file, {fmt} are written into a folder", hint="give a folder")
