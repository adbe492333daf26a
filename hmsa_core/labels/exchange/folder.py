"""An export for another tool: a folder with pictures and labels in the tool's form, made as a whole.

    OUT/.exported/index.json   what was exported, of which store
    OUT/.exported/NAME.png     the labels as they were (trainIds, 255 = ignore): corrections are what differs from them

Each format is a module with `write(folder, about, items)` and `read(path, exported)`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import read_label_ids
from hmsa_core.io.atomic import make_folder, read_json, sha256_bytes, write_bytes, write_json
from hmsa_core.io.errors import ConfigError, InputError, IntegrityError
from hmsa_core.io.trees import new_tree
from hmsa_core.labels.exporting import Selection, prob_of, sure_codes, target_path
from hmsa_core.labels.review import UNTOUCHED, Labels, ReviewFile, labels_id, marked_store, reviewed
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.store.format import png_bytes
from hmsa_core.labels.store.reader import LabelStore
from hmsa_core.labels.thresholds.policy import ThresholdPolicy
from hmsa_core.taxonomy import IGNORE, ClassTable

TOOLS = ("cvat", "label-studio", "coco-panoptic", "huggingface", "fiftyone")  # each a module, with _ for -
EXPORTED = ".exported"
_VERSION = 1
_JSON_BYTES = 256 << 20
_PAINTED = 1000  # times the pixels of an image, all regions of it together


@dataclass(frozen=True)
class Item:
    """One image of an export."""

    name: str
    file: str  # name of its picture there
    picture: bytes
    label: Labels  # trainIds, 255 = ignore
    code: Labels
    prob: Labels  # bytes of confidence, as of the released layout


@dataclass(frozen=True)
class About:
    """What is exported."""

    store: LabelStore
    policy: ThresholdPolicy | None

    @property
    def classes(self) -> ClassTable:
        """The store's class table."""
        return self.store.classes

    def colour(self, class_id: int) -> str:
        """As #rrggbb."""
        return "#" + bytes(self.classes.colours[class_id]).hex()


@dataclass(frozen=True)
class Returned:
    """The labels of one image as they came back; `who` and `when` are "" where the tool does not say."""

    name: str
    label: Labels
    who: str = ""
    when: str = ""


def export_to_tool(
    store: LabelStore,
    out: Path,
    fmt: str,
    *,
    picture: Callable[[str], Path],
    policy: ThresholdPolicy | None = None,
    names: list[str] | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> int:
    """Write a new folder, corrections of before in its labels; return the number of images.

    Args:
        store, policy, names: as in `export_store`.
        out, fmt: a folder that does not exist, or is empty; one of TOOLS.
        picture: path of an image's photograph.

    Raises:
        ConfigError: the folder is not empty. IntegrityError: a photograph is another one than was labelled.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: not empty", hint="give a new folder: people may have corrected what is there")
    if store.classes.num_classes > UNTOUCHED:
        raise ConfigError(f"{store.path}: has {store.classes.num_classes} classes, at most {UNTOUCHED} are exported")
    selection, images = Selection(store, policy), dict[str, dict[str, Any]]()
    pictures = {row["name"]: row["image_sha256"] for row in store.rows()}
    marks = ReviewFile(marked_store(store.path.resolve(), store.kind), pictures).by_name()

    def items(folder: Path) -> Iterator[Item]:
        for name in store.names() if names is None else names:
            row, path = store.row(name), picture(name)
            target_path(folder, EXPORTED, f"{name}.png")
            data = path.read_bytes()
            if row["image_sha256"] and sha256_bytes(data) != row["image_sha256"]:
                raise IntegrityError(f"{path}: is another picture than the one that was labelled", hint="label it anew")
            label, code = selection.read(name)
            corrected = reviewed(marks.get(name, []), label.shape[0], label.shape[1], store.classes)[1]
            label = np.where(corrected == UNTOUCHED, label, corrected)  # nobody corrects the same twice
            code = np.where(corrected == UNTOUCHED, sure_codes(store, name, code), np.uint8(NUM_CODES - 1))
            file = f"{name}{path.suffix.lower()}"
            sha256 = write_bytes(folder / EXPORTED / f"{name}.png", png_bytes(label))
            known = {key: row[key] for key in ("image_sha256", "label_sha256", "height", "width")}
            images[name] = {"file": file, "sha256": sha256, **known}
            yield Item(name, file, data, label, code, prob_of(store, label, code))
            advance(1)

    with new_tree(out) as folder:
        make_folder(folder / EXPORTED)
        _module(fmt).write(folder, About(store, policy), items(folder))
        index = {"format": fmt, "version": _VERSION, "labels": labels_id(store.lineage), "images": images}
        write_json(folder / EXPORTED / "index.json", index | {"classes": store.classes.to_json()})
    return len(images)


def _module(fmt: str) -> Any:
    return importlib.import_module(f"hmsa_core.labels.exchange.{fmt.replace('-', '_')}")


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
                hint=f"give the folder that `autolabel export --format {'|'.join(TOOLS)}` wrote",
            )
        index = read_json(where)
        try:
            self.format, self.labels, self.images = index["format"], str(index["labels"]), dict(index["images"])
            self.classes = ClassTable.from_json(index["classes"])
            if self.format not in TOOLS or index["version"] != _VERSION:
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
        path = target_path(self.path, EXPORTED, f"{name}.png")
        label = read_label_ids(path, sha256=str(self.images[name]["sha256"]))
        if label.shape != self.size(name):
            raise IntegrityError(f"{path}: is {label.shape}, the index says {self.size(name)}")
        return label

    def read(self, path: Path) -> Iterator[Returned]:
        """Labels that a tool returned, image by image; a damaged or hostile file is an InputError with its name."""
        if not path.exists():
            raise InputError(f"{path}: not found")
        try:
            returned: Iterator[Returned] = _module(self.format).read(path, self)
            yield from (one for one in returned if (one.label != IGNORE).any())  # an empty one nobody looked at
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


def load_json(path: Path) -> Any:
    """A JSON file of a tool; too large a one is refused, as its objects take several times its bytes."""
    size = path.stat().st_size
    if size > _JSON_BYTES:
        raise InputError(f"{path}: {size} bytes, at most {_JSON_BYTES} are read", hint="export it in parts")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON ({error!s:.200})") from error
