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
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

Array = NDArray[np.float64]


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


def simulated_coverage(blocks: int, error_cv: float, size_cv: float, confidence: float) -> float:
    """Share of simulated calibrations in which the bound is right, with log-normal block errors and sizes.

    The spreads are rounded up to quarters and never taken as less than 1 (errors) and 0.5 (sizes), because few
    blocks show less spread than there is.
    """
    up = [min(math.ceil(max(v, low) * 4) / 4, 6.0) for v, low in ((error_cv, 1.0), (size_cv, 0.5))]
    return _coverage(int(blocks), up[0], up[1], round(confidence, 4))


@lru_cache(maxsize=4096)
def _coverage(blocks: int, error_cv: float, size_cv: float, confidence: float) -> float:
    rng = np.random.Generator(np.random.PCG64(20200521))
    error_s, size_s = (math.sqrt(math.log1p(cv * cv)) for cv in (error_cv, size_cv))
    draws, mean_error = 2000, 0.02  # an error near the usual target; the coverage hardly depends on it

    def world(n: int) -> tuple[Array, Array]:
        sizes = 1e4 * np.exp(size_s * rng.standard_normal((n, draws if n == blocks else 1)))
        errors = mean_error * np.exp(error_s * rng.standard_normal(sizes.shape) - error_s**2 / 2)
        return sizes, sizes * (1 - np.minimum(errors, 1))

    everything = world(200_000)
    truth = everything[1].sum() / everything[0].sum()
    total, correct = world(blocks)
    return float(np.mean(lower_bound(total, correct, confidence) <= truth))
