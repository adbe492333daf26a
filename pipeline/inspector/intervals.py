"""Intervals for shares that were counted in a sample: exact for one stratum, design-based for several.

Clopper and Pearson 1934 for one stratum; for strata with unequal weights the effective sample size of
Korn and Graubard 1998, put into the same formula (as the US National Center for Health Statistics does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hmsa_core.labels.thresholds.intervals import clopper_pearson

__all__ = ["Share", "Stratum", "stratified"]


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
