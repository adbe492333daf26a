"""Do the unlabelled images look like the calibration images? Confidence histograms compared, per class and city.

Two things may shift. The confidences of a class: their distributions are compared by the Kolmogorov-Smirnov
distance, beside what calibration blocks differ among themselves. And the share of the classes: the prior of the
unlabelled images is estimated by expectation maximisation (Saerens et al. 2002) with (label, code) as the
observation, and every precision is re-weighted with it. Neither needs a pixel: sidecar tables are enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.policy import ThresholdPolicy

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
_ROUNDS = 300  # of expectation maximisation; it stops earlier when nothing moves
_FEW = 200  # pixels: a histogram of fewer says nothing


@dataclass(frozen=True)
class ClassShift:
    """One class on one set of unlabelled images."""

    name: str
    pixels: int
    precision: float | None  # of kept pixels on calibration images
    adjusted: float | None  # the same re-weighted to these images
    distance: float | None  # Kolmogorov-Smirnov, of the confidences
    usual: float | None  # 95th percentile of a calibration block's distance to the others
    prior: float  # estimated share of the class
    calibration_prior: float
    status: str  # covered | not covered by evidence | below target | nothing kept


def reweight(joint: Counts, histogram: Counts) -> tuple[Floats, Floats]:
    """Prior of the true classes of unlabelled images (C,), and P(truth | label, code) re-weighted to it (C, C, 256).

    `joint` has calibration counts (truth C, label C, code 256), `histogram` those of the unlabelled images (C, 256).
    """
    # A cell that calibration never saw takes its class's average: otherwise its pixels would have no truth at all.
    likelihood = joint + 1e-3 * joint.sum(axis=2, keepdims=True) / NUM_CODES + 1e-9
    base = likelihood.sum(axis=(1, 2))
    base = base / base.sum()
    posterior = likelihood / likelihood.sum(axis=0, keepdims=True)
    seen = histogram.sum()
    if not seen:
        return base, posterior
    prior = base.copy()
    for _ in range(_ROUNDS):
        weighted = posterior * (prior / base)[:, None, None]
        weighted /= weighted.sum(axis=0, keepdims=True)
        new = np.einsum("tlk,lk->t", weighted, histogram) / seen
        done = np.abs(new - prior).max() < 1e-7
        prior = new
        if done:
            break
    weighted = posterior * (prior / base)[:, None, None]
    return prior, weighted / weighted.sum(axis=0, keepdims=True)


def compare(curves: Curves, histogram: Counts, policy: ThresholdPolicy, limit: float) -> list[ClassShift]:
    """Compare one set of unlabelled images with the calibration images, class by class.

    `histogram` is int64 (C, 256), StoreStatistics.totals() of the set. `limit` is the largest distance that still
    counts as covered; it is higher for a class whose calibration blocks differ more among themselves.
    """
    prior, posterior = reweight(curves.joint, histogram)
    base = curves.joint.sum(axis=(1, 2)) / max(1, curves.joint.sum())
    target = float(policy.evidence.get("target", 0.0))
    every_code = curves.counts["total"] + curves.counts["void"]  # unlabelled images have their void pixels too
    result = []
    for i, code in enumerate(policy.codes().tolist()):
        kept = histogram[i, min(code, NUM_CODES) :]
        total = int(curves.counts["total"][:, i, code:].sum())
        right = int(curves.counts["correct"][:, i, code:].sum())
        adjusted = float((kept * posterior[i, i, code:]).sum() / kept.sum()) if kept.sum() else None
        distance = _distance(every_code[:, i].sum(axis=0), histogram[i])
        usual = _usual(every_code[:, i])
        result.append(
            ClassShift(
                curves.classes.classes[i],
                int(kept.sum()),
                right / total if total else None,
                adjusted,
                distance,
                usual,
                float(prior[i]),
                float(base[i]),
                _status(adjusted, distance, usual, target, limit),
            )
        )
    return result


def _status(adjusted: float | None, distance: float | None, usual: float | None, target: float, limit: float) -> str:
    if adjusted is None:
        return "nothing kept"
    if distance is None or distance > max(limit, usual or 0.0):
        return "not covered by evidence"
    return "below target" if adjusted < target else "covered"


def _distance(one: Counts, other: Counts) -> float | None:
    if one.sum() < _FEW or other.sum() < _FEW:
        return None
    return float(np.abs(np.cumsum(one) / one.sum() - np.cumsum(other) / other.sum()).max())


def _usual(blocks: Counts) -> float | None:
    """95th percentile over blocks of the distance between a block and all others."""
    whole = blocks.sum(axis=0)
    distances = [d for b in blocks if (d := _distance(b, whole - b)) is not None]
    return float(np.quantile(distances, 0.95)) if len(distances) >= 3 else None


def shift_report(
    curves: Curves, histograms: Mapping[str, Counts], policy: ThresholdPolicy, limit: float
) -> dict[str, list[dict[str, Any]]]:
    """`compare` for each city (camera, drive) and for all of them together under the key "all"."""
    everything = sum(histograms.values(), np.zeros((curves.classes.num_classes, NUM_CODES), np.int64))
    sets = {"all": everything, **dict(sorted(histograms.items()))}
    return {
        name: [asdict(shift) for shift in compare(curves, histogram, policy, limit)] for name, histogram in sets.items()
    }
