"""Make this machine a node of the jobs over several nodes that run in a workspace.

For machines that nothing else starts: a stage with `runtime.nodes` above 1 and `launcher: local` runs on one of them,
and `autolabel join WORKSPACE` on each of the others. It waits for a job, starts its ranks, and waits for the next one.
The workspace lies on a disk that all machines see under the same path. Ctrl-C or SIGTERM saves and ends.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import time
from pathlib import Path

from hmsa_core.io.atomic import write_json
from hmsa_core.io.errors import HmsaError, InterruptedRunError
from hmsa_core.io.process import StopRequest, die_with_parent

_LOG = logging.getLogger(__name__)
_LOOK_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `autolabel join`."""
    add = parser.add_argument
    add("workspace", type=Path, metavar="WORKSPACE", help="a folder on a disk that all nodes share")
    add("--idle", type=float, metavar="MINUTES", help="end after so long without a job (default: never)")
    add("--once", action="store_true", help=argparse.SUPPRESS)  # WORKSPACE is the record of one job


def run(args: argparse.Namespace) -> int:
    """Take part in one job, or in all jobs that start."""
    if args.once:
        die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stop = StopRequest().install()
    return _once(args.workspace, stop) if args.once else _always(args.workspace, args.idle, stop)


def _once(record: Path, stop: StopRequest) -> int:
    """Take part under a launcher, whose status may not show a failed node: write the node's error next to the job."""
    from hmsa_core.job import ERROR_FILE, write_first
    from pipeline.jobs.launcher import fault_of, take_part
    from pipeline.jobs.nodes import done_mark

    host = socket.gethostname()
    try:
        status = take_part(record, stop)
        fault = fault_of(status, f"node {host} ended with status {status}; its output is above")
    except HmsaError as error:
        status, fault = error.exit_code, error
    if status == 0:
        write_json(done_mark(record), {})
    if fault is not None:
        content = {"exit_code": fault.exit_code, "message": fault.message, "hint": fault.hint}
        write_first(record.parent / ERROR_FILE, content, f"node-{host}")
    return status


def _always(folder: Path, idle: float | None, stop: StopRequest) -> int:
    from pipeline.jobs.launcher import take_part
    from pipeline.jobs.nodes import open_meetings
    from pipeline.workspace.workspace import Workspace

    root = Workspace.find(folder).root
    _LOG.info("%s: waiting for jobs over several nodes", root)
    done: set[Path] = set()
    last = time.monotonic()
    while not stop.is_set():
        for record in [r for r in open_meetings(root) if r not in done][:1]:
            _LOG.info("%s: taking part", record.parent)
            try:
                status = take_part(record, stop)
            except (HmsaError, OSError) as error:  # may pass later: a GPU in use, a stage that has just ended
                _LOG.warning("%s", error)
            else:
                _LOG.info("%s: ended with status %d", record.parent, status)
                if status in (0, InterruptedRunError.exit_code):
                    done.add(record)
            last = time.monotonic()
        if idle is not None and time.monotonic() - last > 60 * idle:
            return 0
        time.sleep(_LOOK_S)
    return 0
