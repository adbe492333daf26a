"""Write a label store as files of other tools.

autolabel export labels/final out/ --format masks                    trainIds, 255 = ignore
autolabel export labels/raw out/ --format released --policy F        ids and confidences, by city
autolabel export labels/raw task/ --format cvat --policy F --queue 50  the images most worth a look, to correct them

Formats cvat, label-studio, coco-panoptic, huggingface and fiftyone write the photographs, too; corrections come back
with `autolabel import RETURNED STORE --corrections-of OUT`.

What formats lose: `released` and `released-flat` hold floor(255 p) of the code's lower edge, three values above 0.99.
`fiftyone` holds the same bytes of confidence, `huggingface` the codes. The others hold no confidence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hmsa_core.io.errors import ConfigError
from hmsa_core.labels.formats import format_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    add, lines = parser.add_argument, format_lines()
    parser.epilog = "formats:\n" + "\n".join(f"  {name:23}{line}" for name, line in lines.items())
    add("store", metavar="STORE", help="folder or address of a label store")
    add("out", type=Path, metavar="OUT", help="folder to write (a .zip file for a submission)")
    add("--format", choices=list(lines), default="masks", help="default: %(default)s")
    add("--threshold", metavar="T", help="of a raw store: keep what reaches this")
    add("--policy", type=Path, metavar="F", help="of a raw store: keep what this policy keeps")
    add("--name", action="append", metavar="NAME", help="only this image; may be repeated")
    add("--queue", type=int, metavar="N", help="only the N images most worth a look that nobody reviewed")
    add("--sort", default="uncertain", metavar="ORDER", help="of --queue, as in `inspect` (%(default)s)")
    text = "folder of the photographs, as in `serve`"
    add("--images", type=Path, metavar="ROOT", help=text)


def run(args: argparse.Namespace) -> int:
    """Export the store."""
    from hmsa_core.io.remote import local_folder
    from hmsa_core.labels.exporting import export_store
    from hmsa_core.labels.store.format import refuse_in_store
    from hmsa_core.labels.store.reader import LabelStore
    from hmsa_core.runtime.progress import Progress
    from pipeline.cli.diff import policy_for

    args.store = local_folder(args.store)
    store = LabelStore.open(args.store)
    refuse_in_store(args.out)
    policy = policy_for(store, args.threshold, args.policy)
    names = _queue(args) if args.queue is not None else args.name and list(dict.fromkeys(args.name))
    with Progress(len(names or store.names()), what="export") as progress:
        count = export_store(
            store,
            args.out,
            args.format,
            picture=lambda name: _finder(args.store, args.images)(name),
            policy=policy,
            names=names,
            advance=progress.update,
        )
    sys.stderr.write(f"{args.out}: {count} images as {args.format}\n")
    return 0


@cache
def _finder(store: Path, images: Path | None) -> Callable[[str], Path]:
    """Return a function that finds photographs of a store by name; the cache opens the store only once."""
    from pipeline.review.session import image_root
    from pipeline.review.view import StoreView

    return StoreView(store, images=image_root(store) if images is None else images).pictures.picture_path


def _queue(args: argparse.Namespace) -> list[str]:
    """Names of the first N images (`--queue N`) that the inspector page lists, without reviewed ones."""
    from pipeline.review.session import Session
    from pipeline.review.stats import ImageQuery, image_rows, parse_sort

    if args.queue < 1 or args.name:
        raise ConfigError("--queue N: expected at least 1, and no --name")
    session = Session(args.store, policy=args.policy)
    query, statuses = ImageQuery(parse_sort(args.sort), review="none"), session.review.statuses()
    rows = image_rows(session.view, session.thresholds(args.threshold), query, limit=args.queue, statuses=statuses)[1]
    if not rows:
        raise ConfigError(f"{args.store}: all images are reviewed", hint="leave --queue out")
    return [row["name"] for row in rows]
