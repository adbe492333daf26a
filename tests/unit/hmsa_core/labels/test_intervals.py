from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hmsa_core.labels.thresholds.intervals import (
    clopper_pearson,
    effective_blocks,
    interval,
    lower_bound,
    simulated_search,
    spread_of_errors,
)


def test_few_blocks_use_students_t_at_their_effective_number() -> None:
    """1.5 degrees of freedom, from two large blocks and a small one: t is 6.017, between 12.7 (1) and 4.3 (2)."""
    total, correct = np.array([1000, 1000, 279]), np.array([990, 970, 275])
    assert float(effective_blocks(total)) - 1 == pytest.approx(1.5, abs=0.001)
    whole, right = total.sum(), correct.sum()
    left_out = (right - correct) / (whole - total)
    error = np.sqrt(2 / 3 * ((left_out - right / whole) ** 2).sum())
    wrong = 1 - right / whole
    assert float(lower_bound(total, correct, 0.95)) == pytest.approx(
        1 - wrong * np.exp(6.017 * error / wrong), rel=1e-3
    )


def test_equal_blocks_count_fully_and_one_large_one_counts_as_one() -> None:
    assert float(effective_blocks(np.full(7, 50))) == pytest.approx(7)
    assert float(effective_blocks(np.array([10**6, 1, 1, 1]))) == pytest.approx(1, abs=1e-4)
    assert float(effective_blocks(np.zeros(3))) == 0


@given(hnp.arrays(np.int64, st.integers(3, 30), elements=st.integers(1, 10_000)), st.integers(0, 1000))
def test_the_bound_lies_below_the_estimate_and_falls_with_confidence(total: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    correct = rng.binomial(total, 0.95)
    bound = float(lower_bound(total, correct, 0.95))
    assert 0 <= bound <= correct.sum() / total.sum()
    assert float(lower_bound(total, correct, 0.99)) <= bound


def test_pixels_are_not_evidence_blocks_are() -> None:
    """A hundred times the pixels in the same blocks change nothing."""
    total, correct = np.full(12, 100), np.array([99, 98, 100, 97, 99, 100, 98, 99, 95, 100, 99, 98])
    assert float(lower_bound(total * 100, correct * 100, 0.95)) == pytest.approx(
        float(lower_bound(total, correct, 0.95)), abs=1e-9
    )


def test_without_errors_the_bound_is_below_one_and_without_pixels_there_is_none() -> None:
    total = np.full(10, 100)
    assert 0.98 < float(lower_bound(total, total, 0.95)) < 1
    assert np.isnan(lower_bound(np.zeros(4), np.zeros(4), 0.95))
    assert float(lower_bound(np.array([100, 0, 0]), np.array([100, 0, 0]), 0.95)) == 0  # one block bounds nothing


def test_many_cuts_at_once_give_the_same_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    total = rng.integers(0, 50, (9, 4, 6))
    correct = rng.binomial(total, 0.9)
    together = lower_bound(total, correct, 0.95)
    for i, j in np.ndindex(4, 6):
        assert together[i, j] == pytest.approx(float(lower_bound(total[:, i, j], correct[:, i, j], 0.95)), nan_ok=True)


def _draw(rng: np.random.Generator, kind: str, blocks: int, error: float, cv: float, size_cv: float, n: int):
    sizes = 1e4 * np.exp(np.sqrt(np.log1p(size_cv**2)) * rng.standard_normal((blocks, n)))
    if kind == "lognormal":
        s = np.sqrt(np.log1p(cv**2))
        errors = error * np.exp(s * rng.standard_normal((blocks, n)) - s * s / 2)
    else:
        errors = rng.gamma(1 / cv**2, error * cv**2, (blocks, n))
    return sizes, sizes * (1 - np.minimum(errors, 1))


@pytest.mark.parametrize("blocks", [8, 12, 20, 40])
@pytest.mark.parametrize("kind", ["lognormal", "gamma"])
@pytest.mark.parametrize(("cv", "size_cv"), [(0.5, 0.3), (1.0, 0.7), (1.25, 0.7)])
def test_the_bound_covers_nine_of_ten_at_the_block_counts_in_use(
    blocks: int, kind: str, cv: float, size_cv: float
) -> None:
    rng = np.random.default_rng(blocks)
    total, correct = _draw(rng, kind, 300_000, 0.02, cv, size_cv, 1)
    truth = correct.sum() / total.sum()
    covered = np.mean(lower_bound(*_draw(rng, kind, blocks, 0.02, cv, size_cv, 1500), 0.95) <= truth)
    assert covered >= 0.885  # 0.9 less two standard errors of the simulation


SHARES = np.linspace(1 / 16, 1, 16)
STEEP, FLAT = SHARES**0.5, np.ones(16)


def test_where_blocks_differ_too_much_the_simulation_says_so() -> None:
    assert simulated_search(12, 4.0, 1.0, 0.95, SHARES, STEEP, 8) < 0.9
    assert simulated_search(20, 0.5, 0.3, 0.95, SHARES, STEEP, 8) >= 0.9


@pytest.mark.parametrize(("cv", "steep", "flat"), [(1.0, 0.92, 0.85), (2.5, 0.85, 0.73)])
def test_the_search_is_simulated_and_not_a_cut_that_was_fixed_before(cv: float, steep: float, flat: float) -> None:
    """On a flat curve every cut is a new chance to be wrong; on a steep one the search is as good as its first cut."""
    assert simulated_search(20, cv, 0.5, 0.95, SHARES, STEEP, 8) == pytest.approx(steep, abs=0.02)
    assert simulated_search(20, cv, 0.5, 0.95, SHARES, FLAT, 8) == pytest.approx(flat, abs=0.03)


def test_the_spread_of_block_errors_is_found() -> None:
    rng = np.random.default_rng(1)
    total, correct = _draw(rng, "gamma", 4000, 0.05, 1.0, 0.5, 1)
    error_cv, size_cv = spread_of_errors(total[:, 0].astype(np.int64), correct[:, 0].astype(np.int64))
    assert error_cv == pytest.approx(1.0, abs=0.15)
    assert size_cv == pytest.approx(0.5, abs=0.1)
    assert spread_of_errors(np.array([5]), np.array([5])) == (np.inf, np.inf)
    assert spread_of_errors(np.array([5, 5]), np.array([5, 5]))[0] == 0


def test_an_interval_holds_its_ratio_and_its_lower_end_is_the_bound() -> None:
    rng = np.random.default_rng(0)
    total = rng.integers(50, 200, (12, 3))
    correct = total - rng.binomial(total, [0.02, 0.1, 0.4])
    low, high = interval(total, correct, 0.95)
    ratio = correct.sum(axis=0) / total.sum(axis=0)
    assert ((low < ratio) & (ratio < high) & (high < 1)).all()
    assert np.array_equal(low, lower_bound(total, correct, 0.95))
    one = interval(total[:1], correct[:1], 0.95)
    assert (one[0].tolist(), one[1].tolist()) == ([0.0] * 3, [1.0] * 3)


@given(st.integers(1, 2000), st.floats(0.0, 1.0), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_exact_bound_is_never_beyond_what_mapie_certifies(n: int, share: float, confidence: float) -> None:
    """MAPIE's p-value (Hoeffding and Bentkus) is an upper bound of the exact one: it may not reject our bound."""
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value

    right = round(share * n)
    low, _ = clopper_pearson(right, n, confidence)
    errors = np.array([1 - right / n])
    p_value = compute_hoeffding_bentkus_p_value(errors, n, 1 - low, binary=True) if low > 0 else np.ones(1)
    assert float(np.ravel(p_value)[0]) >= (1 - confidence) / 2 * (1 - 1e-6)
