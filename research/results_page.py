"""Write docs/results.md from committed metric files: research/runs, research/cells, research/bench/results.

autolabel results                                       (the page)
autolabel results --collect . --collect workspaces/camvid   (first the figures of finished workspaces)
autolabel results --table                               (a short table for a README, on standard output)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hmsa_core.io.errors import ConfigError, InputError
from pipeline.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `autolabel results`."""
    parser.add_argument("--collect", type=Path, action="append", default=[], metavar="DIR", help="a finished workspace")
    parser.add_argument("--if-there", action="store_true", help="with --collect: leave out workspaces without results")
    parser.add_argument(
        "--repository", type=Path, default=Path(), metavar="DIR", help="a checkout (default: the current folder)"
    )
    parser.add_argument("--table", action="store_true", help="print a short table for a README, write no page")


def run(args: argparse.Namespace) -> int:
    """Collect, then write the page or print the table."""
    from hmsa_core.io.atomic import write_text
    from research.results.page import Sources, results_page
    from research.results.readme import readme_table

    sources = Sources.of(args.repository.resolve())
    if not sources.ablations.is_dir():
        raise ConfigError(f"{args.repository}: no checkout (no research/cells here)", hint="give --repository")
    for folder in args.collect:
        _collect(folder, sources.runs, optional=args.if_there)
    if args.table:
        sys.stdout.write(readme_table(sources))
        return 0
    page = args.repository.resolve() / "docs" / "results.md"
    write_text(page, results_page(sources))
    sys.stderr.write(f"{page} written\n")
    return 0


def _collect(folder: Path, runs: Path, *, optional: bool) -> None:
    from research.results.collect import collect

    if optional and not (folder / "evaluation" / "metrics.json").is_file():
        sys.stderr.write(f"{folder}: no finished workspace, left out\n")
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    sys.stderr.write(f"{collect(Workspace.find(folder), runs)} written\n")
