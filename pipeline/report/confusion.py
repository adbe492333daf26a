"""The confusion matrix of the report: of the pixels of each true class, the share that is predicted as each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.plots import row_shares
from pipeline.report.html import Raw, esc, points

__all__ = ["confusion_matrix", "largest_confusions"]

_CELL, _NAME = 13, 78  # pixels: a cell's side, the room for names
_FAINT = 0.005  # shares below are not drawn: of 65 classes that saves thousands of empty cells
_LARGEST = 5
_LETTERS = 14

Counts = NDArray[np.integer]


def confusion_matrix(counts: Counts, names: Sequence[str]) -> Raw:
    """An SVG of counts (C, C), rows = truth; each row is scaled to its class's pixels, so that rare ones show too."""
    shares, side = row_shares(counts), _CELL * len(names)
    cells = "".join(
        f"<rect class='share' x='{_NAME + _CELL * j}' y='{_NAME + _CELL * i}' width='{_CELL}' height='{_CELL}' "
        f"fill-opacity='{shares[i, j]:.2f}'><title>{esc(names[i])}, predicted as {esc(names[j])}: "
        f"{points(shares[i, j])} %</title></rect>"
        for i, j in np.argwhere(shares >= _FAINT).tolist()
    )
    labels = "".join(
        f"<text x='{_NAME - 4}' y='{_NAME + _CELL * i + 10}' text-anchor='end'>{_label(name)}</text>"
        f"<text text-anchor='start' transform='translate({_NAME + _CELL * i + 10} {_NAME - 4}) rotate(-90)'>"
        f"{_label(name)}</text>"
        for i, name in enumerate(names)
    )
    whole = _NAME + side + 2
    return Raw(
        f"<svg viewBox='0 0 {whole} {whole}' role='img' aria-label='predicted class (columns) of each true class "
        f"(rows)'>{cells}<rect class='frame' x='{_NAME}' y='{_NAME}' width='{side}' height='{side}'/>{labels}</svg>"
    )


def largest_confusions(counts: Counts, names: Sequence[str]) -> list[tuple[str, str, float, float]]:
    """The (true class, predicted class, share of that class, share of all pixels) that cost most pixels."""
    wrong = counts.astype(np.float64) * (1 - np.eye(len(names)))
    shares, whole = row_shares(counts), max(float(counts.sum()), 1.0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_LARGEST]
    at = [divmod(int(k), len(names)) for k in order]
    return [(names[i], names[j], float(shares[i, j]), float(wrong[i, j] / whole)) for i, j in at if wrong[i, j]]


def _label(name: str) -> Raw:
    """A name short enough for its place, whole under the pointer; Mapillary's begin alike and differ at the end."""
    half = _LETTERS // 2
    short = name if len(name) <= _LETTERS else f"{name[:half]}…{name[1 - half :]}"
    return Raw(f"{esc(short)}<title>{esc(name)}</title>")
