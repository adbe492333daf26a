"""Which images are independent, as far as names, folders, times and pictures tell, and who may use which image."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from statistics import median
from unicodedata import normalize

import cv2
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hmsa_core.data.checks import perceptual_hash
from hmsa_core.data.decode import read_image
from hmsa_core.data.found import Found
from hmsa_core.data.near import hash_values, near_duplicates, nearest
from hmsa_core.data.plain import (
    COLUMNS,
    JUDGED,
    NamePattern,
    deal_roles,
    dealt,
    name_of,
    place_images,
    place_name,
    sequences,
    unit_of,
    usual_step,
)
from hmsa_core.data.source import Deal, Role, SourceSpec
from hmsa_core.data.walk import stem_of
from hmsa_core.io.errors import DecodeError, InputError
from pipeline.plan.findings import Findings, few
from pipeline.plan.reading import Reading, changed
from pipeline.plan.values import Values, sampled

# sequence = what stands before the last number, or before the last two (a place), frame = the last number.
_DRIVE = r"^(?P<sequence>.*?)(?:[^0-9A-Za-z]+[A-Za-z]{0,2})?(?P<frame>\d{1,18})$"
_PLACE = r"^(?P<sequence>.*?)[^0-9A-Za-z]+\d+[^0-9]+(?P<frame>\d{1,18})$"
_NO_SEQUENCE = r"(?P<sequence>)$"
TABLE = "data/images.csv"
_ENOUGH = 8  # sequences that are dealt as a whole; of fewer, windows of frames
_WINDOWS = 24  # windows that the labelled images are cut into, where there are enough
_LONGEST, _SHORTEST = 20, 4  # labelled images of a window
_RUN = 3  # labelled images of a block that intervals resample
_DEALS = 256  # deals that are tried; the first one that serves all is taken
_PAUSE = 600  # seconds between two pictures of different places
_NEAR_BITS = 4  # of 64, as data.target.near_duplicate_bits
_MOST_HASHED = 3000  # pictures whose contents are compared
_LEAK_BITS = 2  # of 64, as evaluate.max_distance
_MOST_LEAKED = 0.05  # as evaluate.max_leaked
_SHARE = 0.2  # of units: to measure thresholds, and to judge
_SET_ASIDE = 0.1  # of units, where no image waits for labels
_TOLERANCE = 0.25  # of a role's share
_LEAST_APART = 0.75  # units
_PERFECT = (99.0, 0.0)
_PROMISED = 20  # blocks
_EXIF, _TAKEN, _CHANGED = 0x8769, 0x9003, 0x0132  # tags


@dataclass
class Roles:
    """How the images are grouped and dealt; `source` holds it as settings."""

    source: SourceSpec
    found: list[Found]
    roles: list[str]
    how: str  # in words
    table: str = ""  # text of data/images.csv
    step: int = 0  # usual distance of neighbouring frames

    def images(self, role: str, *, labelled: bool = False) -> list[Found]:
        """Images of a role."""
        pairs = zip(self.found, self.roles, strict=True)
        return [f for f, of_image in pairs if of_image == role and (f.label or not labelled)]

    def blocks(self, role: str) -> int:
        """Blocks of a role that intervals resample."""
        images = self.images(role, labelled=True)
        if self.source.block != "run":
            return len({unit_of(f, self.source.deal) for f in images})
        by_unit = Counter(unit_of(f, self.source.deal) for f in images)
        return sum(-(-count // self.source.run_length) for count in by_unit.values())


def deal_images(reading: Reading, values: Values, names: Mapping[int, str], findings: Findings) -> Roles:
    """Group the images into units and deal them; existing splits keep their roles.

    Raises:
        InputError: too few labelled images to learn from one and judge on another, or splits that share pictures.
    """
    source, groups, how = _grouped(reading)
    lists = split_lists(reading, findings)
    found = place_images(reading.root, source, {})
    known = {
        f.name: _row(f, lists.get(_path(f, source), ""), groups)
        for f in found
        if f.name in groups or _path(f, source) in lists
    }
    if known:
        source = source.model_copy(update={"table": TABLE})
        found = place_images(reading.root, source, known)
    labelled = [f for f in found if f.label]
    shows = {f.name: _values(f, source, values) & names.keys() for f in labelled}
    step = round(median([usual_step(frames) for frames in sequences(labelled)] or [0]))
    fixed = fixed_roles({f.split for f in labelled})
    window = _window(source, len(labelled))
    deal = Deal(frames=window * step, guard_frames=step if window >= _SHORTEST else 0)
    if window:
        source = source.model_copy(update={"block_frames": min(_RUN, window)})
    waiting = [f for f in found if not f.label and f.split != "test"]
    for is_set_aside in (False, True) if waiting else (True,):
        chosen = best_deal(deal, labelled, fixed, shows, is_set_aside=is_set_aside)
        source = source.model_copy(update={"split_roles": fixed, "deal": chosen})
        given = deal_roles(found, source)
        if "unlabelled" in given:  # images that wait can all be guards
            break
    roles = Roles(source, found, given, how, table_text(known), step if chosen.guard_frames else 0)
    if deal.frames:
        roles.how += f", dealt in windows of {deal.frames} frame numbers"
    elif roles.blocks("calibrate") < _ENOUGH:
        roles.source = source.model_copy(update={"block": "run", "block_frames": _RUN})
        roles.how += f"; runs of {_RUN} images count as blocks, as there are few"
    _tell(roles, names, shows, reading, findings)
    return roles


def _values(f: Found, source: SourceSpec, values: Values) -> frozenset[int]:
    return values.of_image.get(_path(f, source), frozenset())


def _path(f: Found, source: SourceSpec) -> str:
    """Path below the folder of images."""
    return f.image.removeprefix(f"{source.images}/")


def _row(f: Found, split: str, groups: Mapping[str, str]) -> dict[str, str]:
    values = f.name, split, groups.get(f.name, f.sequence), str(f.frame)
    return dict(zip(COLUMNS, values, strict=True))


def table_text(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Text of the table of images; "" without rows."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[name] for name in sorted(rows))
    return out.getvalue() if rows else ""


# ---- Groups


def split_lists(reading: Reading, findings: Findings) -> dict[str, str]:
    """{image: split} of the lists train.txt, val.txt, test.txt next to the files (VOC: ImageSets/Segmentation)."""
    tops = {reading.root / folder for folder in (reading.source.images, reading.source.labels) if folder}
    folders = [
        place
        for top in tops
        for near in (top, top.parent)
        for place in (near, near / "ImageSets" / "Segmentation", near / "splits")
    ]
    for folder in sorted(set(folders)):
        files = [file for split in ("train", "val", "test") if (file := folder / f"{split}.txt").is_file()]
        found, names = dict[str, str](), _names_in_lists(reading) if files else {}
        for file in files:
            lines = file.read_text("utf-8-sig", errors="replace").splitlines()
            images = {image for line in lines if line.strip() for image in _listed(line.strip(), names)}
            found |= dict.fromkeys(images, file.stem)
            if not images:
                findings.note(f"{file} names no image", "write the name of an image a line, or remove the file")
        if found:
            return found
    return {}


def _names_in_lists(reading: Reading) -> dict[str, list[str]]:
    """{name: images}: a list may give all folders of an image or the last ones, and the name that its map shares."""
    pattern, names = NamePattern.parse(reading.source.image_name), defaultdict[str, list[str]](list)
    for image in reading.pairs.images:
        stem = (*PurePosixPath(image).parts[:-1], stem_of(image))
        folders, shared = pattern.core(image) or ((), stem[-1])
        forms = (stem, (*folders, shared))
        for name in {"/".join(form[start:]) for form in forms for start in range(len(form))}:
            names[name].append(image)
    return names


def _listed(line: str, names: Mapping[str, list[str]]) -> list[str]:
    """Images that a line of a list names, all of it or its first word, with or without the ending."""
    paths = [PurePosixPath(normalize("NFC", text)) for text in (line, line.split()[0])]
    for count in range(max(len(path.parts) for path in paths), 0, -1):  # as many folders as fit
        for path in paths:
            for name in (path.name, path.stem):
                if images := names.get("/".join((*path.parts[-count:-1], name))):
                    return images
    return []


def _grouped(reading: Reading) -> tuple[SourceSpec, dict[str, str], str]:
    """Settings that name sequences; sequences by name where names do not tell; in words, what is a sequence."""
    pattern = NamePattern.parse(reading.source.image_name)
    places = [place_name(path, pattern) for path in reading.labelled]
    folders = {place.rpartition("__")[0] for place in places}
    if len(folders) >= _ENOUGH:
        return changed(reading.source, block="sequence"), {}, f"{len(folders)} folders"
    for regex, what in ((_PLACE, "before the last two numbers"), (_DRIVE, "before the last number")):
        count, is_whole = _sequences(places, regex)
        if is_whole and _ENOUGH <= count <= len(places) // 2:
            source = changed(reading.source, block="sequence", pattern=regex)
            return source, {}, f"{count} sequences (by what file names have {what})"
    count, is_whole = _sequences(places, _DRIVE)
    if is_whole and count <= len(places) // 3:
        source = changed(reading.source, block="run", pattern=_DRIVE)
        return source, {}, f"{count} sequences (by what file names have before the last number)"
    # Without a pattern the folder would be the sequence: few folders are no blocks.
    source = changed(reading.source, block="sequence", pattern=_NO_SEQUENCE)
    if groups := _by_time(reading):
        return source, groups, f"{len(set(groups.values()))} groups by the time of the pictures"
    groups = _by_picture(reading)
    return source, groups, "single images" + (f", {len(groups)} of them in groups that look alike" if groups else "")


def _sequences(places: Sequence[str], regex: str) -> tuple[int, bool]:
    """Number of sequences that a pattern finds, and whether it fits every name."""
    matches = [re.search(regex, place) for place in places]
    return len({match["sequence"] for match in matches if match}), all(matches)


def _by_time(reading: Reading) -> dict[str, str]:
    """Groups of pictures without a pause between them, by EXIF; empty where a picture has no time."""
    times = {}
    for image in reading.labelled:
        try:
            with Image.open(reading.image(image)) as picture:
                exif = picture.getexif()
                text = str(exif.get_ifd(_EXIF).get(_TAKEN) or exif.get(_CHANGED))
            times[image] = datetime.strptime(text, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
        except (OSError, ValueError, SyntaxError):
            return {}
    groups, first, last = dict[str, str](), "", float("-inf")
    for image in sorted(times, key=lambda image: (times[image], image)):
        name = name_of(image, reading.source)
        first = name if times[image] - last > _PAUSE else first  # its name, so that earlier pictures rename no group
        last, groups[name] = times[image], f"time of {first}"
    return groups if len(set(groups.values())) >= _ENOUGH else {}


def _by_picture(reading: Reading) -> dict[str, str]:
    """Groups of labelled pictures that look alike, named after their first."""
    hashes = {
        name_of(image, reading.source): _hash(reading.image(image)) for image in sampled(reading.labelled, _MOST_HASHED)
    }
    names = sorted(name for name, digits in hashes.items() if digits)
    near = [pair[:2] for pair in near_duplicates(hash_values(hashes[name] for name in names), _NEAR_BITS)]
    if not near:
        return {}
    links = coo_array((np.ones(len(near)), np.transpose(near)), shape=(len(names), len(names)))
    groups: list[int] = connected_components(links, directed=False)[1].tolist()
    first, sizes = dict(zip(reversed(groups), reversed(names), strict=True)), Counter(groups)
    return {name: f"like {first[group]}" for name, group in zip(names, groups, strict=True) if sizes[group] > 1}


def _hash(path: Path) -> str:
    """Perceptual hash of a picture; "" where it cannot be read, or shows too little to compare."""
    try:
        image = read_image(path)
    except DecodeError:
        return ""
    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    return perceptual_hash(image) if small.std() > 2.0 else ""


# ---- The deal


def fixed_roles(splits: Set[str]) -> dict[str, Role]:
    """Roles of existing splits: `test` judges, else `val`; `val` measures thresholds where both are there."""
    judge: dict[str, Role] = {}
    if splits - {"val", "test"}:
        judge = (
            {"val": "calibrate", "test": "report"} if {"val", "test"} <= splits else {"val": "report", "test": "report"}
        )
    return {split: role for split, role in judge.items() if split in splits}


def _window(source: SourceSpec, count: int) -> int:
    """Labelled images of a window that is dealt as a whole; 0 where whole sequences are dealt."""
    if source.block != "run":
        return 0
    return min(max(count // _WINDOWS, _SHORTEST), _LONGEST) if count >= 6 * _SHORTEST else max(1, count // 6)


def best_deal(
    deal: Deal,
    labelled: Sequence[Found],
    fixed: Mapping[str, Role],
    shows: Mapping[str, Collection[int]],
    *,
    is_set_aside: bool,
) -> Deal:
    """The first of `_DEALS` deals that gives each role enough units and classes, or the best of them.

    Args:
        deal: windows of frames.
        labelled: images with label maps.
        fixed: roles of splits.
        shows: classes by image.
        is_set_aside: no image waits for labels, so some labelled ones do.

    Raises:
        InputError: no deal gives every role an image.
    """
    judges = set(fixed.values())
    shares = {role: 0.0 if role in judges else _SHARE for role in JUDGED}
    shares["unlabelled"] = _SET_ASIDE if is_set_aside else 0.0
    units: dict[str, set[int]] = defaultdict(set)
    for f in labelled:
        if f.split not in fixed:
            units[unit_of(f, deal)].update(shows[f.name])
    wanted = {role for role, share in shares.items() if share} | {"learn"}
    best, best_score = deal, (-1.0, 0.0)
    for number in range(_DEALS):
        tried = Deal.model_validate({**deal.model_dump(), **shares, "number": number})
        score = _score(units, tried, wanted)
        if score > best_score:
            best, best_score = tried, score
        if score == _PERFECT:
            break
    if best_score[0] < len(wanted):
        raise InputError(
            f"{len(units)} blocks of labelled images for the roles {', '.join(sorted(wanted))}: each needs one",
            hint="label more images, give images to be labelled with --new DIR, or use --teacher SPEC",
        )
    return best


def _score(units: Mapping[str, set[int]], deal: Deal, wanted: Set[str]) -> tuple[float, float]:
    """How well a deal serves: roles with units, then shares kept and classes shown; `_PERFECT` where both are full."""
    by_role: dict[str, list[set[int]]] = defaultdict(list)
    for unit, shown in units.items():
        by_role[dealt(unit, deal)].append(shown)
    filled = len(wanted & by_role.keys())
    counts = Counter(value for shown in units.values() for value in shown)
    common = {value for value, count in counts.items() if count >= 2 * len(wanted)}
    faults = 0.0
    for role in wanted & {*JUDGED, "learn"}:
        share = {"calibrate": deal.calibrate, "report": deal.report}.get(
            role, 1 - deal.calibrate - deal.report - deal.unlabelled
        )
        aim = share * len(units)
        apart = abs(len(by_role[role]) - aim)
        faults += max(0.0, apart - max(_LEAST_APART, _TOLERANCE * aim)) / max(1.0, aim)
        needed = {value for value, count in counts.items() if count >= len(wanted)} if role == "learn" else common
        faults += len(needed - set().union(*by_role[role])) / max(1, len(counts))
    return _PERFECT if filled == len(wanted) and not faults else (float(filled), -faults)


# ---- What there is to say


def _tell(
    roles: Roles, names: Mapping[int, str], shows: Mapping[str, Collection[int]], reading: Reading, findings: Findings
) -> None:
    labelled = [f for f in roles.found if f.label]
    drives = {f.sequence for f in labelled if f.sequence}
    if len(drives) == 1 and roles.source.block == "run":
        findings.note(
            f"all labels lie in one sequence as names tell ({next(iter(drives))})",
            "what is measured holds for its place and day alone; label images of other days or places",
        )
    by_class: dict[int, set[str]] = defaultdict(set)
    for f in labelled:
        for value in shows[f.name]:
            by_class[value].add(unit_of(f, roles.source.deal))
    if rare := [names[value] for value, units in by_class.items() if len(units) < 2]:
        findings.note(
            f"{', '.join(sorted(rare))}: in fewer than two blocks", "label images of other places that show it"
        )
    if (blocks := roles.blocks("calibrate")) < _PROMISED:
        findings.note(
            f"{blocks} blocks measure thresholds, a promise needs {_PROMISED}",
            "thresholds are estimates until more are labelled",
        )
    if aside := roles.images("unlabelled", labelled=True):
        findings.note(
            f"no new images to label: {len(aside)} labelled ones take their place, and no training sees their labels",
            "give images with --new DIR",
        )
    judging = {"test", *(split for split, role in roles.source.split_roles.items() if role in JUDGED)}
    for is_of_split, why in ((True, "in a split that judges"), (False, "too near to images that judge")):
        kept = [f.name for f in roles.images("guard") if not f.label and (f.split in judging) == is_of_split]
        if kept:
            findings.note(
                f"{len(kept)} images without a label map are {why}, first {few(kept)}",
                "they are guards, which `dvc repro` does not label; `autolabel label` does",
            )
    if roles.source.split_roles:
        _check_leaks(roles, reading)


def _check_leaks(roles: Roles, reading: Reading) -> None:
    """Refuse splits of which one judges what looks like images that the other learns from."""
    hashes: dict[str, tuple[list[str], list[str]]] = {}
    for side, names in (("learn", ("learn",)), ("judge", JUDGED)):
        images = [f.image for role in names for f in roles.images(role, labelled=True)]
        chosen = sampled(images, _MOST_HASHED)
        digits = [_hash(reading.root / image) for image in chosen]
        hashes[side] = [i for i, d in zip(chosen, digits, strict=True) if d], [d for d in digits if d]
    near = nearest(hash_values(hashes["judge"][1]), hash_values(hashes["learn"][1]), _LEAK_BITS)
    found = [(hashes["judge"][0][k], hashes["learn"][0][i]) for k, (i, _) in enumerate(near) if i >= 0]
    if len(found) > _MOST_LEAKED * len(hashes["judge"][0]):
        raise InputError(
            f"{len(found)} of {len(hashes['judge'][0])} images of the judging splits look like images to learn from, "
            f"first {found[0][0]} like {found[0][1]}",
            hint="move near copies into one split, or give one folder without splits: it is dealt by blocks",
        )
