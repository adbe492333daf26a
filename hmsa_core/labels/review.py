"""The review file next to a store: what people accepted, flagged or corrected, one JSON object a line, only appended.

`STORE.review.jsonl`: {"id", "name", "verdict": "accept" | "flag" | "correct", "region": [[x, y], ...] | null, "note",
"reviewer", "image_sha256", "labels"}, or {"id", "name", "withdraws": id} which takes an earlier line back. Regions are
polygons in pixels of the label map. A correction has "when" (as the tool says it) and "pixels": {"x", "y", "png",
"classes"}, a grey PNG in base64 whose left upper corner lies at (x, y): places in the list of class names,
255 = ignore, 254 = not corrected. A correction with a region was about this part of the image alone. With "alike": true
a program made it from answers about alike regions: it holds for the labels of now alone, people always win over it,
and the next such correction takes it back.
Lines are applied in order, so that pixel by pixel the last word counts. A flag sets pixels to ignore, an accept lifts
earlier flags, a correction gives pixels a class and lifts earlier flags of them. `labels` says which labels were
looked at (teacher, scales, flip, precision). Flags and corrections go on when a store is made anew, but what nobody
has looked at is not called accepted.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.io import records
from hmsa_core.io.atomic import digest
from hmsa_core.io.errors import InputError, IntegrityError, StoreError
from hmsa_core.io.locks import FileLock
from hmsa_core.io.records import saving, stamp_of
from hmsa_core.labels.store.format import binding, decode, png_bytes
from hmsa_core.taxonomy import IGNORE, ClassTable

Region = tuple[tuple[float, float], ...]
Verdict = Literal["accept", "flag", "correct"]
Labels = NDArray[np.uint8]
NOTE_LIMIT, REGION_LIMIT = 2000, 500  # characters, corners
_SHORT = 4096  # bytes of a line that is kept in memory
UNTOUCHED = 254  # in corrections; class tables have fewer classes


def marked_store(store: Path, kind: str) -> Path:
    """The store whose marks act on what is shown: of `final` the raw one next to it, whose marks `pseudo-label` reads.

    A thresholded store elsewhere keeps marks of its own, which no stage reads.
    """
    raw = store.with_name("raw")
    # While `auto-infer` makes it anew the raw store of a workspace is away for a time; its marks are not.
    is_there = (raw / "manifest.json").is_file() or review_path(raw).is_file()
    return raw if kind != "raw" and store.name == "final" and is_there else store


def review_path(store: str | os.PathLike[str]) -> Path:
    """Path of the review file of a store."""
    folder = Path(store)
    return folder.with_name(f"{folder.name}.review.jsonl")


class MarkError(InputError):
    """What was given is no mark."""


@dataclass(frozen=True)
class Patch:
    """Pixels that a person gave a class (see the top of the file)."""

    x: int
    y: int
    png: str
    classes: tuple[str, ...]

    @classmethod
    def of(cls, labels: Labels, table: ClassTable) -> Patch:
        """The smallest patch with all pixels of a map (uint8 HxW) that are not UNTOUCHED; there must be one."""
        rows, columns = (np.flatnonzero((labels != UNTOUCHED).any(axis=axis)) for axis in (1, 0))
        part = labels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        used = [int(c) for c in np.unique(part) if c < table.num_classes]
        numbers = np.arange(256, dtype=np.uint8)
        numbers[used] = np.arange(len(used))
        png = base64.b64encode(png_bytes(numbers[part])).decode()
        return cls(int(columns[0]), int(rows[0]), png, tuple(table.classes[c] for c in used))

    def paste(self, labels: Labels, table: ClassTable, where: str) -> NDArray[np.bool_]:
        """Write the corrected pixels into a map (uint8 HxW); return which they are (bool HxW).

        Raises:
            IntegrityError: the patch is no such PNG, or does not fit into the map. InputError: no such class any more.
        """
        try:
            data = base64.b64decode(self.png, validate=True)
            width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])  # of a PNG
            fits = self.x >= 0 and self.y >= 0 and self.x + width <= labels.shape[1]
            if not fits or self.y + height > labels.shape[0] or not data.startswith(b"\x89PNG\r\n\x1a\n"):
                raise IntegrityError(f"{where}: the correction is no PNG that fits into {labels.shape}")
            part = decode(data, "png")
        except (binascii.Error, StoreError) as error:
            raise IntegrityError(f"{where}: the correction is damaged ({error})") from error
        ids = np.full(256, IGNORE, np.uint8)
        ids[: len(self.classes)] = [table.index(name) for name in self.classes]
        touched = np.zeros(labels.shape, bool)
        touched[self.y : self.y + height, self.x : self.x + width] = part != UNTOUCHED
        labels[touched] = ids[part[part != UNTOUCHED]]
        return touched


@dataclass(frozen=True)
class Mark:
    """One verdict on an image (region None), on a polygon of it, or on the pixels of a correction."""

    id: str
    name: str
    verdict: Verdict
    region: Region | None = None
    note: str = ""
    reviewer: str = ""
    image_sha256: str = ""  # the picture that was looked at; "": any of this name
    labels: str = ""  # the labels that were looked at (`labels_id`); "": any
    when: str = ""  # of a correction
    pixels: Patch | None = None  # of a correction
    alike: bool = False  # a program concluded the correction from answers of people

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        optional = ("image_sha256", "labels", "when", "pixels", "alike")
        return {name: value for name, value in asdict(self).items() if name not in optional or value}


def labels_id(lineage: Mapping[str, Any]) -> str:
    """Which labels a store has, in 16 hex digits: those that a policy is bound to (`binding`)."""
    return digest(binding(lineage))[:16]


def _region(value: object) -> Region | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 3 <= len(value) <= REGION_LIMIT:
        raise MarkError(f"a region needs 3 to {REGION_LIMIT} corners [x, y]")
    try:
        corners = tuple((float(x), float(y)) for x, y in value)
    except (TypeError, ValueError, OverflowError) as error:
        raise MarkError("a region is a list of corners [x, y] in pixels") from error
    if not np.isfinite(corners).all() or np.abs(corners).max() > 1e6:
        raise MarkError("a corner of the region lies outside of any image")
    return corners


def _patch(value: object, verdict: str) -> Patch | None:
    if verdict != "correct":
        return None
    keys = ("x", "y", "png", "classes")
    if not isinstance(value, dict) or [type(value.get(key)) for key in keys] != [int, int, str, list]:
        raise MarkError(f"a correction needs pixels with {', '.join(keys)}")
    return Patch(value["x"], value["y"], value["png"], tuple(map(str, value["classes"][:UNTOUCHED])))


def _mark(value: dict[str, Any]) -> Mark:
    if value.get("verdict") not in ("accept", "flag", "correct"):
        raise MarkError(f"verdict {value.get('verdict')!r}: expected accept, flag or correct")
    note, reviewer = value.get("note", ""), value.get("reviewer", "")
    if not isinstance(note, str) or not isinstance(reviewer, str) or len(note) > NOTE_LIMIT:
        raise MarkError(f"a note is text of at most {NOTE_LIMIT} characters")
    try:
        f"{note}{reviewer}".encode()
    except UnicodeEncodeError as error:
        raise MarkError("a note is text: it has half a character (a lone surrogate) in it") from error
    seen = str(value.get("image_sha256", "")), str(value.get("labels", ""))
    region, patch = _region(value.get("region")), _patch(value.get("pixels"), value["verdict"])
    when = str(value.get("when", ""))
    made = str(value["id"]), str(value["name"]), value["verdict"], region, note, reviewer, *seen, when, patch
    return Mark(*made, alike=value.get("alike") is True)


class _Line(NamedTuple):
    """A line: its id, and a mark or the id that it withdraws."""

    id: str
    mark: Mark | None
    withdraws: str


@lru_cache(maxsize=1 << 14)  # lines stay as they are, and every answer of a person reads the file again
def _line(line: bytes) -> _Line:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise MarkError(f"expected an object, found {type(value).__name__}")
    if "withdraws" in value:
        return _Line(str(value.get("id")), None, str(value["withdraws"]))
    return _Line(str(value["id"]), _mark(value), "")


def _read(line: bytes) -> _Line:
    return (_line if len(line) < _SHORT else _line.__wrapped__)(line)


class ReviewFile:
    """Reads and appends marks. Writers take a lock; readers always see whole lines.

    Args:
        store: folder of the label store.
        pictures: {name: SHA-256} of its images, or what returns it (when there are marks). Marks of another picture of
            the same name do not count.
        labels: `labels_id` of the labels that are shown now, for new marks and `statuses`; "": not known.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        pictures: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        labels: str = "",
    ) -> None:
        self.path, self._given, self._labels = review_path(store), pictures or {}, labels
        self._seen: tuple[tuple[int, int], list[Mark]] | None = None

    @cached_property
    def _pictures(self) -> Mapping[str, str]:
        return self._given() if callable(self._given) else self._given

    def marks(self) -> list[Mark]:
        """Marks of people that stand (not withdrawn), oldest first; a damaged line is an IntegrityError."""
        return [mark for mark in self._standing() if not mark.alike]

    def alike(self) -> dict[str, Mark]:
        """Corrections of alike regions of the labels that are shown now, one an image."""
        return {mark.name: mark for mark in self._standing() if mark.alike and not self.is_earlier(mark)}

    def _standing(self) -> list[Mark]:
        stamp = stamp_of(self.path)
        if stamp is None:
            return []
        if self._seen is None or self._seen[0] != stamp:
            self._seen = (stamp, [mark for mark in self._parse() if self._is_of_now(mark)])
        return self._seen[1]

    def _is_of_now(self, mark: Mark) -> bool:
        return not mark.image_sha256 or self._pictures.get(mark.name, mark.image_sha256) == mark.image_sha256

    def foreign(self) -> list[Mark]:
        """Marks that nobody withdrew, of another picture than the store has by that name, without a later one of it."""
        found: list[Mark] = []
        for mark in self._parse() if self.path.exists() else []:
            if mark.alike:
                continue
            if self._is_of_now(mark):  # somebody looked again
                found = [old for old in found if old.name != mark.name]
            else:
                found.append(mark)
        return found

    def _parse(self) -> list[Mark]:
        standing: dict[str, Mark] = {}
        for number, line in enumerate(self.path.read_bytes().splitlines(), 1):
            if not line.strip():
                continue
            try:
                found = _read(line)
            except (ValueError, TypeError, KeyError, RecursionError, MarkError) as error:
                raise IntegrityError(
                    f"{self.path}: line {number} is not a review mark ({error})", hint="correct or remove that line"
                ) from error
            if found.mark is None:
                standing.pop(found.withdraws, None)
            else:
                standing[found.id] = found.mark
        return list(standing.values())

    def of(self, name: str) -> list[Mark]:
        """Marks of one image, oldest first."""
        return self.by_name().get(name, [])

    def by_name(self) -> dict[str, list[Mark]]:
        """Marks of every reviewed image, oldest first."""
        found: dict[str, list[Mark]] = {}
        for mark in self.marks():
            found.setdefault(mark.name, []).append(mark)
        return found

    def statuses(self) -> dict[str, str]:
        """Per reviewed image: "flag" if any flag stands, else "accept"; nothing where other labels were accepted."""
        return {
            name: found
            for name, marks in self.by_name().items()
            if (found := status(marks)) == "flag" or (found and not all(map(self.is_earlier, marks)))
        }

    def shown(self, mark: Mark) -> dict[str, Any]:
        """A mark as the page gets it: without its pixels; it says where other labels were looked at."""
        return replace(mark, pixels=None).to_json() | ({"earlier": True} if self.is_earlier(mark) else {})

    def is_earlier(self, mark: Mark) -> bool:
        """Whether a mark was made on other labels than those of now."""
        return bool(mark.labels and self._labels) and mark.labels != self._labels

    def _new_ids(self, contents: Iterable[object]) -> list[str]:
        """Digests of content and place in the file; where lines were taken out by hand, the first that is free."""
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        if lines:
            self._parse()  # nothing is written behind a damaged line
        taken = {_read(line).id for line in lines if line.strip()}
        found: list[str] = []
        for position, content in enumerate(contents):
            ids = (digest([place, content])[:16] for place in count(len(lines) + position))
            found.append(next(new for new in ids if new not in taken))
            taken.add(found[-1])
        return found

    def add(
        self,
        name: str,
        verdict: str,
        *,
        region: object = None,
        note: str = "",
        reviewer: str = "",
        size: tuple[int, int] | None = None,
    ) -> Mark:
        """Append a mark on an image, or a region of it; its id is a digest of content and place, never of the time.

        Args:
            name, verdict, note, reviewer: of the image; "accept" or "flag"; what is said, and by whom.
            region: corners [x, y], or None for the whole image.
            size: height and width of its label map, to refuse a region outside of it; None: taken as it is.
        """
        with saving(self.path), self.lock():
            value = {"id": "", "name": name, "verdict": verdict, "region": region, "note": note, "reviewer": reviewer}
            mark = _mark(value | {"image_sha256": self._pictures.get(name, ""), "labels": self._labels})
            if size is not None and not _fill(np.zeros(size, np.uint8), mark, 1).any():
                raise MarkError(f"the region lies outside of {name} ({size[1]} x {size[0]} pixels)")
            mark = replace(mark, id=self._new_ids([mark.to_json()])[0])
            records.append(self.path, mark.to_json())
        return mark

    def add_corrections(self, corrections: Iterable[Mark]) -> list[str]:
        """Append corrections, all at once, and return their new ids; the caller holds the lock."""
        marks = list(corrections)
        with saving(self.path):
            ids = self._new_ids(mark.to_json() for mark in marks)
            records.append(self.path, *(replace(m, id=new).to_json() for m, new in zip(marks, ids, strict=True)))
        return ids

    def replace_alike(self, corrections: Iterable[Mark]) -> None:
        """Withdraw all corrections of alike regions and append others, all at once."""
        with saving(self.path), self.lock():
            old = [mark for mark in self._parse() if mark.alike] if self.path.exists() else []
            lines: list[dict[str, Any]] = [{"name": mark.name, "withdraws": mark.id} for mark in old]
            lines += [mark.to_json() for mark in corrections]
            if lines:
                ids = self._new_ids(lines)
                records.append(self.path, *({**line, "id": new} for line, new in zip(lines, ids, strict=True)))

    def withdraw(self, name: str, mark_id: str) -> None:
        """Take a mark back by appending a line that says so."""
        with saving(self.path), self.lock():
            if mark_id not in {mark.id for mark in self.of(name)}:
                raise InputError(f"no mark {mark_id!r} on image {name!r}")
            new = self._new_ids([[name, mark_id]])[0]
            records.append(self.path, {"id": new, "name": name, "withdraws": mark_id})

    def lock(self) -> FileLock:
        """The lock that a writer must hold; readers need none."""
        return FileLock(self.path.with_name(f".{self.path.name}.lock"), what=f"review file {self.path}", wait_s=10.0)


def status(marks: list[Mark]) -> str:
    """What an image's marks come to: "flag", "accept" or "" (an accept of the whole image lifts earlier flags)."""
    found = ""
    for mark in marks:
        if mark.verdict == "correct" and mark.region is not None:
            continue  # an answer about this region says nothing of the rest
        lifts = mark.verdict == "accept" and mark.region is None
        found = "flag" if mark.verdict == "flag" or (found == "flag" and not lifts) else "accept"
    return found


def reviewed(marks: list[Mark], height: int, width: int, table: ClassTable) -> tuple[NDArray[np.bool_], Labels]:
    """What marks of one image, in order, say of its pixels; the last word counts.

    Returns:
        flagged: bool HxW, pixels that must not be learned.
        corrected: uint8 HxW, trainIds of `table`, 255 = ignore, elsewhere UNTOUCHED.
    """
    flagged = np.zeros((height, width), np.uint8)
    corrected = np.full((height, width), UNTOUCHED, np.uint8)
    for mark in marks:
        if mark.pixels is not None:
            flagged[mark.pixels.paste(corrected, table, f"review mark {mark.id} of {mark.name}")] = 0
        else:
            _fill(flagged, mark, int(mark.verdict == "flag"))
    return flagged.astype(bool), corrected


def _fill(flagged: Labels, mark: Mark, value: int) -> Labels:
    if mark.region is None:
        flagged[:] = value
    else:
        # The pixel under each corner and the outline between them belong to the region.
        cv2.fillPoly(flagged, [np.floor(np.array(mark.region)).astype(np.int32)], value)
    return flagged
