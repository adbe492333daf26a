"""Ways in which a training is interrupted: patches that are set before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from hmsa_core.io.process import StopRequest
from hmsa_core.training.run import Validation
from hmsa_core.training.trainer import Trainer

Interruption = Callable[[pytest.MonkeyPatch, StopRequest], None]


class KilledError(Exception):
    """Stands for SIGKILL: nothing is saved on the way out."""


def be_killed() -> NoReturn:
    raise KilledError


def killed_after(steps: int, die: Callable[[], NoReturn] = be_killed) -> Interruption:
    def interrupt(patch: pytest.MonkeyPatch, stop: StopRequest) -> None:
        real = Trainer.run_step

        def run_step(self: Trainer, feed: Iterator[object]) -> object:
            if self.step == steps:
                die()
            return real(self, feed)  # type: ignore[arg-type]

        patch.setattr(Trainer, "run_step", run_step)

    return interrupt


def stopped_in(step: int, *, between_passes: bool) -> Interruption:
    """A stop request during a step: between its passes the step is given up, in the last it is finished."""

    def interrupt(patch: pytest.MonkeyPatch, stop: StopRequest) -> None:
        real = Trainer._pass
        seen: list[int] = []

        def one_pass(self: Trainer, batch: object) -> None:
            real(self, batch)  # type: ignore[arg-type]
            seen.append(self.step)
            if self.step == step and (between_passes or seen.count(step) == self.passes):
                stop.request()

        patch.setattr(Trainer, "_pass", one_pass)

    return interrupt


def killed_in_validation(die: Callable[[], NoReturn] = be_killed) -> Interruption:
    return lambda patch, stop: patch.setattr(Validation, "_score", lambda *_: die())
