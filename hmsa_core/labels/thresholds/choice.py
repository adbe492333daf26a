"""A threshold (the code from which on a class is kept) and its figures: what is kept, how often that is right."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmsa_core.labels.store.codes import NUM_CODES, ConfidenceCode
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.intervals import effective_blocks, interval
from hmsa_core.labels.thresholds.policy import WITHHELD, Status

Floats = NDArray[np.float64]
_CODE = ConfidenceCode()


class ClassThreshold(NamedTuple):
    """What a rule decides for one class: the code (256 = withheld), its status, the reason in words, and evidence."""

    code: int
    status: Status
    reason: str
    evidence: dict[str, Any]


class Choice(NamedTuple):
    """What a rule decides: one threshold per class in trainId order, and evidence (`target`, if it is another)."""

    thresholds: list[ClassThreshold]
    evidence: dict[str, Any]


def marginal_ends(total: NDArray[Any], share: float) -> NDArray[np.intp]:
    """End m of each code's marginal bin: codes k..m-1 hold about `share` of all pixels, the lowest ones kept.

    The bin stops before a code that would take it past `share`, so that a heap of sure pixels at the top never
    hides what lies just above the threshold. It takes that code only while it holds less than a tenth of `share`.
    `total` counts pixels with at least each code (256,).
    """
    extended = np.append(total, 0).astype(np.float64)
    codes = np.arange(NUM_CODES)
    need = share * extended[0]
    # Largest m with total[k] - total[m] <= need, then the smallest with at least a tenth of it.
    most = np.searchsorted(-extended, -(extended[:-1] - need) + 1e-9, side="right") - 1
    least = np.searchsorted(-extended, -(extended[:-1] - need / 10) - 1e-9, side="left")
    ends: NDArray[np.intp] = np.clip(np.maximum(most, least), codes + 1, NUM_CODES)
    return ends


def marginal_precision(total: NDArray[Any], correct: NDArray[Any], ends: NDArray[np.intp]) -> Floats:
    """Precision of the pixels in each code's marginal bin; NaN where it is empty."""
    total, correct = np.append(total, 0), np.append(correct, 0)
    codes = np.arange(NUM_CODES)
    pixels = (total[codes] - total[ends]).astype(np.float64)
    right = (correct[codes] - correct[ends]).astype(np.float64)
    shares: Floats = np.divide(right, pixels, out=np.full(NUM_CODES, np.nan), where=pixels > 0)
    return shares


def figures(curves: Curves, class_id: int, code: int, confidence: float, marginal_share: float) -> dict[str, Any]:
    """What a threshold does to a class on the images of the curves (None where nothing is kept).

    precision, lower, upper: of kept labelled pixels; boundary, interior: in and away from the boundary band;
    coverage: kept share of the pixels that the teacher gives this class; recall: share of the class's true
    pixels that are kept and right; void: kept pixels on ground-truth void per kept pixel; marginal: see above.
    """
    at = {name: curves.kept(name)[:, class_id] for name in curves.counts}
    kept = {name: a[:, code] if code < NUM_CODES else np.zeros(len(a), np.int64) for name, a in at.items()}
    total, every = at["total"].sum(axis=0), int(at["total"][:, 0].sum())
    n = int(kept["total"].sum())
    lower, upper = interval(kept["total"], kept["correct"], confidence)
    marginal = marginal_precision(total, at["correct"].sum(axis=0), marginal_ends(total, marginal_share))
    void = int(kept["void"].sum())
    return {
        "threshold": None if code >= NUM_CODES else _CODE.threshold(code),
        "pixels": n,
        "blocks": int(np.count_nonzero(kept["total"])),
        "effective_blocks": round(float(effective_blocks(kept["total"])), 2),
        "components": int(kept["components"].sum()),
        "precision": share(kept["correct"].sum(), n),
        "lower": number(lower),
        "upper": number(upper),
        "marginal": number(marginal[code]) if code < NUM_CODES else None,
        "boundary_precision": share(kept["boundary_correct"].sum(), kept["boundary_total"].sum()),
        "interior_precision": share(kept["interior_correct"].sum(), kept["interior_total"].sum()),
        "void": share(void, n + void),
        "coverage": n / every if every else 0.0,
        "recall": share(kept["correct"].sum(), curves.truth[:, class_id].sum()),
    }


def share(part: Any, whole: Any) -> float | None:
    """The ratio of two counts for JSON; None for nothing of nothing."""
    return round(float(part) / float(whole), 6) if whole else None


def number(value: Any) -> float | None:
    """A float for JSON; None for NaN."""
    return None if np.isnan(value) else round(float(value), 6)


def smallest_global_code(curves: Curves, worst: float, classes: list[int]) -> int:
    """Smallest single code for all classes at which the worst of `classes` is right at least `worst`; 256 = none."""
    total, correct = curves.kept("total").sum(axis=0)[classes], curves.kept("correct").sum(axis=0)[classes]
    precision = np.divide(correct, total, out=np.zeros(total.shape), where=total > 0)
    good = np.flatnonzero((precision >= worst).all(axis=0))
    return int(good[0]) if len(good) else WITHHELD
