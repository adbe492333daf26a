"""A sequential test of "at least `target` of what a threshold keeps is right", and where the next answers pay most.

A class has candidate thresholds, the surest first; the last one keeps the whole class. An answer is about a pixel that
was drawn uniformly from what one candidate keeps (its reach). It counts for each candidate of this reach or a surer one
that keeps the pixel: there it is a uniform draw too, however errors cluster in images.

*Bets.* All classes share one cash, at first 1. A draw names the bet that its answer counts for, or none (the pilot of a
class). A new bet stakes all cash on two candidates: the reach of its first draw, and a surer one. From then on each of
them has an e-process by the bound (`bounds/`). A candidate is certified once stake * evidence is 1 / delta or more;
then its stake is cash again. A bet ends when a draw names another one. It gives back stake * min(1, evidence).
So a class that is certified costs the next class nothing: each has nearly the whole delta.

*Why delta holds.* Let F be the candidates that keep less than `target` right. Until the first of F is certified, let W
be the cash, plus stake * evidence of all staked candidates in F, plus the bare stakes of the others. A new bet and a
certified candidate outside of F leave W as it is. A bet that ends cannot raise W. Answers change W only by the evidence
of F, which is a supermartingale. So W is a supermartingale that begins at 1. Ever to reach 1 / delta has a probability
of at most delta (Ville 1939). All that is needed of the plan is that a draw's class, reach and bet are chosen before
anybody sees its pixel. So plans may follow any guess, and a changed answer does no harm once it is true.

*Plan.* Error rates of bands (codes between two candidates) are guessed as scale * guess ** power; answers weigh the
scales and powers. Under each guess a candidate needs so many answers. The price of an answer is the lowest at which the
classes, each at its best candidate, need no more answers than are left. A bad guess costs answers, no promise.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

Floats = NDArray[np.float64]
Bound = Callable[[ArrayLike, ArrayLike, float], Floats]

_RESERVE, _SURER = 0.3, 0.5  # share of the stake on a surer candidate, and what it keeps of the pixels of the reach
_SCALES = np.geomspace(0.03, 10.0, 16)
_POWERS = (0.0, 0.5, 1.0, 2.0)
_SPREAD = 1.5  # standard deviation of the log of the scale before any answer
_SLACK = 0.7  # nats that a mixture of bets loses
_LOOK = 10.0  # answers that show a candidate to be hopeless
_STRETCH = 4.0  # a candidate may seem to need this many times the answers that are left
_STAY = 1.0  # nats that a new bet must save, as its candidate may turn out no better
_STAY_CANDIDATE, _STAY_CLASS = 1.5, 2.0  # a new bet must be worth so many times the current one
_PRICES = np.geomspace(1.0, 1e-6, 200)


class Answer(NamedTuple):
    """An answer about a drawn pixel."""

    class_index: int
    bet: int  # number of the bet that it counts for, 0 for none
    reach: int  # the candidate that it was drawn from
    band: int  # the surest candidate that keeps it
    wrong: bool


class Step(NamedTuple):
    """A candidate that more answers may certify."""

    class_index: int
    candidate: int
    needed: float  # answers until then, as far as known
    gain: float  # pixels of the class that it is expected to add to those that are certified
    goes_on: bool  # by the current bet; else by a new one

    @property
    def worth(self) -> float:
        """Pixels for each answer; a new bet must be worth clearly more than the current one."""
        return self.gain / self.needed * (_STAY_CLASS if self.goes_on else 1.0)


def pilot_of(budget: int) -> int:
    """Answers that the pilot of a class takes: a twentieth of all, 15 to 30."""
    return min(max(budget // 20, 15), 30)


class ClassErrors:
    """What is guessed and known of the errors of one class. No promise depends on it.

    Args:
        pixels: what each candidate keeps, rising, (J,).
        guess: guessed error rate of each band, (J,), in (0, 1).
        before: answers of each band that were given earlier, and wrong ones, (2, J).
        allowed: error rate that is allowed.
        pilot: answers about all its pixels that come before any candidate is chosen.
    """

    def __init__(self, pixels: Floats, guess: Floats, before: Floats, allowed: float, pilot: int) -> None:
        self.pixels, self._pilot = pixels, pilot
        self.seen = before.copy()  # answers and wrong ones of bands
        width = np.diff(pixels, prepend=0.0)
        shapes = [guess**power for power in _POWERS]
        levelled = [shape * np.average(guess, weights=width) / np.average(shape, weights=width) for shape in shapes]
        self._bands = np.clip(np.multiply.outer(_SCALES, levelled).reshape(-1, len(guess)), 1e-4, 0.9)  # (H, J)
        self._logs = np.log(self._bands), np.log1p(-self._bands)
        self._prior = np.repeat(-0.5 * (np.log(_SCALES) / _SPREAD) ** 2, len(_POWERS))
        e = np.minimum(np.cumsum(self._bands * width, axis=1) / pixels, allowed)
        # Expected growth of the log evidence of each candidate by one answer, under each guess (H, J).
        self.growth = np.maximum(xlogy(e, e / allowed) + (1 - e) * np.log((1 - e) / (1 - allowed)), 1e-9)

    @property
    def pilot(self) -> int:
        """Answers that the pilot still lacks."""
        return max(0, self._pilot - int(self.seen[0].sum()))

    @property
    def weights(self) -> Floats:
        """How probable each guess of the error rates is, (H,)."""
        n, wrong = self.seen
        log = self._prior + self._logs[0] @ wrong + self._logs[1] @ (n - wrong)
        likely = np.exp(log - log.max())
        return np.asarray(likely / likely.sum())

    @property
    def rates(self) -> Floats:
        """Expected error rate of each band, (J,)."""
        return np.asarray(self.weights @ self._bands)


class _Bet:
    """Stakes on candidates of a class, with the answers since then."""

    def __init__(self, class_index: int, number: int, stakes: Floats) -> None:
        self.class_index, self.number, self.stakes = class_index, number, stakes
        self.counted = np.zeros((2, len(stakes)))  # answers and wrong ones of candidates
        self.evidence = np.zeros(len(stakes))  # log

    @property
    def worth(self) -> Floats:
        """What the candidates give back now."""
        return np.asarray(self.stakes * np.exp(np.minimum(self.evidence, 0.0)))

    def give_back(self, which: NDArray[np.bool_]) -> float:
        """End the stakes of some candidates; return what they give back."""
        worth = float(self.worth[which].sum())
        self.stakes[which] = 0.0
        return worth


class SequentialTest:
    """The test of all classes together.

    Args:
        classes: one a class.
        target: precision of what is certified.
        delta: how often any certificate may be false.
        bound: log evidence from answers, wrong ones and the allowed error rate (`bounds/`).
    """

    def __init__(self, classes: Sequence[ClassErrors], target: float, delta: float, bound: Bound) -> None:
        self.classes, self.target, self.delta, self._bound = list(classes), target, delta, bound
        self.certified = [-1] * len(self.classes)  # the lowest certified candidate of each class, -1 for none
        self.bet: _Bet | None = None
        self.cash = 1.0  # what is not staked

    def add(self, answers: Iterable[Answer]) -> None:
        """Take more answers in the order of draws."""
        for one in answers:
            self.classes[one.class_index].seen[:, one.band] += 1, one.wrong
            if one.bet:
                self._bet_on(one)

    def _bet_on(self, one: Answer) -> None:
        bet = self.bet
        if bet is None or (bet.class_index, bet.number) != (one.class_index, one.bet):
            bet = self.bet = self._new_bet(one)
        bet.counted[:, one.band : one.reach + 1] += np.array([[1.0], [one.wrong]])
        staked = np.flatnonzero(bet.stakes)
        answers, wrong = bet.counted
        bet.evidence[staked] = self._bound(answers[staked], wrong[staked], 1 - self.target)
        passed = staked[np.log(bet.stakes[staked] * self.delta) + bet.evidence[staked] >= 0]
        if len(passed):
            lowest = int(passed[-1])
            self.certified[one.class_index] = max(lowest, self.certified[one.class_index])
            self.cash += bet.give_back(np.isin(np.arange(len(bet.stakes)), passed))
            self.cash += bet.give_back(np.arange(len(bet.stakes)) < lowest)  # of no use any more

    def _new_bet(self, one: Answer) -> _Bet:
        if self.bet is not None:
            self.cash += self.bet.give_back(self.bet.stakes > 0)
        pixels = self.classes[one.class_index].pixels
        stakes = np.zeros(len(pixels))
        stakes[one.reach] = (1 - _RESERVE) * self.cash
        stakes[np.searchsorted(pixels, _SURER * pixels[one.reach])] += _RESERVE * self.cash
        self.cash = 0.0
        return _Bet(one.class_index, one.bet, stakes)

    def lower(self, class_index: int, candidate: int) -> float:
        """Largest precision that the answers of the current bet support for a candidate; 0 without a stake on it."""
        if self.bet is None or self.bet.class_index != class_index or not self.bet.stakes[candidate]:
            return 0.0
        wanted = -np.log(self.delta * self.bet.stakes[candidate])
        answers, wrong = self.bet.counted[:, candidate]
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            enough = self._bound(answers, wrong, 1 - middle) >= wanted
            low, high = (middle, high) if enough else (low, middle)
        return low

    # -- plan ----------------------------------------------------------------------------------------------

    def next_of(self, class_index: int, budget: float) -> Step | None:
        """The next candidate of a class, all whose pixels are worth `budget` answers; None where none is worth it."""
        pixels = self.classes[class_index].pixels
        if self.certified[class_index] + 1 == len(pixels):
            return None
        return _Prospect(self, class_index).step(float(pixels[-1]) / budget)

    def plan(self, left: float, given: Mapping[int, int] | None = None) -> list[Step]:
        """What `left` answers are best spent on, the next first; [] where no candidate is worth them.

        Args:
            left: answers.
            given: further answers that exist already, by the number of the class; without any left, they are all.
        """
        given = given or {}
        every = [c for c, one in enumerate(self.classes) if self.certified[c] + 1 < len(one.pixels)]
        prospects = [_Prospect(self, c) for c in every if left or given.get(c)]
        most = max((float(one.gain[-1]) for one in prospects), default=0.0)

        def steps(price: float) -> list[Step]:
            return [step for one in prospects if (step := one.step(price * most)) is not None]

        def is_too_much(number: int) -> bool:
            lacking = [step.needed - given.get(step.class_index, 0) for step in steps(_PRICES[number])]
            return sum(lacking) > left if left else any(answers > 0 for answers in lacking)

        first = bisect_left(range(len(_PRICES)), True, key=is_too_much)
        found = steps(_PRICES[max(first - 1, 0)])
        if not found and first < len(_PRICES):
            found = [
                step
                for step in steps(_PRICES[first])
                if step.needed <= _STRETCH * (left + given.get(step.class_index, 0))
            ]
        return sorted(found, key=lambda step: -step.worth)

    def forecast(self, answers: float) -> list[Step]:
        """What so many more answers are expected to certify; the last step is cut off where they end."""
        found = []
        for step in self.plan(answers):
            share = min(1.0, answers / step.needed)
            found.append(step._replace(needed=share * step.needed, gain=share * step.gain))
            answers -= step.needed
            if answers <= 0:
                break
        return found


class _Prospect:
    """What a class may still add, under each guess of its errors."""

    def __init__(self, test: SequentialTest, class_index: int) -> None:
        self._test, self._index = test, class_index
        self._errors, self._first = test.classes[class_index], test.certified[class_index] + 1
        had = self._errors.pixels[self._first - 1] if self._first else 0.0
        self.gain = self._errors.pixels[self._first :] - had  # (K,) of the candidates that are left
        self._weights = self._errors.weights

    @cached_property
    def _nats(self) -> tuple[Floats, NDArray[np.bool_]]:
        """Log evidence that each candidate lacks, and whether the current bet goes on."""
        bet, test = self._test.bet, self._test
        cash = test.cash + (0.0 if bet is None else float(bet.worth.sum()))
        new = np.full(len(self.gain), -np.log(test.delta * cash) + _SLACK)
        if bet is None or bet.class_index != self._index:
            return new, np.zeros(len(new), np.bool_)
        with np.errstate(divide="ignore"):
            rest = -np.log(test.delta * bet.stakes[self._first :]) - bet.evidence[self._first :]
        rest = np.maximum(rest, 0.0) + _SLACK
        goes_on = rest <= new + _STAY
        return np.where(goes_on, rest, new), goes_on

    @cached_property
    def _needed(self) -> Floats:
        """Answers that each candidate needs under each guess, (H, K)."""
        return np.asarray(self._nats[0] / self._errors.growth[:, self._first :] + self._errors.pilot)

    def step(self, price: float) -> Step | None:
        """The best candidate where an answer costs `price` pixels; None where none is worth it."""
        goes_on, surplus = self._nats[1], self.gain - price * self._needed
        is_worth = surplus > 0
        value = self._weights @ np.where(is_worth, surplus, -price * _LOOK)
        best = int(np.argmax(np.where(goes_on & (value > 0), _STAY_CANDIDATE * value, value)))
        if value[best] <= 0:
            return None
        chances = self._weights * is_worth[:, best]
        needed = float(chances @ self._needed[:, best]) + _LOOK * (1 - float(chances.sum()))
        gain = float(chances.sum() * self.gain[best])
        return Step(self._index, self._first + best, max(needed, 1.0), gain, bool(goes_on[best]))


def candidates(counts: NDArray[np.integer]) -> list[int]:
    """Codes of a class's candidates, the surest first: twentieths of its pixels.

    Args:
        counts: its pixels of each code, (256,).
    """
    coverage = np.cumsum(counts[::-1])[::-1] / counts.sum()
    return sorted({int(np.flatnonzero(coverage >= part / 20)[-1]) for part in range(1, 21)}, reverse=True)
