"""The sequential test behind certificates: how often it is wrong, and how many pixels it certifies."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from hmsa_core.io.errors import ConfigError
from hmsa_core.labels.thresholds.bounds import bound_names, find_bound
from hmsa_core.labels.thresholds.intervals import clopper_pearson
from hmsa_core.labels.thresholds.sequential import Answer, ClassErrors, SequentialTest, candidates, pilot_of

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
CODES = np.arange(256)


class Store(NamedTuple):
    """Pixels of each class and code, and the share of them that is wrong: both (C, 256)."""

    counts: Counts
    errors: Floats

    def precision(self, class_id: int, code: int) -> float:
        """Share of what a class keeps from a code on that is right."""
        kept = self.counts[class_id, code:]
        return float(1 - (kept * self.errors[class_id, code:]).sum() / kept.sum())


class Audit(NamedTuple):
    """A finished audit: certified code of each class (256 = none), and its answers."""

    codes: list[int]
    answers: int
    test: SequentialTest


class Drawer:
    """Draws of an audit on histograms; `forgets`: how often a person is wrong at first about what is right or not."""

    def __init__(self, store: Store, target: float, seed: int, guess: Floats, forgets: float = 0.0) -> None:
        self._rng, self._forgets = np.random.default_rng(seed), forgets
        self.edges = [candidates(counts) for counts in store.counts]
        self._bands, self._right, classes = [], [], []
        for edges, counts, errors, guessed in zip(self.edges, store.counts, store.errors, guess, strict=True):
            bands = [slice(low, high) for high, low in zip([256, *edges], edges, strict=False)]
            means = np.array([np.average(guessed[band], weights=counts[band]) for band in bands])
            self._bands.append(np.array([float(counts[band].sum()) for band in bands]))
            self._right.append(1 - np.array([np.average(errors[band], weights=counts[band]) for band in bands]))
            classes.append(
                ClassErrors(np.cumsum(self._bands[-1]), means, np.zeros((2, len(means))), 1 - target, pilot_of(1000))
            )
        self.test = SequentialTest(classes, target, 0.05, find_bound("betting"))
        self.truth: list[Answer] = []
        self._bets = 0

    def draw(self, left: int, batch: int) -> int:
        """Answer the next batch; the number of answers, 0 where none is of use."""
        steps = self.test.plan(left)
        if not steps:
            return 0
        step = steps[0]
        c, pilot = step.class_index, self.test.classes[step.class_index].pilot
        self._bets += not pilot and not step.goes_on
        reach = len(self.edges[c]) - 1 if pilot else step.candidate
        pixels = self._bands[c][: reach + 1]
        count = min(batch, left, math.ceil(pilot or step.needed))
        bands = self._rng.choice(reach + 1, count, p=pixels / pixels.sum())
        wrong = self._rng.random(count) >= self._right[c][bands]
        bet = 0 if pilot else self._bets
        drawn = [Answer(c, bet, reach, int(b), bool(w)) for b, w in zip(bands, wrong, strict=True)]
        said = self._rng.random(count) < self._forgets
        self.test.add([one._replace(wrong=one.wrong != bool(slip)) for one, slip in zip(drawn, said, strict=True)])
        self.truth += drawn
        return count


def audit(
    store: Store,
    *,
    target: float,
    budget: int,
    seed: int,
    guess: Floats,
    stops: float = 0.0,
    forgets: float = 0.0,
    batch: int = 10,
) -> Audit:
    """A whole audit on histograms; after each batch a tired person stops with the chance `stops`.

    With `forgets` the answers are put right at the end, when they have chosen the draws already.
    """
    drawer, rng, used = Drawer(store, target, seed, guess, forgets), np.random.default_rng([seed, 1]), 0
    while used < budget and rng.random() >= stops and (count := drawer.draw(budget - used, batch)):
        used += count
    test = drawer.test
    if forgets:
        test = Drawer(store, target, seed, guess).test
        test.add(drawer.truth)
    found = [edges[at] if at >= 0 else 256 for edges, at in zip(drawer.edges, test.certified, strict=True)]
    return Audit(found, used, test)


def streets(right: list[float], pixels: list[float]) -> Store:
    """Classes whose errors fall with the code, as wrong in all as `right` says."""
    counts = np.round(np.outer(pixels, np.exp(CODES / 40.0)) * 50).astype(np.int64) + 1
    shape = np.exp(-CODES / 30.0) + 0.002
    errors = np.stack([shape * (1 - p) / np.average(shape, weights=n) for p, n in zip(right, counts, strict=True)])
    return Store(counts, np.clip(errors, 0, 1))


def as_confidence(store: Store) -> Floats:
    """The guess of one who has no calibration: what the codes say, which is too bad."""
    return np.broadcast_to(np.clip(1.2 - CODES / 230.0, 1e-3, 0.6), store.counts.shape)


def hard_store(seed: int, target: float) -> Store:
    """Six classes; of each a candidate is just too wrong, and often all below it; the others are good or hopeless."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 2000, (6, 256)) * (rng.random((6, 256)) < 0.3) + 1
    errors = np.clip(rng.gamma(0.3, size=(6, 256)) * np.exp(-rng.uniform(0, 0.03, (6, 1)) * CODES), 0, 1)
    for c in range(6):
        cut = candidates(counts[c])[rng.integers(0, 20)] if rng.random() < 0.8 else 0
        allowed = (1 - target) * (1.001 if rng.random() < 0.7 else 0.1)
        for _ in range(60):  # clipping takes away from what is scaled
            mean = np.average(errors[c, cut:], weights=counts[c, cut:])
            errors[c] = np.clip(errors[c] * allowed / max(mean, 1e-9), 0, 1)
    return Store(counts, errors)


def false_share(audits: int, first: int, forgets: float = 0.0) -> tuple[float, float]:
    """Share of audits with any false certificate, and its upper 95 % bound; the guess is far too good."""
    target, budget = 0.9, 300
    wrong = 0
    for seed in range(first, first + audits):
        store = hard_store(seed, target)
        found = audit(
            store,
            target=target,
            budget=budget,
            seed=seed,
            guess=store.errors / 5 + 1e-3,
            stops=0.01,
            batch=20,
            forgets=forgets,
        )
        wrong += any(code < 256 and store.precision(c, code) < target - 1e-9 for c, code in enumerate(found.codes))
    return wrong / audits, clopper_pearson(wrong, audits, 0.9)[1]


@pytest.mark.long
def test_no_more_than_delta_of_audits_hold_a_false_certificate() -> None:
    share, upper = false_share(250, 1)
    assert upper <= 0.05, f"{share:.1%} of audits, at most {upper:.1%}"


@pytest.mark.long
def test_answers_that_were_wrong_at_first_and_chose_the_draws_do_no_harm() -> None:
    share, upper = false_share(250, 1, forgets=0.3)
    assert upper <= 0.05, f"{share:.1%} of audits, at most {upper:.1%}"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_audits_hold_no_more_false_certificates_than_delta(capsys: pytest.CaptureFixture[str]) -> None:
    share, upper = false_share(10_000, 1000)
    with capsys.disabled():
        sys.stdout.write(f"\n{share:.2%} of 10,000 audits hold a false certificate, at most {upper:.2%} (95 %)\n")
    assert upper <= 0.05, f"{share:.2%} of audits, at most {upper:.2%}"


@pytest.mark.parametrize("bound", bound_names())
@pytest.mark.parametrize("error", [0.1, 0.13, 0.4])
def test_evidence_against_the_truth_is_a_bet_that_cannot_win(bound: str, error: float) -> None:
    """Exact: the expected evidence after any number of answers is at most 1 where a tenth or more is wrong."""
    for n in (1, 7, 40):
        evidence = np.exp(find_bound(bound)(np.full(n + 1, n), np.arange(n + 1), 0.1))
        chances = [math.comb(n, k) * error**k * (1 - error) ** (n - k) for k in range(n + 1)]
        assert np.dot(chances, evidence) <= 1 + 1e-9


def test_evidence_stays_finite_and_an_unknown_bound_is_named() -> None:
    assert find_bound("betting")(0, 0, 0.05) == pytest.approx(0)
    assert find_bound("betting")(20_000, 100, 0.05) > 100
    assert find_bound("betting")(20_000, 19_000, 0.001) < -100
    with pytest.raises(ConfigError, match="no certificate bound 'nettig'"):
        find_bound("nettig")


@pytest.mark.parametrize(("right", "target"), [(0.98, 0.9), (0.99, 0.95)])
def test_answers_stay_near_what_information_allows(right: float, target: float) -> None:
    """Median answers until evidence of 0.05 / 8, for a fifth of the allowed error."""
    e, allowed, level = 1 - right, 1 - target, math.log(8 / 0.05)
    bound = level / (e * math.log(e / allowed) + right * math.log(right / target))
    wrong = (np.random.default_rng(5).random((400, 1500)) < e).cumsum(axis=1)
    passed = find_bound("betting")(np.arange(1, 1501), wrong, allowed) >= level
    assert np.median(passed.argmax(axis=1)) <= 1.2 * bound


@pytest.mark.long
def test_a_class_that_is_right_in_all_its_pixels_keeps_nearly_all_of_them_without_a_calibration() -> None:
    store = streets([0.992, 0.99, 0.7], [3.0, 1.0, 2.0])
    found = [audit(store, target=0.95, budget=800, seed=seed, guess=as_confidence(store)) for seed in range(10)]
    for c in (0, 1):
        kept = [store.counts[c, one.codes[c] :].sum() / store.counts[c].sum() for one in found]
        assert np.median(kept) >= 0.9, f"class {c}"
    assert all(one.answers <= 800 for one in found)


@pytest.mark.long
def test_the_class_with_most_pixels_is_certified_first() -> None:
    store = streets([0.99, 0.99, 0.99], [20.0, 1.0, 1.0])
    found = [audit(store, target=0.9, budget=150, seed=seed, guess=as_confidence(store)).codes for seed in range(10)]
    assert np.median([code for code, *_ in found]) < 100
    assert all(first < 256 for first, *others in found if min(others) < 256)


def test_the_forecast_says_pixels_that_so_many_answers_bring() -> None:
    store = streets([0.99, 0.99], [2.0, 1.0])
    begun = audit(store, target=0.9, budget=400, seed=0, guess=as_confidence(store), stops=1.0).test
    near, far = (sum(one.gain for one in begun.forecast(answers)) for answers in (100, 600))
    assert 0 < near < far <= store.counts.sum()
    done = audit(store, target=0.9, budget=2000, seed=0, guess=as_confidence(store)).test
    assert [len(one.pixels) - 1 for one in done.classes] == done.certified
    assert done.forecast(100) == []


def simple(*before: tuple[list[float], list[float]]) -> SequentialTest:
    """A test of classes with two candidates, half of the pixels and all, after earlier answers of bands."""
    pixels, guess = np.array([50.0, 100.0]), np.array([0.01, 0.05])
    return SequentialTest(
        [ClassErrors(pixels, guess, np.array(b), 0.1, 30) for b in before], 0.9, 0.05, find_bound("betting")
    )


def test_answers_of_an_earlier_audit_take_the_place_of_the_pilot() -> None:
    known, new = simple(([30.0, 0.0], [0.0, 0.0])), simple(([0.0, 0.0], [0.0, 0.0]))
    assert (known.classes[0].pilot, new.classes[0].pilot) == (0, 30)
    for test in (known, new):
        test.add([Answer(0, 0, 1, 1, wrong=False)] * 1000)
        assert test.certified == [-1], "an answer without a bet chooses, and proves nothing"


NOTHING = ([0.0, 0.0], [0.0, 0.0])


def answers_until_certified(test: SequentialTest, class_index: int, bet: int) -> int:
    """Right answers of a bet on a whole class until it is certified."""
    for count in range(1, 1000):
        test.add([Answer(class_index, bet, 1, 1, wrong=False)])
        if test.certified[class_index] == 1:
            return count
    raise AssertionError("never certified")


def test_a_certified_class_costs_the_next_one_nothing_and_a_lost_bet_does() -> None:
    fresh = answers_until_certified(simple(NOTHING, NOTHING), 1, 1)
    after = simple(NOTHING, NOTHING)
    first = answers_until_certified(after, 0, 1)
    assert answers_until_certified(after, 1, 2) <= fresh + 5, "the surer candidate's stake saw no answer"
    assert first == fresh
    lost = simple(NOTHING, NOTHING)
    lost.add([Answer(0, 1, 1, 1, wrong=True)] * 3)
    assert answers_until_certified(lost, 1, 2) > fresh
    again = simple(NOTHING, NOTHING)
    again.add([Answer(0, 1, 1, 1, wrong=False)] * (first - 1))
    assert answers_until_certified(again, 0, 2) == first, "a new bet begins anew"


@pytest.mark.parametrize("seed", range(5))
def test_cash_and_stakes_never_exceed_what_was_there_at_first(seed: int) -> None:
    """Whatever is drawn, in whatever order, while candidates that are certified are right by luck or not."""
    rng, test = np.random.default_rng(seed), simple(NOTHING, NOTHING, NOTHING)
    for bet in range(1, 60):
        c, reach = int(rng.integers(3)), int(rng.integers(2))
        test.add(Answer(c, bet, reach, int(rng.integers(reach + 1)), bool(rng.random() < 0.1)) for _ in range(20))
        assert test.bet is not None
        assert test.cash + test.bet.stakes.sum() <= 1 + 1e-9
