"""One report over many workspaces: their figures, gates and thresholds, one row per workspace.

autolabel report --over WORKSPACE [WORKSPACE ...] [--html FILE]

The report of one workspace is `report/index.html` in it (stage `report`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hmsa_core.io.errors import ConfigError
from pipeline.workspace.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    parser.add_argument("--over", type=Path, nargs="+", required=True, metavar="DIR", help="the workspaces")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the tables as a page")


def run(args: argparse.Namespace) -> int:
    """Print the tables."""
    from hmsa_core.io.atomic import write_text  # here: imports take longer than `--help` may
    from pipeline.report.build import page
    from pipeline.report.render import esc
    from pipeline.report.results import over

    found: dict[str, Workspace] = {}
    for folder in args.over:
        ws = Workspace.find(folder)
        name = ws.root.name if ws.root.name not in found else str(ws.root)
        if ws.root in {other.root for other in found.values()}:
            raise ConfigError(f"--over: {folder} is given twice")
        found[name] = ws
    tables = over(found)
    sys.stdout.write("\n".join(table.text() for table in tables))
    if args.html is not None:
        title = f"{len(found)} workspaces"
        write_text(args.html, page(title, f"<h1>{esc(title)}</h1>{''.join(table.html() for table in tables)}"))
    return 0
