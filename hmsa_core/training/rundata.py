"""The data of a training run: images, plan, class table, lineage, and the key of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.config import TrainConfig
from hmsa_core.data.dataset import CropDataset
from hmsa_core.data.index import Index, Sample
from hmsa_core.data.plan import EpochPlan
from hmsa_core.data.sampling import Centroids
from hmsa_core.io.atomic import digest, sha256_file
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels import LabelStore
from hmsa_core.lineage import Lineage, learned, lineage_of_checkpoint
from hmsa_core.models import read_meta
from hmsa_core.runtime.distributed import Ranks
from hmsa_core.spec import PseudoData, Selection, TrainSpec
from hmsa_core.taxonomy import ClassTable

__all__ = ["RunData", "open_run_data", "root_of", "select"]

_CACHE_BYTES = 256 << 20  # decoded images a loader process keeps: small data sets are decoded once


@dataclass(frozen=True)
class RunData:
    """What a run learns from.

    Attributes:
        classes: class table of the labels.
        fine, pseudo: images with fine labels, and auto-labelled ones.
        plan: crops of each epoch.
        dataset: crops by position in the run.
        lineage: everything the result will have learned from.
        key: digest of settings and data: the same key means the same result.
    """

    classes: ClassTable
    fine: tuple[Sample, ...]
    pseudo: tuple[Sample, ...]
    plan: EpochPlan
    dataset: CropDataset
    lineage: Lineage
    key: str


@dataclass(frozen=True)
class _Pseudo:
    samples: tuple[Sample, ...]
    centroids: Centroids
    root_name: str
    root: Path
    store: LabelStore


class _LabelsOnly:
    """A label store whose confidence codes are not decoded: training has no use for them."""

    def __init__(self, path: Path) -> None:
        self._store = LabelStore.open(path)

    def read(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return self._store.read_label(name), np.empty((0, 0), np.uint8)


def open_run_data(spec: TrainSpec, ranks: Ranks) -> RunData:
    """Read indexes, centroids and label store of a run, and check that they belong together.

    Raises:
        ConfigError: an empty selection, another class table, a raw store.
        InputError, IntegrityError, StoreError: a file is missing or damaged.
    """
    config = spec.config
    index = Index.load(spec.fine.selection.index)
    fine = tuple(s for s in select(index, spec.fine.selection) if s.label)
    if not fine:
        raise ConfigError(f"{spec.fine.selection.index}: no image with a fine label passes the selection")
    pseudo = _open_pseudo(spec.pseudo, spec, index.classes, ranks) if spec.pseudo is not None else None
    plan = EpochPlan(
        fine,
        Centroids.load(spec.fine.centroids),
        num_classes=index.classes.num_classes,
        seed=config.seed,
        epochs=config.epochs,
        epoch_samples=config.epoch_samples,
        sampling=config.sampling,
        pseudo=pseudo.samples if pseudo else (),
        pseudo_centroids=pseudo.centroids if pseudo else None,
        pseudo_config=config.pseudo,
    )
    dataset = CropDataset(
        plan,
        None,
        root=root_of(spec, index.root),
        classes=index.classes,
        crop=config.crop,
        augment=config.augment,
        open_store=partial(_LabelsOnly, spec.pseudo.store) if spec.pseudo else None,
        pseudo_root=pseudo.root if pseudo else None,
        long_edge=config.long_edge,
        cache_bytes=_CACHE_BYTES,
        verify=True,
    )
    return RunData(
        index.classes,
        fine,
        pseudo.samples if pseudo else (),
        plan,
        dataset,
        lineage=_lineage(spec, learned(fine, root=index.root, source="fine"), pseudo),
        key=_key(spec, fine, pseudo, index.classes),
    )


def select(index: Index, chosen: Selection) -> list[Sample]:
    """Samples of an index that pass a spec's selection."""
    return index.select(roles=chosen.roles, kinds=chosen.kinds, splits=chosen.splits, names=chosen.names)


def root_of(spec: TrainSpec, name: str) -> Path:
    """Folder of a named root."""
    if name not in spec.roots:
        raise ConfigError(f"roots: the folder of root {name!r} is not given, only {', '.join(spec.roots) or 'none'}")
    return spec.roots[name]


def _open_pseudo(chosen: PseudoData, spec: TrainSpec, classes: ClassTable, ranks: Ranks) -> _Pseudo:
    # One rank reads every byte before training starts; the others, and every later read, check what they use.
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
    # By name, as in a store that was made at once: one that grew night by night holds the same images in another order.
    samples = tuple(known[name] for name in sorted(store.names()))
    return _Pseudo(samples, Centroids.load(chosen.centroids), index.root, root_of(spec, index.root), store)


def _lineage(spec: TrainSpec, own: Lineage, pseudo: _Pseudo | None) -> Lineage:
    if pseudo is not None:
        own = own.union(learned(pseudo.samples, root=pseudo.root_name, source="pseudo"))
    for parent in (spec.init_from, spec.teacher):
        if parent is not None:
            digest_of_parent = str(read_meta(parent)["weights_sha256"])
            own = own.union(lineage_of_checkpoint(parent).with_parent(digest_of_parent))
    if pseudo is None:
        return own
    teacher = str(pseudo.store.lineage.get("teacher", "unknown"))
    if teacher in own.parents:
        return own
    gap = f"label store {pseudo.store.digest[:16]}: the images of its teacher ({teacher[:16]}) are not listed"
    return own.union(Lineage(parents=() if teacher == "unknown" else (teacher,), unknown=(gap,)))


def _key(spec: TrainSpec, fine: Sequence[Sample], pseudo: _Pseudo | None, classes: ClassTable) -> str:
    material: dict[str, Any] = {
        "config": _settings(spec.config),
        "classes": classes.digest(),
        "fine": [(s.name, s.image_sha256, s.label_sha256) for s in fine],
        "centroids": sha256_file(spec.fine.centroids),
        "init": read_meta(spec.init_from)["weights_sha256"] if spec.init_from else None,
    }
    if spec.pseudo is not None and pseudo is not None:
        material["pseudo"] = [pseudo.store.digest, sha256_file(spec.pseudo.centroids)]
    return digest(material)


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Settings that a resumed run must share; how it uses the machine may change, its precision may not."""
    values = config.model_dump(mode="json", exclude={"checkpoint_every", "keep_checkpoints", "batch_per_rank"})
    return values | {"runtime": {"precision": config.runtime.precision}}
