"""Convert published weights (.pth, .safetensors) into a checkpoint folder: safetensors + JSON, never pickle.

Takes released checkpoints of the method, bare HRNet ImageNet weights and timm's hrnet_* (a trunk alone
becomes a checkpoint to start a training from: `init_from`). Every left-over, missing or mis-shaped key is
an error; nothing is written then.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hmsa_core.io.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `autolabel import-checkpoint`."""
    add = parser.add_argument
    add("source", metavar="IN", type=Path, help="weight file")
    add("target", metavar="OUT", type=Path, help="new checkpoint folder")


def run(args: argparse.Namespace) -> int:
    """Convert the checkpoint, and print its description and digests."""
    if args.target.exists() and (not args.target.is_dir() or any(args.target.iterdir())):
        raise InputError(f"{args.target}: exists already", hint="choose a new folder")
    from hmsa_core.models import import_checkpoint

    report = import_checkpoint(args.source, args.target)
    sys.stdout.write("\n".join([*report.lines(), f"written to {args.target}"]) + "\n")
    return 0
