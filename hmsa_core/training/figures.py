"""Figures of a run: losses and counts that are equal on all ranks, and time of steps and waiting.

One small message a pass carries losses, counts and stop requests. Every rank gets the same sums. So a saved
state needs the sums of one rank only, for any number of ranks, and all ranks stop after the same pass.
On a GPU a pass is reported one pass late: reading its loss then needs no wait for the device.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hmsa_core.runtime.ranks import Ranks

_Sums = NDArray[np.float64]
_SPANS = ("window", "epoch")


class Verdict(NamedTuple):
    """Result of the exchange of all ranks after a pass."""

    stop: bool  # some rank received a stop request
    failed: bool  # some rank's loss is not finite


def _on_its_way(values: torch.Tensor) -> Callable[[], _Sums]:
    """Copy values while the device computes; reading the values waits only for the pass that computes them."""
    if values.device.type != "cuda":
        return lambda: values.double().numpy()
    there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    there.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def read() -> _Sums:
        copied.synchronize()
        return there.double().numpy()

    return read


class _Report(NamedTuple):
    step: int
    read: Callable[[], _Sums]  # loss parts
    counts: _Sums
    names: tuple[str, ...]


class Meters:
    """Sums over passes and ranks, added step by step to a window (one log line) and an epoch.

    Counters are reported as sums, loss parts (named by the first pass) as means over passes.
    """

    def __init__(self, ranks: Ranks, counters: tuple[str, ...]) -> None:
        self._ranks, self._counters = ranks, counters
        self._parts: tuple[str, ...] = ()
        self._lag = 1 if ranks.device.type == "cuda" else 0
        self._pending: deque[_Report] = deque()
        self._steps: dict[int, _Sums] = {}
        self._sums: dict[str, _Sums] = {}
        self.failures: list[tuple[int, tuple[str, ...]]] = []  # on this rank: step, names of the images

    def _zeros(self) -> _Sums:
        return np.zeros(1 + len(self._parts) + len(self._counters))

    def put(self, step: int, parts: Mapping[str, torch.Tensor], counts: _Sums, names: tuple[str, ...]) -> None:
        """Add a pass of this rank: loss parts (on the device), counts, names of its images.

        A part that is missing (the loss could not be computed) counts as not finite.
        """
        if not self._sums:
            self._parts = tuple(sorted(parts))
            self._sums = {span: self._zeros() for span in _SPANS}
        device = next(iter(parts.values())).device
        missing = torch.full((), torch.nan, device=device)
        values = torch.stack([parts.get(name, missing).detach().float() for name in self._parts])
        self._pending.append(_Report(step, _on_its_way(values), counts, names))

    def flush(self) -> Verdict:
        """Exchange passes that are not yet reported; all ranks call it at the same step."""
        found = [self.exchange(stop=False, late=False) for _ in range(len(self._pending))]
        return Verdict(stop=False, failed=any(one.failed for one in found))

    def exchange(self, *, stop: bool, late: bool = True) -> Verdict:
        """Share a stop request and the earliest pass not yet reported; all ranks call it after each pass."""
        message = np.zeros(2 + self._zeros().size)
        message[0] = stop
        report = self._pending.popleft() if len(self._pending) > late * self._lag else None
        if report is not None:
            values = report.read()
            if not np.isfinite(values).all():
                self.failures.append((report.step, report.names))
                message[1] = 1.0
            message[2:] = np.concatenate([[1.0], np.nan_to_num(values), report.counts])
        self._ranks.sum_(torch.from_numpy(message))
        if report is not None:
            self._steps[report.step] = self._steps.get(report.step, self._zeros()) + message[2:]
        return Verdict(stop=message[0] > 0, failed=message[1] > 0)

    def forget(self, step: int) -> None:
        """Drop the figures of a discarded step, which is repeated later (after `flush`)."""
        self._steps.pop(step, None)

    def fold(self) -> None:
        """Add finished steps to window and epoch, in order: the time of the call does not change the sums."""
        for step in sorted(self._steps):
            values = self._steps.pop(step)
            for sums in self._sums.values():
                sums += values

    def read(self, span: str) -> tuple[dict[str, float], dict[str, int]]:
        """Return mean loss parts a pass and counts of "window" or "epoch" so far; reset the span."""
        sums = self._sums.get(span, self._zeros())
        passes = max(sums[0], 1.0)
        means, counts = sums[1 : 1 + len(self._parts)] / passes, sums[1 + len(self._parts) :]
        self._sums[span] = self._zeros()
        return (
            {name: float(value) for name, value in zip(self._parts, means, strict=True)},
            {name: int(value) for name, value in zip(self._counters, counts, strict=True)},
        )

    def state(self) -> dict[str, list[float] | list[str]]:
        """Sums so far, for a saved state (call `flush` and `fold` first)."""
        return {"parts": list(self._parts)} | {span: [float(v) for v in s] for span, s in self._sums.items()}

    def load(self, state: Mapping[str, list[float] | list[str]]) -> None:
        """Load the sums of a saved state."""
        self._parts = tuple(str(name) for name in state["parts"])
        self._sums = {span: np.asarray(state[span], np.float64) for span in _SPANS if span in state}


class StepClock:
    """Time of training steps without saving and validation, and the share of this time spent waiting for data."""

    def __init__(self) -> None:
        self._start, self._spent = time.perf_counter(), {"waiting": 0.0, "excluded": 0.0}

    @contextmanager
    def counting(self, what: Literal["waiting", "excluded"]) -> Iterator[None]:
        """Count the time of the `with` block as waiting for data, or not at all."""
        start = time.perf_counter()
        yield
        self._spent[what] += time.perf_counter() - start

    def read(self) -> tuple[float, float]:
        """Seconds of training and share of them spent waiting, since the last reading."""
        seconds = max(time.perf_counter() - self._start - self._spent["excluded"], 1e-9)
        share = self._spent["waiting"] / seconds
        self._start, self._spent = time.perf_counter(), dict.fromkeys(self._spent, 0.0)
        return seconds, share
