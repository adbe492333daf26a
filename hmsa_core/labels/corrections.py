"""What people corrected in another tool, as marks of a store's review file, which `pseudo-label` honours.

A correction is the pixels in which the labels that came back differ from those that were exported. A conflict is
named and nothing of the image is taken: another picture, labels made anew since the export, or another person who
gives the same pixels another class. Nothing is ever overwritten: the file only grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations, groupby
from pathlib import Path

import numpy as np

from hmsa_core.io.errors import InputError
from hmsa_core.labels.formats._returned import Exported, Returned
from hmsa_core.labels.review import UNTOUCHED, Labels, Mark, Patch, ReviewFile, marked_store, reviewed
from hmsa_core.labels.store.reader import LabelStore
from hmsa_core.taxonomy import IGNORE

__all__ = ["Exported", "Summary", "bring_back"]


@dataclass
class Summary:
    """What an import of corrections did."""

    images: int = 0  # that came back
    empty: int = 0  # that came back without any label: nobody looked at them
    corrected: list[str] = field(default_factory=list)
    pixels: int = 0
    known: int = 0  # corrections that were there already
    conflicts: list[str] = field(default_factory=list)  # NAME: what is in conflict


def bring_back(
    path: Path,
    exported: Exported,
    store: LabelStore,
    *,
    by: str = "",
    when: str = "",
    overrule: bool = False,
    advance: Callable[[int], None] = lambda _count: None,
) -> Summary:
    """Read corrections and append them to the store's review file, all of them together.

    Args:
        path, exported, store: what came back from the tool, of which export, of which store.
        by, when: person and date where the tool states none.
        overrule: also take corrections that conflict with other people or with newer labels.

    Raises:
        InputError: a file is damaged or hostile, or nobody says who made the corrections; nothing was taken.
    """
    if exported.classes != store.classes:
        raise InputError(f"{exported.path}: has classes {exported.classes.name}, {store.path} {store.classes.name}")
    summary, marks = Summary(), []
    for mark in _marks(exported.read(path), exported, by, when, summary):
        marks.append(mark)
        advance(1)
    review = ReviewFile(marked_store(store.path.resolve(), store.kind), store.pictures())
    with review.lock():
        _take(marks, exported, store, review, overrule, summary)
    return summary


def _marks(returned: Iterable[Returned], exported: Exported, by: str, when: str, summary: Summary) -> Iterable[Mark]:
    seen: set[tuple[str, str]] = set()
    for each in returned:
        if (each.label == IGNORE).all():
            summary.empty += 1
            continue
        who = each.who or by
        if not who:
            raise InputError("nobody says who made these corrections", hint="give --by NAME")
        if (each.name, who) in seen:
            raise InputError(f"{each.name} came back from {who} twice", hint="keep one of the two")
        seen.add((each.name, who))
        summary.images += 1
        differs = each.label != exported.label(each.name)
        if differs.any():
            patch = Patch.of(np.where(differs, each.label, np.uint8(UNTOUCHED)), exported.classes)
            looked_at = str(exported.images[each.name]["image_sha256"]), exported.labels
            yield Mark("", each.name, "correct", None, "", who, *looked_at, each.when or when, patch)


def _take(
    marks: list[Mark], exported: Exported, store: LabelStore, review: ReviewFile, overrule: bool, summary: Summary
) -> None:
    there, taken = review.by_name(), []
    for name, group in groupby(sorted(marks, key=lambda mark: mark.name), key=lambda mark: mark.name):
        new = list(group)
        size = exported.size(name)
        said = {mark.reviewer: _map([mark], size, store) for mark in new}
        problem = _stale(name, exported, store)
        if overrule and "picture" not in problem:
            problem = ""
        elif not problem:
            problem = _disagreement(said, [m for m in there.get(name, []) if m.pixels], size, store)
        if problem:
            summary.conflicts.append(f"{name}: {problem}")
            continue
        now = _map(there.get(name, []), size, store)
        for mark in new:
            wanted = said[mark.reviewer]
            touched = wanted != UNTOUCHED
            if np.array_equal(now[touched], wanted[touched]):
                summary.known += 1
                continue
            taken.append(mark)
            summary.pixels += int(touched.sum())
            now = np.where(touched, wanted, now)
        if any(mark.name == name for mark in taken[-len(new) :]):
            summary.corrected.append(name)
    if taken:
        review.add_corrections(taken)


def _map(marks: list[Mark], size: tuple[int, int], store: LabelStore) -> Labels:
    return reviewed(marks, *size, store.classes)[1]


def _stale(name: str, exported: Exported, store: LabelStore) -> str:
    """Why the export is not of what the store has now; "" where it is."""
    entry = exported.images[name]
    if name not in store:
        return "the picture is not in the store any more"
    row = store.row(name)
    if row["image_sha256"] != entry["image_sha256"] or (row["height"], row["width"]) != exported.size(name):
        return "another picture now than when it was exported"
    return "" if row["label_sha256"] == entry["label_sha256"] else "its labels were made anew since the export"


def _disagreement(said: dict[str, Labels], before: list[Mark], size: tuple[int, int], store: LabelStore) -> str:
    """Two people who give the same pixels different classes; "" where there are none."""
    people = sorted({mark.reviewer for mark in before})
    known = [(who, _map([mark for mark in before if mark.reviewer == who], size, store)) for who in people]
    pairs = [*combinations(said.items(), 2), *((old, new) for old in known for new in said.items())]
    for (one, first), (other, second) in pairs:
        both = (first != UNTOUCHED) & (second != UNTOUCHED) & (first != second)
        if one != other and both.any():
            return f"{one} and {other} give {int(both.sum())} pixels different classes"
    return ""
