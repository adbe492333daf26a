"""CVAT: `annotations.xml` in the format "CVAT 1.1" (for images), one mask for each connected piece of a class.

A mask is a box and runs of pixels in it, row by row, the first run outside of the mask; nothing is lost.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import open_atomic, write_bytes, write_json
from hmsa_core.io.errors import InputError, needs_extra
from hmsa_core.labels.formats._item import About, Item, Labels
from hmsa_core.labels.formats._returned import Canvas, Exported, Returned, of_runs, polygon

ANNOTATIONS = "annotations.xml"
_BLOCK, _IMAGE = 1 << 16, 64 << 20  # bytes that are read at once, and of one image
_SHAPES, _TASKS = 100_000, 10_000  # of one image, of one file
# What expat and zipfile raise for damaged files.
_DAMAGE = (expat.ExpatError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)

Mask = NDArray[np.bool_]


def pieces(label: Labels, num_classes: int) -> Iterator[tuple[int, int, int, Mask]]:
    """Connected pieces (8 neighbours) of each class: trainId, x, y of the upper left corner, the mask there."""
    for class_id in np.unique(label[label < num_classes]).tolist():
        count, marked, boxes, _ = cv2.connectedComponentsWithStats((label == class_id).astype(np.uint8))
        for piece in range(1, count):
            x, y, width, height = boxes[piece, :4].tolist()
            yield class_id, x, y, marked[y : y + height, x : x + width] == piece


def write(folder: Path, about: About, items: Iterator[Item]) -> None:
    """`images/`, `annotations.xml`, and `labels.json` for the label constructor of a new task."""
    with needs_extra("exchange"):
        from cvat_sdk.masks import encode_mask
    names = about.classes.classes
    labels = [{"name": n, "color": about.colour(i), "type": "any", "attributes": []} for i, n in enumerate(names)]
    write_json(folder / "labels.json", labels)
    with open_atomic(folder / ANNOTATIONS) as file:
        file.write(b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        for number, item in enumerate(items):
            write_bytes(folder / "images" / item.file, item.picture)
            height, width = item.label.shape
            lines = [f'<image id="{number}" name={quoteattr(item.file)} width="{width}" height="{height}">']
            for class_id, x, y, mask in pieces(item.label, len(names)):
                runs = ", ".join(str(int(run)) for run in encode_mask(mask)[:-4])
                lines.append(
                    f'<mask label={quoteattr(names[class_id])} source="auto" occluded="0" rle="{runs}" left="{x}" '
                    f'top="{y}" width="{mask.shape[1]}" height="{mask.shape[0]}" z_order="0"></mask>'
                )
            file.write("\n".join([*lines, "</image>\n"]).encode())
        file.write(b"</annotations>\n")


def read(path: Path, exported: Exported) -> Iterator[Returned]:
    """Images of an annotations.xml, or of the zip file that CVAT packs it into. Masks and polygons are read."""
    reader = _Reader(path, exported)
    try:
        with _opened(path) as file:
            for block in chain(iter(lambda: file.read(_BLOCK), b""), [b""]):
                yield from reader.feed(block)
    except _DAMAGE as error:
        raise InputError(f"{path}: damaged ({error})", hint="export it from CVAT again") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The XML; of a zip file that one member alone, and nothing is unpacked."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        if ANNOTATIONS not in archive.namelist():
            raise InputError(f"{path}: holds no {ANNOTATIONS}", hint='export as "CVAT for images 1.1"')
        with archive.open(ANNOTATIONS) as member:
            yield member


class _Reader:
    """Takes the XML block by block. Only one image is in memory; a document type (entities) is refused."""

    def __init__(self, path: Path, exported: Exported) -> None:
        self._path, self._exported = path, exported
        self._done: list[Returned] = []
        self._open: list[str] = []
        self._seen: set[str] = set()
        self._task, self._tasks = "", dict[str, dict[str, str]]()  # its id, and what was said of earlier ones by theirs
        self._said = {"who": "", "when": ""}
        self._name, self._shapes = "", list[tuple[int, int, dict[str, str], str]]()
        self._since = 0  # bytes since the last image
        self._parser = expat.ParserCreate()
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text

    def feed(self, block: bytes) -> list[Returned]:
        """The images that end in a block of bytes; b"" is the end of the file."""
        self._since += len(block)
        if self._since > _IMAGE:
            raise InputError(f"{self._path}: one image has more than {_IMAGE} bytes")
        self._done = []
        self._parser.Parse(block, not block)
        return self._done

    def _refuse(self, *_: object) -> None:
        raise InputError(f"{self._path}: has a document type, as no export of CVAT does", hint="export it again")

    def _text(self, text: str) -> None:
        if self._open[-2:] == ["assignee", "username"]:
            self._said["who"] = (self._said["who"] + text.strip())[:200]
        elif self._open[-1] == "updated" and not self._name:
            self._said["when"] = (self._said["when"] + text.strip())[:40]
        elif self._open[-2:] == ["task", "id"]:
            self._task = (self._task + text.strip())[:40]

    def _start(self, tag: str, given: dict[str, str]) -> None:
        self._open.append(tag)
        if tag == "image":
            self._name = self._exported.name_of(given["name"], self._path)
            if self._name in self._seen:
                raise InputError(f"{self._path}: {self._name} occurs twice", hint="keep one of the two")
            self._seen.add(self._name)
            height, width = self._exported.size(self._name)
            if (int(given["width"]), int(given["height"])) != (width, height):
                raise InputError(f"{self._path}: {self._name} is not {width}x{height} there, as it was exported")
            self._shapes = []
            if "task_id" in given:  # of a project, which has several tasks and an assignee of its own
                self._said = self._tasks.get(given["task_id"], {"who": "", "when": ""})
        elif tag == "track" or len(self._open) > 20:
            raise InputError(f"{self._path}: <{tag[:40]}> is not supported", hint='export as "CVAT for images 1.1"')
        elif self._name and self._open[-2] == "image" and tag != "tag":
            if tag not in ("mask", "polygon"):
                raise InputError(
                    f"{self._path}: {self._name}: <{tag[:40]}> is not supported", hint="draw masks or polygons"
                )
            if len(self._shapes) == _SHAPES:
                raise InputError(f"{self._path}: {self._name}: more than {_SHAPES} masks and polygons")
            self._shapes.append((int(given.get("z_order", 0)), len(self._shapes), given, tag))
        elif tag == "task":
            self._task, self._said = "", {"who": "", "when": ""}

    def _end(self, tag: str) -> None:
        self._open.pop()
        if tag == "image":
            self._since = 0
            self._done.append(Returned(self._name, self._label(), **self._said))
            self._name, self._shapes = "", []
        elif tag == "task":
            if len(self._tasks) == _TASKS:
                raise InputError(f"{self._path}: more than {_TASKS} tasks", hint="export it in parts")
            self._tasks[self._task] = dict(self._said)

    def _label(self) -> Labels:
        where, name = f"{self._path}: {self._name}", self._name
        canvas = Canvas(self._exported.label(name), where)
        for *_, given, tag in sorted(self._shapes, key=lambda shape: shape[:2]):
            class_id = self._exported.class_id(given["label"], where)
            shape = canvas.label.shape
            if tag == "mask":
                canvas.paint(class_id, *_mask(given, shape, where))
            else:
                corners = np.array([[float(v) for v in point.split(",")] for point in given["points"].split(";")])
                canvas.paint(class_id, polygon(corners, shape, where))
        return canvas.label


def _mask(given: dict[str, str], shape: tuple[int, ...], where: str) -> tuple[Mask, int, int]:
    """Mask, x and y. cvat_sdk.masks.decode_mask makes the mask first and looks at its size then."""
    x, y, width, height = (int(given[key]) for key in ("left", "top", "width", "height"))
    runs = [int(run) for run in given["rle"].split(",")]
    if min(x, y) < 0 or min(width, height) < 1 or x + width > shape[1] or y + height > shape[0]:
        raise InputError(f"{where}: a mask of {width}x{height} at ({x}, {y}) lies outside")
    return of_runs(runs, (height, width), where), x, y
