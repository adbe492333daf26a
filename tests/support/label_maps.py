"""Small label maps with confidences for tests of the label store: blobs, smooth confidence, a coarse human label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.labels import LabelStore, LabelStoreWriter
from hmsa_core.taxonomy import ClassTable, cityscapes

UInt8 = NDArray[np.uint8]


def maps(seed: int, shape: tuple[int, int] = (24, 40), num_classes: int = 19) -> tuple[UInt8, NDArray[np.float32]]:
    """A label map of blobs and a smooth confidence in [0, 1] that saturates inside of them."""
    rng = np.random.default_rng(seed)
    height, width = shape
    small = rng.standard_normal((height // 8 + 2, width // 8 + 2, num_classes)).astype(np.float32)
    logits = np.stack(
        [cv2.resize(small[..., c], (width, height), interpolation=cv2.INTER_CUBIC) for c in range(num_classes)]
    )
    logits = logits * rng.uniform(2, 12)
    exps = np.exp(logits - logits.max(axis=0))
    return logits.argmax(axis=0).astype(np.uint8), (1 / exps.sum(axis=0)).astype(np.float32)


def coarse_of(label: UInt8, seed: int) -> UInt8:
    """A human label that covers half of the image and disagrees here and there."""
    rng = np.random.default_rng(seed + 10_000)
    human = np.where(np.arange(label.shape[1]) < label.shape[1] // 2, np.roll(label, 1, axis=0), 255).astype(np.uint8)
    human[: rng.integers(1, 5)] = rng.integers(0, 19)
    return human


def toy_classes(n: int = 5) -> ClassTable:
    """The first n Cityscapes classes with groups that pair up."""
    table = cityscapes()
    groups = ("flat", "flat", "construction", "construction", "thin")
    return ClassTable(
        f"toy{n}",
        table.classes[:n],
        table.colours[:n],
        groups[:n],
        table.id_to_train,
        table.valid_ids,
        table.train_to_id[:n],
    )


def write_store(
    path: Path,
    count: int = 6,
    *,
    per_shard: int = 2,
    lineage: dict[str, Any] | None = None,
    coarse: bool = True,
    shape: tuple[int, int] = (24, 40),
    start: int = 0,
) -> dict[str, tuple[UInt8, NDArray[np.float32], UInt8 | None]]:
    """Write `count` images and return what was written: name -> (label, confidence, human)."""
    given: dict[str, tuple[UInt8, NDArray[np.float32], UInt8 | None]] = {}
    with LabelStoreWriter(path, lineage or {"teacher": "a" * 64}, per_shard) as writer:
        for i in range(start, start + count):
            label, confidence = maps(i, shape)
            human = coarse_of(label, i) if coarse and i % 2 else None
            name = f"city{i % 3}_{i:06d}_000019"
            writer.add(name, label, confidence, city=f"city{i % 3}", image_path=f"img/{name}.png", coarse=human)
            given[name] = (label, confidence, human)
    return given


def opened(path: Path) -> LabelStore:
    """The store, after making sure that nothing is wrong with it."""
    return LabelStore.open(path, strict=True)


def stored(
    path: Path, labels: Mapping[str, Any], lineage: Mapping[str, Any] | None = None, *, classes: Any = None, **row: Any
) -> LabelStore:
    """A new store of these images: name -> label (all of it sure), or (label, confidence)."""
    with LabelStoreWriter(path, dict(lineage or {}), classes=classes) as writer:
        for name, given in labels.items():
            label, confidence = given if isinstance(given, tuple) else (given, np.ones(given.shape, np.float32))
            writer.add(name, label, confidence, **row)
    return opened(path)
