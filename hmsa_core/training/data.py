"""The data of a training run, from the files that a spec names to the batches of one rank.

`open_run_data` reads indexes, centroids and label store, and checks that they belong together. `Timeline` joins the
crops of all epochs and divides them into steps of one global batch each. A step between two epochs takes crops of both,
so each crop is used once. Only the rest at the end of the run (less than a batch) is dropped. `feeding` fetches
the crops of a rank ahead, in worker processes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hmsa_core.config import TrainConfig
from hmsa_core.data.dataset import CropDataset, init_worker
from hmsa_core.data.index import Index, Sample
from hmsa_core.data.plan import EpochPlan
from hmsa_core.data.sampling import Centroids
from hmsa_core.inference.teachers.sources import digest_of, lineage_of
from hmsa_core.io.atomic import digest, read_json
from hmsa_core.io.errors import ConfigError, HmsaError, TrainingError
from hmsa_core.labels import LabelStore
from hmsa_core.labels.finalise import STATISTICS
from hmsa_core.labels.store.format import SOURCES
from hmsa_core.lineage import Lineage, learned
from hmsa_core.result_keys import train_material
from hmsa_core.runtime.ranks import Ranks
from hmsa_core.spec import PseudoData, TrainSpec
from hmsa_core.taxonomy import ClassTable
from hmsa_core.training.figures import StepClock

_CACHE_BYTES = 256 << 20  # bytes of decoded images that a loader process keeps: small data sets are decoded once


@dataclass(frozen=True)
class RunData:
    """The training data of a run."""

    classes: ClassTable
    fine: tuple[Sample, ...]  # images with fine labels
    pseudo: tuple[Sample, ...]  # auto-labelled images
    plan: EpochPlan  # crops of each epoch
    dataset: CropDataset  # crops by position in the run
    lineage: Lineage  # all training data of the result
    key: str  # digest of settings and data: the same key means the same result
    stores: list[dict[str, Any]]  # digest, images and weight of each label store


@dataclass(frozen=True)
class _Pseudo:
    """One label store, and the facts about its images."""

    samples: tuple[Sample, ...]
    centroids: Centroids
    root_name: str
    root: Path
    store: LabelStore
    weight: float


class _Labels:
    """Thresholded stores as a training reads them; each image name is in exactly one store."""

    def __init__(self, paths: Sequence[Path]) -> None:
        stores = [LabelStore.open(path) for path in paths]
        self._store_of = {name: store for store in stores for name in store.names()}

    def read_label(self, name: str) -> NDArray[np.uint8]:
        return self._store_of[name].read_label(name)

    def read_human(self, name: str) -> NDArray[np.uint8]:
        """Return 1 where a human gave the label, also together with the teacher."""
        source = self._store_of[name].read_source(name)
        return np.isin(source, (SOURCES["human"], SOURCES["both"])).astype(np.uint8)


def open_run_data(spec: TrainSpec, ranks: Ranks) -> RunData:
    """Read indexes, centroids and label store of a run, and check that they belong together.

    Raises:
        ConfigError: an empty selection, another class table, a raw store.
        InputError, IntegrityError, StoreError: a file is missing or damaged.
    """
    config = spec.config
    index = Index.load(spec.fine.selection.index)
    fine = tuple(s for s in index.select(**spec.fine.selection.filters()) if s.label)
    if not fine:
        raise ConfigError(f"{spec.fine.selection.index}: no image with a fine label passes the selection")
    parts = [_open_pseudo(chosen, spec, index.classes, ranks) for chosen in spec.pseudo]
    pseudo = _joined(parts)
    weight = _human_weight(config.pseudo.human_weight, [part.store.path for part in parts])
    plan = EpochPlan(
        fine,
        Centroids.load(spec.fine.centroids),
        num_classes=index.classes.num_classes,
        seed=config.seed,
        epochs=config.epochs,
        epoch_samples=config.epoch_samples,
        sampling=config.sampling,
        pseudo=[sample for sample, _ in pseudo],
        pseudo_centroids=_centroids_of(parts, [sample.name for sample, _ in pseudo]),
        pseudo_weights=[weight for _, weight in pseudo],
        pseudo_config=config.pseudo.model_copy(update={"human_weight": weight}),
    )
    material = train_material(spec, index.classes, fine)
    if ranks.norm_ranks > 1:
        material["norm_ranks"] = ranks.norm_ranks  # other statistics change the result
    dataset = CropDataset(
        plan,
        root=spec.root(index.root),
        classes=index.classes,
        crop=config.crop,
        augment=config.augment,
        open_store=partial(_Labels, [part.store.path for part in parts]) if parts else None,
        pseudo_root=parts[0].root if parts else None,
        long_edge=config.long_edge,
        cache_bytes=_CACHE_BYTES,
    )
    return RunData(
        index.classes,
        fine,
        tuple(sample for sample, _ in pseudo),
        plan,
        dataset,
        lineage=_lineage(spec, learned(fine, root=index.root, source="fine"), parts),
        key=digest(material),
        stores=[{"digest": p.store.digest, "images": len(p.samples), "weight": p.weight} for p in parts],
    )


def _human_weight(wanted: float, stores: Sequence[Path]) -> float:
    """The weight, but human pixels weigh at most as much as all others: more would drown the teacher's labels."""
    if wanted <= 1.0:
        return wanted
    rows = [row for store in stores for row in read_json(store / STATISTICS)["classes"]]
    human = sum(int(row["from_human"] + row["both"]) for row in rows)
    others = sum(int(row["final"]) for row in rows) - human
    return max(1.0, min(wanted, others / human)) if human else 1.0


def _open_pseudo(chosen: PseudoData, spec: TrainSpec, classes: ClassTable, ranks: Ranks) -> _Pseudo:
    # One rank reads every byte before training starts; other ranks and later reads check the bytes that they use.
    store = LabelStore.open(chosen.store, strict=ranks.is_main)
    ranks.barrier()
    if store.kind != "thresholded":
        raise ConfigError(
            f"{chosen.store}: holds raw labels, unsure pixels included",
            hint="train on a thresholded store (labels/final, stage pseudo-label)",
        )
    if store.classes != classes:
        raise ConfigError(f"{chosen.store}: its classes ({store.classes.name}) are not those of the fine labels")
    index = Index.load(chosen.index)
    known = index.by_name()
    strangers = [name for name in store.names() if name not in known]
    if strangers:
        raise ConfigError(f"{chosen.store}: {len(strangers)} images are not in {chosen.index}, first {strangers[0]}")
    samples = tuple(known[name] for name in store.names())
    root = spec.root(index.root) if chosen.root is None else chosen.root
    return _Pseudo(samples, Centroids.load(chosen.centroids), index.root, root, store, chosen.weight)


def _joined(parts: Sequence[_Pseudo]) -> list[tuple[Sample, float]]:
    """Images of all stores with their weights, by name: the order of stores and images has no effect."""
    found: dict[str, tuple[Sample, float]] = {}
    for part in parts:
        for sample in part.samples:
            if sample.name in found:
                raise ConfigError(
                    f"{part.store.path}: its image {sample.name} has the name of one in another store",
                    hint="leave one of the stores out; data.target.names: path gives images of folders different names",
                )
            if part.root != parts[0].root:
                sample = replace(sample, image=str(part.root.absolute() / sample.image))
            found[sample.name] = sample, part.weight
    return [found[name] for name in sorted(found)]


def _centroids_of(parts: Sequence[_Pseudo], names: Sequence[str]) -> Centroids:
    """Centroids of all stores, in the order of the names."""
    found = [part.centroids.of(names) for part in parts]
    if not found:
        return Centroids()
    image, values = np.concatenate([f.image for f in found]), np.concatenate([f.values for f in found])
    order = np.argsort(image, kind="stable")
    return Centroids(names, image[order], values[order])


def _lineage(spec: TrainSpec, found: Lineage, parts: Sequence[_Pseudo]) -> Lineage:
    for part in parts:
        found = found.union(learned(part.samples, root=part.root_name, source="pseudo"))
    for parent in (spec.init_from, spec.teacher):
        if parent is not None:
            found = found.union(lineage_of(parent).with_parent(digest_of(parent)))
    for part in parts:
        teacher = str(part.store.lineage.get("teacher", "unknown"))
        if teacher not in found.parents:
            gap = f"label store {part.store.digest[:16]}: the images of its teacher ({teacher[:16]}) are not listed"
            found = found.union(Lineage(parents=() if teacher == "unknown" else (teacher,), unknown=(gap,)))
    return found


@dataclass(frozen=True)
class Timeline:
    """Positions of steps, epochs and crops in a run."""

    plan: EpochPlan
    global_batch: int  # crops a step

    def __post_init__(self) -> None:
        if not self.total_steps:
            crops, epochs = len(self.plan), self.plan.epochs
            raise ConfigError(
                f"{crops} crops in {epochs} epochs do not fill one global batch of {self.global_batch}",
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
        """Epoch of the step's first crop; the number of epochs after the last step."""
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
        ConfigError: the global batch is no multiple of ranks x crops a pass.
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


@dataclass(frozen=True)
class PassBatch:
    """The crops of one pass on one rank."""

    images: Tensor  # uint8 B x h x w x 3, RGB: a quarter of the bytes of the network's input
    labels: Tensor  # uint8 B x h x w, trainIds or 255
    names: tuple[str, ...]
    counts: NDArray[np.float64]  # counts for `Meters`: images, pseudo, then pixels of each class
    human: Tensor | None = None  # bool B x h x w, human pixels of auto-labelled crops; None: not weighed

    def pin_memory(self) -> PassBatch:
        """Copy to page-locked memory, from which a GPU copies during computation (the loader calls this)."""
        human = None if self.human is None else self.human.pin_memory()
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory(), human=human)


class _Crops(Dataset[dict[str, Any] | HmsaError]):
    """The data set with errors as values: torch would raise them as a RuntimeError of many lines."""

    def __init__(self, dataset: CropDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, position: int) -> dict[str, Any] | HmsaError:
        try:
            return self._dataset[position]
        except HmsaError as error:
            return error


def _collate(num_classes: int, items: list[dict[str, Any] | HmsaError]) -> PassBatch | HmsaError:
    """Stack items into a batch and count their pixels (in the worker, next to the data)."""
    if wrong := [item for item in items if isinstance(item, HmsaError)]:
        return wrong[0]
    good = [item for item in items if not isinstance(item, HmsaError)]
    labels = torch.stack([item["label"] for item in good])
    pseudo = sum(item["source"] == "pseudo" for item in good)
    pixels = np.bincount(labels.numpy().ravel(), minlength=256)[:num_classes]
    return PassBatch(
        images=torch.stack([item["image"] for item in good]),
        labels=labels,
        names=tuple(item["name"] for item in good),
        counts=np.array([len(good), pseudo, *pixels], np.float64),
        human=torch.stack([item["human"] for item in good]) if "human" in good[0] else None,
    )


@contextmanager
def feeding(
    data: RunData, timeline: Timeline, ranks: Ranks, config: TrainConfig, step: int, clock: StepClock
) -> Iterator[Iterator[PassBatch]]:
    """Yield an iterator over this rank's passes from `step` to the end of the run.

    Raises:
        TrainingError: a loader process died in the block or at its end.
    """
    # Threads of OpenCV do not survive a fork, and a worker would wait for them for ever: switch them off.
    cv2.setNumThreads(1)
    workers = config.runtime.workers
    loader: DataLoader[Any] = DataLoader(
        _Crops(data.dataset),
        batch_sampler=timeline.batches(step, rank=ranks.rank, world=ranks.world, batch=config.batch_per_rank),
        num_workers=workers,
        collate_fn=partial(_collate, data.classes.num_classes),
        worker_init_fn=init_worker if workers else None,
        # Forked workers share index and store; a fresh interpreter would import torch for seconds.
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=4 if workers else None,
        pin_memory=ranks.device.type == "cuda",
    )
    try:
        with closing(_passes(iter(loader), clock)) as feed:
            yield feed
    except RuntimeError as error:
        # torch reports a dead worker from a signal handler: any line can raise the error, also lines of `close`.
        if "DataLoader worker" not in str(error):
            raise
        raise _death(error) from error


def _passes(loaded: Iterator[PassBatch | HmsaError], clock: StepClock) -> Generator[PassBatch, None, None]:
    try:
        while True:
            with clock.counting("waiting"):
                try:
                    batch = next(loaded)
                except StopIteration:
                    return
                except (ConnectionError, EOFError) as error:  # a worker died while sending a batch
                    raise _death(error) from error
            if isinstance(batch, HmsaError):
                raise batch
            yield batch
    finally:
        del loaded  # ends its workers; a stored traceback must not keep the workers alive


def _death(error: BaseException) -> TrainingError:
    return TrainingError(f"a loader process died: {error}", hint="often too little memory: lower runtime.workers")
