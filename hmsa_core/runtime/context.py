"""What a job is handed besides its spec: its place among the ranks, stop requests, log, progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from hmsa_core.config import RuntimeConfig
from hmsa_core.io.errors import InterruptedRunError
from hmsa_core.io.process import StopRequest
from hmsa_core.runtime.distributed import Ranks
from hmsa_core.runtime.logs import JsonLog
from hmsa_core.runtime.progress import Progress

__all__ = ["JobContext"]


@dataclass(frozen=True)
class JobContext:
    """Made by `hmsa_core.job`; a job's `run(spec, context)` reads it.

    Attributes:
        work: the job's progress folder.
        ranks: this process's place, with the collectives.
        runtime: device, precision, threads, workers.
        stop: set by SIGTERM or SIGINT on this rank.
        log: JSON lines, real on rank 0 only.
    """

    work: Path
    ranks: Ranks
    runtime: RuntimeConfig
    stop: StopRequest = field(default_factory=StopRequest)
    log: JsonLog = field(default_factory=lambda: JsonLog(None))

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.ranks.rank

    @property
    def world(self) -> int:
        """Number of processes over all nodes."""
        return self.ranks.world

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self.ranks.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files that there is one of."""
        return self.ranks.is_main

    def progress(self, total: int, *, what: str, unit: str = "images", initial: int = 0) -> Progress:
        """Progress on standard error, silent on all ranks but the first."""
        return Progress(total, what=what, unit=unit, initial=initial, enabled=self.is_main)

    def check_stop(self) -> None:
        """Raise InterruptedRunError if *this* rank was asked to stop (for jobs whose ranks work on their own)."""
        if self.stop.is_set():
            raise InterruptedRunError("stopped by a signal; progress is saved", hint="run the same command again")
