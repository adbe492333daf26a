"""Roles of images (learning, judging), and blocks of images that are resampled together."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from sys import intern

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hmsa_core.data.found import Found
from hmsa_core.data.layouts import cv_split
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.data.tables import Rows
from hmsa_core.io.errors import ConfigError

# Benchmark splits with withheld labels: their images are never used for learning by accident.
_HELD_BACK = ("test", "testing")


def assign_roles(found: Sequence[Found], roles: RolesSpec) -> list[str]:
    """Return the role of each image. ConfigError: a city, sequence or split in the settings that no image has."""
    rows = Rows.of(Found, found)
    splits, cities, drives, given = (
        set(rows.column(name).unique().to_pylist()) for name in ("split", "city", "sequence", "role")
    )
    try:
        roles.check_splits(splits)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if given - {""}:
        return [intern(f.role) for f in rows]
    for key, names in (("calibrate", roles.calibrate), ("report", roles.report)):
        missing = sorted(set(names) - cities - drives)
        if missing:
            towns, drives = sorted(cities - {""}), drives - {""}
            few = ", ".join(sorted(drives)[:20])
            known = f"the cities are: {', '.join(towns)}" if towns else f"the sequences are: {few}"
            if towns and drives - cities:
                known += f"; a sequence is, for example, {min(drives - cities)}"
            if not towns and not drives:
                known = "no image has a city or sequence (folder: `pattern` finds them in the names)"
            raise ConfigError(f"roles.{key}: no image is of {missing[0]!r}; {known}")
    report_cities = _cv_cities(rows, roles)
    chosen = [_role(f, roles, report_cities) for f in rows]
    return _guard(rows, chosen, roles.guard_frames) if roles.guard_frames else chosen


def _cv_cities(found: Iterable[Found], roles: RolesSpec) -> set[str]:
    if roles.cv in (None, 3):
        return set()
    by_split: dict[str, set[str]] = {"train": set(), "val": set()}
    for f in found:
        by_split.get(f.split, set()).add(f.city)
    return set(cv_split(roles.cv or 0, by_split["train"], by_split["val"])[1])


def _role(f: Found, roles: RolesSpec, cv_cities: set[str]) -> str:
    places = {f.city, f.sequence}
    if not f.label:
        if places & {*roles.calibrate, *roles.report} or f.city in cv_cities:
            return "guard"  # no model learns from a judged place, not even from a teacher's labels
        allowed = f.split not in _HELD_BACK if roles.unlabelled_splits is None else f.split in roles.unlabelled_splits
        return "unlabelled" if allowed else "guard"
    if places & set(roles.calibrate):
        return "calibrate"
    if places & set(roles.report) or f.city in cv_cities or f.split in roles.report_splits:
        return "report"
    return "learn" if f.split in roles.learn_splits else "guard"


def _guard(found: Sequence[Found], chosen: list[str], frames: int) -> list[str]:
    """Remove images from `learn` and `unlabelled` within `frames` of a judged image in the same sequence."""
    judged: dict[str, list[int]] = {}
    for f, role in zip(found, chosen, strict=True):
        if role in ("calibrate", "report") and f.frame >= 0:
            insort(judged.setdefault(f.sequence, []), f.frame)
    for i, f in enumerate(found):
        if chosen[i] in ("learn", "unlabelled") and f.frame >= 0 and (there := judged.get(f.sequence)):
            at = bisect_left(there, f.frame)
            if any(abs(f.frame - other) <= frames for other in there[max(at - 1, 0) : at + 1]):
                chosen[i] = "guard"
    return chosen


def assign_blocks(found: Sequence[Found], roles: Sequence[str], source: SourceSpec) -> Iterable[str]:
    """Return the block of each image: city, sequence, the image itself, or runs of neighbours of one city and role.

    For images without a city, the sequence stands for the city.
    """
    rows = Rows.of(Found, found)
    rule = source.block or _default_rule(rows, source)
    if rule == "run":
        return _runs(rows, roles, source.run_length)
    key: dict[str, Callable[[Found], str]] = {
        "city": lambda f: f.city or f.sequence or f.name,
        "sequence": lambda f: f.sequence or f.city or f.name,
        "image": lambda f: f.name,
    }
    return map(key[rule], rows)


def _default_rule(found: Rows[Found], source: SourceSpec) -> str:
    if source.kind in ("cityscapes", "camvid"):
        return "run"
    return "sequence" if any(found.column("sequence").unique().to_pylist()) else "image"


def _runs(found: Rows[Found], roles: Sequence[str], length: int) -> list[str]:
    """Form runs of `length` consecutive images; a gap in time of a sequence starts a new run."""
    blocks = [""] * len(found)
    place = [intern(f.city or f.sequence or f.name) for f in found]
    keys = {"place": pa.array(place), "role": pa.array(roles, pa.string())}
    keys |= {name: found.column(name) for name in ("sequence", "frame", "name")}
    order = pc.sort_indices(pa.table(keys), [(name, "ascending") for name in keys]).to_numpy()
    sequence, frame = keys["sequence"].combine_chunks().dictionary_encode().indices.to_numpy(), keys["frame"].to_numpy()
    del keys
    for (city, role), group in groupby(order.tolist(), key=lambda i: (place[i], roles[i])):
        members = np.fromiter(group, np.int64)
        steps, is_one_drive = np.diff(frame[members]), np.diff(sequence[members]) == 0
        # Four times the usual distance of neighbours in the same sequence.
        limit = 4.0 * np.median(steps[is_one_drive]) if is_one_drive.any() else np.inf
        gaps = np.append(False, is_one_drive & (steps > limit))
        run, filled, block = -1, length, ""
        for i, gap in zip(members.tolist(), gaps.tolist(), strict=True):
            if filled == length or gap:
                run, filled = run + 1, 0
                block = f"{city}/{role}/{run:04d}"
            blocks[i] = block
            filled += 1
    return blocks
