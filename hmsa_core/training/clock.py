"""Where the time of training goes: images a second and the share that was spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["StepClock"]


class StepClock:
    """Time of training steps, without that of saving and validation."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._excluded_s = 0.0
        self._waited_s = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Leave the block out."""
        start = time.perf_counter()
        yield
        self._excluded_s += time.perf_counter() - start

    def read(self) -> tuple[float, float]:
        """Seconds of training and share of them spent waiting, since the last reading."""
        seconds = max(time.perf_counter() - self._start - self._excluded_s, 1e-9)
        share = self._waited_s / seconds
        self._start, self._excluded_s, self._waited_s = time.perf_counter(), 0.0, 0.0
        return seconds, share
