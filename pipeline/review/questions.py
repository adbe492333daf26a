"""Questions about regions of a raw store: people say which class a region is, and the answers become labels.

A region is a connected part of one class of the label map inside one cell of a grid, CELLS cells across the image. On
CamVid's calibration images its most frequent true class covers 95 % of it. Regions are found by drawn pixels: a pixel
is drawn with a known probability ("share"), from a mixture of area, expected wrong pixels, rare classes and images,
each equally likely; never the most uncertain ones, which are mixed. An aim takes half of the draws.
An answer is a correction of the store's review file. It is bound to image and pixels, so it outlives these labels, and
`pseudo-label` writes it with the source human. `STORE.questions.json` holds the questions with all answers. They are
about these labels: a store that was made anew gets new ones.
A cross shows the drawn pixel. Whether the label is right at the cross is evidence for certificates (`given`). So a
region that is drawn twice is shown twice, with another cross.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hmsa_core.io.atomic import digest
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels.review import UNTOUCHED, Mark, Patch, ReviewFile, labels_id, marked_store, reviewed
from hmsa_core.taxonomy import IGNORE
from pipeline.review.spot_check import Item, SpotCheck, Strict, Verdict, ranks
from pipeline.review.view import StoreView

MAX_BUDGET = 20_000
CELLS = 20
_STREAM = 2  # keeps the choice of draws that count for certificates apart from the draws
ROUND = 25  # questions that each person is asked in another order
MIXED, UNSURE, RIGHT = "mixed", "unsure", "right"


class _Question(Item):
    share: float = Field(gt=0, le=1)
    cross: Verdict | None = None


class _Questions(Strict):
    id: str
    store: str
    seed: int
    items: list[_Question]


class Draw(NamedTuple):
    """A draw that counts for certificates: number of its question, image, class, rank and verdict of its pixel."""

    number: int
    name: str
    class_id: int
    rank: int
    verdict: Verdict


class Region(NamedTuple):
    """A region of an image: where it lies, and which pixels of the window are its (bool hxw)."""

    x: int
    y: int
    mask: NDArray[np.bool_]

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the window in a map of the image."""
        height, width = self.mask.shape
        return np.s_[self.y : self.y + height, self.x : self.x + width]


class Questions(SpotCheck):
    """Drawn regions with the answers so far; an item's "answer" is a class, MIXED or UNSURE."""

    KIND, SCHEMA = "questions", _Questions
    FORMAT, VERSION = "hmsa-region-questions", 1
    WHAT, ANEW = "set of questions", "ask anew"

    @classmethod
    def draw(cls, view: StoreView, *, budget: int, seed: int = 0, aim: Sequence[str] = ()) -> Questions:
        """Draw `budget` questions, half of them about the classes of `aim`; the same seed draws the same.

        Raises:
            ConfigError: a number out of range, an unknown class, a finished store, or no pixel of any class.
        """
        if not 1 <= budget <= MAX_BUDGET:
            raise ConfigError(f"budget {budget}: expected 1 to {MAX_BUDGET}")
        if view.kind != "raw":
            raise ConfigError(f"{view.path}: is thresholded already", hint="ask about the raw store")
        shares = _shares(view, [view.classes.index(name) for name in aim])
        rng = np.random.default_rng(seed)
        items = []
        for image, c in (
            np.unravel_index(cell, shares.shape) for cell in rng.choice(shares.size, budget, p=shares.flat)
        ):
            pixels = int(view.predicted[image, c])
            ((_, rank),) = ranks(np.array([pixels]), rng.integers(0, pixels, 1))
            item = {"name": view.names[image], "class": int(c), "low": 0, "rank": rank, "verdict": None}
            items.append({**item, "share": float(shares[image, c] / pixels)})
        body = {"format": cls.FORMAT, "version": cls.VERSION, "store": view.digest, "seed": seed, "aim": sorted(aim)}
        return cls({"id": digest([body, budget])[:16], **body, "items": items})

    def open(self, who: str = "", begin: int | None = None) -> Iterator[int]:
        """Questions without an answer.

        Each person has an order of their own inside of every ROUND questions, so that people who answer at the same
        time seldom see the same one. It begins at the question `begin`; those before it come last.
        """
        numbers = np.arange(len(self.items))
        if who:
            rng = np.random.default_rng(list(who.encode()))
            numbers = numbers[np.lexsort((rng.random(len(numbers)), numbers // ROUND))]
        order = numbers.tolist()
        first = 0 if begin is None else order.index(begin)
        yield from (n for n in (*order[first:], *order[:first]) if self.items[n]["verdict"] is None)

    def upcoming(self, view: StoreView, who: str, begin: int | None, count: int) -> list[int]:
        """The first open questions, of different regions: they may be shown before the first of them is answered."""
        found: dict[tuple[str, int, int, int], int] = {}
        for number in self.open(who, begin):
            item, (x, y, _) = self.located(view, number), self._cell(view, number)
            found.setdefault((item["name"], item["class"], x, y), number)
            if len(found) == count:
                break
        return list(found.values())

    def _cell(self, view: StoreView, number: int) -> tuple[int, int, int]:
        """Left upper corner and side of the cell of the grid that a question lies in."""
        item = self.located(view, number)
        side = max(1, round(view.info(item["name"])["width"] / CELLS))
        return item["x"] // side * side, item["y"] // side * side, side

    def region(self, view: StoreView, number: int) -> Region:
        """The region of a question."""
        item, (x, y, size) = self.located(view, number), self._cell(view, number)
        label = view.read(item["name"])[0]
        of_class = (label[y : y + size, x : x + size] == item["class"]).astype(np.uint8)
        parts = cv2.connectedComponents(of_class, connectivity=4)[1]
        return Region(x, y, np.asarray(parts == parts[item["y"] - y, item["x"] - x]))

    def answer(self, view: StoreView, number: int, verdict: str, who: str = "", cross: str = "") -> None:
        """Record or change an answer: RIGHT, the name of a class, MIXED (ignored in training), UNSURE (no label).

        Where another person was faster, their answer stands.
        `cross` is the class at the cross or UNSURE; default: as the region, and a mixed one counts as wrong there.
        """
        item = self.located(view, number)
        if item.get("who", who) != who:
            return
        said = view.classes.classes[item["class"]] if verdict == RIGHT else verdict
        ids = {MIXED: IGNORE, UNSURE: UNTOUCHED}
        value = ids[said] if said in ids else view.classes.index(said)
        review = review_of(view)
        if item.get("mark"):
            _withdraw(review, item)
        region, when = self.region(view, number), datetime.now(UTC).isoformat(timespec="milliseconds")
        new = int((said_of(review, view, item["name"])[region.window] == UNTOUCHED)[region.mask].sum())
        if value != UNTOUCHED:
            item["mark"] = _correct(review, view, item["name"], region, value, who, when)
        is_right = value == item["class"]
        item["verdict"] = UNSURE if said == UNSURE else "right" if is_right else "wrong"
        there, label = cross or said, view.classes.classes[item["class"]]
        item["cross"] = UNSURE if there == UNSURE else "right" if there == label else "wrong"
        item |= {"answer": said, "who": who, "when": when, "pixels": new}

    def uniform(self, view: StoreView) -> list[int]:
        """Numbers of questions that are uniform draws from all pixels of their class.

        A draw stays with a probability that evens out the shares of the images. It depends on the seed alone.
        """
        shares = _shares(view, [view.classes.index(name) for name in self.value["aim"]])
        of_pixels = np.divide(shares, view.predicted, out=np.ones_like(shares), where=view.predicted > 0)
        least, chance = of_pixels.min(axis=0), np.random.default_rng([self.value["seed"], 0, _STREAM])
        return [n for n, i in enumerate(self.items) if chance.random() * i["share"] <= least[i["class"]]]

    def given(self, view: StoreView) -> list[Draw]:
        """Uniform draws with their verdicts; none while a question is open: who stops may do so by the answers."""
        if any(item.get("cross") is None for item in self.items):
            return []
        found = [(n, self.items[n]) for n in self.uniform(view)]
        return [Draw(n, i["name"], i["class"], i["rank"], i["cross"]) for n, i in found]

    def last_of(self, who: str = "") -> int:
        """The question that a person answered last; InputError where none of these answers is left."""
        mine = [n for n, item in enumerate(self.items) if item["verdict"] and item.get("who", "") == who]
        if not mine:
            raise InputError(f"no answer{' of ' * bool(who)}{who} to these questions is left to undo")
        return max(mine, key=lambda n: str(self.items[n]["when"]))

    def undo(self, view: StoreView, number: int) -> None:
        """Withdraw an answer and its correction."""
        item = self.items[number]
        if item.get("mark"):
            _withdraw(review_of(view), item)
        for key in ("answer", "who", "when", "pixels", "cross"):
            item.pop(key, None)
        item["verdict"] = None

    def take_back(self, view: StoreView, saved: Questions) -> None:
        """Withdraw the corrections of answers that could not be saved."""
        known = {item.get("mark") for item in saved.items}
        for item in self.items:
            if item.get("mark") not in {None, *known}:
                _withdraw(review_of(view), item)


def regions_of(label: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Number of each pixel's region in a label map, from 0 on, HxW."""
    size = max(1, round(label.shape[1] / CELLS))
    found, count = np.zeros(label.shape, np.intp), 0
    for y in range(0, label.shape[0], size):
        for x in range(0, label.shape[1], size):
            window, numbers = label[y : y + size, x : x + size], found[y : y + size, x : x + size]
            for c in np.unique(window):
                parts, number = cv2.connectedComponents((window == c).astype(np.uint8), connectivity=4)
                numbers[window == c] = number[window == c] + (count - 1)
                count += parts - 1
    return found


def review_of(view: StoreView) -> ReviewFile:
    """The review file that answers about a store go to."""
    store = marked_store(view.path.resolve(), view.kind)
    return ReviewFile(store, view.image_digests, labels_id(view.lineage))


def said_of(review: ReviewFile, view: StoreView, name: str) -> NDArray[np.uint8]:
    """What people have said of the pixels of an image: trainIds, UNTOUCHED where they said nothing."""
    row = view.info(name)
    return reviewed(review.of(name), row["height"], row["width"], view.classes)[1]


def _withdraw(review: ReviewFile, item: dict[str, Any]) -> None:
    mark = item.pop("mark")
    if mark in {one.id for one in review.of(item["name"])}:  # else somebody has withdrawn it already
        review.withdraw(item["name"], mark)


def _correct(review: ReviewFile, view: StoreView, name: str, region: Region, value: int, who: str, when: str) -> str:
    row = view.info(name)
    said = np.full((row["height"], row["width"]), UNTOUCHED, np.uint8)
    said[region.window][region.mask] = value
    looked_at = view.image_digests()[name], labels_id(view.lineage)
    height, width = region.mask.shape
    right, low = region.x + width - 1, region.y + height - 1
    box = ((region.x, region.y), (right, region.y), (right, low), (region.x, low))
    mark = Mark("", name, "correct", box, "", who, *looked_at, when, Patch.of(said, view.classes))
    with review.lock():
        return review.add_corrections([mark])[0]


def _shares(view: StoreView, aim: Sequence[int]) -> NDArray[np.float64]:
    """Probability of each image and class to be asked about, (N, C)."""
    counts = view.predicted.astype(np.float64)
    if not counts.any():
        raise ConfigError("no class has a pixel: there is nothing to ask about")
    doubt = np.maximum(view.doubt.astype(np.float64), 0) * (counts > 0)
    parts = [counts, doubt, *(_evened(counts, axis) for axis in (0, 1))]
    mixed = sum(part / part.sum() for part in parts if part.any()) / sum(part.any() for part in parts)
    if aim:
        wanted = np.zeros_like(counts)
        wanted[:, aim] = _evened(counts[:, aim], 0)
        if not wanted.any():
            raise ConfigError("no label is of these classes: there is nothing to ask about")
        mixed = (mixed + wanted / wanted.sum()) / 2
    return np.asarray(mixed / mixed.sum())


def _evened(counts: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Counts that sum to 1 along an axis wherever there are any."""
    sums = counts.sum(axis=axis, keepdims=True)
    return np.asarray(np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0))


def answer_of(text: str, view: StoreView) -> str:
    """What a person typed as an answer: "" right, m mixed, x can't tell, else a class by name or number.

    Raises:
        InputError: none of these.
    """
    names = view.classes.classes
    known = {"": RIGHT, "m": MIXED, "x": UNSURE, **{str(c): name for c, name in enumerate(names)}}
    known |= {name.lower(): name for name in names}
    found = known.get(text.strip().lower())
    if found is None:
        raise InputError(f"{text.strip()!r} is no answer", hint="Enter, a class by name or number, m, x, u, q")
    return found
