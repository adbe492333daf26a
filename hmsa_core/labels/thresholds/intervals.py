"""Intervals: precision of pixels by a ratio estimator over blocks, and exact intervals of counted answers.

Pixels of one image are wrong together, and so are images of one drive: the unit is the block. Precision is
p = sum(correct) / sum(total) over blocks. Its standard error comes from leaving out one block at a time (jackknife).
The interval is symmetric in log(1 - p), because errors of blocks are skewed. It uses Student's t at the effective
number of blocks, (sum x)^2 / sum x^2, less one. Half of the allowed error is a reserve for skewness: a 95 % bound is
computed at 97.5 %. In simulations with block errors whose standard deviation is up to 1.5 times their mean it then
covers at least 90 % from 8 blocks on (tests/unit/hmsa_core/labels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

Array = NDArray[np.float64]
_ALLOWED = 0.02  # error of the simulated target, near the usual one; results hardly depend on it


def effective_blocks(total: NDArray[np.integer] | Array) -> Array:
    """(sum x)^2 / sum x^2 over axis 0: how many equally large blocks the blocks are worth."""
    x = np.asarray(total, np.float64)
    squares = (x**2).sum(axis=0)
    shares: Array = np.divide(x.sum(axis=0) ** 2, squares, out=np.zeros_like(squares), where=squares > 0)
    return shares


def lower_bound(total: NDArray[np.integer] | Array, correct: NDArray[np.integer] | Array, confidence: float) -> Array:
    """One-sided lower bound on sum(correct) / sum(total), blocks on axis 0; NaN without pixels.

    Without any error one wrong pixel is assumed, so that the bound never claims certainty. Fewer than two
    effective blocks bound nothing: 0.
    """
    return interval(total, correct, confidence)[0]


def interval(
    total: NDArray[np.integer] | Array, correct: NDArray[np.integer] | Array, confidence: float
) -> tuple[Array, Array]:
    """`lower_bound` and its mirror image above: (low, high); fewer than two effective blocks: (0, 1)."""
    x, y = np.asarray(total, np.float64), np.asarray(correct, np.float64)
    whole, right = x.sum(axis=0), y.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        wrong_share = np.maximum(1 - right / whole, 1 / whole)
        left_out = (right - y) / (whole - x)
        left_out = np.where(whole - x > 0, left_out, right / whole)
        blocks = (x > 0).sum(axis=0)
        deviations = np.where(x > 0, (left_out - right / whole) ** 2, 0.0).sum(axis=0)
        error = np.sqrt((blocks - 1) / blocks * deviations)
        error = np.where(right >= whole, wrong_share, error)
        freedom = effective_blocks(x) - 1
        t = stdtrit(np.maximum(freedom, 1.0), 1 - (1 - confidence) / 2)
        width = np.minimum(t * error / wrong_share, 700.0)
        low, high = 1 - wrong_share * np.exp(width), 1 - wrong_share * np.exp(-width)
    low, high = np.where(freedom < 1, 0.0, np.maximum(low, 0.0)), np.where(freedom < 1, 1.0, high)
    return np.where(whole > 0, low, np.nan), np.where(whole > 0, high, np.nan)


def clopper_pearson(right: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a binomial share (Clopper and Pearson 1934): (low, high).

    `right` of `n` answers; both may be effective (not whole) numbers. Without an answer: (0, 1).
    """
    if n <= 0:
        return 0.0, 1.0
    tail = (1.0 - confidence) / 2
    low = 0.0 if right <= 0 else float(betaincinv(right, n - right + 1, tail))
    high = 1.0 if right >= n else float(betaincinv(right + 1, n - right, 1.0 - tail))
    return low, high


class Stratum(NamedTuple):
    """Answers of one stratum: `right` of `n` sampled units, which stand for `weight` units in all."""

    right: int
    n: int
    weight: float


def stratified(strata: Sequence[Stratum]) -> tuple[float, float, float] | None:
    """Weighted share over strata and the ends of its design-based interval; None when nothing was answered.

    The effective sample size of Korn and Graubard 1998 goes into the formula of Clopper and Pearson, as the US
    National Center for Health Statistics does. Strata without an answer are left out: the result is then about the
    others alone. For the design effect one right and one wrong answer are added to each
    stratum. So a stratum in which everything is right still counts as uncertain.
    """
    judged_strata = [s for s in strata if s.n > 0 and s.weight > 0]
    if not judged_strata:
        return None
    total = sum(s.weight for s in judged_strata)
    value = sum(s.weight * s.right / s.n for s in judged_strata) / total
    careful = [(s, (s.right + 1) / (s.n + 2)) for s in judged_strata]
    variance = sum((s.weight / total) ** 2 * p * (1 - p) / s.n for s, p in careful)
    middle = sum(s.weight * p for s, p in careful) / total
    effective = min(float(sum(s.n for s in judged_strata)), middle * (1 - middle) / variance)
    return value, *clopper_pearson(value * effective, effective, 0.95)


def spread_of_errors(total: NDArray[np.integer], correct: NDArray[np.integer]) -> tuple[float, float]:
    """Coefficients of variation of blocks' error rates (weighted by size) and of blocks' sizes, blocks on axis 0."""
    x = np.asarray(total, np.float64)
    y = np.asarray(correct, np.float64)[x > 0]
    x = x[x > 0]
    if len(x) < 2:
        return math.inf, math.inf
    rates = 1 - y / x
    mean = np.average(rates, weights=x)
    size_cv = float(np.std(x, ddof=1) / x.mean())
    if mean <= 0:
        return 0.0, size_cv
    return float(np.sqrt(np.average((rates - mean) ** 2, weights=x) * len(x) / (len(x) - 1)) / mean), size_cv


def simulated_search(
    blocks: int, error_cv: float, size_cv: float, confidence: float, shares: Array, errors: Array, chosen: int
) -> float:
    """Share of simulated calibrations whose search ends at a threshold that reaches the target, or at none.

    The simulated class is like the measured one, but its chosen threshold is just too wrong, and so is every lower one.
    The search takes the lowest one whose bound reaches the target, so a flat curve gives it many chances to be wrong.
    Errors and sizes of blocks are log-normal. Between bands of codes a block's errors agree wholly (then the search is
    as good as one fixed threshold), or half of their variance is the band's own. The worse of both counts.

    Args:
        blocks: blocks at the chosen threshold.
        error_cv, size_cv: spreads by `spread_of_errors`. They are rounded up to quarters and never taken as less than
            1 (errors) and 0.5 (sizes), because few blocks show less spread than there is.
        confidence: of `lower_bound`.
        shares: of the class's pixels that each threshold keeps, (J,), rising.
        errors: error rate of what each threshold keeps, (J,). Only ratios count, and a fall counts as flat.
        chosen: index of the threshold.
    """
    spreads = [min(math.ceil(max(v, low) * 4) / 4, 6.0) for v, low in ((error_cv, 1.0), (size_cv, 0.5))]
    fixed = _one_threshold(int(blocks), spreads[0], spreads[1], round(confidence, 4))
    rising = np.maximum.accumulate(errors)
    ratio = rising / rising[chosen] if rising[chosen] > 0 else np.ones(len(rising))
    widths = np.diff(shares, prepend=0.0)
    bands = np.maximum(np.diff(ratio * shares, prepend=0.0), 0.0) / widths
    total, correct = _worlds(int(blocks), spreads[0], spreads[1], widths, bands, draws=2000)
    passes = lower_bound(total, correct, confidence) >= 1 - _ALLOWED
    last = passes.shape[-1] - 1 - passes[:, ::-1].argmax(-1)
    return min(fixed, float(1 - np.mean(passes.any(-1) & (ratio >= 1)[last])))


@lru_cache(maxsize=4096)
def _one_threshold(blocks: int, error_cv: float, size_cv: float, confidence: float) -> float:
    total, correct = _worlds(blocks, error_cv, size_cv, np.ones(1), np.ones(1), draws=20_000)
    return float(np.mean(lower_bound(total, correct, confidence) < 1 - _ALLOWED))


def _worlds(
    blocks: int, error_cv: float, size_cv: float, widths: Array, bands: Array, draws: int
) -> tuple[Array, Array]:
    """Pixels and right ones of (blocks, draws, thresholds): errors of the bands over the allowed one, per block."""
    rng = np.random.Generator(np.random.PCG64(20200521))
    error_s, size_s = (math.sqrt(math.log1p(cv * cv)) for cv in (error_cv, size_cv))
    sizes = 1e4 * np.exp(size_s * rng.standard_normal((blocks, draws, 1))) * widths
    of_block, of_band = (rng.standard_normal((blocks, draws, k)) for k in (1, len(widths)))
    normal = (of_block + of_band) / math.sqrt(2)
    wrong = np.minimum(1.001 * _ALLOWED * bands * np.exp(error_s * normal - error_s**2 / 2), 1.0)
    return sizes.cumsum(-1), (sizes * (1 - wrong)).cumsum(-1)
