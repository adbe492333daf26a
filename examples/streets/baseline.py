"""How far colour and position alone get: a histogram classifier without any context.

A trained teacher must be far better than this classifier, which sees one pixel at a time: its colour and its place in
the picture. Otherwise the images do not show what the network adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from hmsa_core.metrics import ConfusionMatrix, iou_of
from hmsa_core.taxonomy import IGNORE

Image = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.float32]
_LEVELS = ((16, 16, 8), (8, 8, 8), (4, 4, 4), (1, 16, 1))  # steps per colour channel, rows, columns; finest first
# Power of (class share) that counts are divided by: 0 maximises pixel accuracy, 1 treats all classes alike. 0.5 is best
# for the demo's scenes.
_BALANCE = 0.5
_STRENGTH = 12.0  # a coarser cell counts like this many pixels of the finer one


def _cells(image: Image, level: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    """Cell number of each pixel, int64 (H * W,)."""
    colours, rows, columns = level
    height, width = image.shape[:2]
    rgb = image.astype(np.int64) * colours // 256
    row = np.arange(height, dtype=np.int64)[:, None] * rows // height
    # Streets are roughly symmetric: left is folded onto right, so that the cells hold more pixels.
    across = np.abs(2 * np.arange(width, dtype=np.int64)[None, :] - width + 1)
    column = np.minimum(across * columns // width, columns - 1)
    cell = (rgb[..., 0] * colours + rgb[..., 1]) * colours + rgb[..., 2]
    return np.asarray(((cell * rows + row) * columns + column).reshape(-1))


def colour_position_baseline(
    train_images: Sequence[Image],
    train_labels: Sequence[Image],
    test_images: Iterable[Image],
    test_labels: Iterable[Image],
    num_classes: int,
) -> float:
    """Mean IoU over the classes that the test labels hold; NaN when they hold none.

    Class counts per cell are fitted, and each pixel gets the likeliest class of its cell. Cells of four sizes are
    blended, so that a fine cell without pixels falls back on coarser ones. Images are uint8 (H, W, 3), labels uint8
    (H, W) trainIds; ignored pixels (255) count neither in fitting nor in scoring.
    """
    tables = [np.zeros((c**3 * rows * columns, num_classes), np.float32) for c, rows, columns in _LEVELS]
    for image, label in zip(train_images, train_labels, strict=True):
        flat = label.reshape(-1)
        keep = flat != IGNORE
        for table, level in zip(tables, _LEVELS, strict=True):
            index = _cells(image, level)[keep] * num_classes + flat[keep]
            table += np.bincount(index, minlength=table.size).reshape(table.shape)
    share = tables[-1].sum(axis=0) / max(float(tables[-1].sum()), 1.0)
    weight = np.where(share > 0, 1.0 / np.maximum(share, 1e-9) ** _BALANCE, 0.0).astype(np.float32)
    found = ConfusionMatrix(num_classes)
    for image, label in zip(test_images, test_labels, strict=True):
        found.update(_predict(image, tables, weight).reshape(label.shape), label)
    present = found.counts.sum(axis=1) > 0
    return float(np.mean(iou_of(found.counts)[present])) if present.any() else float("nan")


def _predict(image: Image, tables: list[Counts], weight: Counts) -> npt.NDArray[np.uint8]:
    belief = np.zeros((image.shape[0] * image.shape[1], weight.size), dtype=np.float32)
    for table, level in zip(reversed(tables), reversed(_LEVELS), strict=True):
        counts = table[_cells(image, level)] + _STRENGTH * belief
        belief = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    return np.asarray((belief * weight).argmax(axis=1), np.uint8)
