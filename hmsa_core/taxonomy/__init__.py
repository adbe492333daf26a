"""Class tables: Cityscapes, Mapillary Vistas v1.2 and v2.0, and plain files like CamVid's.

Train ids are 0..C-1; 255 means ignore, everywhere. Label files hold *ids*; one 256-entry look-up
table maps them, never a sequence of in-place replacements.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import digest, read_json
from hmsa_core.io.errors import InputError, IntegrityError, did_you_mean

__all__ = ["GROUPS", "IGNORE", "ClassTable", "cityscapes", "from_file", "from_vistas_config", "mapillary", "plain"]

IGNORE = 255

# Groups to which thresholds of classes with little evidence are shrunk (design: pooled policy).
GROUPS = ("flat", "construction", "thin", "nature", "sky", "person", "vehicle", "other")

_GROUP_OF = {
    name: group
    for group, names in {
        "flat": ("road", "sidewalk", "pavement"),
        "construction": ("building", "wall", "fence"),
        "thin": ("pole", "traffic light", "traffic sign", "signsymbol"),
        "nature": ("vegetation", "terrain", "tree"),
        "sky": ("sky",),
        "person": ("person", "pedestrian", "rider", "bicyclist"),
        "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
    }.items()
    for name in names
}


@dataclass(frozen=True)
class ClassTable:
    """The classes of one data set: names and colours in trainId order, and the map from file ids.

    Attributes:
        name: short name, e.g. "cityscapes".
        classes: class names, index = trainId.
        colours: RGB 0..255, index = trainId.
        groups: one of GROUPS for each class.
        id_to_train: 256 entries uint8, file id -> trainId or 255.
        valid_ids: 256 entries bool, False for a value that a label file must not hold.
        train_to_id: file id to write for each trainId.
    """

    name: str
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    groups: tuple[str, ...]
    id_to_train: NDArray[np.uint8]
    valid_ids: NDArray[np.bool_]
    train_to_id: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """Number of trained classes C."""
        return len(self.classes)

    @property
    def ignored_id(self) -> int:
        """File id to write where nothing is known: 0 for Cityscapes (unlabeled), 65 or 123 for Vistas, else 255."""
        ignored = np.flatnonzero(self.valid_ids & (self.id_to_train == IGNORE))
        return int(ignored[0]) if len(ignored) else IGNORE

    @property
    def has_own_ids(self) -> bool:
        """Whether label files hold other numbers than trainIds."""
        return not np.array_equal(self.id_to_train[: self.num_classes], np.arange(self.num_classes))

    def of_train_ids(self) -> ClassTable:
        """The same classes for label files that hold trainIds, 255 = ignored."""
        return _of_train_ids(self.name, self.classes, self.colours, self.groups, IGNORE)

    def index(self, class_name: str) -> int:
        """TrainId of a class name (case-insensitive); unknown names are an InputError with the list."""
        for i, name in enumerate(self.classes):
            if name.lower() == class_name.lower():
                return i
        raise InputError(f"unknown class {class_name!r}; the classes are: {', '.join(self.classes)}")

    def palette(self) -> NDArray[np.uint8]:
        """(256, 3) RGB; 255 and unused entries are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.colours
        return table

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` rebuilds the table."""
        return {
            "name": self.name,
            "classes": [
                {"name": n, "colour": list(c), "group": g, "id": i}
                for n, c, g, i in zip(self.classes, self.colours, self.groups, self.train_to_id, strict=True)
            ],
            "id_to_train": [int(v) for v in self.id_to_train],
            "valid_ids": [int(i) for i in np.flatnonzero(self.valid_ids)],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ClassTable:
        """Rebuild a table from `to_json`."""
        rows = value["classes"]
        valid = np.zeros(256, bool)
        valid[value["valid_ids"]] = True
        return cls(
            name=value["name"],
            classes=tuple(r["name"] for r in rows),
            colours=tuple(tuple(r["colour"]) for r in rows),
            groups=tuple(r["group"] for r in rows),
            id_to_train=np.array(value["id_to_train"], np.uint8),
            valid_ids=valid,
            train_to_id=tuple(r["id"] for r in rows),
        )

    def digest(self) -> str:
        """Digest of names, colours and maps: two tables are the same when this is."""
        return digest(self.to_json())

    def __hash__(self) -> int:
        return hash(self.digest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassTable) and self.digest() == other.digest()


def _of_train_ids(
    name: str,
    classes: tuple[str, ...],
    colours: tuple[tuple[int, int, int], ...],
    groups: tuple[str, ...],
    ignored: int,
) -> ClassTable:
    """A table for label files that hold trainIds and `ignored` (-1 = they hold nothing else)."""
    ids = np.arange(256)
    known = ids < len(classes)
    id_to_train = np.where(known, ids, IGNORE).astype(np.uint8)
    return ClassTable(name, classes, colours, groups, id_to_train, known | (ids == ignored), tuple(range(len(classes))))


def _packaged(name: str) -> list[dict[str, Any]]:
    labels: list[dict[str, Any]] = json.loads(resources.files(__package__).joinpath(name).read_text("utf-8"))["labels"]
    return labels


def _group(name: str, category: str = "") -> str:
    """Group of a class by its name, else by Cityscapes' category, else "other"."""
    group = _GROUP_OF.get(name.lower()) or {"object": "thin", "human": "person"}.get(category, category)
    return group if group in GROUPS else "other"


def _evaluated() -> list[dict[str, Any]]:
    """Cityscapes' labels that have a trainId, in its order."""
    rows = (row for row in _packaged("cityscapes.json") if 0 <= row["trainId"] < IGNORE)
    return sorted(rows, key=lambda row: int(row["trainId"]))


def cityscapes_categories() -> tuple[str, ...]:
    """The benchmark's category of each of the 19 Cityscapes classes, in trainId order."""
    return tuple(str(row["category"]) for row in _evaluated())


@cache
def cityscapes() -> ClassTable:
    """The 19 evaluated classes of Cityscapes; label files hold ids 0..33."""
    rows = _evaluated()
    lut, valid = np.full(256, IGNORE, np.uint8), np.zeros(256, bool)
    valid[[row["id"] for row in _packaged("cityscapes.json") if row["id"] >= 0]] = True  # the licence plate is -1
    lut[[row["id"] for row in rows]] = range(len(rows))
    return ClassTable(
        "cityscapes",
        tuple(r["name"] for r in rows),
        tuple(tuple(r["colour"]) for r in rows),
        tuple(_group(r["name"], r["category"]) for r in rows),
        lut,
        valid,
        tuple(r["id"] for r in rows),
    )


_VISTAS_GROUPS = {
    "animal": "other",
    "construction--flat": "flat",
    "construction--barrier": "construction",
    "construction--structure": "construction",
    "human": "person",
    "marking": "flat",
    "nature--sky": "sky",
    "nature": "nature",
    "object--vehicle": "vehicle",
    "object--support": "thin",
    "object--traffic": "thin",
    "object": "other",
    "void": "other",
}


def _vistas_group(key: str) -> str:
    best = max((p for p in _VISTAS_GROUPS if key.startswith(p)), key=len, default="")
    return _VISTAS_GROUPS.get(best, "other")


@cache
def mapillary(version: str = "v1.2") -> ClassTable:
    """Mapillary Vistas: 65 classes + ignore 65 (v1.2 and before) or 123 + ignore 123 (v2.0)."""
    if version not in ("v1.2", "v2.0"):
        raise InputError(f"unknown Mapillary Vistas version {version!r}: expected v1.2 or v2.0")
    return _from_config(f"mapillary_{version}", _packaged(f"mapillary_{version}.json"))


def _from_config(name: str, labels: list[dict[str, Any]]) -> ClassTable:
    rows = labels[:-1]  # the last label is unlabeled = ignore in every release
    return _of_train_ids(
        name,
        tuple(str(r.get("readable") or r["name"]) for r in rows),
        tuple(tuple(r.get("colour") or r["color"]) for r in rows),
        tuple(_vistas_group(str(r.get("name") or "")) for r in rows),
        len(rows),
    )


def from_vistas_config(path: Path) -> ClassTable:
    """Read a release's own config*.json: the position in its list is the id (66 or 124 labels)."""
    labels = read_json(path).get("labels")
    versions = {66: "v1.2", 124: "v2.0"}
    if not isinstance(labels, list) or len(labels) not in versions:
        raise InputError(f"{path}: expected a list of 66 or 124 labels, as in Mapillary Vistas' config.json")
    return _from_config(f"mapillary_{versions[len(labels)]}", labels)


def plain(names: Sequence[str]) -> ClassTable:
    """Table of classes of which only names are known: colours are spread over the hues, ids are trainIds."""
    rgb = [hsv_to_rgb(i / len(names), 200 / 255, 1.0) for i in range(len(names))]
    colours = tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb)
    return _of_train_ids("unnamed", tuple(names), colours, tuple(_group(name) for name in names), -1)


_EXAMPLE = (
    'expected {"ignore_id": 255, "classes": [{"id": 0, "name": "road", "colour": [128, 64, 128]}, ...]}, see '
    "docs/own-data.md"
)


def from_file(path: str | Path) -> ClassTable:
    """Read a class file like CamVid's: {"classes": [{"id", "name", "colour"}, ...], "ignore_id": 255}.

    Ids must be 0..C-1 without gaps (they are the trainIds); any other value but the ignore id is invalid. Names
    differ (upper and lower case are the same: figures, policies and options go by name).
    """
    where = Path(path)
    if not where.is_file():
        raise InputError(
            f"{where}: class file not found", hint="give a JSON file, or cityscapes, mapillary_v1.2 or mapillary_v2.0"
        )
    try:
        value = read_json(where)
    except IntegrityError as error:  # a file that people write, which no digest was recorded for
        raise InputError(error.message, hint=_EXAMPLE) from error
    rows = value.get("classes")
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{where}: no list of classes", hint=_EXAMPLE)
    try:
        rows = sorted(rows, key=lambda r: int(r["id"]))
        ids = [int(r["id"]) for r in rows]
        names = tuple(str(r["name"]) for r in rows)
        colours = tuple(tuple(int(v) for v in (r.get("colour") or r["color"])) for r in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: each class needs id, name and colour ({error!r})", hint=_EXAMPLE) from error
    if len(ids) < 2:
        raise InputError(f"{where}: one class: every pixel would be labelled as it", hint="give the rest a class too")
    if len(ids) >= IGNORE:
        raise InputError(f"{where}: {len(ids)} classes, but a label is one byte: at most {IGNORE - 1}")
    if ids != list(range(len(ids))):
        raise InputError(f"{where}: class ids must be 0..{len(ids) - 1} without gaps, found {ids[:5]}...")
    twice = next((n for i, n in enumerate(names) if n.lower() in [m.lower() for m in names[:i]]), None)
    if twice is not None:
        raise InputError(f"{where}: two classes are named {twice!r}; names must differ")
    is_colour = [len(c) == 3 and 0 <= min(c) <= max(c) <= 255 for c in colours]
    wrong = next((n for n, right in zip(names, is_colour, strict=True) if not right), None)
    if wrong is not None:
        raise InputError(f"{where}: the colour of class {wrong!r} is not [r, g, b] with 0..255")
    return _of_train_ids(
        str(value.get("dataset", where.stem)),
        names,
        tuple((c[0], c[1], c[2]) for c in colours),
        _groups(where, rows, names),
        _ignore_id(where, value.get("ignore_id", IGNORE), len(ids)),
    )


def _groups(where: Path, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> tuple[str, ...]:
    """The group of each class: that of its row, else the one that its name has elsewhere."""
    groups = tuple(str(row.get("group") or _group(name)) for row, name in zip(rows, names, strict=True))
    if strange := next((group for group in groups if group not in GROUPS), None):
        hint = did_you_mean(strange, GROUPS, f"choose one of {', '.join(GROUPS)}")
        raise InputError(f"{where}: unknown group {strange!r}", hint=hint)
    return groups


def _ignore_id(where: Path, given: object, num_classes: int) -> int:
    """Check the id that label files hold where they say nothing; -1 (as in other tools) is never drawn."""
    if given == -1:
        return IGNORE
    if isinstance(given, bool) or not isinstance(given, int) or not num_classes <= given <= IGNORE:
        raise InputError(f"{where}: ignore_id is {given!r}, expected a number from {num_classes} to {IGNORE}")
    return given
