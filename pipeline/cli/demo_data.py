"""Generate the synthetic street scenes of a workspace (profiles tiny and demo) below data/demo.

The same seed gives the same bytes; what is already there and complete is left alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hmsa_core.io.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `autolabel demo-data`."""
    add = parser.add_argument
    add("workspace", nargs="?", type=Path, default=Path(), metavar="WORKSPACE", help="default: the current folder")
    add("--profile", help="tiny or demo (default: the workspace's)")
    add("--out", type=Path, help="folder to write (default: WORKSPACE/data/demo)")
    add("--plain", action="store_true", help="write folders images, labels and new, as one's own may be, to --out")
    add("--workers", type=int, default=2, help="processes (default 2)")


def run(args: argparse.Namespace) -> int:
    """Generate the data."""
    from pipeline.workspace.new_workspace import GENERATED, generate_data, generate_plain

    if args.workers < 1:
        raise ConfigError(f"--workers: expected at least 1, found {args.workers}")
    profile, out = args.profile, args.out
    if args.plain:
        if out is None:
            raise ConfigError("--plain: give the folder to write with --out")
        generate_plain(out, profile or "tiny", workers=args.workers)
        sys.stderr.write(f"{out}: images, labels, new and classes.txt\n")
        return 0
    if profile is None or out is None:
        from pipeline.workspace.workspace import Workspace
        from pipeline.workspace.yaml_text import read_yaml

        ws = Workspace.find(args.workspace)
        profile = profile or read_yaml(ws.path("params.yaml")).values.get("profile")
        out = out or ws.path("data/demo")
    if profile not in GENERATED:
        raise ConfigError(f"profile {profile} has no generated data: expected one of {', '.join(GENERATED)}")
    generate_data(out, profile, workers=args.workers)
    sys.stderr.write(f"{out}: street scenes of profile {profile}\n")
    return 0
