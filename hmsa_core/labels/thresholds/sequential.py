"""A sequential test of "at least `target` of what a cut keeps is right", valid whenever a person stops.

Every class is cut into bands of codes, the surest first; cut j keeps bands 0..j. Within a band pixels are drawn
uniformly and independently, so its answers are Bernoulli with the band's unknown error rate, however errors cluster
in images. Which band is drawn next may depend on all answers before.

Evidence against "cut j is less than `target` right" is Q / max L (universal inference, Wasserman, Ramdas and
Balakrishnan 2020; the likelihood-ratio form of the bets of Waudby-Smith and Ramdas 2024). Q is the predictive
probability of the answers under a mixture of guesses. L is their likelihood, and the maximum is over all error rates
of the bands that make cut j too wrong. Under such rates Q / L is a martingale that starts at 1, so the evidence ever
reaches 1 / level with a probability of at most `level` (Ville). A bad guess costs answers, never this.

The search for the cut is paid for by a graph of levels (Bretz, Maurer, Brannath and Posch 2009). A class has
delta / (classes that are not yet finished) (Holm). FALLBACK of that belongs to its surest cut and the rest to the cut
where it starts. A cut that is certified hands its level on to the next lower one.

Arrays: (..., C, B) for classes and bands, (..., C, J) for cuts, J = B; leading axes are independent runs. Bands that
keep nothing pad classes with fewer bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, xlogy

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FALLBACK = 0.2
EXPLORE = 24  # draws after which a class that looks hopeless is left
_STRETCH = 4.0  # a class may seem to need this many times the draws that are left
_SCALES = ((0.1, 0.2), (0.2, 0.25), (0.4, 0.3), (0.6, 0.25))  # of the allowed error, and weight of the guess
# How the guess may be meant: its power, the draws that it is worth, and the weight of that reading.
_READINGS = ((1.0, 300.0, 0.35), (0.5, 30.0, 0.3), (0.5, 4.0, 0.15))
_PSEUDO = 20.0  # draws that plan the very first ones
_UNLIKELY = 3.0  # nats of likelihood below the best explanation: answers speak against it


def closest(n: Floats, wrong: Floats, shares: Floats, allowed: Floats | float) -> Floats:
    """Error rates (..., B) that explain the answers best among those with sum(shares * rates) >= allowed.

    Bands without an answer get rate 1: nothing speaks against it.
    """
    asked = n > 0
    free = np.divide(wrong, n, out=np.ones(np.broadcast(n, wrong).shape), where=asked)
    low, high = np.full(np.broadcast(n, shares).shape[:-1], -10.0), 18.0
    step = high - low
    for _ in range(26):  # the multiplier of the constraint, on a logarithmic scale
        step = step / 2
        rates = _rates(np.exp(low + step)[..., None] * shares, n, wrong)
        low = np.where((shares * np.where(asked, rates, 1.0)).sum(-1) < allowed, low + step, low)
    bound = np.where(asked, _rates(np.exp(low)[..., None] * shares, n, wrong), 1.0)
    is_free = ((shares * free).sum(-1) >= allowed)[..., None]
    return np.where(is_free, free, np.minimum(bound, 1.0))


def _rates(pull: Floats, n: Floats, wrong: Floats) -> Floats:
    """Root of pull * e^2 + (n - pull) * e - wrong in [0, 1], in the form that does not cancel."""
    b = n - pull
    root = np.sqrt(b * b + 4 * pull * wrong)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(b > 0, 2 * wrong / (b + root), (root - b) / (2 * pull)))


def divergence(p: Floats, q: Floats) -> Floats:
    """Kullback-Leibler divergence of Bernoulli(p) from Bernoulli(q) in nats."""
    return np.asarray(xlogy(p, p / np.maximum(q, 1e-12)) + xlogy(1 - p, (1 - p) / np.maximum(1 - q, 1e-12)))


class Turn(NamedTuple):
    """What the next draws of each class would do, (..., C) each."""

    cut: NDArray[np.int64]  # the cut that they are for
    band: NDArray[np.int64]  # the band to draw from
    needed: Floats  # draws until it is certified, as far as known; inf = hopeless or finished
    may_be_good: Bools  # the answers do not speak against a third of the allowed error
    gain: Floats  # share of the class's pixels that its certificate would add


@dataclass(frozen=True, eq=False)
class SequentialTest:
    """The test of all classes together.

    Attributes:
        kept: pixels of each band, (..., C, B).
        guess: guessed error rate of each band, (..., C, B), in (0, 1).
        start: cut at which each class starts, (..., C).
        target, delta: what is promised, and how often the promise may fail for all classes together.
    """

    kept: Floats
    guess: Floats
    start: NDArray[np.int64]
    target: float
    delta: float

    @cached_property
    def _real(self) -> Bools:
        """Cuts that exist, (..., C, J)."""
        return np.asarray(self.kept > 0)

    @cached_property
    def _shares(self) -> Floats:
        """Share of each band in what a cut keeps, (..., C, J, B)."""
        bands = self.kept.shape[-1]
        inside = np.tril(np.ones((bands, bands))) * self.kept[..., None, :]
        return np.asarray(inside / np.maximum(inside.sum(-1, keepdims=True), 1.0))

    @cached_property
    def coverage(self) -> Floats:
        """Share of the class's pixels that each cut keeps, (..., C, J)."""
        summed = np.cumsum(self.kept, axis=-1)
        return np.asarray(summed / np.maximum(summed[..., -1:], 1.0))

    @cached_property
    def _prior(self) -> tuple[Floats, Floats, Floats]:
        """Guesses (K, ..., C, B), what each is worth in draws, and its log weight, (K, 1, ...) both."""
        allowed = 1 - self.target
        rows, strengths, weights = [self.guess], [_READINGS[0][1]], [0.2]
        for power, strength, share in _READINGS:
            shape = self.guess**power
            mean = (self._at_start(self._shares) * shape).sum(-1, keepdims=True)
            for scale, weight in _SCALES:
                rows.append(shape * scale * allowed / np.maximum(mean, 1e-9))
                strengths.append(strength)
                weights.append(share * weight)
        shape_of = (-1,) + (1,) * self.kept.ndim
        clipped = np.clip(np.array(rows), 1e-4, 0.6)
        return clipped, np.array(strengths).reshape(shape_of), np.log(np.array(weights)).reshape(shape_of[:-1])

    def _at_start(self, of_cuts: Floats) -> Floats:
        return np.take_along_axis(of_cuts, self.start[..., None, None], axis=-2)[..., 0, :]

    def predict(self, n: Floats, wrong: Floats) -> tuple[Floats, Floats]:
        """Log of Q, (..., C), and the error rates that the answers suggest, (..., C, B)."""
        guess, strength, log_weight = self._prior
        a, b = strength * guess, strength * (1 - guess)
        each = log_weight + (betaln(a + wrong, b + n - wrong) - betaln(a, b)).sum(-1)
        log_q = np.logaddexp.reduce(each, axis=0)
        posterior = np.exp(each - log_q)[..., None]
        return log_q, (posterior * (a + wrong) / (strength + n)).sum(0)

    def evidence(self, n: Floats, wrong: Floats, target: Floats | float | None = None) -> Floats:
        """Log evidence (..., C, J) for each cut's being at least `target` right (default: the test's)."""
        allowed = 1 - (self.target if target is None else target)
        n, wrong = np.asarray(n, np.float64), np.asarray(wrong, np.float64)
        of_cuts, wrong_of = n[..., None, :], wrong[..., None, :]
        rates = closest(of_cuts, wrong_of, self._shares, allowed)
        likelihood = (xlogy(wrong_of, rates) + xlogy(of_cuts - wrong_of, 1 - rates)).sum(-1)
        found = self.predict(n, wrong)[0][..., None] - likelihood
        return np.asarray(np.where(self._real, found, -np.inf))

    def levels(self, best: Floats) -> tuple[Floats, Bools]:
        """Log level of each cut and whether it is certified, (..., C, J), from the largest evidence so far."""
        some = self._real.any(-1)
        unfinished = np.maximum(some.sum(-1), 1)
        while True:
            level, certified = self._passed_on(best, np.log(self.delta / unfinished)[..., None])
            finished = (certified | ~self._real).all(-1) & some
            left = np.maximum((some & ~finished).sum(-1), 1)
            if (left >= unfinished).all():
                return level, certified
            unfinished = np.minimum(left, unfinished)

    def _passed_on(self, best: Floats, log_level: Floats) -> tuple[Floats, Bools]:
        first = self.start == 0
        levels, passed, pool = [], [], np.zeros(self.start.shape)
        for j in range(best.shape[-1]):
            own = np.where(self.start == j, np.where(first, 1.0, 1 - FALLBACK), 0.0)
            pool = pool + own + (np.where(first, 0.0, FALLBACK) if j == 0 else 0.0)
            with np.errstate(divide="ignore"):
                levels.append(log_level + np.log(np.minimum(pool, 1.0)))
            passed.append((best[..., j] >= -levels[-1]) & (pool > 0))
            pool = np.where(passed[-1], pool, 0.0)
        return np.stack(levels, -1), np.stack(passed, -1)

    def turn(self, n: Floats, wrong: Floats, best: Floats) -> Turn:
        """Where the next draw of each class is best made, and how many more its certificate needs."""
        level, certified = self.levels(best)
        cuts = np.arange(best.shape[-1])
        lowest = np.where(certified, cuts, -1).max(-1)
        rates = self.predict(n, wrong)[1]
        smooth = n[..., None, :] + _PSEUDO * self._shares
        least = closest(smooth, smooth * rates[..., None, :], self._shares, 1 - self.target)
        speed = np.where(self._shares > 0, divergence(rates[..., None, :], least), 0.0)  # (..., C, J, B)
        pace = (speed.max(-1) + (smooth * speed).sum(-1) / smooth.sum(-1)) / 2
        wanted = self._real & (cuts > lowest[..., None]) & np.isfinite(level) & (pace > 1e-6)
        missing = np.maximum(-level - self.evidence(n, wrong), 0.1)
        needed = np.divide(missing, pace, out=np.full(pace.shape, np.inf), where=wanted)
        # A class goes on from its start, unless another cut is nearer by far.
        cut = np.argmin(np.where(cuts == self.start[..., None], needed, 2 * needed), axis=-1)
        at = cut[..., None]
        band = np.argmax(np.take_along_axis(speed, at[..., None], axis=-2)[..., 0, :], axis=-1)
        had = np.take_along_axis(self.coverage, np.maximum(lowest, 0)[..., None], -1)[..., 0]
        gain = np.take_along_axis(self.coverage, at, -1)[..., 0] - np.where(lowest >= 0, had, 0.0)
        inside = np.take_along_axis(self._shares, at[..., None], axis=-2)[..., 0, :] > 0
        seen, good = (n * inside).sum(-1), np.asarray((1 - self.target) / 3)
        error = np.maximum((wrong * inside).sum(-1) / np.maximum(seen, 1), good)
        may_be_good = seen * divergence(error, good) < _UNLIKELY
        return Turn(cut, band, np.take_along_axis(needed, at, -1)[..., 0], may_be_good, gain)

    def pick(self, turn: Turn, n: Floats, best: Floats, left: Floats | float) -> NDArray[np.int64]:
        """The class that the next draws are for, (...), -1 where none is worth the `left` draws.

        Classes without a certificate come first, the nearest first; then the looks at those that seem hopeless; then
        classes that need more than is left, as far as known, for few answers tell that badly; then those that seem
        hopeless by bad luck alone; then lower cuts, by the pixels that a draw brings.
        """
        has = self.levels(best)[1].any(-1)
        most = np.asarray(left)[..., None]
        within = np.where(turn.needed <= most, turn.needed, np.inf)
        unseen = ~has & self._real.any(-1) & (n.sum(-1) < EXPLORE)
        cost = np.where(has, 2e6 + within / np.maximum(turn.gain, 1e-6), within)
        cost = np.where(unseen & ~np.isfinite(cost), 1e6, cost)
        far = ~has & ~unseen & (turn.needed > most) & (turn.needed <= _STRETCH * most)
        cost = np.where(far, 1.5e6 + turn.needed, cost)
        unlucky = ~has & ~np.isfinite(cost) & self._real.any(-1) & turn.may_be_good
        cost = np.where(unlucky, 1.9e6, cost)
        chosen = np.argmin(cost, axis=-1)
        is_any = np.isfinite(np.take_along_axis(cost, chosen[..., None], -1)[..., 0]) & (np.asarray(left) >= 1)
        return np.asarray(np.where(is_any, chosen, -1))

    def lower(self, n: Floats, wrong: Floats) -> Floats:
        """Largest precision that each cut's evidence supports at the level it has now, (..., C, J)."""
        level, _ = self.levels(self.evidence(n, wrong))
        low, high = np.zeros(level.shape), np.ones(level.shape)
        for _ in range(20):
            middle = (low + high) / 2
            enough = self.evidence(n, wrong, middle) >= -level
            low, high = np.where(enough, middle, low), np.where(enough, high, middle)
        return low


def choose_start(kept: Floats, guess: Floats, target: float, delta: float) -> int:
    """Index of the cut at which a class starts; per band, (B,): `kept` pixels and `guess` of the error rate.

    The lowest cut whose expected number of draws is at most 1.5 times the least of any cut; 0 where none can pass.
    """
    error = np.maximum(np.cumsum(kept * guess) / np.cumsum(kept), (1 - target) / 10)
    allowed = 1 - target
    speed = np.where(error < allowed, divergence(error, np.full(error.shape, allowed)), 0.0)
    if not speed.any():
        return 0
    draws = np.divide(-math.log(delta), speed, out=np.full(speed.shape, np.inf), where=speed > 0)
    return int(np.flatnonzero(draws <= 1.5 * draws.min())[-1])
