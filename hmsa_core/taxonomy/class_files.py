"""Class names in the files of other tools (CVAT, VOC, Ultralytics, Hugging Face, Roboflow, Vistas, plain lists).

Public label sets are known by name: those of Cityscapes and Mapillary Vistas, CamVid, VOC, ADE20K.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hmsa_core.io.errors import InputError, one_line

Colour = tuple[int, int, int]
NAMES = (  # in order of preference
    *("classes.json", "class_dict.json", "id2label.json", "labelmap.txt", "label_colors.txt", "classes.txt"),
    *("labels.txt", "obj.names", "_classes.csv", "class_dict.csv", "classes.csv", "data.yaml", "dataset.yaml"),
    *("data.yml", "class_list.json", "config.json", "meta.json"),
)
_OF_ANYTHING = ("config.json", "meta.json")
KNOWN = ("cityscapes", "mapillary_v1.2", "mapillary_v2.0", "camvid", "camvid32", "voc", "ade20k")
VOID = {
    *("void", "unlabeled", "unlabelled", "ignore", "ignored", "ignore label", "undefined", "unknown"),
    *("none", "_ignore", "other void", "mask void"),
}
_NUMBERS = re.compile(r"\d+")
_NAME_AND_COLOUR = re.compile(r"(?:(\d+)[\s,;:]+)?(\S.*?)[\s,;]+(\d+[\s,;]+\d+[\s,;]+\d+|#[0-9a-fA-F]{6})")


@dataclass(frozen=True)
class Named:
    """A class of a file: its name, and its id and colour where the file has them."""

    name: str
    id: int | None = None
    colour: Colour | None = None
    group: str = ""
    is_void: bool = False


@dataclass(frozen=True)
class ClassList:
    """Classes of one source; `where` is its name for messages."""

    where: str
    rows: tuple[Named, ...]

    @property
    def has_ids(self) -> bool:
        """Whether the source states ids; without them the place in the list is the id."""
        return all(row.id is not None for row in self.rows)

    def numbered(self, first: int = 0) -> list[tuple[int, Named]]:
        """(id, row) of each class: the source's ids, else places in the list from `first` on."""
        places = enumerate(self.rows, first)
        return [(row.id if self.has_ids and row.id is not None else place, row) for place, row in places]

    @property
    def has_colours(self) -> bool:
        """Whether every class has a colour."""
        return all(row.colour is not None for row in self.rows if not is_void(row))


def find_class_file(folders: Iterable[Path]) -> ClassList | None:
    """The first file of class names in these folders; a config.json or meta.json without names is none."""
    for folder in folders:
        for name in NAMES:
            if (folder / name).is_file() and (name not in _OF_ANYTHING or _has_names(folder / name)):
                return class_list(folder / name)
    return None


def _has_names(path: Path) -> bool:
    text = path.read_text("utf-8", errors="replace")
    return any(f'"{key}"' in text for key in ("id2label", "labels", "classes"))


def class_list(path: Path) -> ClassList:
    """Classes of a file. InputError: it cannot be read, or holds no class names."""
    reader = _READERS.get(path.suffix.lower(), _of_lines)
    try:
        rows = tuple(reader(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", hint="give a file of class names") from error
    except (ValueError, TypeError, KeyError, AttributeError, csv.Error, YAMLError) as error:
        raise _no_names(path, one_line(error)) from error
    if not rows:
        raise _no_names(path, "it is empty")
    names = [row.name.lower() for row in rows if not is_void(row)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}: two classes are named {twice}", hint="give each class a name of its own")
    return ClassList(str(path), rows)


def known_classes(name: str, *, has_255: bool = False) -> ClassList | None:
    """Classes of a public label set; None: unknown. ADE20K counts from 0 where 255 is its void, else from 1."""
    if name not in KNOWN:
        return None
    if name.startswith(("cityscapes", "mapillary")):
        return ClassList(name, tuple(_packaged(name)))
    rows = tuple(_of_lines(Path(__file__).parent / "known" / f"{name}.txt"))
    if name == "ade20k" and has_255:
        rows = tuple(Named(row.name, place) for place, row in enumerate(rows[1:]))
    return ClassList(name, rows)


def is_void(row: Named) -> bool:
    """Whether a class means pixels without a class."""
    return row.is_void or re.sub(r"[-_]+", " ", row.name.strip().lower()).strip() in VOID


def packaged_labels(name: str) -> list[dict[str, Any]]:
    """Rows of a published label set: "cityscapes", "mapillary_v1.2" or "mapillary_v2.0"."""
    file = resources.files(__package__).joinpath(f"{name}.json")
    labels: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))["labels"]
    return labels


def _packaged(name: str) -> Iterable[Named]:
    labels = packaged_labels(name)
    for place, row in enumerate(labels):
        number = row.get("id", place)
        unused = row.get("trainId", 0) in (-1, 255) or (name != "cityscapes" and place == len(labels) - 1)
        colour = tuple(row.get("colour") or row["color"])
        if number >= 0:
            yield Named(str(row.get("readable") or row["name"]), number, (colour[0], colour[1], colour[2]), "", unused)


def _no_names(path: Path, why: str) -> InputError:
    return InputError(
        f"{path}: no class names can be read ({why})",
        hint="write one name a line, `name:r,g,b` a line, or classes.json as in docs/own-data.md",
    )


def _of_lines(path: Path) -> Iterable[Named]:
    """`name`, `3 name`, `3: name`, `name:r,g,b::` (CVAT, VOC), `r g b name`, `name r g b`, `name #rrggbb` a line.

    One line alone may hold all names, with commas between them.
    """
    lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) == 1 and "," in lines[0] and not _NUMBERS.search(lines[0]):
        lines = [name.strip() for name in lines[0].strip("[]()").split(",")]
    for text in lines:
        name, colon, rest = text.partition(":")
        if colon and len(_NUMBERS.findall(rest)) >= 3:
            yield Named(name.strip(), None, _colour(_NUMBERS.findall(rest)[:3]))
        elif match := re.fullmatch(r"(\d+[\s,;]+\d+[\s,;]+\d+)[\s,;]+(\S.*)", text):
            yield Named(match[2].strip(), None, _colour(match[1]))
        elif match := _NAME_AND_COLOUR.fullmatch(text):
            yield Named(match[2].strip("\"' "), int(match[1]) if match[1] else None, _colour(match[3]))
        elif match := re.fullmatch(r"(\d+)\s*[:,;\s]\s*(\S.*)", text):
            yield Named(match[2].strip("'\" "), int(match[1]))
        elif "=" in text:
            raise ValueError(f"{text!r} is no class name")
        else:
            yield Named(text.strip("'\","))


def _colour(value: str | Iterable[Any]) -> Colour:
    """A colour of three numbers, or of a text that holds them or #rrggbb."""
    if isinstance(value, str):
        is_hex = re.fullmatch(r"#?[0-9a-fA-F]{6}", value)
        value = bytes.fromhex(value.removeprefix("#")) if is_hex else _NUMBERS.findall(value)
    red, green, blue = (int(part) for part in value)
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"{red}, {green}, {blue} is no colour")
    return red, green, blue


def _of_csv(path: Path) -> Iterable[Named]:
    """Roboflow's `Pixel Value, Class`, or columns name, r, g, b (or colour) or id, name in any order."""
    text = path.read_text("utf-8-sig")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)]
    head, *body = [row for row in rows if any(row)]
    words = [re.sub(r"[^a-z]", "", cell.lower()) for cell in head]
    name = _column(words, "class", "name", "label", "category", "classname")
    number = _column(words, "pixelvalue", "id", "value", "index", "classid")
    colours = [_column(words, *kinds) for kinds in (("r", "red"), ("g", "green"), ("b", "blue"))]
    whole = _column(words, "color", "colour", "rgb", "hex")
    if name is None:
        raise ValueError(f"no column of names among {', '.join(head)}")
    for row in body:
        colour = _colour(row[place] for place in colours if place is not None) if None not in colours else None
        colour = _colour(row[whole]) if whole is not None else colour
        yield Named(row[name], int(row[number]) if number is not None else None, colour)


def _column(words: list[str], *names: str) -> int | None:
    return next((words.index(name) for name in names if name in words), None)


def _of_yaml(path: Path) -> Iterable[Named]:
    values = YAML(typ="safe").load(path.read_text("utf-8-sig"))  # YAML 1.2: a class may be called `no`
    if not values.keys() & {"names", "classes", "labels"}:  # other keys of a settings file are no names
        raise KeyError("names")
    return _of_values(values)


def _of_json(path: Path) -> Iterable[Named]:
    return _of_values(json.loads(path.read_text("utf-8-sig")))


def _of_values(value: Any) -> Iterable[Named]:
    """A list of names or rows, or the one of several keys; else names by number, or by colour (A2D2)."""
    if isinstance(value, list):
        return [_row(row, place) for place, row in enumerate(value)]
    for key in ("id2label", "names", "classes", "labels"):
        if isinstance(value.get(key), Mapping):
            return _numbered(value[key])
    for key in ("classes", "labels", "categories", "names"):
        if isinstance(rows := value.get(key), list) and rows:
            ignored = value.get("ignore_id")
            named = [_row(row, place, ignored) for place, row in enumerate(rows)]
            is_new = type(ignored) is int and ignored >= 0 and not any(row.id in (ignored, None) for row in named)
            return [*named, Named("void", ignored, is_void=True)] if is_new else named
    if all(str(key).startswith("#") for key in value):
        return [Named(str(name), None, _colour(colour)) for colour, name in value.items()]
    return _numbered(value)


def _numbered(names: Mapping[Any, Any]) -> list[Named]:
    if all(isinstance(name, int) for name in names.values()) and names:  # label2id
        names = {number: name for name, number in names.items()}
    return sorted((Named(str(name), int(number)) for number, name in names.items()), key=lambda row: row.id or 0)


def _row(row: Any, place: int, void: object = None) -> Named:
    if not isinstance(row, Mapping):
        return Named(str(row))
    name = str(row.get("readable") or row.get("name") or row["title"])
    colour = row.get("colour", row.get("color"))
    number = int(row.get("id", place))
    unused = row.get("trainId") in (-1, 255) or void in (name, number)
    return Named(name, number, _colour(colour) if colour else None, str(row.get("group") or ""), unused)


_READERS: dict[str, Callable[[Path], Iterable[Named]]] = {
    ".json": _of_json,
    ".yaml": _of_yaml,
    ".yml": _of_yaml,
    ".csv": _of_csv,
}
