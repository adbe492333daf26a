"""Progress on standard error: a tqdm bar when a person watches, a plain line now and then when nobody does."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

__all__ = ["Progress"]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Counts work done and shows rate and time left.

    Args:
        total: amount of work in all.
        what: what is being done, e.g. the stage's name.
        unit: what is counted.
        initial: amount done by an earlier run (not part of the rate).
        enabled: False on all ranks but the first.
        every_s: seconds between plain lines.
    """

    def __init__(
        self,
        total: int,
        *,
        what: str,
        unit: str = "images",
        initial: int = 0,
        enabled: bool = True,
        stream: TextIO | None = None,
        every_s: float = 10.0,
    ) -> None:
        self.total, self.what, self.unit = total, what, unit
        self.done = self._initial = initial
        self._stream = stream or sys.stderr
        self._every_s = every_s
        self._start = time.monotonic()
        # The first line comes after a tenth of the interval: one soon sees that something happens.
        self._next = self._start + every_s / 10
        self._enabled = enabled
        self._bar: tqdm[Any] | None = None
        if enabled and self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=initial, desc=what, unit=f" {unit}", file=self._stream, dynamic_ncols=True
            )

    @property
    def rate(self) -> float:
        """Units a second since this object was made."""
        return (self.done - self._initial) / max(time.monotonic() - self._start, 1e-9)

    def update(self, count: int = 1, **shown: str | float) -> None:
        """Add `count` units of work; `shown` are figures to put beside the bar."""
        self.done += count
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(count)
        elif self._enabled and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every_s
            self._line(shown)

    def _line(self, shown: dict[str, str | float]) -> None:
        left = (self.total - self.done) / self.rate if self.rate > 0 else 0.0
        figures = "".join(f", {k} {v:.4g}" if isinstance(v, float) else f", {k} {v}" for k, v in shown.items())
        self._stream.write(
            f"{self.what}: {self.done}/{self.total} {self.unit}, {self.rate:.1f} {self.unit}/s,"
            f" {_clock(left)} left{figures}\n"
        )
        self._stream.flush()

    def close(self) -> None:
        """Say how much was done in how long."""
        if self._bar is not None:
            self._bar.close()
        elif self._enabled:
            took = time.monotonic() - self._start
            self._stream.write(
                f"{self.what}: {self.done}/{self.total} {self.unit} in {_clock(took)} ({self.rate:.1f} {self.unit}/s)\n"
            )
            self._stream.flush()
        self._enabled, self._bar = False, None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
