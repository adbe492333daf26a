"""Confusion counts and intersection over union, as the Cityscapes benchmark defines them.

Rows are the truth, columns the prediction. A class that is in neither is not scored (NaN, left out of
the mean); a class that is only predicted scores 0. Ignored pixels of the truth count nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import InputError
from hmsa_core.taxonomy import ClassTable, cityscapes, cityscapes_categories

Counts = NDArray[np.int64]
Scores = NDArray[np.float64]

# cv2's histogram holds float32 counters, exact up to 2^24: a block stays below 2^24.
_BLOCK_PIXELS = 1 << 22


def confusion_counts(pred: Any, label: Any, num_classes: int, ignore_index: int = 255) -> Counts:
    """Count (truth, prediction) pairs of one or many images of the same shape.

    Args:
        pred: integer array or tensor, any shape. A value that is no class counts as no prediction.
        label: same shape; class 0..C-1 or `ignore_index`, which is left out.
        num_classes: C, at most 255.

    Returns:
        int64 (C, C + 1); the last column holds labelled pixels for which `pred` gave no class.

    Raises:
        InputError: shapes differ, or a label is neither a class nor `ignore_index`.
    """
    if not 1 <= num_classes <= 255:
        raise InputError(f"confusion matrix: num_classes must be 1..255, found {num_classes}")
    pred_u8 = _as_bytes(pred, num_classes, None, "prediction")
    label_u8 = _as_bytes(label, num_classes, ignore_index, "label")
    if pred_u8.shape != label_u8.shape:
        raise InputError(f"confusion matrix: prediction {pred_u8.shape} and label {label_u8.shape} differ in shape")
    table = np.zeros((256, 256), np.int64)
    flat_pred, flat_label = pred_u8.ravel(), label_u8.ravel()
    for start in range(0, flat_label.size, _BLOCK_PIXELS):
        block = slice(start, start + _BLOCK_PIXELS)
        # One pass of cv2 is five times as fast as numpy's bincount of 64-bit pair numbers.
        hist = cv2.calcHist(
            [flat_label[block][None], flat_pred[block][None]], [0, 1], None, [256, 256], [0, 256, 0, 256]
        )
        table += hist.astype(np.int64)
    stray = np.flatnonzero(table.sum(1)[num_classes:255]) + num_classes
    if stray.size:
        raise InputError(
            f"confusion matrix: label {stray[0]} is neither a class 0..{num_classes - 1} nor {ignore_index} (ignore)"
        )
    counts = np.empty((num_classes, num_classes + 1), np.int64)
    counts[:, :num_classes] = table[:num_classes, :num_classes]
    counts[:, num_classes] = table[:num_classes, num_classes:].sum(1)
    return counts


def _as_bytes(values: Any, num_classes: int, ignore_index: int | None, what: str) -> NDArray[np.uint8]:
    """Convert integers to uint8 with 255 = ignored or no prediction; labels outside 0..254 are refused."""
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if array.dtype != np.uint8 and array.dtype.kind not in "iub":
        raise InputError(f"confusion matrix: {what} must hold integers, found {array.dtype}")
    if array.dtype == np.uint8 and ignore_index in (None, 255):
        return np.ascontiguousarray(array)
    is_class = (array >= 0) & (array < num_classes)
    if ignore_index is not None:
        stray = array[~is_class & (array != ignore_index)]
        if stray.size:
            raise InputError(
                f"confusion matrix: {what} {stray.flat[0]} is neither a class 0..{num_classes - 1} "
                f"nor {ignore_index} (ignore)"
            )
        is_class &= array != ignore_index
    return np.where(is_class, array, 255).astype(np.uint8)


def iou_of(counts: Counts | Scores) -> Scores:
    """IoU of each class from counts (..., C, C) or (..., C, C + 1); float64 (..., C), NaN = in neither."""
    num_classes = counts.shape[-2]
    square = counts[..., :num_classes]
    hits = np.diagonal(square, axis1=-2, axis2=-1).astype(np.float64)
    result: Scores = ratio(hits, counts.sum(-1) + square.sum(-2) - hits)
    return result


def mean_iou_of(iou: Scores) -> Any:
    """Mean over the last axis without the NaN classes; NaN when no class is scored."""
    scored = ~np.isnan(iou)
    return ratio(np.where(scored, iou, 0.0).sum(-1), scored.sum(-1))


def ratio(part: Any, whole: Any) -> Any:
    """Divide, with NaN (and no warning) where `whole` is 0."""
    whole = np.asarray(whole, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        result = np.where(whole > 0, np.asarray(part, np.float64) / whole, np.nan)
    return result if result.ndim else float(result)


class ConfusionMatrix:
    """Confusion counts of at most 255 classes summed over images; pixels of label `ignore_index` count nowhere."""

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if not 1 <= num_classes <= 255:
            raise InputError(f"confusion matrix: num_classes must be 1..255, found {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts: Counts = np.zeros((num_classes, num_classes + 1), np.int64)

    def update(self, pred: Any, label: Any) -> ConfusionMatrix:
        """Add a prediction and its label (numpy or torch integers of one shape); return this object."""
        self.counts += confusion_counts(pred, label, self.num_classes, self.ignore_index)
        return self

    def iou(self) -> Scores:
        """float64 (C,): intersection over union, NaN for a class in neither truth nor prediction."""
        return iou_of(self.counts)

    def mean_iou(self) -> float:
        """Mean of `iou` over the classes that are scored."""
        return float(mean_iou_of(self.iou()))


def finite(value: float | np.floating[Any]) -> float | None:
    """Return a float for JSON; None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def by_category(counts: Counts, classes: ClassTable) -> dict[str, float | None]:
    """IoU of groups of classes from counts (C, C) or (C, C + 1), rows = truth; None = in neither.

    A car taken for a bus is right for "vehicle". Groups are the benchmark's seven for Cityscapes, else those of the
    table; "other" holds classes without a group.
    """
    groups = cityscapes_categories() if classes.classes == cityscapes().classes else classes.groups
    result = {}
    for name in dict.fromkeys(group for group in groups if group != "other"):
        inside = np.array([group == name for group in groups])
        columns = np.append(inside, np.zeros(counts.shape[1] - counts.shape[0], bool))
        hits = counts[np.ix_(inside, columns)].sum()
        result[name] = finite(ratio(hits, counts[inside].sum() + counts[:, columns].sum() - hits))
    return result


def by_city(confusions: Counts, cities: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{city: {"images", "mean_iou", "iou": list by class}} from counts (N, C, C); images without one are left out."""
    result: dict[str, dict[str, Any]] = {}
    where = np.asarray(cities, str)
    for city in sorted({c for c in cities if c}):
        iou = iou_of(confusions[where == city].sum(axis=0))
        result[city] = {
            "images": int((where == city).sum()),
            "mean_iou": finite(float(mean_iou_of(iou))),
            "iou": [finite(value) for value in iou],
        }
    return result
