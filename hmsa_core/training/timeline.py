"""Steps, epochs and crops of a run: one stream of crops, cut into steps of one global batch each.

Epoch after epoch is laid end to end, so each crop of each epoch is used once, also when an epoch is no
multiple of the global batch: the step at the seam takes crops of both. Only what is left over at the very
end of the run (less than a batch) is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hmsa_core.config import TrainConfig
from hmsa_core.data.plan import EpochPlan
from hmsa_core.io.errors import ConfigError

__all__ = ["Timeline", "passes_a_step"]


@dataclass(frozen=True)
class Timeline:
    """Where a step lies.

    Attributes:
        plan: crops of each epoch.
        global_batch: crops a step.
    """

    plan: EpochPlan
    global_batch: int

    def __post_init__(self) -> None:
        if not self.total_steps:
            raise ConfigError(
                f"{len(self.plan)} crops in {self.plan.epochs} epochs do not fill one global batch of"
                f" {self.global_batch}",
                hint="lower global_batch, or raise epochs or epoch_samples",
            )

    @property
    def epochs(self) -> int:
        """Epochs of the run."""
        return self.plan.epochs

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        return len(self.plan) // self.global_batch

    def epoch_of(self, step: int) -> int:
        """Epoch that the step's first crop belongs to; the number of epochs after the last step."""
        if step >= self.total_steps:
            return self.epochs
        return self.plan.locate(step * self.global_batch)[0]

    def is_edge(self, step: int) -> bool:
        """Whether an epoch has ended with the first `step` steps done (its last crops may be in the next)."""
        return step > 0 and self.epoch_of(step) > self.epoch_of(step - 1)

    def batches(self, step: int, *, rank: int, world: int, batch: int) -> Iterator[list[int]]:
        """Crop positions of each pass of one rank, from `step` to the end of the run.

        Pass i of rank r takes the (i x world + r)-th group of `batch` crops of the step: the same groups
        whatever the number of ranks.
        """
        for first in range(step * self.global_batch, self.total_steps * self.global_batch, self.global_batch):
            for start in range(first + rank * batch, first + self.global_batch, world * batch):
                yield list(range(start, start + batch))


def passes_a_step(config: TrainConfig, world: int) -> int:
    """Passes of a rank that make up a step.

    Raises:
        ConfigError: this many ranks cannot keep the global batch.
    """
    total, batch = config.global_batch, config.batch_per_rank
    passes, rest = divmod(total, world * batch)
    if rest or not passes:
        fitting = [str(n) for n in range(1, total + 1) if total % (n * batch) == 0]
        raise ConfigError(
            f"{world} ranks x {batch} crops a pass cannot keep the global batch of {total}: another batch would"
            " need another learning rate and visit the crops in other groups",
            hint=f"start {', '.join(fitting)} ranks, or change batch_per_rank",
        )
    return passes
