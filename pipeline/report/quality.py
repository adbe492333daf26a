"""Where the models are right and wrong besides mean IoU: categories, boundaries, cities, confusions, confidences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import read_json
from hmsa_core.taxonomy import ClassTable
from pipeline.quality import by_category, by_city
from pipeline.report.confusion import confusion_matrix, largest_confusions
from pipeline.report.html import Raw, esc, number, points, table

__all__ = ["Quality", "read_quality", "section"]

_MODELS = ("teacher", "student", "control", "incumbent", "champion")
_MANY = 30  # classes: from here on one matrix fills the page's width
_SIDE, _LEFT, _BOTTOM, _TOP = 200, 30, 20, 6  # of a diagram, pixels


@dataclass(frozen=True)
class Quality:
    """One judged model under the main setting; what an evaluation without details does not hold is None."""

    mean_iou: float | None
    boundary_iou: float | None
    band_iou: float | None
    ece: float | None
    categories: Mapping[str, float | None]
    cities: Mapping[str, Mapping[str, Any]]
    bins: tuple[tuple[float, float, int], ...]  # (confidence, accuracy, pixels) of each bin that holds pixels
    confusion: NDArray[np.int64]  # C x C, rows = truth


def read_quality(folder: Path, classes: ClassTable, main: str) -> dict[str, Quality]:
    """Of each model in evaluation/, in the order teacher, student, control, incumbent, champion."""
    found = {}
    for model in _MODELS:
        counts, summary = folder / f"confusions-{model}.npz", folder / f"summary-{model}.json"
        if counts.exists() and summary.exists():
            found[model] = _read(counts, read_json(summary)["settings"][main], classes)
    return found


def _read(path: Path, told: Mapping[str, Any], classes: ClassTable) -> Quality:
    with np.load(path) as file:
        confusions, cities = file["confusions"], file["cities"].tolist()
        bins: list[tuple[float, float, int]] = []
        if "reliability_pixels" in file.files:
            rows = zip(*(file[f"reliability_{k}"].tolist() for k in ("confidence", "accuracy", "pixels")), strict=True)
            bins = [(c, a, n) for c, a, n in rows if n]
    return Quality(
        mean_iou=told["mean_iou"],
        boundary_iou=told.get("boundary", {}).get("mean_iou"),
        band_iou=told.get("band", {}).get("mean_iou"),
        ece=told.get("ece"),
        categories=by_category(confusions.sum(axis=0), classes),
        cities=by_city(confusions, cities),
        bins=tuple(bins),
        confusion=confusions.sum(axis=0),
    )


def section(found: Mapping[str, Quality], names: Sequence[str]) -> Raw:
    """Tables and diagrams."""
    if not found:
        return Raw("<p>Nobody was judged.</p>")
    first = next(iter(found.values()))
    overall = [
        ["mean IoU", *(points(q.mean_iou) for q in found.values())],
        ["boundary IoU", *(points(q.boundary_iou) for q in found.values())],
        ["IoU in the band at boundaries", *(points(q.band_iou) for q in found.values())],
        ["calibration error (ECE)", *(points(q.ece) for q in found.values())],
        *([f"category {name}", *(points(q.categories[name]) for q in found.values())] for name in first.categories),
    ]
    cities = [
        [name, row["images"], *(points(q.cities[name]["mean_iou"]) for q in found.values())]
        for name, row in first.cities.items()
    ]
    parts = [
        Raw(
            "<p class='soft'>Main setting, percent points. A category forgives confusions inside it. Boundary IoU: "
            "the inner boundaries of each class (Cheng et al. 2021).</p>"
        ),
        table(["", *found], overall),
    ]
    if cities:
        parts += [Raw("<h3>Mean IoU by city</h3>"), table(["city", "images", *found], cities)]
    drawn = "".join(
        f"<figure class='card'>{_diagram(q.bins)}<figcaption>{esc(name)} · ECE {number(q.ece, 3)}</figcaption></figure>"
        for name, q in found.items()
        if q.bins
    )
    if drawn:
        parts.append(
            Raw(
                "<h3>Reliability: accuracy (up) over confidence (right); dashed: confidence means what it says; the "
                f"area of a dot is its share of the pixels</h3><div class='curves'>{drawn}</div>"
            )
        )
    return Raw("".join([*parts, *_confusions(found, names)]))


def _confusions(found: Mapping[str, Quality], names: Sequence[str]) -> list[Raw]:
    kind = "matrices wide" if len(names) > _MANY else "matrices"
    drawn = "".join(
        f"<figure class='card'>{confusion_matrix(q.confusion, names)}<figcaption>{esc(name)}</figcaption></figure>"
        for name, q in found.items()
    )
    costs = [
        [name, true, predicted, points(share), points(pixels, 2)]
        for name, q in found.items()
        for true, predicted, share, pixels in largest_confusions(q.confusion, names)
    ]
    heading = "<h3>Confusions: of each true class (rows), the share predicted as each class (columns)</h3>"
    if not costs:
        return [Raw(f"{heading}<div class='{kind}'>{drawn}</div>")]
    head = ["", "true class", "predicted as", "% of the class", "% of all pixels"]
    return [
        Raw(f"{heading}<div class='{kind}'>{drawn}</div><details><summary>Those that cost most pixels</summary>"),
        table(head, costs),
        Raw("</details>"),
    ]


def _diagram(bins: Sequence[tuple[float, float, int]]) -> Raw:
    total = sum(pixels for _, _, pixels in bins)
    line = " ".join(f"{_x(c):.1f},{_y(a):.1f}" for c, a, _ in bins)
    dots = "".join(
        f"<circle class='cut' cx='{_x(c):.1f}' cy='{_y(a):.1f}' r='{1.5 + 10 * (n / total) ** 0.5:.1f}'/>"
        for c, a, n in bins
    )
    texts = "".join(
        f"<text x='{_LEFT - 4}' y='{_y(v) + 3:.1f}' text-anchor='end'>{v:g}</text>"
        f"<text x='{_x(v):.1f}' y='{_SIDE - 6}' text-anchor='middle'>{v:g}</text>"
        for v in (0.0, 0.5, 1.0)
    )
    return Raw(
        f"<svg viewBox='0 0 {_SIDE} {_SIDE}' role='img' aria-label='accuracy over confidence'>"
        f"<path class='axis' d='M{_x(0)},{_y(1)} V{_y(0)} H{_x(1)}'/>"
        f"<line class='goal' x1='{_x(0)}' y1='{_y(0)}' x2='{_x(1)}' y2='{_y(1)}'/>"
        f"<polyline class='curve' points='{line}'/>{dots}{texts}</svg>"
    )


def _x(share: float) -> float:
    return float(_LEFT + share * (_SIDE - _LEFT - 12))


def _y(share: float) -> float:
    return float(_SIDE - _BOTTOM - share * (_SIDE - _BOTTOM - _TOP))
