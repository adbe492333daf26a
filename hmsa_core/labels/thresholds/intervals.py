"""Lower bounds on precision: a ratio estimator over blocks, never over pixels.

Pixels of one image are wrong together, and so are images of one drive; the unit is the block. Precision is
p = sum(correct) / sum(total) over blocks; its standard error comes from leaving out one block at a time
(jackknife), the interval is symmetric in log(1 - p) because errors of blocks are skewed, with Student's t at
the effective number of blocks (sum x)^2 / sum x^2 less one. Half of the error budget is kept in hand for
skewness (a 95 % bound is computed at 97.5 %): in simulations with block errors whose standard deviation is up
to 1.5 times their mean it then covers at least 90 % from 8 blocks on (tests/unit/hmsa_core/labels).
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["effective_blocks", "interval", "lower_bound", "simulated_coverage", "spread_of_errors", "t_quantile"]

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
        t = t_quantile(1 - (1 - confidence) / 2, np.maximum(freedom, 1.0))
        width = np.minimum(t * error / wrong_share, 700.0)
        low, high = 1 - wrong_share * np.exp(width), 1 - wrong_share * np.exp(-width)
    low, high = np.where(freedom < 1, 0.0, np.maximum(low, 0.0)), np.where(freedom < 1, 1.0, high)
    return np.where(whole > 0, low, np.nan), np.where(whole > 0, high, np.nan)


def t_quantile(probability: float, freedom: NDArray[np.float64] | float) -> Array:
    """Quantile of Student's t for real degrees of freedom >= 1 (Hill 1970, Algorithm 396), error < 2e-3.

    Between 1 and 2 degrees of freedom it is too large, by up to 40 %: bounds of so little evidence are cautious.
    """
    n = np.asarray(freedom, np.float64)
    tail = 2 * (1 - probability)
    safe = np.maximum(n, 1.0)
    a = 1 / (safe - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * np.sqrt(a * np.pi / 2) * safe
    y = (d * tail) ** (2 / safe)
    z = NormalDist().inv_cdf(tail / 2)
    c_far = np.where(safe < 5, c + 0.3 * (safe - 4.5) * (z + 0.6), c)
    c_far = (((0.05 * d * z - 5) * z - 7) * z - 2) * z + b + c_far
    w = z * z
    far = np.expm1(a * ((((((0.4 * w + 6.3) * w + 36) * w + 94.5) / c_far - w - 3) / b + 1) * z) ** 2)
    near = ((1 / (((safe + 6) / (safe * y) - 0.089 * d - 0.822) * (safe + 2) * 3) + 0.5 / (safe + 4)) * y - 1) * (
        safe + 1
    ) / (safe + 2) + 1 / y
    result = np.sqrt(safe * np.where(y > 0.05 + a, far, near))
    # Both expansions are poor below 2 degrees of freedom; there the exact ends (1 and 2) are joined on a log scale.
    one = 1 / math.tan(tail * math.pi / 2)
    two = math.sqrt(2 / (tail * (2 - tail)) - 2)
    joined = np.exp(math.log(one) + (safe - 1) * (math.log(two) - math.log(one)))
    return np.asarray(np.where(safe <= 2, joined, result))


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
def _coverage(blocks: int, error_cv: float, size_cv: float, confidence: float, draws: int = 2000) -> float:
    rng = np.random.Generator(np.random.PCG64(20200521))
    error_s, size_s = (math.sqrt(math.log1p(cv * cv)) for cv in (error_cv, size_cv))
    mean_error = 0.02  # near the usual target; the coverage hardly depends on it

    def world(n: int) -> tuple[Array, Array]:
        sizes = 1e4 * np.exp(size_s * rng.standard_normal((n, draws if n == blocks else 1)))
        errors = mean_error * np.exp(error_s * rng.standard_normal(sizes.shape) - error_s**2 / 2)
        return sizes, sizes * (1 - np.minimum(errors, 1))

    everything = world(200_000)
    truth = everything[1].sum() / everything[0].sum()
    total, correct = world(blocks)
    return float(np.mean(lower_bound(total, correct, confidence) <= truth))
