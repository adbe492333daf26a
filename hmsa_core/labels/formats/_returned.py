"""Labels that come back from a tool, compared with what was exported to it.

OUT/.exported/index.json   what was exported, of which store
OUT/.exported/NAME.png     the labels as they were (trainIds, 255 = ignore): corrections are what differs from them
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import read_label_ids
from hmsa_core.io.atomic import read_json
from hmsa_core.io.errors import InputError, IntegrityError, needs_extra
from hmsa_core.labels.formats import find_format, format_lines
from hmsa_core.labels.formats._item import Labels
from hmsa_core.labels.store.format import plain_path
from hmsa_core.taxonomy import IGNORE, ClassTable

EXPORTED, VERSION = ".exported", 1
_JSON_BYTES = 256 << 20
_PAINTED = 1000  # times the pixels of an image, all regions of it together


@dataclass(frozen=True)
class Returned:
    """The labels of one image as they came back; `who` and `when` are "" where the tool does not say."""

    name: str
    label: Labels
    who: str = ""
    when: str = ""


class Exported:
    """An earlier export, opened to compare with what comes back.

    Raises:
        InputError: the folder is no such export. IntegrityError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        where = path / EXPORTED / "index.json"
        if not where.is_file():
            raise InputError(
                f"{path}: no export for another tool ({EXPORTED}/index.json is missing)",
                hint="give the folder that `autolabel export --format cvat`, or that of another tool, wrote",
            )
        index = read_json(where)
        try:
            self.format, self.labels, self.images = index["format"], str(index["labels"]), dict(index["images"])
            self.classes = ClassTable.from_json(index["classes"])
            if self.format not in format_lines() or index["version"] != VERSION:
                raise ValueError(f"format {self.format!r}, version {index['version']!r}")
            self._name_of = {str(entry["file"]): name for name, entry in self.images.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"{where}: damaged ({error!r})", hint="export again") from error

    def name_of(self, file: object, where: Path) -> str:
        """Name of the image whose picture has this path or name in the other tool, as the file `where` says."""
        name: str | None = self._name_of.get(Path(str(file)).name)
        if name is None:
            raise InputError(f"{where}: image {str(file)[:200]!r} is not of the export {self.path}")
        return name

    def size(self, name: str) -> tuple[int, int]:
        """Height and width."""
        entry = self.images[name]
        return int(entry["height"]), int(entry["width"])

    def label(self, name: str) -> Labels:
        """The labels as they were exported."""
        path = plain_path(self.path, EXPORTED, f"{name}.png")
        label = read_label_ids(path, sha256=str(self.images[name]["sha256"]))
        if label.shape != self.size(name):
            raise IntegrityError(f"{path}: is {label.shape}, the index says {self.size(name)}")
        return label

    def read(self, path: Path) -> Iterator[Returned]:
        """Labels that a tool returned, image by image; a damaged or hostile file is an InputError with its name."""
        if not path.exists():
            raise InputError(f"{path}: not found")
        try:
            yield from find_format(self.format).read(path, self)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{path}: no {self.format} file that can be read ({error!r:.200})") from error

    def class_id(self, name: object, where: str) -> int:
        """TrainId of a class name that came back."""
        known = self.classes.classes
        if name not in known:
            raise InputError(f"{where}: class {str(name)[:100]!r} is none of {', '.join(known)}")
        return known.index(str(name))

    def check(self, name: str, label: Labels, where: str) -> Labels:
        """A label that came back as a map of trainIds: of the image's size, without unknown ids."""
        if label.shape != self.size(name):
            raise InputError(f"{where}: is {label.shape}, the export {self.size(name)}")
        wrong = np.unique(label[(label >= self.classes.num_classes) & (label != IGNORE)])
        if len(wrong):
            raise InputError(f"{where}: holds {wrong[:5].tolist()}, which are no classes of {self.classes.name}")
        return label


class Canvas:
    """Labels of one image, put together from regions that came back; what no region covers is ignored.

    Where regions overlap, one that says another class than the export counts, and of several such ones the last.
    People paint over what is there, and the tools do not always cut it away.
    """

    def __init__(self, exported: Labels, where: str) -> None:
        self.label = np.full_like(exported, IGNORE)
        self._exported, self._left, self._where = exported, _PAINTED * exported.size, where

    def paint(self, class_id: int, mask: NDArray[np.bool_], x: int = 0, y: int = 0) -> None:
        """Add a region (bool hxw) whose left upper corner lies at (x, y)."""
        self._left -= mask.size
        if self._left < 0:
            raise InputError(f"{self._where}: more regions than a picture has room for")
        part = np.s_[y : y + mask.shape[0], x : x + mask.shape[1]]
        label = self.label[part]
        label[mask & ((self._exported[part] != class_id) | (label == IGNORE))] = class_id


def polygon(corners: NDArray[np.float64], shape: tuple[int, ...], where: str) -> NDArray[np.bool_]:
    """Mask HxW of a polygon, (N, 2) of x and y in pixels; InputError: fewer than 3 corners, or some far outside."""
    with needs_extra("exchange"):
        from pycocotools import mask as coco
    if corners.shape[1:] != (2,) or len(corners) < 3 or not ((corners > -2) & (corners < max(shape) + 2)).all():
        raise InputError(f"{where}: a polygon needs 3 or more corners in the picture")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 with NumPy 2
        return np.asarray(coco.decode(coco.frPyObjects([corners.ravel().tolist()], *shape))[..., 0] > 0)


def of_runs(runs: list[int], shape: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """Mask of lengths of runs, row by row, the first one outside of the mask; InputError: they fit no such shape."""
    if min(runs) < 0 or sum(runs) != shape[0] * shape[1]:
        raise InputError(f"{where}: the runs of a mask are {sum(runs)} pixels, its box has {shape[0] * shape[1]}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(shape)


def load_json(path: Path) -> Any:
    """A JSON file of a tool; too large a one is refused, as its objects take several times its bytes."""
    size = path.stat().st_size
    if size > _JSON_BYTES:
        raise InputError(f"{path}: {size} bytes, at most {_JSON_BYTES} are read", hint="export it in parts")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON ({error!s:.200})") from error
