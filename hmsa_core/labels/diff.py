"""What changed between two label stores: per class, per pair of classes, and in which images most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import write_bytes
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels.exporting import Selection
from hmsa_core.labels.store.format import plain_path, png_bytes
from hmsa_core.taxonomy import IGNORE

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class StoreDiff:
    """Counts over the images that both stores have."""

    classes: tuple[str, ...]
    pixels: NDArray[np.int64]  # (C+1, C+1), class in A x class in B; the last row and column is ignore
    images: list[tuple[str, int, int]]  # (name, changed pixels, all pixels), most changed share first
    only_a: list[str]
    only_b: list[str]
    resized: list[str]  # names whose maps differ in size (not compared)
    other_pictures: list[str]  # names that both stores give to different pictures (not compared)

    def to_json(self, limit: int | None = None) -> dict[str, Any]:
        """A JSON object; `limit` cuts the list of images."""
        names = [*self.classes, "ignore"]
        whole = int(self.pixels.sum())
        changed = whole - int(np.trace(self.pixels))
        moves = self.pixels - np.diag(np.diag(self.pixels))
        order = sorted(np.argwhere(moves).tolist(), key=lambda ij: (-int(moves[ij[0], ij[1]]), ij))
        return {
            "images": len(self.images),
            "pixels": whole,
            "changed": changed,
            "changed_share": changed / whole if whole else 0.0,
            "classes": [
                {
                    "name": name,
                    "a": int(self.pixels[i].sum()),
                    "b": int(self.pixels[:, i].sum()),
                    "same": int(self.pixels[i, i]),
                    "lost": int(moves[i].sum()),
                    "gained": int(moves[:, i].sum()),
                }
                for i, name in enumerate(names)
            ],
            "moves": [{"a": names[i], "b": names[j], "pixels": int(moves[i, j])} for i, j in order],
            "most_changed": [{"name": n, "changed": c, "share": c / p} for n, c, p in self.images[:limit] if c],
            "only_a": self.only_a,
            "only_b": self.only_b,
            "resized": self.resized,
            "other_pictures": self.other_pictures,
        }


def other_pictures(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """Names that two stores ({name: SHA-256}) give to different pictures, as far as both know what they labelled."""
    return [name for name, sha256 in a.items() if sha256 and b.get(name) and b[name] != sha256]


def diff_stores(a: Selection, b: Selection, *, advance: Callable[[int], None] = lambda _count: None) -> StoreDiff:
    """Compare the labels of two stores, as they are or at thresholds.

    Raises:
        ConfigError: the names of the classes differ. StoreError: a shard of either is damaged.
    """
    one, other = a.store, b.store
    if one.classes.classes != other.classes.classes:
        raise ConfigError(
            f"{one.path} has classes {one.classes.name}, {other.path} {other.classes.name}: nothing to compare"
        )
    c = one.classes.num_classes
    pixels = np.zeros((c + 1, c + 1), np.int64)
    images, resized = [], []
    others = other_pictures(one.pictures(), other.pictures())
    skipped = set(others)
    for name in (name for name in one.names() if name in other):
        advance(1)
        if name in skipped:
            continue
        label_a, label_b = a.read(name)[0], b.read(name)[0]
        if label_a.shape != label_b.shape:
            resized.append(name)
            continue
        counts = _confusion(label_a, label_b, c)
        pixels += counts
        images.append((name, int(counts.sum() - np.trace(counts)), label_a.size))
    images.sort(key=lambda row: (-row[1] / row[2], row[0]))
    only_a, only_b = [n for n in one.names() if n not in other], [n for n in other.names() if n not in one]
    return StoreDiff(one.classes.classes, pixels, images, only_a, only_b, resized, others)


def _confusion(one: Labels, other: Labels, num_classes: int) -> NDArray[np.int64]:
    size = num_classes + 1
    fold = np.minimum(np.arange(256), num_classes)
    key = fold[one] * size + fold[other]
    return np.bincount(key.reshape(-1), minlength=size * size).reshape(size, size)


def write_pictures(diff: StoreDiff, a: Selection, b: Selection, out: str | Path, *, limit: int = 10) -> list[Path]:
    """PNGs of the most changed images: A, B and what changed (B's colours, grey where nothing did), side by side."""
    palette = a.store.classes.palette()
    written = []
    for rank, (name, changed, _) in enumerate(diff.images[:limit], 1):
        if not changed:
            break
        label_a, label_b = a.read(name)[0], b.read(name)[0]
        moved = label_a != label_b
        third = np.where(moved[..., None], palette[label_b], np.uint8(64))
        third[moved & (label_b == IGNORE)] = (255, 255, 255)  # lost: white, so that it is not taken for "same"
        gap = np.full((label_a.shape[0], 4, 3), 128, np.uint8)
        picture = np.concatenate([palette[label_a], gap, palette[label_b], gap, third.astype(np.uint8)], axis=1)
        path = plain_path(Path(out), "", f"{rank:03d}-{name}.png")
        write_bytes(path, png_bytes(picture))
        written.append(path)
    return written
