"""A certificate: classes of one store that a person's answers prove right often enough, and from which code on.

One sealed JSON file next to the store holds the plan, every drawn pixel with its answer, and the results. Plan and
answers determine the rest, so `load` and `check` recompute it. New labels in the store make its certificate void.
"Can't tell" counts as wrong. Answers count in the order of the draws, up to the first that is missing: nobody can
leave out a hard pixel. Answers to questions (`given`) serve as draws where the plan wants one of their class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hmsa_core.io import sealed
from hmsa_core.io.atomic import digest
from hmsa_core.io.errors import ConfigError, HmsaError, InputError, StoreError
from hmsa_core.labels.store.codes import EDGE_VALUES, NUM_CODES, ConfidenceCode
from hmsa_core.labels.thresholds.bounds import find_bound
from hmsa_core.labels.thresholds.sequential import (
    Answer,
    ClassErrors,
    Floats,
    SequentialTest,
    Step,
    candidates,
    pilot_of,
)
from pipeline.review.audit import Audit
from pipeline.review.given import Given, check_given
from pipeline.review.questions import Draw
from pipeline.review.spot_check import VERDICTS, ClassId, Code, Item, SpotCheck, Strict, pixel, ranks
from pipeline.review.view import StoreView, codes_of_one

FORMAT, VERSION = "hmsa-label-certificate", 3
MAX_BUDGET = 20_000
BATCH = 10  # draws that are planned at once, and unanswered draws that are kept ready
MORE = 100  # further answers whose gain is forecast
CLICKS = 50  # further answers about one class whose gain a page shows
_PEOPLE = 0.02  # guessed error rate of pixels that people drew: a finished store gives them code 0
_STREAM = 1  # keeps draws apart from those of an audit of the same seed: numpy fills short seeds with zeros
# No results: their last digits may differ on other machines. "precision" and "lower" of what is only aimed at neither.
_FORECASTS = {"more_draws", "more_pixels", "aim"}

Counts = NDArray[np.int64]


class _Class(Strict):
    class_id: int = ClassId
    name: str
    codes: list[int] = Field(min_length=1, max_length=NUM_CODES)
    pixels: list[int] = Field(min_length=1)
    guess: list[float] = Field(min_length=1)
    before: list[list[int]] = Field(min_length=2, max_length=2)

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        lists = [self.codes, self.pixels, *self.before]
        if {len(self.guess), *map(len, lists)} != {len(self.codes)} or min(map(min, lists)) < 0:
            raise ValueError("candidates of a class do not fit each other")
        if any(np.diff(self.codes) >= 0) or any(np.diff([0, *self.pixels]) <= 0) or max(self.codes) >= NUM_CODES:
            raise ValueError("candidates of a class out of order")
        if not 0 < min(self.guess) <= max(self.guess) < 1:
            raise ValueError("an impossible guess of a class")
        return self


class _Draw(Item):
    low: int = Code
    code: int = Code
    bet: int = Field(ge=0)
    set_id: str = Field("", alias="set")  # and "number": the question whose answer serves
    number: int = 0


class _Set(Strict):
    budget: int = Field(ge=1)
    seed: int = Field(ge=0)
    aim: list[str]


class _Certificate(Strict):
    store: str
    who: str
    target: float
    delta: float
    budget: int
    seed: int
    bound: str
    classes: list[_Class] = Field(min_length=1, max_length=255)
    items: list[_Draw]
    questions: dict[str, _Set] = Field({})
    results: dict[str, Any]

    @model_validator(mode="after")
    def _possible(self) -> Self:
        try:
            _check_settings(self.target, self.delta, self.budget, self.seed)
            find_bound(self.bound)
        except ConfigError as error:
            raise ValueError(error.message) from None
        codes = {one.class_id: one.codes for one in self.classes}
        drawn = [item for item in self.items if not item.set_id]
        if list(codes) != sorted(codes) or len(codes) < len(self.classes) or len(drawn) > self.budget:
            raise ValueError("classes out of order, or more draws than its budget")
        if any(item.low not in codes.get(item.class_id, ()) for item in self.items) or any(
            item.code is None or item.code < item.low for item in drawn
        ):
            raise ValueError("a draw is of no class or candidate of its plan")
        return self


class Certificate(SpotCheck):
    """Plan, draws and answers."""

    KIND, SCHEMA, WHAT = "certificate", _Certificate, "certificate"

    def __init__(self, value: dict[str, Any]) -> None:
        super().__init__(value)
        self.classes: list[dict[str, Any]] = value["classes"]
        self._places = {row["class"]: c for c, row in enumerate(self.classes)}
        self._test, self._taken = self._new_test(), list[Answer | None]()  # with the answers that it has counted
        self._given = Given({}, {})
        self._where: dict[tuple[int, int], Counts] = {}
        self._images: list[Counts] = []

    @cached_property
    def id(self) -> str:
        """16 hex digits of the digest of all fields but items, questions, who and number."""
        later = ("items", "questions", "who", "number")
        return digest({key: one for key, one in self.value.items() if key not in later})[:16]

    # -- plan --------------------------------------------------------------------------------------------

    @classmethod
    def plan(
        cls,
        view: StoreView,
        *,
        target: float = 0.95,
        delta: float = 0.05,
        budget: int = 300,
        seed: int = 0,
        classes: Sequence[str] = (),
        bound: str = "betting",
        table: Floats | None = None,
        policy: str | None = None,
        audit: Audit | None = None,
        who: str = "",
        answers: str = "people",
    ) -> Certificate:
        """A certificate without an answer.

        Args:
            view: the store.
            target: precision that each certified class has, with confidence 1 - delta for all of them together.
            budget: draws of all classes together.
            classes: names; default: all classes that have a pixel.
            bound: a file of `hmsa_core/labels/thresholds/bounds`.
            table: P(right) of each class and code (C, 256), as a guess; default: the confidence itself.
            policy: digest of the policy that `table` is from.
            audit: earlier answers about the store, for the pilot.
            who: name of the person who answers.
            answers: "people", or the folder of the label maps that answer.

        Raises:
            ConfigError: a number out of range, an unknown class or bound, or no pixel of any class.
        """
        settings = {"target": target, "delta": delta, "budget": budget, "seed": seed, "bound": bound}
        _check_settings(target, delta, budget, seed)
        find_bound(bound)
        named = {view.classes.index(name) for name in classes}
        wanted = [c for c in sorted(named or range(view.classes.num_classes)) if view.totals[c].any()]
        if not wanted:
            raise ConfigError("no class has a pixel: there is nothing to certify")
        planned = []
        for c in wanted:
            errors = np.clip(1 - (EDGE_VALUES if table is None else table[c]), 1e-3, 0.6)
            if view.kind != "raw":
                errors[0] = _PEOPLE
            planned.append({"class": c, "name": view.classes.classes[c], **_candidates(view.totals[c], errors)})
            planned[-1]["before"] = _before(audit, c, planned[-1]["codes"])
        about = {"store": view.digest, "teacher": view.lineage.get("teacher"), "policy": policy, "who": who}
        about |= {"format": FORMAT, "version": VERSION, "answers": answers}
        return cls({**about, **settings, "classes": planned, "items": [], "questions": {}})

    def _new_test(self) -> SequentialTest:
        value = self.value
        classes = [_class_errors(row, value) for row in self.classes]
        return SequentialTest(classes, value["target"], value["delta"], find_bound(value["bound"]))

    @property
    def test(self) -> SequentialTest:
        """The test with all answers that count so far."""
        answers = [self._answer(item) for item in takewhile(lambda item: item["verdict"], self.items)]
        if answers[: len(self._taken)] != self._taken:  # an answer was changed
            self._test, self._taken = self._new_test(), []
        self._test.add(one for one in answers[len(self._taken) :] if one is not None)
        self._taken = answers
        return self._test

    def _answer(self, item: dict[str, Any]) -> Answer | None:
        """An answer for the test; None where a question's pixel is less sure than what the plan wanted."""
        if item["code"] < item["low"]:
            return None
        c = self._places[item["class"]]
        codes = self.classes[c]["codes"]
        reach, band = codes.index(item["low"]), _band(codes, item["code"])
        return Answer(c, item["bet"], reach, band, item["verdict"] != "right")

    def low(self, item: dict[str, Any]) -> int:
        """Smallest code of the pixels among which an item was drawn: 0 where a question's answer serves."""
        return 0 if "set" in item else int(item["low"])

    @property
    def _worth(self) -> int:
        """Answers that all pixels of a class are worth."""
        return max(int(self.value["budget"]), MORE)

    @property
    def drawn(self) -> list[dict[str, Any]]:
        """Items that the certificate itself has people asked about."""
        return [item for item in self.items if "set" not in item]

    def look(self, view: StoreView) -> None:
        """Read answers to questions about these labels; a verdict that was changed there changes here."""
        self._given = Given.of(view)
        self._given.refresh(self.items)

    def answer(self, view: StoreView, number: int, verdict: str, who: str = "") -> None:
        """Record or change the answer of a person to one item; an answer to a question is changed there."""
        if "set" in self.located(view, number):
            raise InputError(f"pixel {number} was answered as a question", hint="take that answer back: key q, then u")
        super().answer(view, number, verdict, who)

    def draw_on(self, view: StoreView) -> None:
        """Add draws until enough wait for an answer, or no further draw is of use."""
        self.look(view)
        while sum(item["verdict"] is None for item in self.items) < BATCH and self.plan_draws(view):
            pass

    def plan_draws(self, view: StoreView) -> list[dict[str, Any]]:
        """Add up to `BATCH` draws where they gain most; [] when no more are of use, or answers must come first."""
        left, test = self.value["budget"] - len(self.drawn), self.test
        step, set_id, given = self._next(left)
        if step is None:
            return []
        row, pilot = self.classes[step.class_index], test.classes[step.class_index].pilot
        bet = 0 if pilot else self._bet(step)
        waiting = sum((i["class"], i["bet"]) == (row["class"], bet) for i in self.items[len(self._taken) :])
        new = max(0, min(BATCH, (pilot or int(np.ceil(step.needed))) - waiting))
        low, first = row["codes"][-1 if pilot else step.candidate], len(self.items)
        for draw in given[:new]:
            self._serve(view, set_id, draw, low, bet)
        for _ in range(min(left, new - len(given[:new]))):
            self._draw(view, row["class"], low, bet)
        return self.items[first:]

    def _next(self, left: int) -> tuple[Step | None, str, list[Draw]]:
        """What `left` answers are best spent on; set and draws of questions about its class that are answered."""
        for set_id, by_class in self._given.waiting(self.items):
            given = {self._places[c]: draws for c, draws in by_class.items() if c in self._places}
            steps = self.test.plan(left, {c: len(draws) for c, draws in given.items()})
            if any(step.class_index in given for step in steps):
                return steps[0], set_id, given.get(steps[0].class_index, [])
        return next(iter(self.test.plan(left)), None), "", []

    def _serve(self, view: StoreView, set_id: str, draw: Draw, low: int, bet: int) -> None:
        self.value["questions"][set_id] = self._given.settings[set_id]
        item = {"name": draw.name, "class": draw.class_id, "low": low, "bet": bet, "rank": draw.rank}
        item |= {"verdict": draw.verdict, "set": set_id, "number": draw.number}
        self.items.append({**item, **pixel(view, draw.name, draw.class_id, 0, draw.rank)})

    def _bet(self, step: Step) -> int:
        """Number of the bet that a step's answers count for."""
        now = 0 if self.test.bet is None else self.test.bet.number
        last, of_class = max(((item["bet"], item["class"]) for item in self.items), default=(0, -1))
        is_waiting = last > now and of_class == self.classes[step.class_index]["class"]
        return now if step.goes_on else last if is_waiting else last + 1

    def _draw(self, view: StoreView, class_id: int, low: int, bet: int) -> None:
        number = sum(item["class"] == class_id and item["low"] == low for item in self.drawn)
        name, rank = self._drawn(view, class_id, low, number)
        item = {"name": name, "class": class_id, "low": low, "bet": bet, "rank": rank, "verdict": None}
        self.items.append({**item, **pixel(view, name, class_id, low, rank)})

    def _drawn(self, view: StoreView, class_id: int, low: int, number: int) -> tuple[str, int]:
        """Image and rank of draw `number` among the pixels that a class keeps from a code on; only the seed decides."""
        if (class_id, low) not in self._where:
            only = codes_of_one(view.classes.num_classes, class_id, low)
            self._where[class_id, low] = view.kept(only)[:, class_id]
        kept = self._where[class_id, low]
        rng = np.random.default_rng([self.value["seed"], class_id, low, number, _STREAM])
        ((image, rank),) = ranks(kept, rng.integers(0, int(kept.sum()), 1))
        return view.names[image], rank

    # -- results -----------------------------------------------------------------------------------------

    def results(self) -> dict[str, dict[str, Any]]:
        """{class name: result}: the certified or intended threshold, with answers, estimate, bound and coverage."""
        return {row["name"]: self._result(c, row) for c, row in enumerate(self.classes)}

    def certified(self) -> dict[tuple[int, int], tuple[float, float]]:
        """(class, code) of each certified threshold -> estimated precision and its lower bound."""
        ids = [row["class"] for row in self.classes]
        return {
            (c, row["code"]): (row["precision"], row["lower"])
            for c, row in zip(ids, self.results().values(), strict=True)
            if row["certified"]
        }

    def _result(self, c: int, row: Mapping[str, Any]) -> dict[str, Any]:
        test, of_class = self.test, [item for item in self.items if item["class"] == row["class"]]
        at = test.certified[c]
        passed = at >= 0
        verdicts = [item["verdict"] for item in of_class if item["verdict"]]
        best = test.next_of(c, self._worth)
        aim = at if passed or best is None else best.candidate
        code = row["codes"][aim]
        right = [i["verdict"] == "right" for i in of_class if i["verdict"] and self.low(i) <= code <= i["code"]]
        return {
            "certified": passed,
            "threshold": ConfidenceCode().threshold(code) if passed else None,
            "code": code if passed else None,
            "aim": None if passed or best is None else code,
            "draws": len(verdicts),
            **{verdict: verdicts.count(verdict) for verdict in VERDICTS},
            "precision": round(sum(right) / len(right), 6) if right else None,
            "lower": self.value["target"] if passed else round(test.lower(c, aim), 6),
            "coverage": round(row["pixels"][at] / row["pixels"][-1], 6) if passed else 0.0,
            "pixels": row["pixels"][at] if passed else 0,
            "more_draws": None if best is None else int(np.ceil(best.needed)),
            "more_pixels": 0 if best is None else round(best.gain),
        }

    def more(self) -> dict[str, Any]:
        """Expected gain of MORE further answers: pixels, and their share of the pixels of all classes."""
        pixels = sum(one.gain for one in self.test.forecast(MORE))
        whole = sum(row["pixels"][-1] for row in self.classes)
        return {"answers": MORE, "pixels": round(pixels), "coverage": round(pixels / whole, 6)}

    def pays(self, view: StoreView, codes: NDArray[np.integer]) -> list[dict[str, Any]]:
        """Expected gain of CLICKS further answers in each class, the most pixels first.

        Args:
            view: the store.
            codes: codes of the thresholds in use, (C,), 256 for none.

        Returns:
            Rows with "class", "answers" (until its next certificate), "threshold" (that it would prove), and two
            expected numbers of pixels: "confirm" (kept by `codes`) and "bring" (beyond `codes`). Fewer answers than
            the certificate needs gain their share of its pixels.
        """
        test, rows = self.test, []
        for c, row in enumerate(self.classes):
            best = test.next_of(c, self._worth)
            if best is None:
                continue
            certified = test.certified[c]
            high = row["codes"][certified] if certified >= 0 else NUM_CODES
            low, counts = row["codes"][best.candidate], view.totals[row["class"]]
            kept = int(counts[max(low, int(codes[row["class"]])) : high].sum())
            share = min(1.0, CLICKS / best.needed) * best.gain / max(1, int(counts[low:high].sum()))
            rows.append(
                {
                    "class": row["name"],
                    "answers": int(np.ceil(best.needed)),
                    "threshold": ConfidenceCode().threshold(low),
                    "confirm": round(share * kept),
                    "bring": round(share * (int(counts[low:high].sum()) - kept)),
                }
            )
        return sorted(rows, key=lambda row: -row["confirm"] - row["bring"])

    def refined(self, view: StoreView, right: Floats) -> Floats:
        """P(right) of each class and code (C, 256), with the error rates that answers show in judged bands."""
        found = np.array(right, np.float64)
        for row, one in zip(self.classes, self.test.classes, strict=True):
            for high, low, rate, n in zip(
                [NUM_CODES, *row["codes"]], row["codes"], one.rates, one.seen[0], strict=False
            ):
                of = row["class"], slice(low, high)
                mean = float(np.average(1 - found[of], weights=view.totals[of]))
                if n:
                    found[of] = 1 - np.clip((1 - found[of]) * rate / mean, 0, 1) if mean > 0 else 1 - rate
        return found

    def expected_wrong(self, view: StoreView, limit: int = 10) -> list[dict[str, Any]]:
        """Images and classes by their expected number of wrong certified pixels, most first."""
        test = self.test
        certified, steps = test.certified, max(len(row["codes"]) for row in self.classes)
        for j in range(len(self._images), steps):
            codes = np.full(view.classes.num_classes, NUM_CODES)
            codes[list(self._places)] = [row["codes"][min(j, len(row["codes"]) - 1)] for row in self.classes]
            self._images.append(view.kept(codes)[:, list(self._places)])
        bands: Floats = np.diff(np.stack(self._images).astype(np.float64), axis=0, prepend=0.0)  # (J, N, classes)
        total = np.zeros(bands.shape[1:])
        for c, (at, one) in enumerate(zip(certified, test.classes, strict=True)):
            total[:, c] = one.rates[: at + 1] @ bands[: at + 1, :, c]
        order = np.argsort(-total, axis=None, kind="stable")[:limit]
        return [
            {"image": view.names[i], "class": self.classes[c]["name"], "wrong_pixels": round(float(total[i, c]))}
            for i, c in zip(*np.unravel_index(order, total.shape), strict=True)
            if total[i, c] >= 0.5
        ]

    # -- the file ----------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the sealed file with its results."""
        sealed.write(path, self._to_json())

    def _to_json(self) -> dict[str, Any]:
        return {**self.value, "results": self.results()}

    @property
    def digest(self) -> str:
        """Digest of the file with the current answers."""
        return sealed.digest_of(self._to_json())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a certificate; refuse one that is damaged, edited, or has results that its answers do not prove.

        Raises:
            StoreError: the message names the fault.
        """
        value = sealed.read_as(path, "a certificate", (FORMAT, VERSION), "certify the labels anew")
        if wrong := cls.damage(value):
            raise StoreError(f"{path}: refused: {wrong}")
        said = value.pop("results")
        value.pop("digest")
        value.setdefault("questions", {})
        found = cls(value)
        if _differ(said, found.results()):
            raise StoreError(f"{path}: refused: its results are not those of its answers")
        return found

    def check(self, view: StoreView, where: str) -> None:
        """Recompute candidates and draws from the store; raise a StoreError of one line at the first difference."""
        if not self.is_of(view):
            raise StoreError(
                f"{where}: void: the store has changed since (it is of {self.value['store'][:12]}, "
                f"the store is {view.digest[:12]})",
                hint="certify the labels of now: `autolabel certify STORE`",
            )
        if self.value["teacher"] != view.lineage.get("teacher"):
            raise StoreError(f"{where}: refused: it names another teacher than the store")
        for row in self.classes:
            names = view.classes.classes
            if row["class"] >= len(names) or names[row["class"]] != row["name"]:
                raise StoreError(f"{where}: refused: class {row['name']!r} is not class {row['class']} of the store")
            counts = view.totals[row["class"]]
            if (
                row["pixels"] != [int(counts[code:].sum()) for code in row["codes"]]
                or row["pixels"][-1] != counts.sum()
            ):
                raise StoreError(f"{where}: refused: class {row['name']!r} has other pixels in the store")
        seen: dict[tuple[int, int], int] = {}
        try:
            check_given(self.items, self.value["questions"], view)
        except HmsaError as error:
            raise StoreError(f"{where}: refused: {error.message}") from None
        for number, item in enumerate(self.items):
            if "set" in item:
                continue
            of = item["class"], item["low"]
            name, rank = self._drawn(view, *of, seen.get(of, 0))
            drawn = {"name": name, "rank": rank, **pixel(view, name, *of, rank)}
            if drawn != {key: item[key] for key in drawn}:
                raise StoreError(f"{where}: refused: pixel {number} is not the one that the certificate's seed draws")
            seen[of] = seen.get(of, 0) + 1


def _check_settings(target: float, delta: float, budget: int, seed: int) -> None:
    for name, number, low, high in (("target", target, 0.5, 0.999), ("delta", delta, 1e-6, 0.5)):
        if not low <= number <= high:
            raise ConfigError(f"{name} {number:g}: expected {low:g} to {high:g}")
    for name, count, low, high in (("budget", budget, 0, MAX_BUDGET), ("seed", seed, 0, 2**32 - 1)):
        if not low <= count <= high:
            raise ConfigError(f"{name} {count}: expected {low:g} to {high}")


def _candidates(counts: Counts, errors: Floats) -> dict[str, Any]:
    """Candidate codes of a class, the pixels that each keeps, and the guessed error rate of each band."""
    codes = candidates(counts)
    bands = [(slice(low, high)) for high, low in zip([NUM_CODES, *codes], codes, strict=False)]
    guess = [round(float(np.average(errors[band], weights=counts[band])), 6) for band in bands]
    return {"codes": codes, "pixels": [int(counts[code:].sum()) for code in codes], "guess": guess}


def _before(audit: Audit | None, class_id: int, codes: Sequence[int]) -> list[list[int]]:
    """Decided answers of an audit in each band of a class, and the number of wrong ones."""
    found = np.zeros((2, len(codes)), np.int64)
    for one in [] if audit is None else audit.answers():
        if one.class_id == class_id:
            found[:, _band(codes, one.code)] += 1, not one.right
    return [list(map(int, row)) for row in found]


def _band(codes: Sequence[int], code: int) -> int:
    return next(band for band, low in enumerate(codes) if code >= low)


def _class_errors(row: Mapping[str, Any], settings: Mapping[str, Any]) -> ClassErrors:
    pixels, guess, before = (np.array(row[key], np.float64) for key in ("pixels", "guess", "before"))
    return ClassErrors(pixels, guess, before, 1 - settings["target"], pilot_of(settings["budget"]))


def _differ(said: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> bool:
    if said.keys() != found.keys():
        return True
    for name, row in found.items():
        stored = said[name]
        if not isinstance(stored, dict) or stored.keys() != row.keys():
            return True
        for key in row.keys() - _FORECASTS - (set() if row["certified"] else {"precision", "lower"}):
            near = key in ("lower", "precision") and isinstance(stored[key], float) and isinstance(row[key], float)
            if not (abs(stored[key] - row[key]) < 1e-4 if near else stored[key] == row[key]):
                return True
    return False
