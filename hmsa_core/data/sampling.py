"""Where each class can be found: centroids of classes in tiles, for class-uniform sampling.

Paper section 4 after Zhu et al. 2019. The released code always uses tiles of 1024 pixels and drops the
remainders at the right and lower edge; here the tile size counts, and `edge` decides about the remainders.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hmsa_core.data.tables import read_table, write_columns
from hmsa_core.io.errors import InputError

__all__ = ["CLASS", "PIXELS", "Centroids", "X", "Y", "class_centroids", "find_centroids"]

Int32 = NDArray[np.int32]
Edge = Literal["drop", "keep"]
CLASS, X, Y, PIXELS = range(4)  # columns of a centroid array
_FORMAT, _VERSION = "hmsa-centroids", 1


def class_centroids(label: NDArray[np.uint8], num_classes: int, tile: int) -> dict[int, list[tuple[int, int]]]:
    """Centroids of each class in each tile, as the released code computes them.

    Args:
        label: HxW trainIds of any integer type; values outside 0..num_classes-1 are ignored.
        num_classes: C.
        tile: side of the square tiles in pixels; remainders at the right and lower edge are dropped.

    Returns:
        {class: [(x, y), ...]} for all C classes, tiles in row-major order; (x, y) is the truncated centre of
        mass, so it may lie outside the class.
    """
    label = np.asarray(label)
    if label.dtype != np.uint8:
        label = np.where((label >= 0) & (label < min(num_classes, 255)), label, 255).astype(np.uint8)
    found: dict[int, list[tuple[int, int]]] = {c: [] for c in range(num_classes)}
    for class_id, x, y, _ in find_centroids(label, num_classes, tile, edge="drop").tolist():
        found[class_id].append((x, y))
    return found


def find_centroids(
    label: NDArray[np.uint8],
    num_classes: int,
    tile: int,
    *,
    min_pixels: int = 0,
    min_component: int = 0,
    edge: Edge = "keep",
) -> Int32:
    """Centroids of one label map: int32 (n, 4), columns class, x, y (pixels, truncated), number of pixels.

    Args:
        label: uint8 HxW trainIds.
        num_classes: C.
        tile: side of the tiles in pixels.
        min_pixels: a class with fewer pixels in a tile gives no centroid.
        min_component: nor does one whose largest connected piece in the tile is smaller.
        edge: "keep" makes smaller tiles of the remainders, "drop" leaves them out (released code).
    """
    if tile < 1:
        raise InputError(f"tile size {tile}: expected at least 1 pixel")
    height, width = label.shape
    rows = []
    for y0 in _starts(height, tile, edge):
        for x0 in _starts(width, tile, edge):
            part = label[y0 : y0 + tile, x0 : x0 + tile]
            for class_id, x, y, pixels in _tile_centroids(part, num_classes):
                if pixels >= max(min_pixels, 1) and _has_component(part, class_id, min_component):
                    rows.append((class_id, x0 + x, y0 + y, pixels))
    return np.array(rows, np.int32).reshape(-1, 4)


def _starts(length: int, tile: int, edge: Edge) -> range:
    return range(0, length if edge == "keep" else length // tile * tile, tile)


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


class Centroids:
    """Centroids of many images, by columns (Vistas has millions).

    Attributes:
        names: names of images, each once.
        image: int32 (n,), position in `names`.
        values: int32 (n, 4), columns class, x, y, pixels.
    """

    def __init__(self, names: Sequence[str] = (), image: Int32 | None = None, values: Int32 | None = None) -> None:
        self.names = tuple(names)
        self.image = np.zeros(0, np.int32) if image is None else image
        self.values = np.zeros((0, 4), np.int32) if values is None else values

    @classmethod
    def collect(cls, parts: Iterable[tuple[str, Int32]]) -> Centroids:
        """Join the arrays of `find_centroids`, given as (image name, array)."""
        given = list(parts)
        image = np.repeat(np.arange(len(given), dtype=np.int32), [len(values) for _, values in given])
        values = np.concatenate([np.zeros((0, 4), np.int32), *(values for _, values in given)])
        return cls([name for name, _ in given], image.astype(np.int32), values)

    def __len__(self) -> int:
        return len(self.image)

    def of(self, names: Collection[str]) -> Centroids:
        """Only the centroids of these images; `names` becomes exactly `names`, in its order."""
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
        table, _ = read_table(Path(path), _FORMAT, _VERSION)
        column = table.column("name").combine_chunks().dictionary_encode()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        numbers = [table.column(c).to_numpy() for c in ("class_id", "x", "y", "pixels")]
        return cls(column.dictionary.to_pylist(), column.indices.to_numpy().astype(np.int32), np.stack(numbers, 1))

    def write(self, path: str | Path, **settings: int | str) -> str:
        """Write Parquet (name, class_id, x, y, pixels) atomically; `settings` go into its metadata."""
        names = pa.DictionaryArray.from_arrays(pa.array(self.image), pa.array(self.names, pa.string()))
        columns = {"name": names.cast(pa.string())}
        for at, name in ((CLASS, "class_id"), (X, "x"), (Y, "y"), (PIXELS, "pixels")):
            columns[name] = pa.array(np.ascontiguousarray(self.values[:, at]))
        meta = {"format": _FORMAT, "version": _VERSION, "settings": settings}
        return write_columns(Path(path), columns, meta)

    @staticmethod
    def settings(path: str | Path) -> dict[str, int | str]:
        """The settings that a centroid table was written with."""
        return dict(read_table(Path(path), _FORMAT, _VERSION)[1]["settings"])
