"""What gain to expect of auto-labels before a night is spent, and which classes people should label instead.

autolabel advise [--workspace DIR] [--json]

Needs `calibrate` (minutes), and neither labels nor a student. It names the measured comparisons that are most like
this workspace, with their intervals; docs/thresholds.md says what they rest on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pipeline.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    parser.add_argument("--workspace", type=Path, default=Path(), help="default: the current folder")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Read the workspace and say what to expect."""
    from pipeline.advice import advise, as_text, measured_cases
    from pipeline.situation import read_situation

    advice = advise(read_situation(Workspace.find(args.workspace)), measured_cases())
    sys.stdout.write(json.dumps(advice.to_json(), indent=1) + "\n" if args.json else as_text(advice))
    return 0
