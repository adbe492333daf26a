"""Intervals of audited precision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa_core.labels.thresholds.intervals import clopper_pearson
from pipeline.inspector.precision import Stratum, stratified


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Values of R's binom.test (published tables of Clopper and Pearson agree to the digits shown).
    [
        (7, 10, 0.3475, 0.9333),
        (0, 10, 0.0, 0.3085),
        (10, 10, 0.6915, 1.0),
        (95, 100, 0.8872, 0.9836),
        (1, 2, 0.0126, 0.9874),
    ],
)
def test_the_exact_interval_matches_published_values(right: int, n: int, low: float, high: float) -> None:
    assert clopper_pearson(right, n) == pytest.approx((low, high), abs=5e-5)


def test_no_answers_say_nothing() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert stratified([Stratum(0, 0, 10.0)]) is None


@given(st.integers(0, 40), st.integers(1, 40))
def test_one_stratum_is_the_plain_interval(right: int, n: int) -> None:
    right = min(right, n)
    expected = (right / n, *clopper_pearson(right, n))
    assert stratified([Stratum(right, n, 123.0)]) == pytest.approx(expected, abs=0.02)


def test_a_large_stratum_weighs_more_than_a_small_one() -> None:
    value, _, _ = stratified([Stratum(20, 20, 99.0), Stratum(0, 20, 1.0)])
    assert value == pytest.approx(0.99)


def test_a_perfect_sample_of_unequal_strata_does_not_claim_the_precision_of_an_equal_one() -> None:
    lows = [stratified([Stratum(20, 20, 1.0), Stratum(20, 20, weight)])[1] for weight in (1.0, 50.0)]
    assert lows[1] < lows[0]


def test_the_stratified_interval_covers_the_truth_in_at_least_95_per_cent_of_audits() -> None:
    rng = np.random.default_rng(3)
    weights, precisions, n = [60.0, 30.0, 10.0], [0.97, 0.85, 0.6], 15
    truth = float(np.average(precisions, weights=weights))
    hits = 0
    for _ in range(400):
        strata = [Stratum(int(rng.binomial(n, p)), n, w) for p, w in zip(precisions, weights, strict=True)]
        _, low, high = stratified(strata)
        hits += low <= truth <= high
    assert hits / 400 >= 0.93
