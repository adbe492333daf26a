"""Class tables: Cityscapes, Mapillary Vistas v1.2 and v2.0, and plain files like CamVid's.

Train ids are 0..C-1; 255 means ignore, everywhere. Label files hold *ids*; one 256-entry look-up
table maps ids to train ids, never a sequence of in-place replacements.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import digest, read_json
from hmsa_core.io.errors import InputError, IntegrityError, did_you_mean
from hmsa_core.taxonomy.class_files import KNOWN, ClassList, class_list, is_void, packaged_labels

_LOG = logging.getLogger(__name__)

__all__ = ["GROUPS", "IGNORE", "ClassTable", "cityscapes", "from_file", "from_vistas_config", "mapillary", "plain"]

IGNORE = 255

# Thresholds of classes with little evidence are shrunk towards the threshold of their group (pooled policy).
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
        void_colours: RGB that mean ignore in colour maps, besides black.
    """

    name: str
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    groups: tuple[str, ...]
    id_to_train: NDArray[np.uint8]
    valid_ids: NDArray[np.bool_]
    train_to_id: tuple[int, ...]
    void_colours: tuple[tuple[int, int, int], ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of trained classes C."""
        return len(self.classes)

    @property
    def ignored_id(self) -> int:
        """File id to write for ignored pixels: 0 for Cityscapes (unlabeled), 65 or 123 for Vistas, else 255."""
        ignored = np.flatnonzero(self.valid_ids & (self.id_to_train == IGNORE))
        return int(ignored[0]) if len(ignored) else IGNORE

    @property
    def has_file_ids(self) -> bool:
        """Whether label files hold other numbers than trainIds."""
        return not np.array_equal(self.id_to_train[: self.num_classes], np.arange(self.num_classes))

    def of_train_ids(self) -> ClassTable:
        """The same classes for label files that hold trainIds, 255 = ignored."""
        return self.with_ids(range(self.num_classes), (IGNORE,))

    def with_ids(self, ids: Sequence[int], ignored: Collection[int]) -> ClassTable:
        """The same classes for label files that hold `ids` (by trainId), and `ignored` for pixels without a class."""
        return _of_ids(self.name, self.classes, self.colours, self.groups, ids, ignored)

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
        } | ({"void_colours": [list(colour) for colour in self.void_colours]} if self.void_colours else {})

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
            void_colours=tuple(tuple(colour) for colour in value.get("void_colours", ())),
        )

    @classmethod
    def of_meta(cls, meta: Mapping[str, Any]) -> ClassTable | None:
        """Classes of a checkpoint by its JSON (`read_meta`); None where they have no names."""
        table = meta.get("class_table")
        return cls.from_json(table) if table else None

    def digest(self) -> str:
        """Digest of names, colours and maps; two tables with equal digests are the same."""
        return digest(self.to_json())

    def __hash__(self) -> int:
        return hash(self.digest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassTable) and self.digest() == other.digest()


def _of_ids(
    name: str,
    classes: tuple[str, ...],
    colours: tuple[tuple[int, int, int], ...],
    groups: tuple[str, ...],
    ids: Sequence[int],
    ignored: Collection[int],
    void_colours: tuple[tuple[int, int, int], ...] = (),
) -> ClassTable:
    """A table for label files that hold `ids` and `ignored`, and nothing else."""
    id_to_train, valid = np.full(256, IGNORE, np.uint8), np.zeros(256, bool)
    valid[[*ids, *ignored]] = True
    id_to_train[list(ids)] = range(len(ids))
    return ClassTable(name, classes, colours, groups, id_to_train, valid, tuple(ids), void_colours)


def _group(name: str, category: str = "") -> str:
    """Group of a class by its name, else by Cityscapes' category, else "other"."""
    group = _GROUP_OF.get(name.lower()) or {"object": "thin", "human": "person"}.get(category, category)
    return group if group in GROUPS else "other"


def _evaluated() -> list[dict[str, Any]]:
    """Cityscapes' labels that have a trainId, in its order."""
    rows = (row for row in packaged_labels("cityscapes") if 0 <= row["trainId"] < IGNORE)
    return sorted(rows, key=lambda row: int(row["trainId"]))


def cityscapes_categories() -> tuple[str, ...]:
    """The benchmark's category of each of the 19 Cityscapes classes, in trainId order."""
    return tuple(str(row["category"]) for row in _evaluated())


def cityscapes_void_colours() -> tuple[tuple[int, int, int], ...]:
    """Colours of Cityscapes' labels without a trainId; some are a class's, too, as polegroup and pole."""
    return tuple(tuple(row["colour"]) for row in packaged_labels("cityscapes") if not 0 <= row["trainId"] < IGNORE)


@cache
def cityscapes() -> ClassTable:
    """The 19 evaluated classes of Cityscapes; label files hold ids 0..33."""
    rows = _evaluated()
    return _of_ids(
        "cityscapes",
        tuple(r["name"] for r in rows),
        tuple(tuple(r["colour"]) for r in rows),
        tuple(_group(r["name"], r["category"]) for r in rows),
        [r["id"] for r in rows],
        [row["id"] for row in packaged_labels("cityscapes") if row["id"] >= 0],  # the licence plate is -1
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
    return _from_config(f"mapillary_{version}", packaged_labels(f"mapillary_{version}"))


def _from_config(name: str, labels: list[dict[str, Any]]) -> ClassTable:
    rows = labels[:-1]  # the last label is unlabeled = ignore in every release
    return _of_ids(
        name,
        tuple(str(r.get("readable") or r["name"]) for r in rows),
        tuple(tuple(r.get("colour") or r["color"]) for r in rows),
        tuple(_vistas_group(str(r.get("name") or "")) for r in rows),
        range(len(rows)),
        (len(rows),),
    )


def from_vistas_config(path: Path) -> ClassTable:
    """Read the config*.json of a Vistas release: the position in its list is the id (66 or 124 labels)."""
    labels = read_json(path).get("labels")
    versions = {66: "v1.2", 124: "v2.0"}
    if not isinstance(labels, list) or len(labels) not in versions:
        raise InputError(f"{path}: expected a list of 66 or 124 labels, as in Mapillary Vistas' config.json")
    return _from_config(f"mapillary_{versions[len(labels)]}", labels)


def plain(names: Sequence[str]) -> ClassTable:
    """Make a table from class names alone: colours are spread over the hues, ids are trainIds."""
    rgb = [hsv_to_rgb(i / len(names), 200 / 255, 1.0) for i in range(len(names))]
    colours = tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb)
    return _of_ids("unnamed", tuple(names), colours, tuple(_group(name) for name in names), range(len(names)), ())


_EXAMPLE = (
    'expected {"ignore_id": 255, "classes": [{"id": 0, "name": "road", "colour": [128, 64, 128]}, ...]}, see '
    "docs/own-data.md"
)


def from_file(path: str | Path) -> ClassTable:
    """Read a class file like CamVid's: {"classes": [{"id", "name", "colour"}, ...], "ignore_id": 255}.

    Lists of names that other tools write are read as well (`hmsa_core.taxonomy.class_files`). Classes are numbered by
    `trainId` where rows have one (255 and -1: no class), else by their ids. Ids are whole numbers from 0 to 255; any
    other value but the ignore id is invalid in label files. A colour is [r, g, b] or "#rrggbb"; a missing colour is
    generated. Names must differ, also in lower case: figures, policies and options refer to classes by name.
    """
    where = Path(path)
    if not where.is_file():
        raise InputError(
            f"{where}: class file not found", hint=f"give a file of class names, or one of {', '.join(KNOWN)}"
        )
    if not _has_rows(where):
        return from_list(class_list(where), where.stem)
    try:
        value = read_json(where)
    except IntegrityError as error:  # people write this file: no digest was recorded for it
        raise InputError(error.message, hint=_EXAMPLE) from error
    return of_json(value, where)


def of_json(value: Mapping[str, Any], where: Path) -> ClassTable:
    """The table of a class file's JSON; errors name the file `where`."""
    given = value.get("classes")
    if not isinstance(given, list) or not given:
        raise InputError(f"{where}: no list of classes", hint=_EXAMPLE)
    ignored = value.get("ignore_id", IGNORE)
    try:
        rows = [_Row.of(row) for row in given]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: each class needs a whole id, a name, and a colour of bytes or none ({error!r})", hint=_EXAMPLE
        ) from error
    classes = sorted((row for row in rows if row.place is not None and row.name != ignored), key=_Row.order)
    _check_rows(where, classes)
    void = {row.id for row in rows} - {row.id for row in classes}
    if not isinstance(ignored, str):
        void.add(_ignore_id(where, ignored, classes))
    elif not void:
        raise InputError(f"{where}: ignore_id is {ignored!r}, which names no class")
    return _of_rows(where, str(value.get("dataset", where.stem)), rows, classes, void)


def from_list(found: ClassList, name: str) -> ClassTable:
    """Table of class names in a file of another tool, or of a public label set; without ids, the place is the id.

    Names such as `void` or `unlabeled` are no classes; label files may hold their ids, and 255 where no class has it.
    """
    rows = []
    for number, row in found.numbered():
        group = row.group if row.group in GROUPS else _group(row.name)
        rows.append(_Row(number, row.name.strip(), row.colour, None if is_void(row) else number, group))
    classes = sorted((row for row in rows if row.place is not None), key=_Row.order)
    where = Path(found.where)
    _check_rows(where, classes)
    void = {row.id for row in rows if row.place is None} | ({IGNORE} - {row.id for row in classes})
    if not found.has_ids:
        _say_once(f"{where}: names without ids: label maps count them from 0, so {classes[0].name} is {classes[0].id}")
    return _of_rows(where, name, rows, classes, void)


def _has_rows(where: Path) -> bool:
    """Whether a file is JSON with a list of rows, or broken JSON: `read_json` then says what is wrong."""
    if where.suffix.lower() != ".json":
        return False
    try:
        value = json.loads(where.read_text("utf-8-sig"))
    except ValueError:
        return True
    rows = value.get("classes") if isinstance(value, dict) else None
    return isinstance(rows, list) and all(isinstance(row, dict) and "title" not in row for row in rows)


def _of_rows(where: Path, name: str, rows: list[_Row], classes: list[_Row], void: set[int]) -> ClassTable:
    """The table of checked rows; `rows` also holds those that are no classes, `void` the ids without a class."""
    names, ids = tuple(row.name for row in classes), tuple(row.id for row in classes)
    if ids != tuple(range(len(ids))):
        _say_once(
            f"{where}: ids {', '.join(map(str, ids[:4]))}, ... of label maps become the classes 0 to {len(ids) - 1}"
        )
    return _of_ids(
        name,
        names,
        tuple(row.colour or other for row, other in zip(classes, plain(names).colours, strict=True)),
        _groups(where, classes),
        ids,
        [number for number in void if 0 <= number <= IGNORE],
        tuple(row.colour for row in rows if row.colour and row.id in void),
    )


@cache
def _say_once(text: str) -> None:
    _LOG.warning(text)


@dataclass(frozen=True)
class _Row:
    """One class of a class file."""

    id: int
    name: str
    colour: tuple[int, int, int] | None
    place: int | None  # its trainId, or id; None = no class
    group: str

    @classmethod
    def of(cls, row: dict[str, Any]) -> _Row:
        """Parse one row. KeyError, TypeError, ValueError: a needed value is missing or malformed."""
        name, number = str(row["name"]).strip(), _whole(row["id"])
        place = _whole(row["trainId"]) if "trainId" in row else number
        if not name:
            raise ValueError(f"the class with id {number} has an empty name")
        is_class = "trainId" not in row or 0 <= place < IGNORE
        colour = _colour(row.get("colour", row.get("color")), name)
        return cls(number, name, colour, place if is_class else None, str(row.get("group") or _group(name)))

    def order(self) -> int:
        """Sort key of classes."""
        return self.place or 0


def _whole(given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int | float | str) or float(given) != int(float(given)):
        raise ValueError(f"{given!r} is no whole number")
    return int(float(given))


def _colour(given: Any, name: str) -> tuple[int, int, int] | None:
    if given is None:
        return None
    colour = tuple(bytes.fromhex(given.removeprefix("#")) if isinstance(given, str) else (_whole(v) for v in given))
    if len(colour) != 3 or not 0 <= min(colour) <= max(colour) <= 255:
        raise ValueError(f"the colour of class {name!r} is not [r, g, b] with 0..255, or #rrggbb")
    return colour[0], colour[1], colour[2]


def _check_rows(where: Path, rows: Sequence[_Row]) -> None:
    if len(rows) < 2:
        raise InputError(f"{where}: one class: every pixel would be labelled as it", hint="give the rest a class too")
    if len(rows) >= IGNORE:
        raise InputError(f"{where}: {len(rows)} classes, but a label is one byte: at most {IGNORE - 1}")
    names = [row.name.lower() for row in rows]
    for what, values in (
        ("named", names),
        ("of id", [row.id for row in rows]),
        ("of trainId", [r.place for r in rows]),
    ):
        if twice := next((rows[i] for i, value in enumerate(values) if value in values[:i]), None):
            raise InputError(f"{where}: two classes are {what} {twice.name if what == 'named' else twice.id!r}")
    wrong = next((row for row in rows if not 0 <= row.id <= IGNORE), None)
    if wrong is not None:
        raise InputError(
            f"{where}: class {wrong.name!r} has id {wrong.id}, ids are 0 to {IGNORE}",
            hint="renumber the classes here and in the label maps: exported maps hold one byte a pixel",
        )


def _groups(where: Path, rows: Sequence[_Row]) -> tuple[str, ...]:
    """Return the group of each class. InputError: a row has an unknown group."""
    if strange := next((row.group for row in rows if row.group not in GROUPS), None):
        hint = did_you_mean(strange, GROUPS, f"choose one of {', '.join(GROUPS)}")
        raise InputError(f"{where}: unknown group {strange!r}", hint=hint)
    return tuple(row.group for row in rows)


def _ignore_id(where: Path, given: object, rows: Sequence[_Row]) -> int:
    """Check the id of ignored pixels in label files; -1 (as in other tools) is never drawn."""
    if given == -1:
        given = IGNORE
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= IGNORE:
        raise InputError(
            f"{where}: ignore_id is {given!r}, expected a number from 0 to {IGNORE}, or a name of `classes`"
        )
    if same := next((row.name for row in rows if row.id == given), None):
        free = max(set(range(256)) - {row.id for row in rows})
        raise InputError(
            f"{where}: {given} is the id of class {same!r} and the ignore_id",
            hint=f"leave that class out, or give an ignore_id that no class has, such as {free}",
        )
    return given
