"""The sequential test behind certificates: how often it is wrong, and how many answers it needs."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize

from hmsa_core.labels.thresholds.intervals import clopper_pearson
from hmsa_core.labels.thresholds.sequential import SequentialTest, choose_start, closest

pytestmark = pytest.mark.long

Floats = NDArray[np.float64]


class Images(NamedTuple):
    """Where the pixels of a band lie: how right they are is decided by the image. Both (runs, C, B, I)."""

    ends: Floats  # running share of the band's pixels
    errors: Floats  # of each image's pixels in the band, the share that is wrong

    @property
    def rates(self) -> Floats:
        """Error rate of each band, (runs, C, B)."""
        return np.asarray((np.diff(self.ends, axis=-1, prepend=0.0) * self.errors).sum(-1))


class Outcome(NamedTuple):
    """Of many runs: a false certificate in it, the lowest certified cut of each class, draws of each class."""

    false: NDArray[np.bool_]
    lowest: NDArray[np.int64]
    draws: Floats


def simulate(
    kept: Floats,
    errors: Floats | Images,
    guess: Floats,
    *,
    target: float,
    runs: int,
    budget: int,
    seed: int,
    batch: int = 10,
    stops: float = 0.0,
    start: NDArray[np.int64] | None = None,
) -> Outcome:
    """Whole audits: classes and bands are chosen from the answers, and a tired person stops after some batch.

    A draw is a pixel of a band: its image by the image's share of the band, its answer by the error rate of the
    image. `errors` are these images, or true rates of bands (C, B) that all images share. `stops` is the chance to
    stop after each batch.
    """
    rng = np.random.default_rng(seed)
    classes, bands = kept.shape
    if start is None:
        start = np.array([choose_start(k, g, target, 0.05 / classes) for k, g in zip(kept, guess, strict=True)])
    if not isinstance(errors, Images):
        rates = np.broadcast_to(errors, (runs, classes, bands))[..., None]
        errors = Images(np.ones(rates.shape), rates)

    def test_of(count: int) -> SequentialTest:
        spread = (np.broadcast_to(a, (count, *a.shape)) for a in (kept, guess, start))
        return SequentialTest(*spread, target, 0.05)  # type: ignore[arg-type]  # a generator of three arrays

    n, wrong = np.zeros((2, runs, classes, bands))
    best = np.asarray(test_of(runs).evidence(n, wrong))
    left, alive = np.full(runs, budget), np.arange(runs)
    while len(alive):
        test = test_of(len(alive))
        turn = test.turn(n[alive], wrong[alive], best[alive])
        chosen = test.pick(turn, n[alive], best[alive], left[alive])
        goes_on = (chosen >= 0) & (rng.random(len(alive)) >= stops)
        alive, c = alive[goes_on], chosen[goes_on]
        band = turn.band[goes_on, c]
        for _ in range(batch):
            more = left[alive] > 0
            at = alive[more], c[more], band[more]
            image = (errors.ends[at] <= rng.random((more.sum(), 1))).sum(-1)
            n[at] += 1
            wrong[at] += rng.random(more.sum()) < errors.errors[(*at, np.minimum(image, errors.errors.shape[-1] - 1))]
            left[alive] -= more
        best[alive] = np.maximum(best[alive], test_of(len(alive)).evidence(n[alive], wrong[alive]))
    certified = test_of(runs).levels(best)[1]
    share = np.cumsum(kept * errors.rates, -1) / np.cumsum(kept, -1)
    lowest = np.where(certified, np.arange(bands), -1).max(-1)
    return Outcome((certified & (share > 1 - target + 1e-12)).any((1, 2)), lowest, n.sum(-1))


def hard_worlds(runs: int, seed: int, target: float) -> tuple[Floats, Images, Floats]:
    """Eight classes of 60 images, half of them just too wrong at some cut: the worst for false certificates.

    Few images hold the errors, in which most of a class is wrong. Rare classes lie in four images. The other classes
    are far better than the target, so that Holm hands their levels on. Guesses are far too good.
    """
    rng = np.random.default_rng(seed)
    kept = rng.dirichlet([2.0, 3.0, 2.0], 8) * rng.choice([40.0, 2e3, 1e7], (8, 1))
    shape = (runs, 8, 3, 60)
    sizes = rng.gamma(0.5, size=(runs, 8, 1, 60)) * (np.arange(60) < rng.choice([4, 60], (runs, 8, 1, 1)))
    shares = sizes / sizes.sum(-1, keepdims=True)
    # An image's errors in one band tell of those in the others; bands differ as well.
    raw = rng.gamma(0.2, size=(runs, 8, 1, 60)) * rng.gamma(0.5, size=(runs, 8, 3, 1)) * rng.gamma(1.0, size=shape)
    cut = rng.integers(0, 3, (runs, 8, 1))  # the cut that is exactly too wrong
    allowed = (1 - target) * np.where(rng.random((runs, 8)) < 0.5, 1.001, 0.1)
    low, high = np.full((runs, 8), -40.0), np.full((runs, 8), 60.0)
    for _ in range(50):  # errors are rare and large: their scale is found on a logarithmic one
        middle = (low + high) / 2
        errors = np.minimum(raw * np.exp(middle)[..., None, None], 1.0)
        of_cuts = np.cumsum(kept * (shares * errors).sum(-1), -1) / np.cumsum(kept, -1)
        is_over = np.take_along_axis(of_cuts, cut, -1)[..., 0] >= allowed
        low, high = np.where(is_over, low, middle), np.where(is_over, middle, high)
    errors = np.minimum(raw * np.exp(high)[..., None, None], 1.0)
    return kept, Images(np.broadcast_to(np.cumsum(shares, -1), shape), errors), np.full((8, 3), 0.002)


def false_share(runs: int, seed: int, **options: float) -> tuple[float, float]:
    """Share of runs with any false certificate, and its upper 95 % bound, over chunks that fit in memory."""
    wrong = 0
    for part in range(0, runs, 250):
        kept, errors, guess = hard_worlds(250, seed + part, 0.9)
        wrong += int(
            simulate(kept, errors, guess, target=0.9, runs=250, budget=800, seed=part, batch=20, **options).false.sum()
        )
    return wrong / runs, clopper_pearson(wrong, runs, 0.9)[1]


def test_no_more_than_delta_of_audits_hold_a_false_certificate() -> None:
    share, upper = false_share(500, 1, stops=0.02)
    assert upper <= 0.05, f"{share:.1%} of audits, at most {upper:.1%}"


@pytest.mark.slow
@pytest.mark.parametrize("stops", [0.0, 0.05])
def test_ten_thousand_audits_hold_no_more_false_certificates_than_delta(
    stops: float, capsys: pytest.CaptureFixture[str]
) -> None:
    share, upper = false_share(10_000, 100, stops=stops)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{share:.2%} of 10,000 audits hold a false certificate, at most {upper:.2%} (95 %); stops {stops:g}\n"
        )
    assert upper <= 0.05, f"{share:.2%} of audits, at most {upper:.2%}"


@pytest.mark.parametrize("bad", [0.001, 0.6])
def test_evidence_against_the_truth_is_a_bet_that_cannot_win(bad: float) -> None:
    """Exact: the expected evidence at a fixed number of draws is at most 1 for every true rate at the limit."""
    kept, guess = np.array([[3.0, 1.0]]), np.array([[bad, 0.02]])
    test = SequentialTest(kept, guess, np.array([1]), 0.9, 0.05)
    for first in (0.02, 0.1, 0.13):
        rates = np.array([first, (0.1 - 0.75 * first) / 0.25])
        counts = [8, 5]
        expected = 0.0
        for a in range(counts[0] + 1):
            for b in range(counts[1] + 1):
                wrong = np.array([[float(a), float(b)]])
                chance = math.prod(
                    math.comb(m, k) * p**k * (1 - p) ** (m - k) for m, k, p in zip(counts, (a, b), rates, strict=True)
                )
                expected += chance * math.exp(float(test.evidence(np.array([counts]), wrong)[0, 1]))
        assert expected <= 1 + 1e-9


@pytest.mark.parametrize("target", [0.9, 0.95])
@pytest.mark.parametrize("right", [0.97, 0.98, 0.99])
def test_a_class_is_certified_with_few_more_answers_than_information_allows(right: float, target: float) -> None:
    delta_class = 0.05 / 8
    bound = -math.log(delta_class) / (
        right * math.log(right / target) + (1 - right) * math.log((1 - right) / (1 - target))
    )
    rng, runs, most = np.random.default_rng(5), 200, int(3 * bound)
    n = np.zeros((most, runs, 1, 1)) + np.arange(1, most + 1).reshape(-1, 1, 1, 1)
    wrong = np.cumsum(rng.random(n.shape) < 1 - right, axis=0).astype(float)
    test = SequentialTest(
        np.ones((runs, 1, 1)), np.full((runs, 1, 1), 0.01), np.zeros((runs, 1), int), target, delta_class
    )
    passed = np.array([test.evidence(n[i], wrong[i])[:, 0, 0] >= -math.log(delta_class) for i in range(0, most, 5)])
    needed = np.where(passed.any(0), 5 * passed.argmax(0) + 1, most)
    assert np.median(needed) <= 1.4 * bound


@pytest.mark.parametrize(("right", "target"), [(0.97, 0.9), (0.99, 0.95)])
def test_eight_classes_of_a_whole_audit_need_as_few_answers(right: float, target: float) -> None:
    allowed = 1 - target
    bound = -math.log(0.05 / 8) / (right * math.log(right / target) + (1 - right) * math.log((1 - right) / allowed))
    found = simulate(
        np.full((8, 2), 0.5), np.full((8, 2), 1 - right), np.full((8, 2), 0.01),
        target=target, runs=15, budget=round(24 * bound), seed=5, start=np.ones(8, np.int64),
    )  # fmt: skip
    needed = np.where(found.lowest == 1, found.draws, np.inf)
    assert np.median(needed) <= 1.4 * bound


def median_of_one_class(kept: list[float], errors: list[float], guess: list[float], target: float) -> float:
    start = np.array([len(kept) - 1])
    found = simulate(
        np.array([kept]), np.array([errors]), np.array([guess]),
        target=target, runs=60, budget=3000, seed=3, batch=8, start=start,
    )  # fmt: skip
    needed = np.where(found.lowest[:, 0] == len(kept) - 1, found.draws[:, 0], 1e9)
    return float(np.median(needed))


def test_a_good_guess_saves_a_third_of_the_answers() -> None:
    kept, errors = [0.85, 0.15], [0.002, 0.16]
    uniform = median_of_one_class([1.0], [float(np.dot(kept, errors))], [0.02], 0.95)
    assert median_of_one_class(kept, errors, errors, 0.95) <= 0.7 * uniform


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1), st.floats(0.05, 1)), min_size=2, max_size=4),
    st.floats(0.02, 0.3),
)
def test_the_closest_bad_rates_are_the_best_that_scipy_finds(
    rows: list[tuple[int, float, float]], allowed: float
) -> None:
    n = np.array([float(r[0]) for r in rows])
    wrong = np.floor(n * np.array([r[1] for r in rows]) * 0.3)
    shares = np.array([r[2] for r in rows])
    shares /= shares.sum()

    def cost(rates: Floats) -> float:
        safe = np.clip(rates, 1e-12, 1 - 1e-12)
        return -float((wrong * np.log(safe) + (n - wrong) * np.log(1 - safe)).sum())

    ours = closest(n, wrong, shares, allowed)
    assert (shares * ours).sum() >= allowed - 1e-6
    theirs = minimize(
        cost,
        np.full(len(n), max(allowed, 0.3)),
        bounds=[(1e-9, 1 - 1e-9)] * len(n),
        constraints={"type": "ineq", "fun": lambda e: float((shares * e).sum() - allowed)},
    )
    assert cost(ours) <= theirs.fun + 1e-4 * max(1.0, abs(theirs.fun))
