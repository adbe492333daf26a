"""Start or stop the Prefect server, worker and deployment of a workspace (`make orchestrate`)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.cli.main import run_command
from pipeline.night.prefect_services import Services, down, up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `make orchestrate` and `make orchestrate-stop`."""
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("--workspace", type=Path, default=Path())
    parser.add_argument("--port", type=int, default=None)


def run(args: argparse.Namespace) -> int:
    """Start or stop the services, and print each action."""
    lines = {"up": up, "down": down}[args.action](Services(args.workspace, port=args.port))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("pipeline.cli.services", sys.modules[__name__], sys.argv[1:]))
