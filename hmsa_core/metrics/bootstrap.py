"""Intervals for IoU: images come in blocks (a drive, a city), so blocks are drawn, never pixels or images.

A draw picks as many blocks as there are, with replacement, sums their confusion counts and takes the
IoU of the sum (a ratio estimator). Two models are compared on the same draws. With several training
runs (seeds) a draw first picks runs, with replacement; runs that were judged on the same blocks share
the draw of blocks, since those images are not independent evidence a second time, and runs with
blocks of their own draw their own (blocks nested in seeds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.errors import InputError
from hmsa_core.metrics.confusion import mean_iou_of, ratio

__all__ = ["Interval", "bootstrap_difference", "bootstrap_iou"]

DRAWS = 2000
Counts = NDArray[np.int64]
Blocks = Sequence[str]


@dataclass(frozen=True)
class Interval:
    """A value with its percentile interval, for the mean IoU and for each class (NaN = not scored).

    Attributes:
        value, low, high: mean IoU (or difference of two).
        class_value, class_low, class_high: float64 (C,).
        level: share of draws between low and high.
        blocks, runs, draws: how much evidence and work it rests on.
        above_zero: share of draws with a positive value (for differences: the one-sided certainty).
    """

    value: float
    low: float
    high: float
    class_value: NDArray[np.float64]
    class_low: NDArray[np.float64]
    class_high: NDArray[np.float64]
    level: float
    blocks: int
    runs: int
    draws: int
    above_zero: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return bool(self.low > 0 or self.high < 0)

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """JSON with null instead of NaN."""
        rows = zip(classes, self.class_value, self.class_low, self.class_high, strict=True)
        return {
            "value": _number(self.value), "low": _number(self.low), "high": _number(self.high),
            "level": self.level, "blocks": self.blocks, "runs": self.runs, "draws": self.draws,
            "above_zero": _number(self.above_zero),
            "classes": {name: [_number(v), _number(a), _number(b)] for name, v, a, b in rows},
        }  # fmt: skip


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def bootstrap_iou(
    confusions: Counts | Sequence[Counts], blocks: Blocks | Sequence[Blocks], *,
    draws: int = DRAWS, level: float = 0.95, seed: int = 0,
) -> Interval:  # fmt: skip
    """Interval of the mean IoU and of each class's IoU.

    Args:
        confusions: int64 (N, C, C or C + 1) per-image counts, or a list of such, one a training run.
        blocks: block id of each image, or a list of such, one a run.
        draws, level, seed: number of resamples, width of the interval, seed of the draws.
    """
    runs, ids = _as_runs(confusions, blocks)
    plan = _Plan(ids, draws, seed)
    return _interval(plan, [plan.scores(runs)], level)


def bootstrap_difference(
    confusions: Counts | Sequence[Counts], baseline: Counts | Sequence[Counts],
    blocks: Blocks | Sequence[Blocks], *, draws: int = DRAWS, level: float = 0.95, seed: int = 0,
) -> Interval:  # fmt: skip
    """Interval of (mean IoU - mean IoU of the baseline), paired: both are judged on the same draws.

    With several runs the i-th of `confusions` is paired with the i-th of `baseline` (the same seed).
    """
    runs, ids = _as_runs(confusions, blocks)
    others, _ = _as_runs(baseline, blocks)
    if [r.shape for r in runs] != [o.shape for o in others]:
        raise InputError(
            f"paired bootstrap: shapes differ: {[r.shape for r in runs]} and {[o.shape for o in others]}"
        )
    plan = _Plan(ids, draws, seed)
    return _interval(plan, [plan.scores(runs), plan.scores(others)], level)


def _as_runs(
    confusions: Counts | Sequence[Counts], blocks: Blocks | Sequence[Blocks]
) -> tuple[list[Counts], list[NDArray[Any]]]:
    runs = [confusions] if isinstance(confusions, np.ndarray) and confusions.ndim == 3 else list(confusions)
    nested = len(blocks) > 0 and not isinstance(blocks[0], str)
    ids = [np.asarray(b, dtype=str) for b in (blocks if nested else [blocks] * len(runs))]
    if len(ids) != len(runs) or not runs:
        raise InputError(f"bootstrap: {len(runs)} runs but block ids for {len(ids)}")
    for run, block in zip(runs, ids, strict=True):
        if run.ndim != 3 or len(run) != len(block) or len(run) == 0:
            raise InputError(f"bootstrap: confusions of shape {run.shape} for {len(block)} block ids")
    return runs, ids


class _Plan:
    """The draws: weights of runs and of blocks, made once so that every model sees the same ones."""

    def __init__(self, ids: list[NDArray[Any]], draws: int, seed: int) -> None:
        rng = np.random.Generator(np.random.PCG64(seed))
        self.draws = draws
        self.inverse = []
        self.weights: list[NDArray[np.float64]] = []
        shared: dict[tuple[str, ...], NDArray[np.float64]] = {}
        for run_ids in ids:
            names, inverse = np.unique(run_ids, return_inverse=True)
            self.inverse.append(inverse)
            key = tuple(names.tolist())
            if key not in shared:
                shared[key] = _multinomial(rng, len(names), draws)
            self.weights.append(shared[key])
        self.blocks = sum(len(names) for names in shared)
        self.run_weights = _multinomial(rng, len(ids), draws)

    def scores(self, runs: list[Counts]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(C + 1,) of all data and (draws, C + 1): class IoU, then its mean, averaged over runs."""
        whole, drawn = [], []
        for run, inverse, weights in zip(runs, self.inverse, self.weights, strict=True):
            sums = _block_sums(run, inverse, weights.shape[1])
            whole.append(_with_mean(_iou(sums.sum(0))))
            drawn.append(_with_mean(_iou(np.tensordot(weights, sums, axes=1))))
        equal = np.full(len(runs), 1.0)
        return _mean_over_runs(np.stack(whole), equal), _mean_over_runs(np.stack(drawn), self.run_weights.T)


def _multinomial(rng: np.random.Generator, n: int, draws: int) -> NDArray[np.float64]:
    return rng.multinomial(n, np.full(n, 1.0 / n), size=draws).astype(np.float64)


def _block_sums(run: Counts, inverse: NDArray[np.intp], blocks: int) -> NDArray[np.float64]:
    """(blocks, 2, C): hits and union of each class. IoU needs no more, so that a draw costs 2C numbers."""
    num_classes = run.shape[1]
    square = run[:, :, :num_classes]
    hits = np.diagonal(square, axis1=1, axis2=2)
    union = run.sum(2) + square.sum(1) - hits
    sums = np.zeros((blocks, 2, num_classes), np.float64)
    np.add.at(sums, inverse, np.stack([hits, union], axis=1))
    return sums


def _iou(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = ratio(sums[..., 0, :], sums[..., 1, :])
    return result


def _with_mean(iou: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([iou, np.asarray(mean_iou_of(iou))[..., None]], axis=-1)


def _mean_over_runs(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted mean over the first axis; a run in which a class is not scored leaves that class out."""
    more_axes = (1,) * (values.ndim - weights.ndim)
    weights = np.broadcast_to(weights.reshape(weights.shape + more_axes), values.shape)
    scored = np.where(np.isnan(values), 0.0, weights)
    result: NDArray[np.float64] = ratio((np.nan_to_num(values) * scored).sum(0), scored.sum(0))
    return result


def _interval(
    plan: _Plan, scores: list[tuple[NDArray[np.float64], NDArray[np.float64]]], level: float
) -> Interval:
    value, drawn = scores[0]
    if len(scores) == 2:
        value, drawn = value - scores[1][0], drawn - scores[1][1]
    low, high = _percentiles(drawn, (1 - level) / 2), _percentiles(drawn, (1 + level) / 2)
    finite = drawn[:, -1][~np.isnan(drawn[:, -1])]
    return Interval(
        value=float(value[-1]), low=float(low[-1]), high=float(high[-1]),
        class_value=value[:-1], class_low=low[:-1], class_high=high[:-1], level=level,
        blocks=plan.blocks, runs=len(plan.weights), draws=plan.draws,
        above_zero=float((finite > 0).mean()) if finite.size else float("nan"),
    )  # fmt: skip


def _percentiles(drawn: NDArray[np.float64], q: float) -> NDArray[np.float64]:
    """Percentile of each column over the draws in which it is scored; NaN when it never is."""
    columns = [column[~np.isnan(column)] for column in drawn.T]
    return np.array([np.quantile(c, q) if c.size else np.nan for c in columns])
