"""The loader: crops of this rank in the order of the plan, fetched ahead by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hmsa_core.config import TrainConfig
from hmsa_core.data.dataset import CropDataset, init_worker
from hmsa_core.io.errors import HmsaError, TrainingError
from hmsa_core.runtime.distributed import Ranks
from hmsa_core.training.clock import StepClock
from hmsa_core.training.rundata import RunData
from hmsa_core.training.timeline import Timeline
from hmsa_core.training.trainer import PassBatch

__all__ = ["Feed"]


@dataclass(frozen=True)
class _Fault:
    """An error of ours on its way out of a worker: torch would turn it into a RuntimeError of many lines."""

    kind: type[HmsaError]
    message: str
    fields: dict[str, Any]

    def raised(self) -> HmsaError:
        error = self.kind.__new__(self.kind, self.message)
        error.args = (self.message,)
        error.__dict__.update(self.fields)
        return error


class _Crops(Dataset[dict[str, Any] | _Fault]):
    """The data set with errors as values."""

    def __init__(self, dataset: CropDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, position: int) -> dict[str, Any] | _Fault:
        try:
            return self._dataset[position]
        except HmsaError as error:
            return _Fault(type(error), error.message, error.__dict__)


@dataclass(frozen=True)
class _Collate:
    """Stack items into a batch and count their pixels (in the worker, next to the data)."""

    num_classes: int

    def __call__(self, items: list[dict[str, Any] | _Fault]) -> PassBatch | _Fault:
        good: list[dict[str, Any]] = []
        for item in items:
            if isinstance(item, _Fault):
                return item
            good.append(item)
        labels = torch.stack([item["label"].to(torch.uint8) for item in good])
        is_pseudo = tuple(item["source"] == "pseudo" for item in good)
        pixels = np.bincount(labels.numpy().ravel(), minlength=256)[: self.num_classes]
        return PassBatch(
            images=torch.stack([item["image"] for item in good]),
            labels=labels,
            names=tuple(item["name"] for item in good),
            is_pseudo=is_pseudo,
            counts=np.array([len(good), sum(is_pseudo), *pixels], np.float64),
        )


class _Positions:
    """Batch sampler: the rest of the run, one list of positions a pass."""

    def __init__(self, timeline: Timeline, step: int, ranks: Ranks, batch: int) -> None:
        self._arguments = (timeline, step, ranks, batch)

    def __iter__(self) -> Iterator[list[int]]:
        timeline, step, ranks, batch = self._arguments
        return timeline.batches(step, rank=ranks.rank, world=ranks.world, batch=batch)


class Feed:
    """Iterator over this rank's passes from `step` to the end of the run; close it to end the workers."""

    def __init__(
        self, data: RunData, timeline: Timeline, ranks: Ranks, config: TrainConfig, step: int, clock: StepClock
    ) -> None:
        # Threads of OpenCV do not survive a fork, and a worker would wait for them for ever: none from here on.
        cv2.setNumThreads(1)
        workers = config.runtime.workers
        loader: DataLoader[Any] = DataLoader(
            _Crops(data.dataset),
            batch_sampler=_Positions(timeline, step, ranks, config.batch_per_rank),
            num_workers=workers,
            collate_fn=_Collate(data.classes.num_classes),
            worker_init_fn=init_worker if workers else None,
            # Forked workers share index and store; a fresh interpreter would import torch for seconds.
            multiprocessing_context="fork" if workers else None,
            prefetch_factor=4 if workers else None,
            pin_memory=ranks.device.type == "cuda",
        )
        self._clock = clock
        self._iterator: Iterator[PassBatch | _Fault] = iter(loader)

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> PassBatch:
        with self._clock.waiting():
            try:
                batch = next(self._iterator)
            except (ConnectionError, EOFError) as error:  # a worker died with a batch half handed over
                raise _death(error) from error
        if isinstance(batch, _Fault):
            raise batch.raised()
        return batch

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Dropping the iterator ends its workers; a traceback that is kept must not keep them alive.
        del self._iterator
        # torch reports a dead worker from a signal handler: the error can come out of any line.
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise _death(error) from error


def _death(error: BaseException) -> TrainingError:
    return TrainingError(f"a loader process died: {error}", hint="often too little memory: lower runtime.workers")
