"""A spot check: pixels drawn with known probabilities, judged by people, kept in a file next to the store.

Each item was drawn uniformly from all pixels that its class keeps from its code `low` on, independently of the others.
Fields: "name" (image), "class", "rank" (place among these pixels of the image), "low", "verdict"; "x", "y", "code" once
known. The kinds are an audit (a fixed number per class), a certificate (draws where answers prove most) and questions
(about the region of a pixel). Answers of the first two are evidence about precision. Audits guide certificates,
finished questions serve as their draws.
"""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from hmsa_core.io.atomic import read_json, write_json
from hmsa_core.io.errors import HmsaError, InputError, IntegrityError
from hmsa_core.io.locks import FileLock
from hmsa_core.io.records import saving, stamp_of
from hmsa_core.labels.store.codes import NUM_CODES
from pipeline.review.view import StoreView

Verdict = Literal["right", "wrong", "unsure"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
Code = Field(ge=0, lt=NUM_CODES)
ClassId = Field(ge=0, lt=255, alias="class")


class Strict(BaseModel):
    """A part of a stored file: the types of values are checked, other keys are allowed."""

    model_config = ConfigDict(strict=True, extra="allow")


class Item(Strict):
    """A drawn pixel of a file (fields: see the module's docstring)."""

    name: str
    class_id: int = ClassId
    rank: int = Field(ge=0)
    verdict: Verdict | None
    code: int | None = Field(None, ge=0, lt=NUM_CODES)

    @model_validator(mode="after")
    def _answered_pixels_are_known(self) -> Self:
        if self.verdict is not None and self.code is None:
            raise ValueError("an answered pixel without its 'code'")
        return self


class Judged(NamedTuple):
    """A decided answer: a uniform draw from the pixels that any threshold from `low` to `code` keeps."""

    class_id: int
    low: int
    code: int
    right: bool


class SpotCheck:
    """Drawn pixels with the answers so far; `value` is the content of the file."""

    KIND: ClassVar[str]  # the file is STORE.KIND.json
    SCHEMA: ClassVar[type[Strict]]
    FORMAT: ClassVar[str]  # this and VERSION, ANEW: of a kind that is read by `load` below
    VERSION: ClassVar[int]
    WHAT: ClassVar[str]  # for messages, of every kind
    ANEW: ClassVar[str]

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value
        self.items: list[dict[str, Any]] = value["items"]

    @classmethod
    def path_of(cls, store: str | os.PathLike[str]) -> Path:
        """Path of the check of a store: next to the store, because DVC empties or watches other folders."""
        base = Path(store)
        return base.with_name(f"{base.name}.{cls.KIND}.json")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file; raise an IntegrityError if it is damaged or of another version."""
        value = read_json(path)
        if value.get("format") != cls.FORMAT or value.get("version") != cls.VERSION:
            raise IntegrityError(f"{path}: no {cls.WHAT} of version {cls.VERSION}")
        if wrong := cls.damage(value):
            raise IntegrityError(f"{path}: damaged: {wrong}", hint=f"restore it, or move it away and {cls.ANEW}")
        return cls(value)

    def save(self, path: Path) -> None:
        """Write the file."""
        write_json(path, self.value, indent=None)  # written at every answer

    @property
    def id(self) -> str:
        """16 hex digits that identify the draw, whatever the answers."""
        return str(self.value["id"])

    def draw_on(self, view: StoreView) -> None:
        """Add draws until enough wait for an answer."""

    def take_back(self, view: StoreView, saved: Self) -> None:
        """Withdraw what answers that could not be saved wrote elsewhere; `saved` is the file's content."""

    def low(self, item: dict[str, Any]) -> int:
        """Smallest code of the pixels among which an item was drawn."""
        return int(item["low"])

    @classmethod
    def damage(cls, value: dict[str, Any]) -> str:
        """Describe the fault of a file's content; "" without one."""
        try:
            TypeAdapter(cls.SCHEMA).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            return f"{first['msg']} at {' '.join(map(repr, first['loc'])) or 'its top'}"
        return ""

    def is_of(self, view: StoreView) -> bool:
        """Whether the check is about these very labels: answers about other labels are no evidence about these."""
        return bool(self.value["store"] == view.digest)

    @property
    def is_begun(self) -> bool:
        """Whether anybody answered, "can't tell" included."""
        return any(item["verdict"] for item in self.items)

    def located(self, view: StoreView, number: int) -> dict[str, Any]:
        """An item with the position (x, y) and code of its pixel, which are looked up at first use.

        Raises:
            InputError: no such item. IntegrityError: the image's maps do not agree with its histogram.
        """
        if not 0 <= number < len(self.items):
            raise InputError(f"item {number}: this {self.WHAT} has {len(self.items)}")
        found = self.items[number]
        if "code" not in found:
            found.update(pixel(view, found["name"], found["class"], self.low(found), found["rank"]))
        return found

    def answer(self, view: StoreView, number: int, verdict: str, who: str = "") -> None:
        """Record or change the answer of a person to one item."""
        if verdict not in VERDICTS:
            raise InputError(f"verdict {verdict!r}: expected {', '.join(VERDICTS)}")
        self.located(view, number).update({"verdict": verdict} | ({"who": who} if who else {}))

    def answers(self) -> list[Judged]:
        """Decided answers."""
        decided = (item for item in self.items if item["verdict"] in ("right", "wrong"))
        return [Judged(i["class"], self.low(i), i["code"], i["verdict"] == "right") for i in decided]


def judged(answers: list[Judged], class_id: int, code: int) -> list[bool]:
    """Whether each answer is right, of the answers that are a random sample of what a class keeps from a code on."""
    return [a.right for a in answers if a.class_id == class_id and a.low <= code <= a.code]


def pixel(view: StoreView, name: str, class_id: int, low: int, rank: int) -> dict[str, int]:
    """Position and code of the `rank`-th pixel of an image that a class keeps from a code on.

    Raises:
        IntegrityError: the image's maps do not agree with its histogram.
    """
    label, code = view.read(name)
    where = np.flatnonzero((label == class_id) & (code >= low))
    if rank >= len(where):
        raise IntegrityError(f"image {name!r}: its maps and its histogram differ", hint="run `autolabel verify`")
    y, x = divmod(int(where[rank]), code.shape[1])
    return {"x": x, "y": y, "code": int(code[y, x])}


def ranks(kept: NDArray[np.int64], drawn: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(image, rank among its kept pixels) for positions in the row of all kept pixels of a class; kept pixels: (N,)."""
    ends = np.cumsum(kept)
    images = np.searchsorted(ends, drawn, side="right")
    return list(zip(images.tolist(), (drawn - (ends[images] - kept[images])).tolist(), strict=True))


Kind = TypeVar("Kind", bound=SpotCheck)


class SpotFile(Generic[Kind]):
    """The spot check of one kind next to a store, with the answers of all servers.

    Args:
        kind: `Audit`, `Certificate` or `Questions`.
        view: the store.
        path: the file; default: next to the store.
    """

    def __init__(self, kind: type[Kind], view: StoreView, path: str | os.PathLike[str] | None = None) -> None:
        self.path = kind.path_of(view.path.resolve()) if path is None else Path(path)
        self.aside: Path | None = None  # file to which answers of another draw were moved
        self._kind, self._view, self._lock = kind, view, threading.Lock()
        self._seen: tuple[tuple[int, int], Kind] | None = None

    def every(self) -> list[Kind]:
        """All checks of past and present labels of the store, in the order in which they were drawn."""
        found = {one.id: one for path in (*self._asides(), self.path) if (one := self._load(path)) is not None}
        return sorted(found.values(), key=lambda one: (one.value.get("number", 0), one.id))

    def _asides(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.stem)}-*.json"))

    def _aside(self, check: Kind) -> Path:
        return self.path.with_name(f"{self.path.stem}-{check.id}.json")

    def _load(self, path: Path) -> Kind | None:
        return self._kind.load(path) if path.is_file() else None

    def _kept(self) -> Kind | None:
        """The check in the file, of whatever labels; read again when another server has written the file."""
        stamp = stamp_of(self.path)
        if stamp is None:
            return None
        if self._seen is None or self._seen[0] != stamp:
            self._seen = stamp, self._kind.load(self.path)
        return self._seen[1]

    @property
    def current(self) -> Kind | None:
        """The check of these very labels, finished or not, with the answers of all servers."""
        kept = self._kept()
        return kept if kept is not None and kept.is_of(self._view) else None

    def usable(self) -> tuple[Kind | None, str]:
        """The check of these very labels; or None, and why an existing check does not count ("" = none exists)."""
        try:
            kept = self._kept()
        except HmsaError as error:
            return None, f"does not count: {error.message}"
        if kept is None or kept.is_of(self._view):
            return kept, ""
        return None, f"void: the store has changed since this {self._kind.WHAT} was drawn"

    def start(self, check: Kind) -> Kind:
        """Store a new check, or continue the same draw; answers of another draw go to another file, never lost."""
        with self._alone():
            kept = self._kept()
            if kept is None or kept.id != check.id or check.is_begun:
                if kept is not None and kept.id != check.id and kept.is_begun:
                    self.aside = self._aside(kept)
                    kept.save(self.aside)
                before = None if check.is_begun else self._load(self._aside(check))  # the same draw, answered before
                check.value["number"] = 1 + len(self._asides())
                kept = check if before is None else before
            self._save(kept)
            return kept

    def answer(self, check_id: str, number: int, verdict: str, who: str = "") -> Kind:
        """Record an answer; as `change`."""
        return self.change(check_id, lambda check: check.answer(self._view, number, verdict, who))

    def change(self, check_id: str, change: Callable[[Kind], object]) -> Kind:
        """Change the answers, draw on, and rewrite the file; a change that could not be written does not count.

        Raises:
            InputError: the check of the file is of other labels, or another one was begun.
        """
        with self._alone():
            self._view.check_current()
            kept, what = self.current, self._kind.WHAT
            if kept is None:
                raise InputError(f"no {what} {check_id!r} is under way", hint="draw a new one")
            if kept.id != check_id:
                raise InputError(f"{self.path}: another {what} was drawn since", hint=f"open the {what} anew to go on")
            self._seen = None
            change(kept)
            try:
                self._save(kept)
            except (HmsaError, OSError):
                kept.take_back(self._view, self._kind.load(self.path))
                raise
            return kept

    def _save(self, check: Kind) -> None:
        self._seen = None
        check.draw_on(self._view)
        check.save(self.path)
        if (stamp := stamp_of(self.path)) is not None:
            self._seen = stamp, check

    @contextmanager
    def _alone(self) -> Iterator[None]:
        what = f"{self._kind.WHAT} {self.path}"
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), what=what, wait_s=10.0)
        with self._lock, saving(self.path), lock:
            yield
