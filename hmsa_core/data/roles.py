"""Who may learn from an image and who is judged on it; and which images are resampled together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, pairwise
from statistics import median

from hmsa_core.data.layouts import Found, cv_split
from hmsa_core.data.spec import RolesSpec, SourceSpec
from hmsa_core.io.errors import ConfigError

# Images of benchmarks whose labels are held back: they never teach by accident.
_HELD_BACK = ("test", "testing")


def assign_roles(found: Sequence[Found], roles: RolesSpec) -> dict[str, str]:
    """{image name: role}. A city, sequence or split in the settings that no image has is a ConfigError."""
    try:
        roles.check_splits({f.split for f in found})
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if any(f.role for f in found):
        return {f.name: f.role for f in found}
    places = {f.city for f in found} | {f.sequence for f in found}
    for key, names in (("calibrate", roles.calibrate), ("report", roles.report)):
        missing = sorted(set(names) - places)
        if missing:
            cities, drives = sorted({f.city for f in found} - {""}), sorted({f.sequence for f in found} - {""})
            known = f"the cities are: {', '.join(cities)}" if cities else f"the sequences are: {', '.join(drives[:20])}"
            if not cities and not drives:
                known = "no image has a city or sequence (folder: `pattern` finds them in the names)"
            raise ConfigError(f"roles.{key}: no image is of {missing[0]!r}; {known}")
    report_cities = _cv_cities(found, roles)
    chosen = {f.name: _role(f, roles, report_cities) for f in found}
    return _guard(found, chosen, roles.guard_frames) if roles.guard_frames else chosen


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
            return "guard"  # nobody learns from a judged place, with labels of a teacher either
        allowed = f.split not in _HELD_BACK if roles.unlabelled_splits is None else f.split in roles.unlabelled_splits
        return "unlabelled" if allowed else "guard"
    if places & set(roles.calibrate):
        return "calibrate"
    if places & set(roles.report) or f.city in cv_cities or f.split in roles.report_splits:
        return "report"
    return "learn" if f.split in roles.learn_splits else "guard"


def _guard(found: Sequence[Found], chosen: dict[str, str], frames: int) -> dict[str, str]:
    """Take images out of `learn` and `unlabelled` that lie within `frames` of a judged one in the same sequence."""
    judged: dict[str, list[int]] = {}
    for f in found:
        if chosen[f.name] in ("calibrate", "report") and f.frame >= 0:
            judged.setdefault(f.sequence, []).append(f.frame)
    for f in found:
        near = any(abs(f.frame - other) <= frames for other in judged.get(f.sequence, ()))
        if chosen[f.name] in ("learn", "unlabelled") and f.frame >= 0 and near:
            chosen[f.name] = "guard"
    return chosen


def assign_blocks(found: Sequence[Found], role_of: dict[str, str], source: SourceSpec) -> dict[str, str]:
    """{image name: block}: city, sequence, the image itself, or runs of neighbouring images of one city and role.

    Where images have no city, their sequence is the place.
    """
    rule = source.block or _default_rule(found, source)
    if rule == "run":
        return _runs(found, role_of, source.run_length)
    key: dict[str, Callable[[Found], str]] = {
        "city": lambda f: f.city or f.sequence or f.name,
        "sequence": lambda f: f.sequence or f.city or f.name,
        "image": lambda f: f.name,
    }
    return {f.name: key[rule](f) for f in found}


def _default_rule(found: Sequence[Found], source: SourceSpec) -> str:
    if source.kind in ("cityscapes", "camvid"):
        return "run"
    return "sequence" if any(f.sequence for f in found) else "image"


def _runs(found: Sequence[Found], role_of: dict[str, str], length: int) -> dict[str, str]:
    """Runs of `length` consecutive images; a gap in time of a sequence starts a new run."""
    blocks: dict[str, str] = {}

    def place(f: Found) -> tuple[str, str]:
        return f.city or f.sequence or f.name, role_of[f.name]

    ordered = sorted(found, key=lambda f: (*place(f), f.sequence, f.frame, f.name))
    for (city, role), group in groupby(ordered, key=place):
        members = list(group)
        limit = _gap_limit(members)
        run, filled, last = -1, length, members[0]
        for f in members:
            gap = f.sequence == last.sequence and f.frame - last.frame > limit
            if filled == length or gap:
                run, filled = run + 1, 0
            blocks[f.name] = f"{city}/{role}/{run:04d}"
            filled, last = filled + 1, f
    return blocks


def _gap_limit(members: Sequence[Found]) -> float:
    """Four times the usual distance of neighbours in the same sequence."""
    steps = [b.frame - a.frame for a, b in pairwise(members) if a.sequence == b.sequence]
    return 4.0 * median(steps) if steps else float("inf")
