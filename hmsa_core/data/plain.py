"""Plain folders of any shape (kind `plain`): files are paired by names, blocks are dealt to roles by a hash.

A role depends on the block's name alone, so images that arrive later move no labelled image.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path, PurePosixPath

from hmsa_core.data.found import Found, Scan
from hmsa_core.data.source import Deal, SourceSpec
from hmsa_core.data.walk import IMAGE_SUFFIXES, LABEL_SUFFIXES, stem_of, walk
from hmsa_core.io.errors import ConfigError, LayoutError
from hmsa_core.taxonomy import ClassTable

JUDGED = ("report", "calibrate")
ARRIVED = "new"  # split of the images in the folder `new`
COLUMNS = ("name", "split", "sequence", "frame")  # of the table that names what file names do not say
FRAME = re.compile(r"-1|\d{1,18}")  # -1 = none
_SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}


@dataclass(frozen=True)
class NamePattern:
    """`FOLDER/START*END`: file names of one kind; `*` stands for the name that image and label map share.

    FOLDER is the name of a folder on the path, which the other kind lacks. With a `*` it is the form of such a name,
    and `*` stands for the name of the other kind's folder: `*_labels/*_L` goes with the images of `train`.
    `START*MIDDLE*END`: the kinds differ in the middle of their names, as `*_camera_*` and `*_label_*`.
    """

    folder: str = ""
    start: str = ""
    end: str = ""
    middle: str = ""

    @classmethod
    def parse(cls, text: str) -> NamePattern:
        """Read a pattern; ConfigError: it has no `*`, or too many."""
        folder, _, name = text.rpartition("/")
        start, *rest = name.split("*")
        if len(rest) not in (1, 2) or not all(rest[:-1]):
            raise ConfigError(f"{text!r}: expected a pattern of names such as masks/*_mask, or *_camera_*")
        if folder.count("*") > 1:
            raise ConfigError(f"{text!r}: expected at most one * in the folder, such as *_labels/*")
        return cls(folder, start, rest[-1], *rest[:-1])

    def __str__(self) -> str:
        return f"{self.folder}/{self.start}*{self.middle and self.middle + '*'}{self.end}".removeprefix("/")

    def core(self, path: str) -> tuple[tuple[str, ...], str] | None:
        """Folders without `folder`, and what `*` stands for, of a file's relative path; None: it does not fit."""
        stem, folders = stem_of(path), self._shared(PurePosixPath(path).parts[:-1])
        if folders is None:
            return None
        if not (stem.startswith(self.start) and stem.endswith(self.end)) or len(stem) <= len(self.start + self.end):
            return None
        name = stem[len(self.start) : len(stem) - len(self.end)]
        if self.middle:
            before, found, after = name.partition(self.middle)
            if not (before and found and after):
                return None
            name = f"{before}_{after}"
        return folders, name

    def _shared(self, folders: tuple[str, ...]) -> tuple[str, ...] | None:
        """Names of folders that both kinds have; None where no folder is of the form `folder`."""
        start, star, end = self.folder.partition("*")
        if not star:
            rest = tuple(folder for folder in folders if folder != self.folder)
            return rest if len(rest) < len(folders) or not self.folder else None
        is_form = [f.startswith(start) and f.endswith(end) and len(f) > len(start + end) for f in folders]
        names = (f[len(start) : len(f) - len(end)] if fits else f for f, fits in zip(folders, is_form, strict=True))
        return tuple(names) if any(is_form) else None


@dataclass
class Pairs:
    """Files of two folders by shared name; paths are relative to the folders."""

    labels: dict[str, str] = field(default_factory=dict)  # image -> label map
    images: list[str] = field(default_factory=list)  # all images, sorted
    stray: list[str] = field(default_factory=list)  # label maps without image
    unclear: dict[str, str] = field(default_factory=dict)  # label map -> why it may belong to several images


def pair(images: Iterable[str], labels: Iterable[str], image_name: NamePattern, label_name: NamePattern) -> Pairs:
    """Pair files whose shared names and shared folders are equal; a folder that one side lacks does not count."""
    pictures, maps = _cores(images, image_name), _cores(labels, label_name)
    shared = {part for folders, _ in pictures.values() for part in folders}
    shared &= {part for folders, _ in maps.values() for part in folders}
    owners: dict[tuple[str, ...], list[str]] = {}
    for path, (folders, name) in pictures.items():
        owners.setdefault((*(part for part in folders if part in shared), name), []).append(path)
    found = Pairs(images=sorted(pictures))
    for path, (folders, name) in sorted(maps.items()):
        mine = owners.get((*(part for part in folders if part in shared), name), [])
        if not mine:
            found.stray.append(path)
        elif len(mine) > 1:
            found.unclear[path] = f"fits {mine[0]} and {mine[1]}"
        elif mine[0] in found.labels:
            found.unclear[path] = f"{found.labels[mine[0]]} is the label map of {mine[0]}, too"
        else:
            found.labels[mine[0]] = path
    return found


def _cores(paths: Iterable[str], pattern: NamePattern) -> dict[str, tuple[tuple[str, ...], str]]:
    return {path: core for path in paths if (core := pattern.core(path)) is not None}


def files_below(root: Path, folder: str, suffixes: tuple[str, ...], without: Collection[str] = ()) -> list[str]:
    """Sorted paths, relative to the folder, of its files with these endings; folders `without` (of root) left out."""
    if not folder:
        return []
    top = root / folder
    apart = [(root / other).resolve() for other in without if other]
    apart = [other for other in apart if other != top.resolve() and other.is_relative_to(top.resolve())]
    paths = (path for path in walk(top, suffixes).paths() if not any(_is_in(path, other) for other in apart))
    return sorted(path.relative_to(top).as_posix() for path in paths)


def _is_in(path: Path, folder: Path) -> bool:
    return path.parent.resolve().is_relative_to(folder)


def list_images(root: Path, source: SourceSpec) -> list[str]:
    """Images of the folder `images`: what lies in the other folders, and label maps next to the images, is left out."""
    others = (source.labels, source.coarse, source.new)
    paths = files_below(root, source.images, IMAGE_SUFFIXES, others)
    if source.labels != source.images:
        return paths
    return images_among_maps(paths, NamePattern.parse(source.image_name), NamePattern.parse(source.label_name))


def images_among_maps(paths: Iterable[str], image_name: NamePattern, label_name: NamePattern) -> list[str]:
    """Images of a folder that holds label maps as well: of one pattern for both, JPEG files are the images."""
    named = [path for path in paths if image_name.core(path) is not None]
    if image_name == label_name:
        return [path for path in named if not path.lower().endswith(LABEL_SUFFIXES)]
    return [path for path in named if label_name.core(path) is None]


def split_of(path: str) -> str:
    """The split that a folder of a relative path names: train, val or test; "" where none does."""
    return next((_SPLITS[part.lower()] for part in PurePosixPath(path).parts[:-1] if part.lower() in _SPLITS), "")


def place_name(path: str, pattern: NamePattern) -> str:
    """Folders and shared name of an image as one text, without splits: what `pattern` of the settings is applied to."""
    core = pattern.core(path)
    folders, name = core if core else (PurePosixPath(path).parts[:-1], stem_of(path))
    return "__".join((*(part for part in folders if part.lower() not in _SPLITS), name))


def scan_plain(root: Path, source: SourceSpec, classes: ClassTable) -> Scan:
    """Read plain folders; roles come with the images, so data.roles does not apply."""
    result = Scan(f"plain, images in {source.images}/", classes)
    found = place_images(root, source, read_table(Path(source.table)) if source.table else {}, result)
    if not found:
        raise LayoutError(f"{root / source.images}: no image of a name like {source.image_name}")
    result.found = [
        replace(f, role=role, label="" if role == "unlabelled" else f.label)
        for f, role in zip(found, deal_roles(found, source), strict=True)
    ]
    return result


def place_images(
    root: Path, source: SourceSpec, known: Mapping[str, Mapping[str, str]], out: Scan | None = None
) -> list[Found]:
    """Images with label maps, splits and sequences, without roles.

    Args:
        root, source: the data set.
        known: rows of its table by name.
        out: gets label maps that are not used.
    """
    image_name = NamePattern.parse(source.image_name)
    images = list_images(root, source)
    fine = _partners(root, source, "labels", images, out)
    coarse = _partners(root, source, "coarse", images, out)
    found = []
    for path in images:
        label = f"{source.labels}/{fine[path]}" if path in fine else ""
        drawn = f"{source.coarse}/{coarse[path]}" if path in coarse else ""
        one = Found(name_of(path, source), f"{source.images}/{path}", label, drawn, split_of(path) or "all")
        found.append(_placed(one, place_name(path, image_name), source, known))
    for path in files_below(root, source.new, IMAGE_SUFFIXES, (source.images, source.labels, source.coarse)):
        one = Found(name_of(path, source, is_new=True), f"{source.new}/{path}", split=ARRIVED)
        found.append(_apart(_placed(one, place_name(path, NamePattern()), source, known)))
    return found


def _apart(found: Found) -> Found:
    """A new image; a sequence without a number, such as `frame`, is no place that the folder `images` knows, too."""
    if not found.sequence or any(c.isdigit() for c in found.sequence):
        return found
    return replace(found, sequence=f"{ARRIVED} {found.sequence}")


def name_of(path: str, source: SourceSpec, *, is_new: bool = False) -> str:
    """Name of an image: its stem, or its folders and stem."""
    if source.names == "stem":
        return stem_of(path)
    return "__".join((*([ARRIVED] if is_new else []), *PurePosixPath(path).parts[:-1], stem_of(path)))


def _partners(root: Path, source: SourceSpec, part: str, images: Sequence[str], out: Scan | None) -> dict[str, str]:
    """Label maps of the images; `out` gets those that belong to none."""
    folder = getattr(source, part)
    others = [other for other in (source.images, source.labels, source.coarse, source.new) if other != folder]
    paths = files_below(root, folder, LABEL_SUFFIXES, others)
    texts = source.image_name, source.label_name if part == "labels" else source.coarse_name
    pairs = pair(images, paths, *map(NamePattern.parse, texts))
    kind = "label" if part == "labels" else "coarse"
    if out is not None:
        for path in pairs.stray:
            out.refuse(stem_of(path), f"{folder}/{path}", kind, "all", "unpaired", "no image has this name")
        for path, why in pairs.unclear.items():
            out.refuse(stem_of(path), f"{folder}/{path}", kind, "all", "duplicate-name", why)
    return pairs.labels


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """Rows of a table of images (CSV with the columns of `COLUMNS`) by name; ConfigError: it is not one."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: the table of images cannot be read ({error})") from error
    if tuple(reader.fieldnames or ()) != COLUMNS or any(not FRAME.fullmatch(r["frame"]) for r in rows):
        raise ConfigError(f"{path}: expected the columns {', '.join(COLUMNS)}, and whole numbers as frames")
    return {row["name"]: row for row in rows}


def _placed(found: Found, place: str, source: SourceSpec, known: Mapping[str, Mapping[str, str]]) -> Found:
    """The image with its sequence and frame: of its row of the table, else of its name, else of its folders."""
    if row := known.get(found.name):
        return replace(found, split=row["split"] or found.split, sequence=row["sequence"], frame=int(row["frame"]))
    pattern = name_pattern(source.pattern)
    if pattern is None:
        return replace(found, sequence=place.rpartition("__")[0])
    _, sequence, frame = place_of(pattern.search(place))
    if not FRAME.fullmatch(frame):
        raise ConfigError(f"pattern: the frame of {found.image} is {frame!r}, expected a whole number")
    # Names that are numbers are frames of one sequence.
    return replace(found, sequence=sequence or ("all" if frame != "-1" else ""), frame=int(frame))


@cache
def name_pattern(text: str) -> re.Pattern[str] | None:
    """The regular expression of the setting `pattern`; None for "". ConfigError: it is none, or has other groups."""
    if not text:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"pattern: {text!r} is no regular expression ({error})") from error
    unknown = sorted(set(pattern.groupindex) - {"city", "sequence", "frame"})
    if unknown or not pattern.groupindex:
        detail = f"group {unknown[0]!r} is unknown" if unknown else f"{text!r} has no named group"
        raise ConfigError(f"pattern: {detail}", hint="groups: (?P<city>...), (?P<sequence>...), (?P<frame>...)")
    return pattern


def place_of(match: re.Match[str] | None) -> tuple[str, str, str]:
    """City, sequence and frame ("-1": none) that a `name_pattern` finds in a name."""
    groups = match.groupdict() if match else {}
    city, frame = groups.get("city") or "", groups.get("frame") or "-1"
    # Numbers of drives may start from one in each city.
    return city, "_".join(part for part in (city, groups.get("sequence")) if part), frame


# ---- Roles


def unit_of(found: Found, deal: Deal) -> str:
    """What is dealt as a whole: a sequence, a window of its frames, or the image."""
    if not found.sequence:
        return found.name
    if deal.frames and found.frame >= 0:
        return f"{found.sequence}/{found.frame // deal.frames}"
    return found.sequence


def dealt(unit: str, deal: Deal) -> str:
    """The role of a unit: a function of its name and the settings alone."""
    at = int.from_bytes(sha256(f"{deal.number}/{unit}".encode(errors="surrogateescape")).digest()[:6], "big") / 2**48
    for role, share in (("report", deal.report), ("calibrate", deal.calibrate), ("unlabelled", deal.unlabelled)):
        if at < share:
            return role
        at -= share
    return "learn"


def deal_roles(found: Sequence[Found], source: SourceSpec) -> list[str]:
    """The role of each image.

    A labelled image has the role of its split, or the one that its unit is dealt. Images near a judged unit of their
    sequence, and unlabelled images in one, are `guard`: no model learns from them.
    """
    deal, fixed = source.deal, source.split_roles
    units = ((unit_of(f, deal), fixed.get(f.split)) for f in found if f.label)
    judged = {unit for unit, role in units if (role or dealt(unit, deal)) in JUDGED}
    if not source.has_labels:  # nothing judges: all are labelled
        return ["unlabelled"] * len(found)
    return [_role(f, deal, fixed.get(f.split, ""), judged) for f in found]


def _role(f: Found, deal: Deal, fixed: str, judged: Set[str]) -> str:
    near = [unit_of(replace(f, frame=frame), deal) for frame in _around(f, deal)]
    if f.label:
        role = fixed or dealt(unit_of(f, deal), deal)
        # By the units' names, whether they hold images or not: an image that arrives there later changes nothing.
        is_near = not fixed and role not in JUDGED and any(dealt(unit, deal) in JUDGED for unit in near)
        return "guard" if is_near else role
    if fixed in JUDGED or f.split == "test":
        return "guard"
    return "guard" if judged & {unit_of(f, deal), *near} else "unlabelled"


def _around(f: Found, deal: Deal) -> tuple[int, ...]:
    """First and last frame that are too near to judge, if units are windows of frames."""
    if not (deal.frames and deal.guard_frames and f.frame >= 0):
        return ()
    return max(0, f.frame - deal.guard_frames), f.frame + deal.guard_frames


def usual_step(frames: Iterable[int]) -> int:
    """The usual distance of neighbouring frames of a sequence; 0 with fewer than two."""
    steps = Counter(after - before for before, after in pairwise(sorted(set(frames))))
    return max(steps, key=lambda step: (steps[step], -step), default=0)


def sequences(found: Iterable[Found]) -> Iterator[list[int]]:
    """Frames of each sequence that has frame numbers."""
    by_sequence: dict[str, list[int]] = {}
    for f in found:
        if f.sequence and f.frame >= 0:
            by_sequence.setdefault(f.sequence, []).append(f.frame)
    yield from by_sequence.values()
