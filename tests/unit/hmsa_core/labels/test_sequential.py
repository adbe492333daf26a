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
from hmsa_core.labels.thresholds.sequential import PILOT, Answer, ClassTest, SequentialTest, candidates, shares_of

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


def audit(
    store: Store, *, target: float, budget: int, seed: int, guess: Floats, stops: float = 0.0, batch: int = 10
) -> Audit:
    """A whole audit on histograms; after each batch a tired person stops with the chance `stops`."""
    rng = np.random.default_rng(seed)
    cuts = [candidates(counts) for counts in store.counts]
    classes = []
    for c, share in enumerate(shares_of([int(counts.sum()) for counts in store.counts])):
        bands = [slice(low, high) for high, low in zip([256, *cuts[c]], cuts[c], strict=False)]
        guessed = np.array([np.average(guess[c, band], weights=store.counts[c, band]) for band in bands])
        pixels = np.array([float(store.counts[c, cut:].sum()) for cut in cuts[c]])
        classes.append(ClassTest(pixels, guessed, np.zeros((2, len(pixels))), share))
    test, used = SequentialTest(classes, target, 0.05, budget, find_bound("betting")), 0
    while used < budget and (best := test.best_option(budget - used)) is not None and rng.random() >= stops:
        c, low = best.class_index, cuts[best.class_index][best.candidate]
        kept = store.counts[c, low:]
        codes = low + rng.choice(len(kept), min(batch, budget - used), p=kept / kept.sum())
        wrong = rng.random(len(codes)) < store.errors[c, codes]
        bands = [next(b for b, cut in enumerate(cuts[c]) if code >= cut) for code in codes]
        drawn = [Answer(best.candidate, b, bool(w)) for b, w in zip(bands, wrong, strict=True)]
        test.classes[c].add(drawn, test)
        used += len(codes)
    found = [cuts[c][at] if at >= 0 else 256 for c, at in enumerate(test.certified())]
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


def false_share(audits: int, first: int, target: float = 0.9, budget: int = 200) -> tuple[float, float]:
    """Share of audits with any false certificate, and its upper 95 % bound."""
    wrong = 0
    for seed in range(first, first + audits):
        store = hard_store(seed, target)
        found = audit(
            store, target=target, budget=budget, seed=seed, guess=store.errors / 5 + 1e-3, stops=0.01, batch=20
        )
        wrong += any(code < 256 and store.precision(c, code) < target - 1e-9 for c, code in enumerate(found.codes))
    return wrong / audits, clopper_pearson(wrong, audits, 0.9)[1]


@pytest.mark.long
def test_no_more_than_delta_of_audits_hold_a_false_certificate() -> None:
    share, upper = false_share(500, 1)
    assert upper <= 0.05, f"{share:.1%} of audits, at most {upper:.1%}"


@pytest.mark.slow
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
    assert all(code == 256 for codes in found for code in codes[1:])


def test_the_forecast_says_pixels_that_so_many_answers_bring() -> None:
    store = streets([0.99, 0.99], [2.0, 1.0])
    begun = audit(store, target=0.9, budget=400, seed=0, guess=as_confidence(store), stops=1.0).test
    near, far = (sum(one.gain for one in begun.forecast(answers)) for answers in (50, 400))
    assert 0 < near < far <= store.counts.sum()
    done = audit(store, target=0.9, budget=2000, seed=0, guess=as_confidence(store)).test
    assert [len(one.pixels) - 1 for one in done.classes] == done.certified()
    assert done.forecast(100) == []


def test_answers_of_an_earlier_audit_take_the_place_of_the_pilot() -> None:
    pixels, guess, before = np.array([50.0, 100.0]), np.array([0.01, 0.05]), np.array([[6.0, 6.0], [0.0, 0.0]])
    known, new = ClassTest(pixels, guess, before, 1.0), ClassTest(pixels, guess, 0 * before, 1.0)
    answers = [Answer(1, 1, wrong=False)] * PILOT
    for one in (known, new):
        one.add(answers, SequentialTest([one], 0.9, 0.05, 300, find_bound("betting")))
    assert known.counted[0].tolist() == [0, PILOT]
    assert new.counted[0].tolist() == [0, 0], "the pilot is never bet"
