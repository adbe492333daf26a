"""Counts of evaluate jobs and of `calibrate`: read from their files, and the figures beside mean IoU that they give."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import IntegrityError, one_line
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.metrics import category_iou, cityscapes_categories, iou_of, mean_iou_of
from hmsa_core.taxonomy import ClassTable, cityscapes

__all__ = ["by_category", "by_city", "categories_of", "finite", "read_counts", "read_pairs", "row_shares"]

Counts = NDArray[np.int64]


def finite(value: float | np.floating[Any]) -> float | None:
    """A float for JSON; None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def row_shares(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Each row over its sum, float64 of the same shape; zeros where the sum is zero."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.zeros(counts.shape)
    np.divide(counts, totals, out=shares, where=totals > 0)
    return shares


def categories_of(classes: ClassTable) -> tuple[str, ...]:
    """A category for each class: the benchmark's own seven for Cityscapes, else the table's groups."""
    return cityscapes_categories() if classes.classes == cityscapes().classes else classes.groups


def by_category(counts: Counts, classes: ClassTable) -> dict[str, float | None]:
    """IoU of each category from the counts of all images (C, C), rows = truth; None = in neither."""
    return {name: finite(value) for name, value in category_iou(counts, categories_of(classes)).items()}


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


def read_counts(path: Path, *wanted: str) -> tuple[NDArray[Any], ...]:
    """Arrays of an evaluate job's file (`<setting>.npz`, published as evaluation/confusions-MODEL.npz), by name.

    Raises:
        IntegrityError: it is missing or damaged; the hint says what makes it anew.
    """
    place = "it" if path.name.startswith("confusions-") else f"the folder {path.parent}"
    return _arrays(path, wanted, f"delete {place}, then `dvc repro --force --single-item evaluate`")


def read_pairs(path: Path, num_classes: int) -> NDArray[np.int64]:
    """Pixels of (human class, class, code) on calibration images, the last human class is "none": int64 (C+1, C, 256).

    Raises:
        IntegrityError: the file is damaged, or counted for another number of classes.
    """
    mend = "delete it, then `dvc repro --force --single-item calibrate`; without it coarse labels correct no precision"
    (found,) = _arrays(path, ("pairs",), mend)
    expected = (num_classes + 1, num_classes, NUM_CODES)
    if found.shape != expected or found.dtype.kind not in "iu":
        said = f"{found.dtype.name} {found.shape}, expected whole numbers {expected}"
        raise IntegrityError(f"{path}: holds no counts of these classes ({said})", hint=mend)
    return np.asarray(found, np.int64)


def _arrays(path: Path, wanted: tuple[str, ...], mend: str) -> tuple[NDArray[Any], ...]:
    try:
        with zipfile.ZipFile(path) as file:
            members = [file.read(f"{name}.npy") for name in wanted]  # whole: numpy alone reads past a wrong checksum
        return tuple(np.lib.format.read_array(io.BytesIO(member), allow_pickle=False) for member in members)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise IntegrityError(f"{path}: no counts can be read from it ({one_line(error)})", hint=mend) from error
