"""Reports of a running job: a log of JSON lines for programs, progress on standard error for people.

Rank 0 writes both. Log lines are appended in place: rewriting the log for each line would cost more than the
training of a small model. A kill can therefore leave half a line at the end, which the next start removes. No result
depends on the log. This module does not import torch.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from hmsa_core.io.atomic import write_bytes


def _jsonable(value: Any) -> Any:
    # JSON has no NaN: an undefined figure becomes null.
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value


class JsonLog:
    """Append-only log of JSON lines; without a path (all ranks but the first) writing does nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.follower: Callable[[dict[str, Any]], None] | None = None  # called with each line after it was written
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes() if path.exists() else b""
            if data and not data.endswith(b"\n"):
                write_bytes(path, data[: data.rfind(b"\n") + 1])

    def write(self, event: str, **fields: Any) -> None:
        """Append one line {"event": ..., "time": unix seconds, fields...}."""
        if self.path is None:
            return
        line = {"event": event, "time": round(time.time(), 3), **_jsonable(fields)}
        text = json.dumps(line, sort_keys=True, ensure_ascii=False, allow_nan=False)
        with self.path.open("ab") as file:
            file.write(text.encode() + b"\n")
        if self.follower is not None:
            self.follower(line)

    def rewind(self, is_kept: Callable[[dict[str, Any]], bool]) -> None:
        """Remove lines about work that a resumed run does again."""
        if self.path is None or not self.path.exists():
            return
        kept = [line for line in read_log(self.path) if is_kept(line)]
        text = "".join(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n" for line in kept)
        write_bytes(self.path, text.encode())


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a log, without an incomplete last line."""
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield json.loads(line)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Count finished work and show rate and time left.

    Args:
        total: amount of all work.
        what: name of the work, e.g. the stage's name.
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
        self._stream, self._enabled, self._every_s = stream or sys.stderr, enabled, every_s
        self._start = time.monotonic()
        # The first line comes after a tenth of the interval: the user soon sees progress.
        self._next = self._start + every_s / 10
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
        """Add `count` units of work; `shown` are figures to print next to the bar."""
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
        self._say(f", {self.rate:.1f} {self.unit}/s, {_clock(left)} left{figures}")

    def _say(self, text: str) -> None:
        self._stream.write(f"{self.what}: {self.done}/{self.total} {self.unit}{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Print the amount of work and its duration."""
        if self._bar is not None:
            self._bar.close()
        elif self._enabled:
            self._say(f" in {_clock(time.monotonic() - self._start)} ({self.rate:.1f} {self.unit}/s)")
        self._enabled, self._bar = False, None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
