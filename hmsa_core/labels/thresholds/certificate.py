"""A certificate: which classes of one store a person's answers prove right often enough, and from which code on.

One sealed JSON file beside the store holds the plan, every drawn pixel with its answer, and the results. All else
follows from these, so `problems` recomputes them. It is about the labels of one store: made anew, they void it.
"Can't tell" counts as wrong. Answers count in the order of the draws of a class, up to the first that is missing:
nobody can leave out a hard pixel.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io import sealed
from hmsa_core.io.atomic import digest
from hmsa_core.io.errors import ConfigError, InputError, IntegrityError, StoreError
from hmsa_core.labels.store.codes import NUM_CODES, ConfidenceCode
from hmsa_core.labels.thresholds.sequential import Floats, SequentialTest, Turn, choose_start
from hmsa_core.taxonomy import ClassTable

Answer = Literal["right", "wrong", "unsure"]
ANSWERS: tuple[str, ...] = get_args(Answer)
FORMAT, VERSION = "hmsa-label-certificate", 1
MAX_BUDGET = 20_000
BATCH = 10  # draws that are planned at once
_COVERAGES = (0.05, 0.25, 0.5, 0.75, 0.9, 1.0)  # of a class: where cuts may lie
_ALIKE = 1.7  # bands whose guessed error rates differ by less are one band
_PEOPLE = 0.02  # guessed error rate of pixels that people drew: a finished store gives them code 0
_EDGES = np.array([float(edge) for edge in ConfidenceCode().edges])

Counts = NDArray[np.int64]
_PLANNED = {"class": int, "name": str, "start": int, "bands": list}
_BAND = {"low": int, "high": int, "pixels": int, "guess": float}
_DRAWN = {"class": int, "band": int, "image": str, "x": int, "y": int, "code": int}
_FORECASTS = {"more_draws", "more_pixels", "aim"}  # no results: their last digits may differ on other machines


class Labels(Protocol):
    """What is asked of a store; `pipeline.review.view.StoreView` is one."""

    classes: ClassTable
    digest: str
    kind: str
    lineage: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of all images in order."""

    @property
    def totals(self) -> Counts:
        """Pixels of each class and code, (C, 256)."""

    def kept(self, codes: NDArray[np.integer] | int) -> Counts:
        """Pixels of each image and class with at least these codes, (N, C)."""

    def read(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Label and confidence code of an image."""


def certificate_path(store: str | os.PathLike[str]) -> Path:
    """Where the certificate of a store lies: beside it."""
    base = Path(store)
    return base.with_name(f"{base.name}.certificate.json")


class Certificate:
    """Plan, draws and answers; `value` is what the file holds, results left out."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value
        self.classes: list[dict[str, Any]] = value["classes"]
        self.draws: list[dict[str, Any]] = value["draws"]
        self._counted: dict[int, tuple[tuple[Any, ...], tuple[Floats, ...]]] = {}
        self._told: tuple[tuple[Any, ...], dict[str, dict[str, Any]]] | None = None
        self._where: dict[tuple[int, int], Counts] = {}

    @cached_property
    def plan_digest(self) -> str:
        """Digest of all but draws and answers."""
        return digest({key: value for key, value in self.value.items() if key not in ("draws", "who")})

    # -- plan --------------------------------------------------------------------------------------------

    @classmethod
    def plan(
        cls,
        labels: Labels,
        *,
        target: float = 0.95,
        delta: float = 0.05,
        budget: int = 300,
        seed: int = 0,
        classes: Sequence[str] = (),
        table: Floats | None = None,
        policy: str | None = None,
        who: str = "",
    ) -> Certificate:
        """A certificate without an answer.

        Args:
            labels: the store.
            target: precision that each certified class has, with confidence 1 - delta for all of them together.
            budget: draws of all classes together.
            classes: names; default all that have a pixel.
            table: P(right) of each class and code (C, 256), as a guess; default: the confidence itself.
            policy: digest of the policy that `table` is from.
            who: who answers.

        Raises:
            ConfigError: a number out of range, an unknown class, or no pixel of any class.
        """
        settings = {"target": target, "delta": delta, "budget": budget, "seed": seed}
        _check_settings(target, delta, budget, seed)
        named = {labels.classes.index(name) for name in classes}
        wanted = [c for c in sorted(named or range(labels.classes.num_classes)) if labels.totals[c].any()]
        if not wanted:
            raise ConfigError("no class has a pixel: there is nothing to certify")
        planned = []
        for c in wanted:
            errors = np.clip(1 - (_EDGES if table is None else table[c]), 1e-3, 0.6)
            if labels.kind != "raw":
                errors[0] = _PEOPLE
            bands = _bands(labels.totals[c], errors, target)
            kept, guess = (np.array([band[key] for band in bands], np.float64) for key in ("pixels", "guess"))
            start = choose_start(kept, guess, target, delta / len(wanted))
            planned.append({"class": c, "name": labels.classes.classes[c], "bands": bands, "start": start})
        about = {"store": labels.digest, "teacher": labels.lineage.get("teacher"), "policy": policy, "who": who}
        return cls({"format": FORMAT, "version": VERSION, **about, **settings, "classes": planned, "draws": []})

    @cached_property
    def test(self) -> SequentialTest:
        """The test of all its classes, classes first."""
        shape = len(self.classes), max(len(row["bands"]) for row in self.classes)
        kept, guess = np.zeros(shape), np.full(shape, 0.5)
        for c, row in enumerate(self.classes):
            for b, band in enumerate(row["bands"]):
                kept[c, b], guess[c, b] = band["pixels"], band["guess"]
        start = np.array([row["start"] for row in self.classes])
        return SequentialTest(kept, guess, start, self.value["target"], self.value["delta"])

    def plan_draws(self, labels: Labels, count: int = BATCH) -> list[dict[str, Any]]:
        """Add up to `count` draws of the class that is worth them most; [] when the rest of the budget is of no use."""
        counted, wrong, best = self._state()
        left = self.value["budget"] - len(self.draws)
        n = np.zeros(counted.shape)
        for draw in self.draws:
            n[draw["class"], draw["band"]] += 1
        wrong = wrong + (n - counted) * self.test.predict(counted, wrong)[1]  # of draws that wait: as is expected
        turn = self.test.turn(n, wrong, best)
        c = int(self.test.pick(turn, n, best, left))
        added: list[dict[str, Any]] = []
        while c >= 0 and len(added) < min(count, left, max(1, int(np.ceil(min(turn.needed[c], count))))):
            band = int(turn.band[c])
            pixel = self._pixel(labels, c, band, int(n[c, band]))
            added.append({"class": c, "band": band, **pixel, "answer": None})
            self.draws.append(added[-1])
            n[c, band] += 1
            wrong[c, band] += self.test.predict(n, wrong)[1][c, band]
            turn = self.test.turn(n, wrong, best)
        return added

    def _ends(self, labels: Labels, c: int, band: int) -> Counts:
        """Running sum over images of a band's pixels, (N,)."""
        if (c, band) not in self._where:
            class_id, edges = self.classes[c]["class"], self.classes[c]["bands"][band]
            only = np.full((2, labels.classes.num_classes), NUM_CODES)
            only[:, class_id] = edges["low"], edges["high"]
            self._where[c, band] = np.cumsum(labels.kept(only[0])[:, class_id] - labels.kept(only[1])[:, class_id])
        return self._where[c, band]

    def _pixel(self, labels: Labels, c: int, band: int, number: int) -> dict[str, Any]:
        """The `number`-th pixel of a band: drawn uniformly, by the seed alone."""
        row, edges = self.classes[c], self.classes[c]["bands"][band]
        ends = self._ends(labels, c, band)
        rng = np.random.default_rng([self.value["seed"], row["class"], edges["low"], number])
        place = int(rng.integers(int(ends[-1])))
        image = int(np.searchsorted(ends, place, side="right"))
        name = labels.names[image]
        label, code = labels.read(name)
        inside = np.flatnonzero((label == row["class"]) & (code >= edges["low"]) & (code < edges["high"]))
        rank = place - (int(ends[image - 1]) if image else 0)
        if rank >= len(inside):
            raise IntegrityError(
                f"image {name!r}: its maps and its histogram differ", hint="run `autolabel verify` on the store"
            )
        y, x = divmod(int(inside[rank]), code.shape[1])
        return {"image": name, "x": x, "y": y, "code": int(code[y, x])}

    def answer(self, number: int, answer: str) -> None:
        """Record or change an answer."""
        if answer not in ANSWERS:
            raise InputError(f"answer {answer!r}: expected {', '.join(ANSWERS)}")
        if not 0 <= number < len(self.draws):
            raise InputError(f"draw {number}: this certificate has {len(self.draws)}")
        self.draws[number]["answer"] = answer

    # -- results -----------------------------------------------------------------------------------------

    def _state(self) -> tuple[Floats, Floats, Floats]:
        """Answers and wrong ones of each class and band, and the largest log evidence so far of each cut."""
        of_class: list[list[tuple[int, bool]]] = [[] for _ in self.classes]
        waits = [False] * len(self.classes)
        for draw in self.draws:
            c = draw["class"]
            waits[c] = waits[c] or draw["answer"] is None
            if not waits[c]:
                of_class[c].append((draw["band"], draw["answer"] != "right"))
        for c, answers in enumerate(of_class):
            key = tuple(answers)
            if c not in self._counted or self._counted[c][0] != key:
                self._counted[c] = (key, self._count(c, answers))
        parts = [self._counted[c][1] for c in range(len(self.classes))]
        n, wrong, best = (np.stack(part) for part in zip(*parts, strict=True))
        return n, wrong, best

    def _count(self, c: int, answers: Sequence[tuple[int, bool]]) -> tuple[Floats, ...]:
        bands = self.test.kept.shape[-1]
        n, wrong = np.zeros((2, len(answers) + 1, 1, bands))
        for t, (band, is_wrong) in enumerate(answers):
            n[t + 1 :, 0, band] += 1
            wrong[t + 1 :, 0, band] += is_wrong
        kept, guess = (np.broadcast_to(of[c], n.shape) for of in (self.test.kept, self.test.guess))
        one = replace(self.test, kept=kept, guess=guess, start=np.broadcast_to(self.test.start[c], n.shape[:-1]))
        return n[-1, 0], wrong[-1, 0], one.evidence(n, wrong).max(axis=0)[0]

    def results(self) -> dict[str, dict[str, Any]]:
        """Per class name: the cut that is certified or aimed at, with answers, estimate, bound and what it keeps."""
        key = tuple(draw["answer"] for draw in self.draws)
        if self._told is None or self._told[0] != key:
            n, wrong, best = self._state()
            certified, turn = self.test.levels(best)[1], self.test.turn(n, wrong, best)
            figures = np.stack([n, wrong, self.test.lower(n, wrong)], axis=1)
            cuts = [int(np.flatnonzero(passed)[-1]) if passed.any() else None for passed in certified]
            found = (self._result(c, cut, figures[c], turn) for c, cut in enumerate(cuts))
            self._told = key, {row["name"]: one for row, one in zip(self.classes, found, strict=True)}
        return self._told[1]

    def certified(self) -> dict[tuple[int, int], tuple[float, float]]:
        """(class, code) of each certified cut -> estimated precision and its lower bound."""
        ids = [row["class"] for row in self.classes]
        return {
            (c, row["code"]): (row["precision"] or row["lower"], row["lower"])
            for c, row in zip(ids, self.results().values(), strict=True)
            if row["certified"]
        }

    def _result(self, c: int, cut: int | None, figures: Floats, turn: Turn) -> dict[str, Any]:
        n, wrong, lower = figures  # of each band or cut
        row = self.classes[c]
        answers = [d["answer"] for d in self.draws if d["class"] == c and d["answer"]]
        at = int(turn.cut[c]) if cut is None else cut
        inside = row["bands"][: at + 1]
        code = inside[-1]["low"]
        kept, pixels = (sum(b["pixels"] for b in bands) for bands in (inside, row["bands"]))
        estimate = None
        if (n[: at + 1] > 0).all():
            shares = np.array([b["pixels"] for b in inside]) / kept
            estimate = round(float((shares * (1 - wrong[: at + 1] / n[: at + 1])).sum()), 6)
        bound = float(lower[at]) if cut is None else max(float(lower[at]), self.value["target"])
        needed = float(turn.needed[c])
        return {
            "certified": cut is not None,
            "threshold": ConfidenceCode().threshold(code) if cut is not None else None,
            "code": code if cut is not None else None,
            "aim": None if cut is not None else code,
            "draws": len(answers),
            **{answer: answers.count(answer) for answer in ANSWERS},
            "precision": estimate,
            "lower": round(bound, 6),
            "coverage": round(kept / pixels, 6),
            "pixels": kept,
            "more_draws": int(np.ceil(needed)) if np.isfinite(needed) else None,
            "more_pixels": round(float(turn.gain[c]) * pixels) if np.isfinite(needed) else 0,
        }

    def pays(self, labels: Labels, codes: NDArray[np.integer], clicks: int = 50) -> list[dict[str, Any]]:
        """What `clicks` more answers are worth in each class, the most pixels first.

        Args:
            labels: the store.
            codes: cuts in use, (C,), 256 for none.
            clicks: answers that are given to one class.

        Returns:
            Rows with "class", "answers" (until its next certificate), "threshold" (that it would prove), and the pixels
            that `clicks` answers are expected to "confirm" (kept by `codes`) and to "bring" (beyond them): their share
            of the answers, of all that the certificate would add.
        """
        n, wrong, best = self._state()
        turn, certified = self.test.turn(n, wrong, best), self.test.levels(best)[1]
        rows = []
        for c, row in enumerate(self.classes):
            if not np.isfinite(turn.needed[c]):
                continue
            had = np.flatnonzero(certified[c])
            high = row["bands"][int(had[-1])]["low"] if len(had) else NUM_CODES
            low, counts = row["bands"][int(turn.cut[c])]["low"], labels.totals[row["class"]]
            kept = int(counts[max(low, int(codes[row["class"]])) : high].sum())
            share = min(1.0, clicks / float(turn.needed[c]))
            rows.append(
                {
                    "class": row["name"],
                    "answers": int(np.ceil(turn.needed[c])),
                    "threshold": ConfidenceCode().threshold(low),
                    "confirm": round(share * kept),
                    "bring": round(share * (int(counts[low:high].sum()) - kept)),
                }
            )
        return sorted(rows, key=lambda row: -row["confirm"] - row["bring"])

    def refined(self, labels: Labels, right: Floats) -> Floats:
        """P(right) of each class and code (C, 256), with the error rates of bands that were judged as answers tell."""
        n, wrong, _ = self._state()
        rates, found = self.test.predict(n, wrong)[1], np.array(right, np.float64)
        for c, row in enumerate(self.classes):
            for b, band in enumerate(row["bands"]):
                if n[c, b]:
                    of = row["class"], slice(band["low"], band["high"])
                    mean = float(np.average(1 - found[of], weights=labels.totals[of]))
                    found[of] = 1 - np.clip((1 - found[of]) * rates[c, b] / mean, 0, 1) if mean > 0 else 1 - rates[c, b]
        return found

    def expected_wrong(self, labels: Labels, limit: int = 10) -> list[dict[str, Any]]:
        """Images and classes by the wrong kept pixels that the answers let expect, most first."""
        n, wrong, best = self._state()
        rates, certified = self.test.predict(n, wrong)[1], self.test.levels(best)[1]
        total = np.zeros((len(labels.names), len(self.classes)))
        for c in range(len(self.classes)):
            for band in range(int(np.flatnonzero(certified[c])[-1]) + 1 if certified[c].any() else 0):
                total[:, c] += rates[c, band] * np.diff(self._ends(labels, c, band), prepend=0)
        order = np.argsort(-total, axis=None, kind="stable")[:limit]
        return [
            {"image": labels.names[i], "class": self.classes[c]["name"], "wrong_pixels": round(float(total[i, c]))}
            for i, c in zip(*np.unravel_index(order, total.shape), strict=True)
            if total[i, c] >= 0.5
        ]

    # -- the file ----------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the sealed file with its results; return its digest."""
        return sealed.write(Path(path), self._to_json())

    def _to_json(self) -> dict[str, Any]:
        return {**self.value, "results": self.results()}

    @property
    def digest(self) -> str:
        """Digest of the file with the answers of now."""
        return sealed.dump(self._to_json())[11:75].decode("ascii")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Certificate:
        """Read a certificate; one that is damaged, edited, or does not say what its answers prove is refused.

        Raises:
            StoreError: with what is wrong.
        """
        value = sealed.read(Path(path))
        if value.get("format") != FORMAT or value.get("version") != VERSION:
            raise StoreError(f"{path}: not a certificate of version {VERSION}")
        if wrong := _damage(value):
            raise StoreError(f"{path}: refused: {wrong}")
        told = value.pop("results")
        value.pop("digest")
        found = cls(value)
        if _differ(told, found.results()):
            raise StoreError(f"{path}: refused: its results are not those of its answers")
        return found

    def is_of(self, labels: Labels) -> bool:
        """Whether it is about these very labels; otherwise it is void."""
        return bool(self.value["store"] == labels.digest)

    def check(self, labels: Labels, where: str) -> None:
        """Recompute bands and draws from the store; the first difference is a StoreError of one line."""
        if not self.is_of(labels):
            raise StoreError(
                f"{where}: void: the store has changed since (it is of {self.value['store'][:12]}, "
                f"the store is {labels.digest[:12]})",
                hint="certify the labels of now: `autolabel certify STORE`",
            )
        if self.value["teacher"] != labels.lineage.get("teacher"):
            raise StoreError(f"{where}: refused: it names another teacher than the store")
        for row in self.classes:
            names = labels.classes.classes
            if row["class"] >= len(names) or names[row["class"]] != row["name"]:
                raise StoreError(f"{where}: refused: class {row['name']!r} is not class {row['class']} of the store")
            counts = labels.totals[row["class"]]
            if (
                any(b["pixels"] != int(counts[b["low"] : b["high"]].sum()) for b in row["bands"])
                or counts[: row["bands"][-1]["low"]].any()
            ):
                raise StoreError(f"{where}: refused: class {row['name']!r} has other pixels in the store")
        seen: dict[tuple[int, int], int] = {}
        for number, draw in enumerate(self.draws):
            key = draw["class"], draw["band"]
            if {k: draw[k] for k in ("image", "x", "y", "code")} != self._pixel(labels, *key, seen.get(key, 0)):
                raise StoreError(f"{where}: refused: pixel {number} is not the one that the certificate's seed draws")
            seen[key] = seen.get(key, 0) + 1


def _check_settings(target: float, delta: float, budget: int, seed: int) -> None:
    for name, number, low, high in (("target", target, 0.5, 0.999), ("delta", delta, 1e-6, 0.5)):
        if not low <= number <= high:
            raise ConfigError(f"{name} {number:g}: expected {low:g} to {high:g}")
    for name, count, low, high in (("budget", budget, 1, MAX_BUDGET), ("seed", seed, 0, 2**32 - 1)):
        if not low <= count <= high:
            raise ConfigError(f"{name} {count}: expected {low:g} to {high}")


def _bands(counts: Counts, errors: Floats, target: float) -> list[dict[str, Any]]:
    """Bands of codes, the surest first: at shares of the class, those alike in their guess as one."""
    coverage = np.cumsum(counts[::-1])[::-1] / counts.sum()
    cuts = sorted({int(np.flatnonzero(coverage >= share)[-1]) for share in _COVERAGES}, reverse=True)
    bands: list[dict[str, Any]] = []
    for high, low in zip([NUM_CODES, *cuts], cuts, strict=False):
        pixels = int(counts[low:high].sum())
        guess = float(np.dot(counts[low:high], errors[low:high]) / pixels)
        # The guess may be wrong: the surest half stays a cut of its own, the surest pixels where the target seems far.
        may_grow = len(bands) > 1 or (len(bands) == 1 and coverage[low] <= 0.5 and guess <= 1 - target)
        if may_grow and _alike(bands[-1]["guess"], guess, (1 - target) / 20):
            last, both = bands[-1], bands[-1]["pixels"] + pixels
            last.update(low=low, pixels=both, guess=(last["guess"] * last["pixels"] + guess * pixels) / both)
        else:
            bands.append({"low": low, "high": high, "pixels": pixels, "guess": guess})
    return [{**band, "guess": round(band["guess"], 6)} for band in bands]


def _alike(a: float, b: float, negligible: float) -> bool:
    return max(a, b) <= negligible or max(a, b) <= _ALIKE * min(a, b)


# -- what a hostile file may hold --------------------------------------------------------------------------


def _damage(value: Mapping[str, Any]) -> str:
    """What is wrong with the form of a certificate, "" where nothing is."""
    settings = {"store": str, "target": float, "delta": float, "budget": int, "seed": int, "who": str}
    if lacking := _lacking(value, {**settings, "classes": list, "draws": list, "results": dict}):
        return f"its {lacking!r} is missing or of another kind"
    try:
        _check_settings(value["target"], value["delta"], value["budget"], value["seed"])
    except ConfigError as error:
        return error.message
    if not value["classes"] or len(value["classes"]) > 255:
        return "it has no classes or too many"
    for row in value["classes"]:
        if wrong := _damaged_class(row):
            return wrong
    ids = [row["class"] for row in value["classes"]]
    if ids != sorted(set(ids)) or len(value["draws"]) > value["budget"]:
        return "classes out of order, or more draws than its budget"
    return next((w for number, d in enumerate(value["draws"]) if (w := _damaged_draw(d, number, value["classes"]))), "")


def _damaged_class(row: Any) -> str:
    if lacking := _lacking(row, _PLANNED):
        return f"{lacking!r} of a class is missing or of another kind"
    if not row["bands"] or len(row["bands"]) > len(_COVERAGES):
        return f"class {row['name']!r} has no bands or too many"
    top = NUM_CODES
    for band in row["bands"]:
        if lacking := _lacking(band, _BAND):
            return f"{lacking!r} of a band is missing or of another kind"
        if band["high"] != top or not 0 <= band["low"] < top or band["pixels"] < 1 or not 0 < band["guess"] < 1:
            return f"a band of class {row['name']!r} is impossible"
        top = band["low"]
    if not 0 <= row["class"] < 255 or not 0 <= row["start"] < len(row["bands"]):
        return f"class {row['name']!r} has an impossible number or start"
    return ""


def _damaged_draw(draw: Any, number: int, classes: Sequence[Mapping[str, Any]]) -> str:
    if lacking := _lacking(draw, _DRAWN):
        return f"{lacking!r} of draw {number} is missing or of another kind"
    if not 0 <= draw["class"] < len(classes) or not 0 <= draw["band"] < len(classes[draw["class"]]["bands"]):
        return f"draw {number} is of no class or band of its plan"
    answer = draw.get("answer", "")
    return "" if answer is None or answer in ANSWERS else f"draw {number} has no such answer"


def _lacking(value: object, needed: Mapping[str, Any]) -> str:
    row = value if isinstance(value, dict) else {}
    return next((k for k, kind in needed.items() if type(row.get(k)) is not kind), "")


def _differ(told: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> bool:
    if told.keys() != found.keys():
        return True
    for name, row in found.items():
        said = told[name]
        if not isinstance(said, dict) or said.keys() != row.keys():
            return True
        for key in row.keys() - _FORECASTS:
            near = key in ("lower", "precision") and isinstance(said[key], float) and isinstance(row[key], float)
            if not (abs(said[key] - row[key]) < 1e-4 if near else said[key] == row[key]):
                return True
    return False
