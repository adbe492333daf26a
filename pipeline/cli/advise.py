"""What calibration shows of the teacher's labels, which classes people should label, and whether to train it longer.

autolabel advise [--workspace DIR] [--json]

Needs `calibrate` (minutes), and neither auto-labels nor a student.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from pipeline.workspace.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    parser.add_argument("--workspace", type=Path, default=Path(), help="default: the current folder")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Print the advice as text, or as JSON."""
    from pipeline.report.advice import advise, text  # imported here, since the import takes longer than `--help` may

    advice = advise(Workspace.find(args.workspace))
    sys.stdout.write(json.dumps(asdict(advice), indent=1) + "\n" if args.json else text(advice))
    return 0
