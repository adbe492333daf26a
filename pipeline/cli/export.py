"""Write a label store as files of other tools.

autolabel export labels/final out/ --format masks                    trainIds, 255 = ignore
autolabel export labels/raw out/ --format released --policy F        NAME.png (ids) and NAME_prob.png, by city
autolabel export labels/final out/ --format cityscapes               labelIds, labelTrainIds and colour, by city
autolabel export labels/raw pred.zip --format cityscapes-submission  ids at every pixel, for the test server

What formats lose: `released` holds floor(255 p) of the code's lower edge, three values above 0.99. It has no 255
label: ignored pixels get the ignored id and probability 0. The others hold no confidence.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hmsa_core.io.errors import ConfigError

FORMATS = ("masks", "released", "released-flat", "cityscapes", "cityscapes-submission")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    parser.add_argument("store", type=Path, metavar="STORE", help="folder of a label store")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write (a .zip file for a submission)")
    parser.add_argument("--format", choices=FORMATS, default="masks", help="default: %(default)s")
    parser.add_argument("--threshold", metavar="T", help="of a raw store: keep what reaches this")
    parser.add_argument("--policy", type=Path, metavar="F", help="of a raw store: keep what this policy keeps")
    parser.add_argument("--suffix", default="gtCoarse", help="middle of Cityscapes file names (default: %(default)s)")
    parser.add_argument("--name", action="append", metavar="NAME", help="only this image; may be repeated")


def run(args: argparse.Namespace) -> int:
    """Export."""
    from hmsa_core.labels.exporting import export_store
    from hmsa_core.labels.store.format import refuse_in_store
    from hmsa_core.labels.store.reader import LabelStore
    from hmsa_core.runtime.progress import Progress
    from pipeline.cli.diff import policy_for

    _check_out(args.out, args.format)
    store = LabelStore.open(args.store)
    refuse_in_store(args.out)
    policy = policy_for(store, args.threshold, args.policy)
    with Progress(len(args.name or store.names()), what="export") as progress:
        count = export_store(
            store, args.out, args.format, policy=policy, names=args.name, suffix=args.suffix, advance=progress.update
        )
    sys.stderr.write(f"{args.out}: {count} images as {args.format}\n")
    return 0


def _check_out(out: Path, fmt: str) -> None:
    if fmt == "cityscapes-submission":
        if out.is_dir():
            raise ConfigError(f"{out}: is a folder, a submission is one zip file", hint=f"for example {out}.zip")
    elif out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file, {fmt} are written into a folder", hint="give a folder")
