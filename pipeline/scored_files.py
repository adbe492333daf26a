"""Images and their label maps as they lie in folders: paired by name, read, and put into blocks of neighbours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import holds_train_ids, read_header, read_image, read_label, read_label_ids
from hmsa_core.data.layout import list_files, list_folders
from hmsa_core.errors import ConfigError, DecodeError, InputError
from hmsa_core.labels.exchange.files import city_of
from hmsa_core.taxonomy import IGNORE, ClassTable

if TYPE_CHECKING:
    from hmsa_core.data.headers import Header

__all__ = ["LabelReader", "LabelledFile", "blocks_of", "check_labels", "in_order_of", "label_reader", "pairs_of"]

LabelReader = Callable[[Path], NDArray[np.uint8]]

_SHAPE_ERROR = 0.01  # share by which a label's proportions may differ from its image's, beside rounding to pixels
_IMAGE_ENDING = "_leftImg8bit"  # Cityscapes' names
_LABEL_ENDINGS = ("_labelIds", "_labelTrainIds")
_PARTS = ("_gtFine", "_gtCoarse", "_L")  # _L: CamVid's own labels
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class LabelledFile:
    """An image file and its label file."""

    name: str
    image: Path
    label: Path


def pairs_of(images: Path, labels: Path, *, train_ids: bool = False) -> tuple[list[LabelledFile], list[Path]]:
    """Files of the same stem, sorted, and images without a label; folders may hold sub-folders (cities).

    Cityscapes' and CamVid's own endings of names are left out where stems differ by them.

    Args:
        images, labels: folders.
        train_ids: of Cityscapes' label maps take `*_labelTrainIds`, not `*_labelIds`.

    Raises:
        InputError: a label without its image, no pair at all, or two files of one stem; names the first.
    """
    by_image, by_label = _by_stem(images, "images"), _by_stem(labels, "labels")
    if by_image.keys() != by_label.keys():
        by_image, by_label = _without_endings(by_image, _LABEL_ENDINGS[train_ids], by_label)
    no_image, no_label = sorted(by_label.keys() - by_image.keys()), sorted(by_image.keys() - by_label.keys())
    both = sorted(by_image.keys() & by_label.keys())
    for stems, have, lack, files in ((no_image, "labels", "image", by_label), (no_label, "images", "label", by_image)):
        if stems and (have == "labels" or not both):
            raise InputError(
                f"{len(stems)} of {len(files)} {have} have no {lack} of the same stem, the first is {files[stems[0]]}",
                hint="images and labels are paired by file name without its ending",
            )
    return [LabelledFile(stem, by_image[stem], by_label[stem]) for stem in both], [by_image[stem] for stem in no_label]


def _by_stem(folder: Path, what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"--{what} {folder}: no such folder")
    found: dict[str, Path] = {}
    for path in _files(folder):
        if path.stem in found:
            raise InputError(f"{folder}: {found[path.stem].relative_to(folder)} and {path.relative_to(folder)} have "
                             "the same stem")  # fmt: skip
        found[path.stem] = path
    if not found:
        raise InputError(f"--{what} {folder}: no JPEG, PNG, WebP or TIFF file in this folder")
    return found


def _files(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in list_files(folder))
    for name in list_folders(folder):
        yield from _files(folder / name)


def _without_endings(
    images: dict[str, Path], wanted: str, labels: dict[str, Path]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Both by their bare names; of the maps that Cityscapes has of each image, the one that is wanted."""
    if any(stem.endswith(_LABEL_ENDINGS) for stem in labels):
        labels = {stem.removesuffix(wanted): path for stem, path in labels.items() if stem.endswith(wanted)}
    for part in _PARTS:
        if labels and all(stem.endswith(part) for stem in labels):
            labels = {stem.removesuffix(part): path for stem, path in labels.items()}
    return {stem.removesuffix(_IMAGE_ENDING): path for stem, path in images.items()}, labels


def in_order_of(classes: ClassTable, names: Sequence[str], files: Sequence[LabelledFile]) -> ClassTable:
    """The same classes and ids with trainIds in another order of the (lower-case) names.

    Raises:
        ConfigError: a label map holds trainIds by its name: whose order they are in nobody knows.
    """
    asked = [name.lower() for name in classes.classes]
    order = [asked.index(name) for name in names]
    if order == list(range(len(order))):
        return classes
    if any(holds_train_ids(file.label) for file in files):
        raise ConfigError(
            f"{classes.name}: labels hold trainIds, and its classes have another order than the checkpoint's",
            hint="give the classes in the order of the labels' trainIds and of the checkpoint",
        )
    moved = np.full(256, IGNORE, np.uint8)
    moved[order] = np.arange(len(order))
    return replace(
        classes, classes=tuple(classes.classes[i] for i in order), colours=tuple(classes.colours[i] for i in order),
        groups=tuple(classes.groups[i] for i in order), id_to_train=moved[classes.id_to_train],
        train_to_id=tuple(classes.train_to_id[i] for i in order),
    )  # fmt: skip


def label_reader(classes: ClassTable, *, colours: bool = False) -> LabelReader:
    """How a label file becomes trainIds: by its ids, or by the colours of the classes (black = ignored)."""
    if not colours:
        return lambda path: read_label(path, classes)
    known: dict[tuple[int, int, int], int] = {(0, 0, 0): IGNORE}
    for number, colour in enumerate(classes.colours):
        if known.setdefault(colour, number) not in (number, IGNORE):
            raise ConfigError(f"{classes.name}: two classes have the colour {colour}: labels cannot be told by colour")
        known[colour] = number
    keys = np.array([(r << 16) | (g << 8) | b for r, g, b in known], np.int32)
    values = np.array(list(known.values()), np.uint8)
    order = np.argsort(keys)
    return lambda path: _by_colour(path, keys[order], values[order], classes)


def _by_colour(
    path: Path, keys: NDArray[np.int32], values: NDArray[np.uint8], classes: ClassTable
) -> NDArray[np.uint8]:
    if read_header(path).format == "JPEG":
        raise DecodeError(f"{path}: a JPEG's colours are not those that were drawn", reason="wrong-mode",
                          hint="label maps are lossless: PNG, TIFF or WebP")  # fmt: skip
    pixels = read_image(path).astype(np.int32)
    packed = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    place = np.minimum(np.searchsorted(keys, packed), len(keys) - 1)
    wrong = packed[keys[place] != packed]
    if len(wrong):
        first = int(wrong[0])
        raise DecodeError(
            f"{path}: {len(wrong)} pixels have colours of no class of {classes.name}, the first: "
            f"{(first >> 16, first >> 8 & 255, first & 255)}", reason="ids-out-of-range",
            hint="give the colours of these labels in the class file; black is ignored where no class has it",
        )  # fmt: skip
    return values[place]


def check_labels(
    files: Sequence[LabelledFile], classes: ClassTable, *, sure: bool = True, read: LabelReader | None = None
) -> list[str]:
    """Read every label, and of every image what may refuse it; what does not hinder scoring comes back in words.

    Args:
        sure: somebody said that labels hold the ids of `classes`.
        read: how labels are read; None = by their ids.

    Raises:
        DecodeError: a damaged label, or a value that is no class; an image of a form that is not read.
        InputError: a label whose proportions are not those of its image; not `sure`, and they look like trainIds.
    """
    from hmsa_core.engine.progress import Progress

    reader = read or label_reader(classes)
    with Progress(len(files), what="read labels") as progress:
        sizes = [_other_size(file, classes, reader, progress.update) for file in files]
    if not sure and classes.has_own_ids:
        _refuse_train_ids(files, classes)
    resized = [told for told in sizes if told]
    if not resized:
        return []
    return [f"{len(resized)} of {len(files)} labels have another size than their image and are scored at their own; "
            f"the first: {resized[0]}"]  # fmt: skip


def _other_size(file: LabelledFile, classes: ClassTable, read: LabelReader, advance: Callable[[], None]) -> str:
    try:
        label = read(file.label)
    except DecodeError as error:
        if error.reason == "wrong-mode" and not error.hint.startswith("label maps are lossless:"):
            hint = f"{error.hint}; maps that hold the colours of the class file are read with --ids colours"
            raise DecodeError(error.message, reason=error.reason, hint=hint) from error
        if error.reason != "ids-out-of-range" or error.hint:
            raise
        hint = 'pixels without a class hold 255, or what the class file gives as "ignore_id"'
        if classes.has_own_ids:
            hint = f"labels that hold trainIds (0..{classes.num_classes - 1}, 255 = ignored) are read with --ids train"
        raise DecodeError(error.message, reason=error.reason, hint=hint) from error
    (height, width), image = label.shape, _readable(file.image)
    advance()
    if (height, width) == (image.height, image.width):
        return ""
    told = f"{file.label} is {width}x{height}, {file.image} is {image.width}x{image.height}"
    if not _alike(width, height, image.width, image.height):
        raise InputError(f"{told}: they do not show the same", hint="give each label its own image's proportions")
    return told


def _readable(path: Path) -> Header:
    """An image's header; one whose form may be refused (CMYK, transparent pixels) is decoded at once."""
    header = read_header(path)
    if header.mode not in ("RGB", "L"):
        read_image(path)
    return header


def _refuse_train_ids(files: Sequence[LabelledFile], classes: ClassTable) -> None:
    """Numbers that are ids and trainIds alike would be scored as other classes, and nobody would notice."""
    last = classes.num_classes  # often void
    if max(classes.train_to_id) <= last:
        return
    for file in files:
        if holds_train_ids(file.label) or read_label_ids(file.label).max() > last:
            return
    raise InputError(
        f"no label in {files[0].label.parent} holds a number above {last}: trainIds, or ids of {classes.name}?",
        hint="say --ids train or --ids file",
    )


def _alike(width: int, height: int, image_width: int, image_height: int) -> bool:
    """Whether two sizes show the same, one of them resized and rounded."""
    expected = image_width * height / image_height
    return abs(width - expected) <= 1 + image_width / image_height + _SHAPE_ERROR * expected


def blocks_of(names: Sequence[str], length: int) -> list[str]:
    """Block of each name for intervals, "sequence/place": runs of `length` neighbours of a sequence.

    A Cityscapes name belongs to its city, in the order of names; another one to the sequence before its frame number,
    which is the last number that differs among names of the same form (`0001TP_008550_480x360`).
    """
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(_NUMBER.sub("#", name), []).append(name)
    groups: dict[str, list[tuple[int, str]]] = {}
    for alike in forms.values():
        place = _frame_place(alike)
        for name in alike:
            sequence, frame = _sequence_of(name, place)
            groups.setdefault(sequence, []).append((frame, name))
    found = {
        name: f"{sequence}/{place // length:04d}"
        for sequence, members in groups.items()
        for place, (_, name) in enumerate(sorted(members))
    }
    return [found[name] for name in names]


def _frame_place(alike: Sequence[str]) -> int:
    """Which of the numbers in names of one form counts the frames."""
    columns = list(zip(*(_NUMBER.findall(name) for name in alike), strict=True))
    return max((i for i, column in enumerate(columns) if len(set(column)) > 1), default=len(columns) - 1)


def _sequence_of(name: str, place: int) -> tuple[str, int]:
    city = city_of(name.removesuffix(_IMAGE_ENDING))
    if city:
        return city, 0
    if place < 0:
        return "", -1
    number = list(_NUMBER.finditer(name))[place]
    return name[: number.start()], int(number.group())
