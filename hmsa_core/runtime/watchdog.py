"""Watchdog: ends a rank that waits for ever for another rank, or for its GPU.

Python runs no signal handler while the main thread waits inside CUDA or a collective. So a thread watches:
a rank without progress for some minutes ends with an error, and a rank that waits for a failed rank ends some seconds
later. This module does not import torch.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hmsa_core.io.errors import DeviceError, HmsaError

_LOOK_S = 1.0
_GRACE_S = 20.0  # time for a rank to end by itself after another rank failed


class Watchdog:
    """Watch a rank from the first `beat` to the end of the block.

    Args:
        minutes: the process ends after this time without a beat.
        record: the file that a rank which failed writes.
        fail: reports an error and returns the exit status.
    """

    def __init__(self, minutes: float, record: Path, fail: Callable[[HmsaError], int]) -> None:
        self._minutes, self._record, self._fail = minutes, record, fail
        self._last: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Report progress. The first call starts the watch, so the preparation before it may take any time."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            if self._last is None:
                continue
            silent = time.monotonic() - self._last
            if silent > _GRACE_S and self._record.exists():
                os._exit(DeviceError.exit_code)  # the failed rank has reported the error
            if silent > 60 * self._minutes:
                lost = DeviceError(
                    f"no progress for {self._minutes:g} minutes: another rank or this one's GPU is lost",
                    hint="the training goes on from its last state; runtime.lost_minutes is the time to wait",
                )
                os._exit(self._fail(lost))

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
