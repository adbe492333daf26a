"""Centroids of classes in images, and the random choices of crops.

Centroids of classes in tiles serve class-uniform sampling (paper section 4 after Zhu et al. 2019). The released code
always uses tiles of 1024 pixels and drops remainders at the right and lower edge; here remainders are smaller tiles.

Random choices never change: raw PCG64 output, permutations by sorting, shares by filling up. numpy guarantees the
stream of its bit generators across versions, not that of `Generator`'s methods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hmsa_core.data.tables import Table, write_table
from hmsa_core.io.errors import InputError

Int32 = NDArray[np.int32]
CLASS, X, Y, PIXELS = range(4)  # columns of a centroid array
_FORMAT, _VERSION = "hmsa-centroids", 2
_GROUP = 1 << 18  # rows that are written together


def find_centroids(
    label: NDArray[np.uint8], num_classes: int, tile: int, *, min_pixels: int = 0, min_component: int = 0
) -> Int32:
    """Centroids of one label map: int32 (n, 4), columns class, x, y (pixels, truncated), number of pixels.

    Args:
        label: uint8 HxW trainIds of `num_classes` classes.
        tile: side of the tiles in pixels.
        min_pixels: a class with fewer pixels in a tile gives no centroid.
        min_component: pixels. A class whose largest connected piece in the tile is smaller gives no centroid either.
    """
    if tile < 1:
        raise InputError(f"tile size {tile}: expected at least 1 pixel")
    height, width = label.shape
    rows = []
    for y0 in range(0, height, tile):
        for x0 in range(0, width, tile):
            part = label[y0 : y0 + tile, x0 : x0 + tile]
            for class_id, x, y, pixels in _tile_centroids(part, num_classes):
                if pixels >= max(min_pixels, 1) and _has_component(part, class_id, min_component):
                    rows.append((class_id, x0 + x, y0 + y, pixels))
    return np.array(rows, np.int32).reshape(-1, 4)


def _tile_centroids(part: NDArray[np.uint8], num_classes: int) -> list[tuple[int, int, int, int]]:
    """(class, x, y, pixels) of the classes in a tile, from the number of their pixels in each row and column."""
    height, width = part.shape
    present = cv2.calcHist([part], [0], None, [256], [0, 256]).ravel()[:num_classes] > 0
    found = []
    for class_id in np.flatnonzero(present).tolist():
        mask = (part == class_id).view(np.uint8)
        rows, columns = (cv2.reduce(mask, d, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() for d in (1, 0))
        pixels = int(rows.sum(dtype=np.int64))
        # Integer division is the truncated centre of mass, without any rounding of floats.
        x = int(np.arange(width) @ columns.astype(np.int64)) // pixels
        y = int(np.arange(height) @ rows.astype(np.int64)) // pixels
        found.append((class_id, x, y, pixels))
    return found


def _has_component(part: NDArray[np.uint8], class_id: int, minimum: int) -> bool:
    if minimum <= 1:
        return True
    mask = (part == class_id).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return bool(stats[1:, cv2.CC_STAT_AREA].max(initial=0) >= minimum)


@dataclass(eq=False)
class Centroids:
    """Centroids of many images, stored by columns (Vistas has millions)."""

    names: Sequence[str] = ()  # image names, each once
    image: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))  # (n,), position in `names`
    values: Int32 = field(default_factory=lambda: np.zeros((0, 4), np.int32))  # columns class, x, y, pixels
    settings: dict[str, int | str] = field(default_factory=dict)  # settings that the table was written with

    @classmethod
    def collect(cls, parts: Iterable[tuple[str, Int32]]) -> Centroids:
        """Join the arrays of `find_centroids`, given as (image name, array)."""
        given = list(parts)
        image = np.repeat(np.arange(len(given), dtype=np.int32), [len(values) for _, values in given])
        values = np.concatenate([np.zeros((0, 4), np.int32), *(values for _, values in given)])
        return cls(tuple(name for name, _ in given), image.astype(np.int32), values)

    def __len__(self) -> int:
        return len(self.image)

    def of(self, names: Collection[str]) -> Centroids:
        """Return only the centroids of these images; the result's `names` are `names`, in its order."""
        place = {name: i for i, name in enumerate(names)}
        moved = np.array([place.get(name, -1) for name in self.names], np.int32)
        image = moved[self.image] if len(self) else self.image
        keep = image >= 0
        return Centroids(tuple(place), image[keep], self.values[keep])

    def split(self) -> dict[str, Int32]:
        """Arrays by image name; images without any centroid are left out."""
        order = np.argsort(self.image, kind="stable")
        images, starts = np.unique(self.image[order], return_index=True)
        parts = np.split(self.values[order], starts[1:])
        return {self.names[i]: part for i, part in zip(images, parts, strict=bool(len(images)))}

    def counts(self, num_classes: int) -> NDArray[np.int64]:
        """Number of centroids of each class, int64 (C,)."""
        return np.bincount(self.values[:, CLASS], minlength=num_classes)[:num_classes].astype(np.int64)

    @classmethod
    def load(cls, path: str | Path) -> Centroids:
        """Read a centroid table; InputError when it is missing, IntegrityError when it is damaged."""
        opened = Table(Path(path), _FORMAT, _VERSION)
        table = opened.whole()
        column = table.column("name").combine_chunks().dictionary_encode()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        numbers = [table.column(c).to_numpy() for c in ("class_id", "x", "y", "pixels")]
        names, image = tuple(column.dictionary.to_pylist()), column.indices.to_numpy().astype(np.int32)
        return cls(names, image, np.stack(numbers, 1), dict(opened.meta["settings"]))

    def write(self, path: str | Path, **settings: int | str) -> str:
        """Write Parquet (name, class_id, x, y, pixels) atomically; `settings` go into its metadata."""
        names = pa.DictionaryArray.from_arrays(pa.array(self.image), pa.array(self.names, pa.string()))
        columns = {"name": names.cast(pa.string())}
        for at, name in ((CLASS, "class_id"), (X, "x"), (Y, "y"), (PIXELS, "pixels")):
            columns[name] = pa.array(np.ascontiguousarray(self.values[:, at]))
        meta = {"format": _FORMAT, "version": _VERSION, "settings": settings}
        table = pa.table(columns)
        parts = (table.slice(at, _GROUP) for at in range(0, len(table), _GROUP))
        return write_table(Path(path), parts, table.schema, meta)


# ---- Random choices


def raw(*key: int, count: int) -> NDArray[np.uint64]:
    """Return `count` random 64-bit numbers, a function of the key, which is any sequence of integers."""
    # Hashed first: numpy's SeedSequence confuses (1,) with (1, 0), and a long number with two short ones.
    text = ",".join(str(int(part)) for part in key)
    words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), "<u4")
    return np.random.PCG64(np.random.SeedSequence(words.tolist())).random_raw(count)


def permutation(n: int, *key: int) -> NDArray[np.intp]:
    """Return a random order of 0..n-1, a function of the key."""
    return np.argsort(raw(*key, count=n), kind="stable")


def allot(
    total: int, share: float, capacity: Sequence[int], order: Iterable[int], *, released: bool
) -> tuple[list[int], int]:
    """Divide `total` crops between classes and random images.

    Args:
        total, share: crops of an epoch, and the part of them that is chosen by class.
        capacity: most crops of each class (0 = the class has no centroid).
        order: order in which classes get the left-overs of uneven divisions.
        released: as the released code: int(total * share / C) each, an empty class's part is lost, no caps.

    Returns:
        Crops of each class, and crops of random images. Unless `released`, they add up to `total`. The part of an empty
        or capped class goes to the other classes, and crops that no class can take go to random images.
    """
    classes = len(capacity)
    if released:
        each = int(total * share / classes) if classes else 0
        return [each if most else 0 for most in capacity], total - each * classes
    filled, left = [0] * classes, int(total * share)
    open_classes = [int(c) for c in order if capacity[c] > 0]
    # All classes below capacity have equal numbers at any time, so the result is as even as the capacities allow.
    while left and open_classes:
        each = left // len(open_classes)
        for c in open_classes if each else open_classes[:left]:
            taken = min(max(each, 1), capacity[c] - filled[c])
            filled[c] += taken
            left -= taken
        open_classes = [c for c in open_classes if filled[c] < capacity[c]]
    return filled, total - sum(filled)


def cycle_capped(rows: NDArray[np.integer], owners: NDArray[np.integer], wanted: int, cap: int) -> list[np.integer]:
    """Take `wanted` rows from `rows` in turn, again from the start if needed; each owner gives at most `cap` rows.

    `rows` are centroids of one class, `owners` the image of each. The caller requests no more than the caps allow.
    """
    chosen: list[np.integer] = []
    used: dict[int, int] = {}
    while len(chosen) < wanted:
        before = len(chosen)
        for row, owner in zip(rows, owners.tolist(), strict=True):
            if used.get(owner, 0) < cap:
                used[owner] = used.get(owner, 0) + 1
                chosen.append(row)
                if len(chosen) == wanted:
                    return chosen
        if len(chosen) == before:
            raise ValueError(f"{len(set(owners.tolist()))} images with cap {cap} cannot give {wanted} crops")
    return chosen
