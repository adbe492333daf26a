"""A sequential test of "at least `target` of what a threshold keeps is right", and where the next answers pay most.

A class has candidate thresholds, the surest first; the last one keeps the whole class. An answer is about a pixel that
was drawn uniformly from what one candidate keeps (its reach). It counts for each candidate of this reach or a surer one
that keeps the pixel: there it is a uniform draw too, however errors cluster in images. Candidate and class of the next
draw may depend on all answers before.

*Start.* The first PILOT answers of a class choose the candidate `start`, and are never bet. Answers of an earlier
audit serve as well. So the start of a class is fixed when its evidence begins to run, at 1. It is the candidate whose
evidence should grow fastest. That costs the lower ones nothing: answers about them are answers about it, too.
*Evidence.* Each candidate has an e-process by the bound (`bounds/`), of the answers after the pilot that count for it.
*Levels.* Class c has delta * weight[c] / (sum of weights of classes that are not finished). Of it `start` has
1 - _RESERVE, and a surer candidate has the rest, which may pass where `start` does not. A candidate that passes hands
its share on to the next lower one; a class whose candidates all pass hands its level on to the others (a graph of
levels: Bretz, Maurer, Brannath and Posch 2009).

*Why delta holds.* Let F be the candidates that keep less than `target` right. Until the first of F passes, a candidate
i of F has at most the level delta * v[i], where v[i] is its share once all candidates outside of F have passed. v[i] is
known when the evidence E[i] begins at 1, and the v[i] sum to at most 1. So the sum of v[i] * E[i] over F is a
supermartingale that begins at 1 or less. Ever to reach 1 / delta has a probability of at most delta (Ville 1939).

*Plan.* Error rates of bands (codes between two candidates) are guessed as scale * guess ** power; answers weigh the
scales and powers. The next answers go where they add most certified pixels each. A bad guess costs answers, no promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PILOT = 10
_RESERVE = 0.1  # share of a class's level that a surer candidate than its start has
_SURER = 0.5  # what it keeps of the pixels that the start keeps
_PRICE = 0.7  # share of a class that as many answers as the whole budget must add
_SCALES = np.geomspace(0.03, 10.0, 16)
_POWERS = (0.5, 1.0, 2.0)
_SPREAD = 1.5  # standard deviation of the log of the scale before any answer
_UNSEEN_GAIN, _UNSEEN_COST = 0.6, 1.5  # of a class without a start: share of it, and of the fewest answers it needs
_STRETCH = 4.0  # a candidate may seem to need this many times the answers that are left
_SLACK = 0.3  # nats that a mixture of bets loses


class Answer(NamedTuple):
    """An answer about a drawn pixel."""

    reach: int  # the candidate that it was drawn from
    band: int  # the surest candidate that keeps it
    wrong: bool


class Option(NamedTuple):
    """A candidate that more answers may certify."""

    class_index: int
    candidate: int
    needed: float  # answers until then, as far as known
    gain: float  # pixels of the class that it adds to those that are certified


class ClassTest:
    """The test of one class.

    Args:
        pixels: what each candidate keeps, rising, (J,).
        guess: guessed error rate of each band, (J,), in (0, 1).
        before: answers of each band that were given earlier, and wrong ones, (2, J).
        share: weight of the class, of the sum of weights.
    """

    def __init__(self, pixels: Floats, guess: Floats, before: Floats, share: float) -> None:
        self.pixels, self.guess, self.share = pixels, guess, share
        self.seen = before.copy()  # answers and wrong ones of bands, the pilot's included
        self.pilot = max(0, PILOT - int(before[0].sum()))  # answers that it still lacks
        self.counted = np.zeros_like(before)  # answers and wrong ones of candidates, without the pilot's
        self.now, self.best = np.zeros(len(pixels)), np.full(len(pixels), -np.inf)  # log evidence
        self.shares: Floats | None = None  # of the class's level that candidates have before any passes
        width = np.diff(pixels, prepend=0.0)
        shapes = [guess**power for power in _POWERS]
        levelled = [shape * np.average(guess, weights=width) / np.average(shape, weights=width) for shape in shapes]
        self._bands = np.clip(np.multiply.outer(_SCALES, levelled).reshape(-1, len(guess)), 1e-4, 0.9)  # (H, J)
        self._prior = np.repeat(-0.5 * (np.log(_SCALES) / _SPREAD) ** 2, len(_POWERS))
        self._errors = np.cumsum(self._bands * width, axis=1) / pixels  # of candidates, (H, J)

    @property
    def _weights(self) -> Floats:
        """How probable each guess of the error rates is, (H,)."""
        n, wrong = self.seen
        log = self._prior + np.log(self._bands) @ wrong + np.log1p(-self._bands) @ (n - wrong)
        likely = np.exp(log - log.max())
        return np.asarray(likely / likely.sum())

    @property
    def rates(self) -> Floats:
        """Expected error rate of each band, (J,)."""
        return np.asarray(self._weights @ self._bands)

    def pace(self, allowed: float) -> Floats:
        """Expected growth of the log evidence of each candidate by one answer that counts for it, (J,)."""
        e = np.minimum(self._errors, allowed)
        growth = xlogy(e, e / allowed) + (1 - e) * np.log((1 - e) / (1 - allowed))
        return np.asarray(np.maximum(self._weights @ growth, 1e-9))

    def add(self, answers: Sequence[Answer], test: SequentialTest) -> None:
        """Take more answers in the order of draws."""
        pilot, rest = answers[: self.pilot], answers[self.pilot :]
        self.seen += self._of_bands(pilot)
        self.pilot -= len(pilot)
        if self.shares is None and not self.pilot:
            self.shares = self._chosen(test)
        if not rest:
            return
        places = np.arange(len(self.pixels))
        reach, band, is_wrong = np.array(rest, np.int64).T[..., None]
        inside = (band <= places) & (places <= reach)
        counted = self.counted[:, None] + np.cumsum(np.stack([inside, inside * is_wrong]), axis=1)
        evidence = test.bound(counted[0], counted[1], 1 - test.target)
        self.now, self.best = evidence[-1], np.maximum(self.best, evidence.max(axis=0))
        self.counted = counted[:, -1]
        self.seen += self._of_bands(rest)

    def _of_bands(self, answers: Sequence[Answer]) -> Floats:
        """Answers and wrong ones of each band, (2, J)."""
        found = np.zeros_like(self.seen)
        for one in answers:
            found[:, one.band] += 1, one.wrong
        return found

    def _chosen(self, test: SequentialTest) -> Floats:
        """Shares of the candidates: see the top of the file."""
        pace = self.pace(1 - test.target)
        needed = (_SLACK - np.log(test.delta * self.share)) / pace
        aim = int(np.argmax(self.pixels / self.pixels[-1] - _PRICE * needed / test.budget))
        start = int(np.argmax((self.pixels * pace)[: aim + 1]))
        shares = np.zeros(len(self.pixels))
        shares[start] = 1 - _RESERVE
        shares[np.searchsorted(self.pixels, _SURER * self.pixels[start])] += _RESERVE
        return shares

    def passes(self, level: float) -> tuple[Floats, Bools]:
        """Log level of each candidate and whether it is certified, (J,) both, where the class has this level."""
        levels, passed = np.full(len(self.pixels), -np.inf), np.zeros(len(self.pixels), np.bool_)
        handed_on = 0.0
        for j, part in enumerate(() if self.shares is None else self.shares):
            handed_on += part
            if handed_on:
                levels[j] = np.log(min(handed_on, 1.0) * level)
                passed[j] = self.best[j] >= -levels[j]
                handed_on = handed_on if passed[j] else 0.0
        return levels, passed


class SequentialTest:
    """The test of all classes together.

    Args:
        classes: one a class.
        target: precision of what is certified.
        delta: how often any certificate may be false.
        budget: answers that are planned, of all classes.
        bound: log evidence from answers, wrong ones and the allowed error rate (`bounds/`).
    """

    def __init__(
        self,
        classes: Sequence[ClassTest],
        target: float,
        delta: float,
        budget: int,
        bound: Callable[[ArrayLike, ArrayLike, float], Floats],
    ) -> None:
        self.classes, self.target, self.delta, self.budget, self.bound = list(classes), target, delta, budget, bound

    def _class_levels(self) -> list[float]:
        """The level of each class: its share of delta, of that of finished classes too."""
        finished: set[int] = set()
        while True:
            rest = sum(one.share for c, one in enumerate(self.classes) if c not in finished)
            found = [self.delta * min(1.0, one.share / rest) for one in self.classes]
            now = {c for c, one in enumerate(self.classes) if one.passes(found[c])[1].all()}
            if now == finished or len(now) == len(found):
                return found
            finished = now

    def levels(self) -> list[tuple[Floats, Bools]]:
        """Of each class the log levels of its candidates and which of them are certified, (J,) both."""
        return [one.passes(level) for one, level in zip(self.classes, self._class_levels(), strict=True)]

    def certified(self) -> list[int]:
        """Of each class its lowest certified candidate, -1 for none."""
        return [_last(passed) for _, passed in self.levels()]

    def options(self) -> list[Option]:
        """All candidates that more answers may certify."""
        found = []
        for c, (one, level) in enumerate(zip(self.classes, self._class_levels(), strict=True)):
            if one.shares is None:
                fewest = np.log(self.delta * one.share) / np.log(self.target)
                needed = one.pilot + _UNSEEN_COST * fewest
                found.append(Option(c, len(one.pixels) - 1, needed, _UNSEEN_GAIN * one.pixels[-1]))
                continue
            lowest = _last(one.passes(level)[1])
            had = one.pixels[lowest] if lowest >= 0 else 0.0
            with np.errstate(divide="ignore"):
                missing = np.maximum(-np.log(np.minimum(np.cumsum(one.shares), 1.0) * level) - one.now, _SLACK) + _SLACK
            # Draws from candidate j count for a surer one, which must pass first, as often as it keeps their pixels.
            rounds = missing / (one.pace(1 - self.target) * one.pixels)
            for first in np.flatnonzero(one.shares):
                front = max(int(first), lowest + 1)
                needed = np.maximum.accumulate(rounds[front:]) * one.pixels[front:]
                found += [
                    Option(c, front + j, float(n), float(one.pixels[front + j] - had)) for j, n in enumerate(needed)
                ]
        return found

    def best_option(self, left: float, options: Sequence[Option] | None = None) -> Option | None:
        """The option that `left` answers are best spent on; None where no option is worth them."""
        within = [o for o in (self.options() if options is None else options) if o.needed <= _STRETCH * left]
        return max(within, key=lambda o: o.gain / o.needed * min(1.0, left / o.needed) ** 2, default=None)

    def forecast(self, answers: float) -> list[Option]:
        """What so many more answers are expected to certify: `needed` holds the answers, `gain` the pixels."""
        options, found = self.options(), []
        while answers > 0 and (one := self.best_option(answers, options)) is not None:
            share = min(1.0, answers / one.needed)
            found.append(one._replace(needed=share * one.needed, gain=share * one.gain))
            answers -= one.needed
            options = [o for o in options if o.class_index != one.class_index]
        return found

    def lower(self, class_index: int, candidate: int) -> float:
        """Largest precision that the answers support for a candidate at the level that it has now."""
        one = self.classes[class_index]
        level = self.levels()[class_index][0][candidate]
        low, high = 0.0, 1.0
        for _ in range(20 if np.isfinite(level) else 0):
            middle = (low + high) / 2
            enough = self.bound(one.counted[0, candidate], one.counted[1, candidate], 1 - middle) >= -level
            low, high = (middle, high) if enough else (low, middle)
        return low


def _last(passed: Bools) -> int:
    return int(np.flatnonzero(passed)[-1]) if passed.any() else -1


def shares_of(pixels: Sequence[float]) -> list[float]:
    """Weights of classes: a class that keeps more needs fewer answers, as it is worth more."""
    return list(np.asarray(pixels, np.float64) / sum(pixels))


def candidates(counts: NDArray[np.integer]) -> list[int]:
    """Codes of a class's candidates, the surest first: twentieths of its pixels.

    Args:
        counts: its pixels of each code, (256,).
    """
    coverage = np.cumsum(counts[::-1])[::-1] / counts.sum()
    return sorted({int(np.flatnonzero(coverage >= part / 20)[-1]) for part in range(1, 21)}, reverse=True)
