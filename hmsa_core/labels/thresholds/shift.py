"""Do the unlabelled images look like the calibration images? Confidence histograms compared, per class and city.

Two things may shift. The confidences of a class: their distributions are compared by the Kolmogorov-Smirnov
distance, against what calibration blocks differ among themselves. And the share of the classes: the prior of the
unlabelled images is estimated by expectation maximisation (Saerens et al. 2002) with (label, code) as the
observation, and every precision is re-weighted with it. Neither needs a pixel: sidecar tables are enough.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def reweight(joint: Counts, histogram: Counts) -> tuple[Floats, Floats]:
    """Prior of the true classes of unlabelled images (C,), and P(truth | label, code) re-weighted to it (C, C, 256).

    `joint` has calibration counts (truth C, label C, code 256), `histogram` those of the unlabelled images (C, 256).
    """
    # A cell that calibration never saw takes its class's average: otherwise its pixels would have no truth at all.
    likelihood = joint + 1e-3 * joint.sum(axis=2, keepdims=True) / NUM_CODES + 1e-9
    base = likelihood.sum(axis=(1, 2))
    base = base / base.sum()
    calibrated = likelihood / likelihood.sum(axis=0, keepdims=True)
    if not histogram.any():
        return base, calibrated

    def under(prior: Floats) -> Floats:
        weighted = calibrated * (prior / base)[:, None, None]
        return np.asarray(weighted / weighted.sum(axis=0, keepdims=True))

    prior = base
    for _ in range(_ROUNDS):
        before, prior = prior, np.einsum("tlk,lk->t", under(prior), histogram) / histogram.sum()
        if np.abs(prior - before).max() < 1e-7:
            break
    return prior, under(prior)


def compare(curves: Curves, histogram: Counts, policy: ThresholdPolicy, limit: float) -> list[dict[str, Any]]:
    """Compare one set of unlabelled images with the calibration images, class by class.

    Args:
        curves: of the calibration images.
        histogram: int64 (C, 256), StoreStatistics.totals() of the set.
        policy: whose kept pixels are looked at.
        limit: the largest distance that still counts as covered; it is higher for a class whose calibration blocks
            differ more among themselves.

    Returns:
        Rows with "name", "pixels" (kept), "precision" (of kept pixels on calibration images), "adjusted" (the same
        re-weighted to these images), "distance" (Kolmogorov-Smirnov, of the confidences), "usual" (95th percentile of
        a calibration block's distance to the others), "prior" (estimated share of the class), "calibration_prior",
        and "status": covered, not covered by evidence, below target, or nothing kept. None = not known.
    """
    prior, posterior = reweight(curves.joint, histogram)
    base = curves.joint.sum(axis=(1, 2)) / max(1, curves.joint.sum())
    every_code = curves.counts["total"] + curves.counts["void"]  # unlabelled images have their void pixels too
    result = []
    for i, (code, entry) in enumerate(zip(policy.codes().tolist(), policy.entries, strict=True)):
        target = float(entry.evidence.get("target", policy.evidence.get("target")) or 0.0)
        kept = histogram[i, code:]
        total, right = (int(curves.counts[name][:, i, code:].sum()) for name in ("total", "correct"))
        adjusted = float((kept * posterior[i, i, code:]).sum() / kept.sum()) if kept.sum() else None
        distance = _distance(every_code[:, i].sum(axis=0), histogram[i])
        usual = _usual(every_code[:, i])
        if adjusted is None:
            status = "nothing kept"
        elif distance is None or distance > max(limit, usual or 0.0):
            status = "not covered by evidence"
        else:
            status = "below target" if adjusted < target else "covered"
        result.append(
            {
                "name": curves.classes.classes[i],
                "pixels": int(kept.sum()),
                "precision": right / total if total else None,
                "adjusted": adjusted,
                "distance": distance,
                "usual": usual,
                "prior": float(prior[i]),
                "calibration_prior": float(base[i]),
                "status": status,
            }
        )
    return result


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
    return {name: compare(curves, histogram, policy, limit) for name, histogram in sets.items()}
