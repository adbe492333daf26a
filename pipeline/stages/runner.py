"""Run a stage: clean up after a dead one, check the disk, measure time and memory."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import sys
import time

from hmsa_core import atomic
from hmsa_core.errors import NoSpaceError
from pipeline.stages import module_of
from pipeline.workspace import Workspace

__all__ = ["check_space", "run_stage"]

_LOG = logging.getLogger(__name__)
_RESERVE = 64 << 20  # bytes that stay free: logs, locks, DVC's own files


def run_stage(ws: Workspace, stage: str) -> None:
    """Run one stage in this process; its lock is held by the caller.

    Seconds and peak memory go to `work/times/<stage>.json`: not into an output of DVC, which must be the same
    bytes for the same parameters.
    """
    started = time.monotonic()
    module = module_of(stage)
    _ = ws.params  # a mistake in params.yaml is told before anything is touched
    check_space(ws, stage, int(module.disk_estimate(ws)))
    atomic.sweep_temps(ws.work(stage))
    module.run(ws)
    record = {
        "stage": stage,
        "seconds": round(time.monotonic() - started, 2),
        "peak_memory_bytes": _peak_memory(),
        "cores": os.cpu_count(),
    }
    atomic.write_json(ws.path(f"work/times/{stage}.json"), record)
    _LOG.info("%s: done in %.1f s", stage, record["seconds"])


def check_space(ws: Workspace, stage: str, needed: int) -> None:
    """Refuse to start what cannot be finished: compare the stage's estimate with the free space.

    Outputs count three times: as progress in work/, as outputs, and in DVC's cache.
    """
    free = shutil.disk_usage(ws.root).free
    wanted = needed + _RESERVE
    if free < wanted:
        raise NoSpaceError(
            f"{stage} needs about {_gib(wanted)} in {ws.root}, {_gib(free)} are free",
            hint="free some space, or delete old progress in work/ and `dvc gc --workspace`",
        )


def _peak_memory() -> int:
    """Bytes of the largest process of the stage (jobs included; the sum over ranks is not known)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
