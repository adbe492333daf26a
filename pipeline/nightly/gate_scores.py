"""IoU and recall of a model on all report images and on each bootstrap draw of their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hmsa_core.metrics.confusion import mean_iou_of

__all__ = ["Scores", "draw_blocks", "paired"]


@dataclass(frozen=True)
class Scores:
    """IoU and recall of all data and of each draw."""

    iou: NDArray[np.float64]  # (C,)
    iou_draws: NDArray[np.float64]  # (draws, C)
    recall: NDArray[np.float64]
    recall_draws: NDArray[np.float64]
    blocks_with: NDArray[np.int64]  # (C,) blocks whose truth shows the class

    @property
    def mean(self) -> float:
        """Mean IoU over the classes that are there."""
        return float(np.nanmean(self.iou))

    @classmethod
    def of(cls, confusions: NDArray[np.int64], inverse: NDArray[np.intp], weights: NDArray[np.float64]) -> Scores:
        """Score a model from its confusions (N, C, C), the block of each image, and the draws' block weights."""
        c = confusions.shape[1]
        square = confusions[:, :, :c].astype(np.float64)
        hits = np.diagonal(square, axis1=1, axis2=2)
        truth = confusions.sum(2).astype(np.float64)  # a prediction outside the classes is a miss too
        parts = np.stack([hits, truth + square.sum(1) - hits, truth], axis=1)
        sums = np.zeros((weights.shape[1], 3, c))
        np.add.at(sums, inverse, parts)
        whole, drawn = sums.sum(0), np.tensordot(weights, sums, axes=1)
        return cls(
            iou=_ratio(whole[0], whole[1]),
            iou_draws=_ratio(drawn[:, 0], drawn[:, 1]),
            recall=_ratio(whole[0], whole[2]),
            recall_draws=_ratio(drawn[:, 0], drawn[:, 2]),
            blocks_with=(sums[:, 2] > 0).sum(0),
        )


def paired(new: Scores, old: Scores) -> tuple[float, NDArray[np.float64]]:
    """Difference of mean IoU, of all data and of each draw, over the classes that both have an IoU for.

    A class that no truth shows has none for a model that never predicts it, and 0 for one that does.
    """
    return mean_iou_of(new.iou - old.iou), np.nan_to_num(mean_iou_of(new.iou_draws - old.iou_draws))


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    result = np.full(np.broadcast(part, whole).shape, np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def draw_blocks(blocks: Sequence[str], draws: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """How often each draw takes each block, (draws, blocks), and the block number of each image, (N,)."""
    names, inverse = np.unique(np.asarray(blocks, str), return_inverse=True)
    rng = np.random.Generator(np.random.PCG64(seed))
    n = len(names)
    return rng.multinomial(n, np.full(n, 1.0 / n), size=draws).astype(np.float64), inverse
