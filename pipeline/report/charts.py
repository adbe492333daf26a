"""Inline SVGs of the report: precision over coverage, accuracy over confidence, the confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hmsa_core.labels.store.codes import NUM_CODES, ConfidenceCode
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.policy import ThresholdPolicy
from pipeline.report.render import Name, Raw, esc, points
from pipeline.workspace.counts import row_shares

_CELL, _MARGIN = 13, 78  # pixels: side of a cell of the matrix, room for names
_FAINT = 0.005  # smaller shares are not drawn: for 65 classes that saves thousands of empty cells
_LETTERS = 14

Counts = NDArray[np.integer]
Point = tuple[float, float]


def card(svg: object, caption: object) -> str:
    """A picture with its caption."""
    return f"<figure class='card'>{svg}<figcaption>{esc(caption)}</figcaption></figure>"


@dataclass(frozen=True)
class _Axes:
    """A diagram of shares: x in [0, 1], y in [floor, 1]; sizes in pixels."""

    width: int
    height: int
    floor: float
    right: int  # margin
    left: int = 30
    bottom: int = 20
    top: int = 6

    def x(self, share: float) -> str:
        return f"{self.left + share * (self.width - self.left - self.right):.1f}"

    def y(self, share: float) -> str:
        inside = (min(1.0, max(self.floor, share)) - self.floor) / (1.0 - self.floor)
        return f"{self.height - self.bottom - inside * (self.height - self.bottom - self.top):.1f}"

    def svg(self, label: str, *, goal: tuple[Point, Point], line: Iterable[Point], dots: str) -> Raw:
        """SVG with axes, the dashed goal line, the curve and the dots."""
        ticks = "".join(
            f"<text x='{self.left - 4}' y='{float(self.y(v)) + 3:.1f}' text-anchor='end'>{v:g}</text>"
            for v in (self.floor, (1 + self.floor) / 2, 1.0)
        ) + "".join(
            f"<text x='{self.x(v)}' y='{self.height - 6}' text-anchor='middle'>{v:g}</text>" for v in (0.0, 0.5, 1.0)
        )
        (x1, y1), (x2, y2) = goal
        return Raw(
            f"<svg viewBox='0 0 {self.width} {self.height}' role='img' aria-label='{label}'>"
            f"<path class='axis' d='M{self.x(0)},{self.y(1)} V{self.y(self.floor)} H{self.x(1)}'/>"
            f"<line class='goal' x1='{self.x(x1)}' y1='{self.y(y1)}' x2='{self.x(x2)}' y2='{self.y(y2)}'/>"
            f"<polyline class='curve' points='{' '.join(f'{self.x(a)},{self.y(b)}' for a, b in line)}'/>"
            f"{dots}{ticks}</svg>"
        )

    def dot(self, at: Point, radius: float) -> str:
        """SVG circle that marks one point."""
        return f"<circle class='point' cx='{self.x(at[0])}' cy='{self.y(at[1])}' r='{radius:.1f}'/>"


_CURVE = _Axes(220, 130, floor=0.5, right=8)
_SQUARE = _Axes(200, 200, floor=0.0, right=12)


def curve_grid(curves: Curves, policy: ThresholdPolicy, target: float) -> Raw:
    """Draw precision over coverage of each class that the teacher predicted, and mark the policy's threshold."""
    total, correct = curves.kept("total").sum(axis=0), curves.kept("correct").sum(axis=0)
    pieces = []
    for c, entry in enumerate(policy.entries):
        if total[c, 0]:
            name = Name(entry.name, curves.classes.colours[c]).html()
            withheld = entry.code >= NUM_CODES
            threshold = "withheld" if withheld else f"threshold {ConfidenceCode().threshold(entry.code)}"
            pieces.append(card(_curve(total[c], correct[c], entry.code, target), Raw(f"{name} · {threshold}")))
    return Raw(f"<div class='curves'>{''.join(pieces)}</div>")


def _curve(total: NDArray[np.int64], correct: NDArray[np.int64], code: int, target: float) -> Raw:
    used = np.flatnonzero(total)
    line = dict(zip(used, zip(total[used] / total[0], correct[used] / total[used], strict=True), strict=True))
    axes = replace(_CURVE, floor=0.0) if any(precision < _CURVE.floor for _, precision in line.values()) else _CURVE
    dot = axes.dot(line[code], 4.5) if code in line else ""
    return axes.svg("precision over coverage", goal=((0, target), (1, target)), line=line.values(), dots=dot)


def reliability(bins: Sequence[tuple[float, float, int]]) -> Raw:
    """Draw accuracy over confidence of bins (confidence, accuracy, pixels); a dot's area is its share of the pixels."""
    total, line = sum(pixels for _, _, pixels in bins), [(c, a) for c, a, _ in bins]
    dots = "".join(_SQUARE.dot((c, a), 1.5 + 10 * (n / total) ** 0.5) for c, a, n in bins)
    return _SQUARE.svg("accuracy over confidence", goal=((0, 0), (1, 1)), line=line, dots=dots)


def confusion_matrix(counts: Counts, names: Sequence[str]) -> Raw:
    """Draw counts (C, C), rows = truth; each row is divided by its class's pixels, so that rare classes are visible."""
    shares, side = row_shares(counts), _CELL * len(names)
    cells = "".join(
        f"<rect class='share' x='{_MARGIN + _CELL * j}' y='{_MARGIN + _CELL * i}' width='{_CELL}' height='{_CELL}' "
        f"fill-opacity='{shares[i, j]:.2f}'><title>{esc(names[i])}, predicted as {esc(names[j])}: "
        f"{points(shares[i, j])} %</title></rect>"
        for i, j in np.argwhere(shares >= _FAINT).tolist()
    )
    labels = "".join(
        f"<text x='{_MARGIN - 4}' y='{_MARGIN + _CELL * i + 10}' text-anchor='end'>{_short(name)}</text>"
        f"<text text-anchor='start' transform='translate({_MARGIN + _CELL * i + 10} {_MARGIN - 4}) rotate(-90)'>"
        f"{_short(name)}</text>"
        for i, name in enumerate(names)
    )
    whole = _MARGIN + side + 2
    return Raw(
        f"<svg viewBox='0 0 {whole} {whole}' role='img' aria-label='predicted class (columns) of each true class "
        f"(rows)'>{cells}<rect class='frame' x='{_MARGIN}' y='{_MARGIN}' width='{side}' height='{side}'/>{labels}</svg>"
    )


def _short(name: str) -> Raw:
    """Shorten a name to its space, full name as tooltip; its end stays, since Mapillary's names begin alike."""
    half = _LETTERS // 2
    short = name if len(name) <= _LETTERS else f"{name[:half]}…{name[1 - half :]}"
    return Raw(f"{esc(short)}<title>{esc(name)}</title>")
