"""Intervals for IoU: images come in blocks (a drive, a city), so blocks are drawn, never pixels or images.

A draw picks as many blocks as there are, with replacement, and takes the IoU of their summed counts. Two models are
compared on the same draws. Training runs (seeds) on the same blocks share the draws, since the same
images are not independent evidence a second time.

The interval of one run are percentiles. Runs are too few to draw; several runs have value +- t * sqrt(s^2 / runs + v).
Here s is the standard deviation between the runs' values on all data, and v is the variance of their mean over the
draws. Student's t is taken with the degrees of freedom of such a sum (Welch 1947, Satterthwaite 1946). Two runs that
agree by luck still give too narrow an interval (research/bench/interval_coverage.py). There is no
interval for one block, a class in only one block, or a class that only one of several runs scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from hmsa_core.io.errors import InputError
from hmsa_core.metrics.confusion import finite, mean_iou_of, ratio

DRAWS = 2000
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Runs = Counts | Sequence[Counts]  # counts of one training run, or of several
Blocks = Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True)
class Interval:
    """A mean IoU (or the difference of two) with its interval, and the same of each class (NaN = not scored)."""

    value: float
    low: float
    high: float
    run_values: tuple[float, ...]  # `value` of each run alone
    class_value: Floats  # (C,)
    class_low: Floats
    class_high: Floats
    level: float  # share of such intervals that should hold the truth
    blocks: int
    runs: int
    draws: int
    above_zero: float  # one-sided certainty that the value is positive (one run: share of draws, zeros count half)

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return bool(self.low > 0 or self.high < 0)

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return JSON with null instead of NaN."""
        rows = zip(classes, self.class_value, self.class_low, self.class_high, strict=True)
        return {
            "value": finite(self.value),
            "low": finite(self.low),
            "high": finite(self.high),
            "level": self.level,
            "blocks": self.blocks,
            "runs": self.runs,
            "draws": self.draws,
            "above_zero": finite(self.above_zero),
            "classes": {name: [finite(v), finite(a), finite(b)] for name, v, a, b in rows},
        }


def bootstrap_iou(
    confusions: Runs, blocks: Blocks, *, draws: int = DRAWS, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of the mean IoU and of each class's IoU.

    Args:
        confusions: int64 (N, C, C or C + 1) per-image counts, or a list of such, one a training run.
        blocks: block id of each image, or a list of such, one a run.
        draws, level, seed: number of resamples, width of the interval, seed of the draws.
    """
    runs, ids = as_runs(confusions, blocks)
    plan = Draws(ids, draws, seed)
    return interval_of(plan, plan.scores(runs), level, lowest=0.0, showing=plan.showing(runs))


def bootstrap_difference(
    confusions: Runs, baseline: Runs, blocks: Blocks, *, draws: int = DRAWS, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of (mean IoU - mean IoU of the baseline), paired: both are judged on the same draws.

    With several runs the i-th of `confusions` is paired with the i-th of `baseline` (the same seed). The mean is over
    the classes that both have an IoU for. (A class in no truth has an IoU only for a model that predicts it.)
    """
    runs, ids = as_runs(confusions, blocks)
    others, _ = as_runs(baseline, blocks)
    if [r.shape[:2] for r in runs] != [o.shape[:2] for o in others]:  # one of them may count pixels without a label
        raise InputError(f"paired bootstrap: shapes differ: {[r.shape for r in runs]} and {[o.shape for o in others]}")
    plan = Draws(ids, draws, seed)
    (whole, drawn), (their_whole, their_drawn) = plan.scores(runs), plan.scores(others)
    scores = (difference_of(whole, their_whole), difference_of(drawn, their_drawn))
    return interval_of(plan, scores, level, lowest=-1.0, showing=plan.showing(runs))


def difference_of(one: Floats, other: Floats) -> Floats:
    """IoU of `one` minus `other`, (..., C + 1): per class, then the mean over the classes scored in both."""
    return _with_mean((one - other)[..., :-1])


def as_runs(confusions: Runs, blocks: Blocks) -> tuple[list[Counts], list[NDArray[Any]]]:
    """Counts and block ids of each run; an InputError where they do not belong together."""
    runs = [confusions] if isinstance(confusions, np.ndarray) and confusions.ndim == 3 else list(confusions)
    nested = len(blocks) > 0 and not isinstance(blocks[0], str)
    ids = [np.asarray(b, dtype=str) for b in (blocks if nested else [blocks] * len(runs))]
    if len(ids) != len(runs) or not runs:
        raise InputError(f"bootstrap: {len(runs)} runs but block ids for {len(ids)}")
    for run, block in zip(runs, ids, strict=True):
        if run.ndim != 3 or len(run) != len(block) or len(run) == 0:
            raise InputError(f"bootstrap: confusions of shape {run.shape} for {len(block)} block ids")
    return runs, ids


class Draws:
    """The draws: weights of blocks, made once so that every model has the same draws."""

    def __init__(self, ids: list[NDArray[Any]], draws: int, seed: int) -> None:
        rng = np.random.Generator(np.random.PCG64(seed))
        self.draws, self.inverse = draws, []
        self.weights: list[Floats] = []
        shared: dict[tuple[str, ...], Floats] = {}
        for run_ids in ids:
            names, inverse = np.unique(run_ids, return_inverse=True)
            self.inverse.append(inverse)
            key = tuple(names.tolist())
            if key not in shared:
                # How often each draw of all blocks takes each block, (draws, blocks).
                chances = np.full(len(names), 1.0 / len(names))
                shared[key] = rng.multinomial(len(names), chances, size=draws).astype(np.float64)
            self.weights.append(shared[key])
        self.blocks = sum(len(names) for names in shared)

    def scores(self, runs: list[Counts]) -> tuple[Floats, Floats]:
        """(runs, C + 1) of all data and (runs, draws, C + 1): class IoU, then its mean."""
        whole: list[Floats] = []
        drawn: list[Floats] = []
        for run, inverse, weights in zip(runs, self.inverse, self.weights, strict=True):
            sums = block_sums(run, inverse, weights.shape[1])
            for found, of in ((whole, sums.sum(0)), (drawn, np.tensordot(weights, sums, axes=1))):
                found.append(_with_mean(ratio(of[..., 0, :], of[..., 1, :])))
        return np.stack(whole), np.stack(drawn)

    def showing(self, runs: list[Counts]) -> NDArray[np.int64]:
        """Number of blocks whose truth shows each class, (C,); blocks that several runs share count once."""
        each = zip(runs, self.inverse, self.weights, strict=True)
        found = {id(w): (block_sums(run, inverse, w.shape[1])[:, 2] > 0).sum(0) for run, inverse, w in each}
        return np.asarray(sum(found.values()), np.int64)


def block_sums(run: Counts, inverse: NDArray[np.intp], blocks: int) -> Floats:
    """Hits, union and truth of each class in each block, float64 (blocks, 3, C): IoU and recall need no more.

    `run` is int64 (N, C, C or C + 1), rows = truth; `inverse` (N,) holds the block number of each image.
    """
    num_classes = run.shape[1]
    square = run[:, :, :num_classes]
    hits = np.diagonal(square, axis1=1, axis2=2)
    truth = run.sum(2)
    sums = np.zeros((blocks, 3, num_classes), np.float64)
    np.add.at(sums, inverse, np.stack([hits, truth + square.sum(1) - hits, truth], axis=1))
    return sums


def _with_mean(iou: Floats) -> Floats:
    return np.concatenate([iou, np.asarray(mean_iou_of(iou))[..., None]], axis=-1)


def _mean_over_runs(values: Floats) -> Floats:
    """Mean over the first axis; the mean of a class leaves out runs that do not score it."""
    scored = ~np.isnan(values)
    result: Floats = ratio(np.nan_to_num(values).sum(0), scored.sum(0))
    return result


def interval_of(
    plan: Draws, scores: tuple[Floats, Floats], level: float, *, lowest: float, showing: NDArray[np.int64]
) -> Interval:
    """Return the interval of `Draws.scores`, or of their differences; both ends lie between `lowest` and 1.

    `showing`: see `Draws.showing`. A class of one block has no interval: all its draws are the same block.
    """
    by_run, drawn_by_run = scores
    value, drawn = _mean_over_runs(by_run), _mean_over_runs(drawn_by_run)
    if plan.blocks < 2:
        low, high, above = np.full_like(value, np.nan), np.full_like(value, np.nan), float("nan")
    elif len(by_run) > 1:
        low, high, above = interval_of_runs(by_run, drawn, plan.blocks, level)
    else:
        low, high = _percentiles(drawn, (1 - level) / 2), _percentiles(drawn, (1 + level) / 2)
        known = drawn[:, -1][~np.isnan(drawn[:, -1])]
        above = float(((known > 0) + 0.5 * (known == 0)).mean()) if known.size else float("nan")
    low, high = np.clip(low, lowest, 1.0), np.clip(high, lowest, 1.0)
    low[:-1][showing < 2] = high[:-1][showing < 2] = np.nan
    return Interval(
        value=float(value[-1]),
        low=float(low[-1]),
        high=float(high[-1]),
        run_values=tuple(float(v) for v in by_run[:, -1]),
        class_value=value[:-1],
        class_low=low[:-1],
        class_high=high[:-1],
        level=level,
        blocks=plan.blocks,
        runs=len(plan.weights),
        draws=plan.draws,
        above_zero=above,
    )


def interval_of_runs(by_run: Floats, drawn: Floats, blocks: int, level: float) -> tuple[Floats, Floats, float]:
    """Return the interval's ends for the runs' mean, and the certainty that the last column's mean is above zero.

    `by_run` (runs, K) has each run on all data, NaN = not scored. `drawn` (draws, K) has the mean over the runs in
    each draw of the blocks; there are at least two blocks.
    """
    value, n = _mean_over_runs(by_run), (~np.isnan(by_run)).sum(0)
    between = np.nan_to_num((by_run - value) ** 2).sum(0) / np.maximum(n * (n - 1), 1)
    drawings = (~np.isnan(drawn)).sum(0)
    within = np.nan_to_num((drawn - _mean_over_runs(drawn)) ** 2).sum(0) / np.maximum(drawings - 1, 1)
    total = between + within
    # Without any spread, the degrees of freedom change nothing.
    parts = between**2 / np.maximum(n - 1, 1) + within**2 / (blocks - 1)
    df = np.maximum(np.divide(total**2, parts, out=np.ones_like(total), where=parts > 0), 1.0)
    half = np.where(n > 1, stdtrit(df, (1 + level) / 2) * np.sqrt(total), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        above = float(stdtr(df[-1], value[-1] / np.sqrt(total[-1])))  # NaN if nothing is scored, or nothing differs
    return value - half, value + half, above


def _percentiles(drawn: Floats, q: float) -> Floats:
    """Percentile of each column over the draws in which it is scored; NaN when it never is."""
    columns = [column[~np.isnan(column)] for column in drawn.T]
    return np.array([np.quantile(c, q) if c.size else np.nan for c in columns])


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Return which of several hypotheses are rejected in a joint test: Holm's step-down procedure (1979).

    The smallest p is tested at alpha / m, the next at alpha / (m - 1), and so on; the first larger p ends the test.
    """
    falls = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] > alpha / (len(p_values) - rank):
            break
        falls[i] = True
    return falls
