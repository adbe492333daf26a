"""Precision–coverage curves as small inline SVGs, one a class, with the cut that the policy chose."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hmsa_core.labels.store.codes import NUM_CODES, ConfidenceCode
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.policy import ThresholdPolicy
from pipeline.report.html import Raw, esc, swatch

__all__ = ["curve_grid"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 220, 130, 30, 20, 6
_FLOOR = 0.5  # lowest precision drawn


def curve_grid(curves: Curves, policy: ThresholdPolicy, target: float) -> Raw:
    """All classes that the teacher gave on these images."""
    total, correct = curves.kept("total").sum(axis=0), curves.kept("correct").sum(axis=0)
    pieces = []
    for c, entry in enumerate(policy.entries):
        if total[c, 0]:
            svg = _svg(total[c], correct[c], entry.code, target)
            label = f"{swatch(curves.classes.colours[c])}{esc(entry.name)}"
            cut = "withheld" if entry.code >= NUM_CODES else f"cut {ConfidenceCode().threshold(entry.code)}"
            pieces.append(f"<figure class='card'>{svg}<figcaption>{label} · {cut}</figcaption></figure>")
    return Raw(f"<div class='curves'>{''.join(pieces)}</div>")


def _svg(total: NDArray[np.int64], correct: NDArray[np.int64], code: int, target: float) -> str:
    used = np.flatnonzero(total)
    coverage, precision = total[used] / total[0], correct[used] / total[used]
    line = " ".join(f"{_x(a):.1f},{_y(b):.1f}" for a, b in zip(coverage, precision, strict=True))
    axis = f"M{_x(0)},{_y(1)} V{_y(_FLOOR)} H{_x(1)}"
    texts = "".join(
        f"<text x='{_LEFT - 4}' y='{_y(v) + 3:.1f}' text-anchor='end'>{v:g}</text>" for v in (0.5, 0.75, 1.0)
    ) + "".join(f"<text x='{_x(v):.1f}' y='{_HEIGHT - 6}' text-anchor='middle'>{v:g}</text>" for v in (0.0, 0.5, 1.0))
    dot = ""
    if code < NUM_CODES and total[code]:
        at, right = total[code] / total[0], correct[code] / total[code]
        dot = f"<circle class='cut' cx='{_x(at):.1f}' cy='{_y(right):.1f}' r='4.5'/>"
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='precision over coverage'>"
        f"<path class='axis' d='{axis}'/><line class='goal' x1='{_x(0)}' x2='{_x(1)}' y1='{_y(target):.1f}' "
        f"y2='{_y(target):.1f}'/><polyline class='curve' points='{line}'/>{dot}{texts}</svg>"
    )


def _x(coverage: float) -> float:
    return float(_LEFT + coverage * (_WIDTH - _LEFT - 8))


def _y(precision: float) -> float:
    share = (min(1.0, max(_FLOOR, float(precision))) - _FLOOR) / (1.0 - _FLOOR)
    return float(_HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP))
