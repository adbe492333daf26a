"""Which images deserve a person's eyes: by the loss that is to be expected from their training labels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hmsa_core.labels import ConfidenceCode, StoreStatistics, ThresholdPolicy
from hmsa_core.labels.store.codes import NUM_CODES

__all__ = ["expected_loss"]

# Edges between which the kept pixels of an image are counted; within a cell all images share one error rate.
_EDGES = ("0.5", "0.7", "0.8", "0.9", "0.95", "0.99", "0.999")


def expected_loss(statistics: StoreStatistics, policy: ThresholdPolicy) -> NDArray[np.float64]:
    """Share of each image's pixels that is kept and expected to be wrong, (N,): 0/1 loss of the training labels.

    The error rate of class and confidence is the calibration table's; a policy of plain numbers has none, and the
    raw confidence stands in. Pixels are never touched: the store's sidecar tables count them.
    """
    need = policy.codes().astype(np.int64)
    edges = np.array([float(e) for e in ConfidenceCode().edges])
    right = policy.table if policy.table is not None else np.broadcast_to(edges, (len(need), NUM_CODES))
    totals = statistics.totals()
    code = ConfidenceCode()
    cuts = [need, *(np.maximum(need, code.code_for(e)) for e in _EDGES), np.full_like(need, NUM_CODES)]
    loss = np.zeros(len(statistics.names))
    above = statistics.kept(cuts[0])
    for low, high in pairwise(cuts):
        inside, above = above, statistics.kept(high)
        wrong = [_error_rate(totals[c, a:b], right[c, a:b]) for c, (a, b) in enumerate(zip(low, high, strict=True))]
        loss += (inside - above) @ np.array(wrong)
    return loss / np.maximum(1, statistics.pixels)


def _error_rate(pixels: NDArray[np.int64], right: NDArray[np.float64]) -> float:
    return float(1 - np.average(right, weights=pixels)) if pixels.any() else 0.0
