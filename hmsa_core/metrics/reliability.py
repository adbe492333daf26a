"""Calibration of confidences: reliability diagram and expected calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import InputError
from hmsa_core.metrics.confusion import ratio
from hmsa_core.taxonomy import IGNORE


class Reliability:
    """Confidence against accuracy in equal bins of [0, 1], summed over images (Guo et al. 2017)."""

    def __init__(self, bins: int = 20) -> None:
        self.bins = bins
        self.pixels = np.zeros(bins, np.int64)
        self.correct = np.zeros(bins, np.int64)
        self.confidence_sum = np.zeros(bins, np.float64)

    def update(self, pred: Any, confidence: Any, label: Any) -> Reliability:
        """Add one image: integer maps (label 255 = left out), the confidence in [0, 1] of `pred`; return `self`."""
        pred, confidence, label = np.asarray(pred), np.asarray(confidence), np.asarray(label)
        if not pred.shape == confidence.shape == label.shape:
            raise InputError(f"reliability: shapes differ: {pred.shape}, {confidence.shape}, {label.shape}")
        valid = label != IGNORE
        sure = confidence[valid].astype(np.float64)
        right = pred[valid] == label[valid]
        which = np.clip((sure * self.bins).astype(np.int64), 0, self.bins - 1)
        self.pixels += np.bincount(which, minlength=self.bins)
        self.correct += np.bincount(which[right], minlength=self.bins)
        self.confidence_sum += np.bincount(which, weights=sure, minlength=self.bins)
        return self

    def merge(self, other: Reliability) -> Reliability:
        """Add the counts of another diagram with the same bins; return this object."""
        self.pixels += other.pixels
        self.correct += other.correct
        self.confidence_sum += other.confidence_sum
        return self

    def ece(self) -> float:
        """Expected calibration error: mean |confidence - accuracy| over pixels; NaN without pixels."""
        gap = np.abs(self.confidence_sum - self.correct).sum()
        return float(ratio(gap, self.pixels.sum()))

    def diagram(self) -> dict[str, NDArray[Any]]:
        """Bin edges, pixels, mean confidence and accuracy of each bin (NaN = empty bin)."""
        return {
            "edges": np.linspace(0.0, 1.0, self.bins + 1),
            "pixels": self.pixels.copy(),
            "confidence": ratio(self.confidence_sum, self.pixels),
            "accuracy": ratio(self.correct, self.pixels),
        }
