"""Run the chain without DVC: its stages in order, each as `autolabel stage NAME`.

Each stage finds what it finished before by its own keys in work/STAGE, so the same command goes on where an interrupted
one stopped, and makes the same bytes as `dvc repro`. It does not notice which stages nothing changed for: all of them
start. Ctrl-C or SIGTERM save progress. To go on with DVC afterwards: `dvc commit --force`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from hmsa_core.io.errors import ConfigError
from hmsa_core.io.process import CHAIN_GRACE_S, StopRequest, run_child
from pipeline.workspace.params import stages_of_chain
from pipeline.workspace.table import STAGES
from pipeline.workspace.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `autolabel run`."""
    add = parser.add_argument
    add("--to", metavar="STAGE", default=STAGES[-1], help=f"the last stage to run: {', '.join(STAGES)} (%(default)s)")
    add("--workspace", type=Path, metavar="DIR", help="default: the current folder or one above it")


def run(args: argparse.Namespace) -> int:
    """Run the stages one after the other; return the status of the first one that fails."""
    if args.to not in STAGES:
        raise ConfigError(f"--to {args.to}: expected one of {', '.join(STAGES)}")
    ws, stop = Workspace.find(args.workspace), StopRequest().install()
    command = [sys.executable, "-m", "pipeline.cli.main", "stage"]
    env = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}  # dvc may have started this
    ahead = STAGES[: STAGES.index(args.to) + 1]
    for stage in (row.name for row in stages_of_chain(ws.params.data) if row.name in ahead):
        status = run_child([*command, stage], stop=stop, cwd=str(ws.root), env=env, grace_s=CHAIN_GRACE_S)
        if status:
            return status if status > 0 else 128 - status
        stop.check()  # it came when the stage had ended
    return 0
