"""Figures beside the mean IoU, from per-image confusions: categories, cities. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.metrics import category_iou, cityscapes_categories, iou_of, mean_iou_of
from hmsa_core.taxonomy import ClassTable, cityscapes
from pipeline.nightly.gate_scores import finite

__all__ = ["by_category", "by_city", "categories_of", "how_run"]

Counts = NDArray[np.int64]


def categories_of(classes: ClassTable) -> tuple[str, ...]:
    """A category for each class: the benchmark's own seven for Cityscapes, else the table's groups."""
    return cityscapes_categories() if classes.classes == cityscapes().classes else classes.groups


def how_run(setting: Mapping[str, Any]) -> str:
    """Scales and flip of a setting, as `{0.5, 1, 2} + flip`, and what of it is not the usual."""
    told = f"{{{', '.join(f'{scale:g}' for scale in setting['scales'])}}}{' + flip' if setting['flip'] else ''}"
    if setting.get("mode", "model") != "model":
        told += f", fused by {setting['mode']}"
    if setting.get("long_edge"):
        told += f", long edge {setting['long_edge']}"
    return told if setting.get("score_at", "original") == "original" else f"{told}, scored at that size"


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
