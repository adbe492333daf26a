"""Report section beyond mean IoU: categories, boundaries, cities, confusions and reliability of the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import read_json
from hmsa_core.metrics import by_category, by_city
from hmsa_core.taxonomy import ClassTable
from pipeline.report.charts import card, confusion_matrix, reliability
from pipeline.report.render import Raw, Share, Table, number
from pipeline.workspace.counts import read_counts, row_shares

_MODELS = ("teacher", "student", "control", "incumbent", "champion")
_MANY = 30  # classes; a matrix of more classes fills the page's width
_LARGEST = 5  # number of confusions that are listed


@dataclass(frozen=True)
class Quality:
    """Figures of a judged model under the main setting; None = missing from an evaluation without details."""

    summary: Mapping[str, Any]  # the summary of the model: mean_iou, boundary, band, ece
    categories: Mapping[str, float | None]
    cities: Mapping[str, Mapping[str, Any]]
    bins: tuple[tuple[float, float, int], ...]  # (confidence, accuracy, pixels) of each bin that holds pixels
    confusion: NDArray[np.int64]  # C x C, rows = truth


def read_quality(folder: Path, classes: ClassTable, main: str) -> dict[str, Quality]:
    """Read each model's figures in evaluation/, in the order teacher, student, control, incumbent, champion."""
    found = {}
    for model in _MODELS:
        counts, summary = folder / f"confusions-{model}.npz", folder / f"summary-{model}.json"
        if counts.exists() and summary.exists():
            found[model] = _read(counts, read_json(summary)["settings"][main], classes)
    return found


def _read(path: Path, summary: Mapping[str, Any], classes: ClassTable) -> Quality:
    confusions, cities = read_counts(path, "confusions", "cities")
    diagram = (f"reliability_{key}" for key in ("confidence", "accuracy", "pixels"))
    columns = read_counts(path, *diagram) if "ece" in summary else ()  # an evaluation with details
    bins = tuple((c, a, n) for c, a, n in zip(*(column.tolist() for column in columns), strict=True) if n)
    total = confusions.sum(axis=0)
    return Quality(summary, by_category(total, classes), by_city(confusions, cities.tolist()), bins, total)


def section(found: Mapping[str, Quality], names: Sequence[str]) -> Raw:
    """Tables and diagrams of the judged models as HTML."""
    if not found:
        return Raw("<p>Nobody was judged.</p>")
    first = next(iter(found.values()))
    overall = [["mean IoU", *(Share(q.summary["mean_iou"]) for q in found.values())]]
    for name, key in (("boundary IoU", "boundary"), ("IoU in the band at boundaries", "band")):
        overall.append([name, *(Share(q.summary.get(key, {}).get("mean_iou")) for q in found.values())])
    overall.append(["calibration error (ECE)", *(Share(q.summary.get("ece")) for q in found.values())])
    overall += [[f"category {name}", *(Share(q.categories[name]) for q in found.values())] for name in first.categories]
    parts = [
        "<p class='soft'>Main setting, percent points. A category forgives confusions inside it. Boundary IoU: "
        "the inner boundaries of each class (Cheng et al. 2021).</p>",
        Table(["", *found], overall).html(),
    ]
    cities = [
        [name, row["images"], *(Share(q.cities[name]["mean_iou"]) for q in found.values())]
        for name, row in first.cities.items()
    ]
    if cities:
        parts += ["<h3>Mean IoU by city</h3>", Table(["city", "images", *found], cities).html()]
    drawn = [
        card(reliability(q.bins), f"{name} · ECE {number(q.summary.get('ece'), 3)}")
        for name, q in found.items()
        if q.bins
    ]
    if drawn:
        parts.append(
            "<h3>Reliability: accuracy (up) over confidence (right); dashed: confidence means what it says; the "
            f"area of a dot is its share of the pixels</h3><div class='curves'>{''.join(drawn)}</div>"
        )
    return Raw("".join([*parts, _confusions(found, names)]))


def _confusions(found: Mapping[str, Quality], names: Sequence[str]) -> str:
    kind = "matrices wide" if len(names) > _MANY else "matrices"
    drawn = "".join(card(confusion_matrix(q.confusion, names), name) for name, q in found.items())
    costs = [[name, *cost] for name, q in found.items() for cost in _largest(q.confusion, names)]
    heading = "<h3>Confusions: of each true class (rows), the share predicted as each class (columns)</h3>"
    matrices = f"{heading}<div class='{kind}'>{drawn}</div>"
    if not costs:
        return matrices
    listed = Table(["", "true class", "predicted as", "% of the class", "% of all pixels"], costs).html()
    return f"{matrices}<details><summary>Those that cost most pixels</summary>{listed}</details>"


def _largest(counts: NDArray[np.int64], names: Sequence[str]) -> list[list[object]]:
    """Confusions with most pixels: [true class, predicted class, share of the true class, share of all pixels]."""
    wrong = counts.astype(np.float64) * (1 - np.eye(len(names)))
    shares, total = row_shares(counts), max(float(counts.sum()), 1.0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_LARGEST]
    cells = [(i, j) for i, j in (divmod(int(k), len(names)) for k in order) if wrong[i, j]]
    return [[names[i], names[j], Share(shares[i, j]), Share(wrong[i, j] / total, digits=2)] for i, j in cells]
