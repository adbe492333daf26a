"""Make a workspace: a folder with params.yaml and dvc.yaml of a profile, git and DVC set up.

profiles: tiny (the whole chain in two minutes), demo (generated street scenes), camvid (real photographs),
cityscapes (the paper's recipe; fill in two paths), paper-final (the same with all fine data: none is left to judge).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `autolabel init`."""
    add = parser.add_argument
    add("dir", metavar="DIR", type=Path, help="new or empty folder")
    add("--profile", required=True, help="tiny, demo, camvid, cityscapes or paper-final")
    text = "root of the target data set (tiny, demo: a folder that `autolabel demo-data` made)"
    add("--data", type=Path, metavar="PATH", help=text)
    add("--pretrain-data", type=Path, metavar="PATH", help="root of Mapillary Vistas")
    add("--no-data", action="store_true", help="do not generate the demo data now")
    text = "two processes of one thread, fp32: the same result on every processor, slower where there are more cores"
    add("--deterministic", action="store_true", help=text)


def run(args: argparse.Namespace) -> int:
    """Make the workspace, or print that it exists."""
    from pipeline.workspace.init import GENERATED, InitRequest, init_workspace

    request = InitRequest(args.dir, args.profile, args.data, args.pretrain_data, not args.no_data, args.deterministic)
    if not init_workspace(request):
        sys.stderr.write(f"{args.dir}: already a workspace of profile {args.profile}; nothing changed\n")
        return 0
    sys.stderr.write(f"{args.dir}: workspace of profile {args.profile}\n")
    folder = shlex.quote(str(args.dir))
    if args.profile in GENERATED and args.no_data and args.data is None:
        sys.stderr.write(f"next: autolabel demo-data {folder}  # or your own images: docs/own-data.md\n")
    if args.profile in ("cityscapes", "paper-final") and args.data is None:
        sys.stderr.write(f"next: fill in data.target.root and data.pretrain.root in {args.dir / 'params.yaml'}\n")
    sys.stderr.write(f"next: cd {folder} && autolabel doctor && dvc repro\n")
    return 0
