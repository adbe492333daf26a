"""Run one stage of the chain: what dvc.yaml calls. Resumes where an interrupted run stopped.

The stage ends when its parent (dvc) dies, and is the only one of its name that runs in a workspace (exit
status 75 otherwise). SIGTERM or Ctrl-C save progress and end with 143; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from contextlib import chdir
from pathlib import Path
from types import FrameType
from typing import TextIO

from hmsa_core.io.errors import ConfigError, InterruptedRunError
from hmsa_core.io.process import die_with_parent, is_orphan
from pipeline.workspace.table import STAGES
from pipeline.workspace.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `autolabel stage`."""
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help=", ".join(STAGES))
    add("--workspace", type=Path, metavar="DIR", help="default: the current folder or one above it")
    add("--engine", choices=("local", "ray"), help="in place of runtime.engine in params.yaml")
    add("--summary", action="store_true", help="print the results in ten lines instead of running")


def run(args: argparse.Namespace) -> int:
    """Run the stage, or print the summary."""
    # First, before anything takes time: a killed dvc does not stop its stage. SIGHUP, because a signal to
    # dvc's group reaches this process as well, and two SIGTERMs mean "at once, without saving".
    die_with_parent(signal.SIGHUP)
    if "DVC_STAGE" in os.environ and is_orphan():  # dvc died before: no signal comes
        raise InterruptedRunError("dvc, which started this stage, is gone", hint="run `dvc repro` again")
    if args.summary:
        from pipeline.report.results import summary_text

        sys.stdout.write(summary_text(Workspace.find(args.workspace)))
        return 0
    if args.name not in STAGES:
        given = "no stage named" if args.name is None else f"unknown stage {args.name!r}"
        raise ConfigError(f"{given}: expected one of {', '.join(STAGES)}")
    ws = Workspace.find(args.workspace)
    with ws.lock(args.name), chdir(ws.root):  # as dvc does: files in params.yaml are relative to it
        prepare_process(ws)
        if args.engine:
            from pipeline.workspace.params import EngineConfig

            ws.params = ws.params.model_copy(update={"runtime": EngineConfig(engine=args.engine)})
        from pipeline.stages.runner import run_stage

        run_stage(ws, args.name)
    return 0


class _LogLines(logging.StreamHandler[TextIO]):
    """Handler that passes on a stop raised while it writes; logging would print a traceback and go on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if isinstance(sys.exc_info()[1], InterruptedRunError):
            raise  # the stop; logging calls this in its except block
        super().handleError(record)


def prepare_process(ws: Workspace) -> None:
    """Set up signals, log lines and thread counts, before numpy is imported, which reads the counts once."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_LogLines(sys.stderr)])
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it announces its font cache
    ws.stop.install()

    def stop_here(_signum: int) -> None:
        # A running job stops and saves by itself; the loops of this process end by this exception.
        if not ws.job_running:
            ws.stop.check()

    parent, is_ignored = os.getppid(), signal.getsignal(signal.SIGHUP) == signal.SIG_IGN

    def parent_died(signum: int, _frame: FrameType | None) -> None:
        # Under nohup a closed terminal sends the same signal: then only the parent's death counts.
        if not is_ignored or os.getppid() != parent:
            ws.stop.request(signum)

    ws.stop.on_stop(stop_here)
    signal.signal(signal.SIGHUP, parent_died)
