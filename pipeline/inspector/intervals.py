"""Intervals for shares that were counted in a sample: exact for one stratum, design-based for several.

Clopper and Pearson 1934 for one stratum; for strata with unequal weights the effective sample size of
Korn and Graubard 1998, put into the same formula (as the US National Center for Health Statistics does).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Share", "Stratum", "beta_quantile", "clopper_pearson", "stratified"]

_TINY = 1e-300


@dataclass(frozen=True)
class Share:
    """An estimated share with its interval, and the number of answers behind it."""

    value: float
    low: float
    high: float
    n: float


@dataclass(frozen=True)
class Stratum:
    """Answers of one stratum: `right` of `n` sampled units, which stand for `weight` units in all."""

    right: int
    n: int
    weight: float


def _continued_fraction(a: float, b: float, x: float) -> float:
    """Lentz's algorithm for the continued fraction of the incomplete beta function."""
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    result = d
    for m in range(1, 400):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + term * d
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = 1.0 + term / c
            c = c if abs(c) > _TINY else _TINY
            result *= d * c
        if abs(d * c - 1.0) < 1e-14:
            break
    return result


def _beta_cdf(x: float, a: float, b: float) -> float:
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    front = math.exp(log_front)
    # The fraction converges fast on one side of the mean; the other side is its mirror image.
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _continued_fraction(a, b, x) / a
    return 1.0 - front * _continued_fraction(b, a, 1.0 - x) / b


def beta_quantile(q: float, a: float, b: float) -> float:
    """Value x with P(Beta(a, b) <= x) = q, to 1e-12, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_cdf(middle, a, b) < q else (low, middle)
    return (low + high) / 2


def clopper_pearson(right: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a binomial share; `right` and `n` may be effective (not whole) numbers."""
    if n <= 0:
        return 0.0, 1.0
    tail = (1.0 - confidence) / 2
    low = 0.0 if right <= 0 else beta_quantile(tail, right, n - right + 1)
    high = 1.0 if right >= n else beta_quantile(1.0 - tail, right + 1, n - right)
    return low, high


def stratified(strata: Sequence[Stratum], confidence: float = 0.95) -> Share | None:
    """Weighted share over strata with a design-based interval; None when nothing was answered.

    Strata without an answer are left out, and the result then speaks for the others alone. The design effect is
    taken at shares with one right and one wrong answer added to each stratum, so that a stratum in which
    everything is right still counts as uncertain.
    """
    asked = [s for s in strata if s.n > 0 and s.weight > 0]
    if not asked:
        return None
    total = sum(s.weight for s in asked)
    n = sum(s.n for s in asked)
    value = sum(s.weight * s.right / s.n for s in asked) / total
    careful = [(s, (s.right + 1) / (s.n + 2)) for s in asked]
    variance = sum((s.weight / total) ** 2 * p * (1 - p) / s.n for s, p in careful)
    middle = sum(s.weight * p for s, p in careful) / total
    effective = min(float(n), middle * (1 - middle) / variance)
    low, high = clopper_pearson(value * effective, effective, confidence)
    return Share(value, low, high, n)
