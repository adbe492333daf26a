"""The confusion picture: of the pixels of each true class, the share that is predicted as each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.report.html import Raw, esc, points

__all__ = ["confusion_picture", "largest_confusions"]

_CELL, _NAME = 13, 78  # pixels: a cell's side, the room for names
_FAINT = 0.004  # shares below are not drawn: of 65 classes that saves thousands of empty cells
_LARGEST = 5

Counts = NDArray[np.integer]


def confusion_picture(counts: Counts, names: Sequence[str]) -> Raw:
    """An SVG, rows = truth; each row is scaled to its class's pixels (C x C, or C x (C + 1) with "no prediction")."""
    shares, side = _shares(counts, len(names)), _NAME + _CELL * len(names) + 2
    cells = "".join(
        f"<rect class='share' x='{_NAME + _CELL * j}' y='{_NAME + _CELL * i}' width='{_CELL}' height='{_CELL}' "
        f"fill-opacity='{shares[i, j]:.2f}'><title>{esc(names[i])}, predicted as {esc(names[j])}: "
        f"{points(shares[i, j])} %</title></rect>"
        for i, j in np.argwhere(shares >= _FAINT).tolist()
    )
    rows = "".join(
        f"<text x='{_NAME - 4}' y='{_NAME + _CELL * i + 10}' text-anchor='end'>{esc(_short(name))}</text>"
        f"<text text-anchor='start' transform='translate({_NAME + _CELL * i + 10} {_NAME - 4}) rotate(-90)'>"
        f"{esc(_short(name))}</text>"
        for i, name in enumerate(names)
    )
    frame = f"<rect class='frame' x='{_NAME}' y='{_NAME}' width='{_CELL * len(names)}' height='{_CELL * len(names)}'/>"
    return Raw(
        f"<svg viewBox='0 0 {side} {side}' role='img' aria-label='predicted class (columns) of each true class (rows)'>"
        f"{cells}{frame}{rows}</svg>"
    )


def largest_confusions(counts: Counts, names: Sequence[str]) -> list[tuple[str, str, float, float]]:
    """The (true class, predicted class, share of that class, share of all pixels) that cost most pixels."""
    square = np.asarray(counts)[:, : len(names)].astype(np.float64)
    wrong = square * (1 - np.eye(len(names)))
    shares, whole = _shares(counts, len(names)), max(float(np.sum(counts)), 1.0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_LARGEST]
    at = [divmod(int(k), len(names)) for k in order]
    return [(names[i], names[j], float(shares[i, j]), float(wrong[i, j] / whole)) for i, j in at if wrong[i, j]]


def _shares(counts: Counts, classes: int) -> NDArray[np.float64]:
    found = np.asarray(counts, np.float64)
    total = found.sum(axis=1, keepdims=True)
    shares = np.zeros((classes, classes))
    np.divide(found[:, :classes], total, out=shares, where=total > 0)
    return shares


def _short(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"
