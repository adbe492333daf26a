"""Images and their label maps as they lie in folders: paired by name, read, and put into blocks of neighbours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import Header, holds_train_ids, read_header, read_image, read_label, read_label_ids
from hmsa_core.data.index import Sample
from hmsa_core.data.layouts import list_files, list_folders
from hmsa_core.io.errors import ConfigError, DecodeError, InputError
from hmsa_core.labels.exporting import IMAGE_ENDING, city_of
from hmsa_core.runtime.progress import Progress
from hmsa_core.taxonomy import IGNORE, ClassTable

Ids = Literal["auto", "file", "train", "colours"]  # what labels hold
LabelReader = Callable[[str | Path], NDArray[np.uint8]]

_SHAPE_ERROR = 0.01  # share by which a label's proportions may differ from its image's, beside rounding to pixels
_LABEL_ENDINGS = {"ids": "_labelIds", "train": "_labelTrainIds"}
_PARTS = ("_gtFine", "_gtCoarse", "_L")  # _L: CamVid's own labels
_SIZE = re.compile(r"[_-]?\d+x\d+$")
_LAST_NUMBER = re.compile(r"\d+(?=\D*$)")
_UNKNOWN = ("", -1, "", 0, 0, "", "", "", "")  # of a row: sequence, frame, block, size, digests, perceptual hash


def pairs_of(images: Path, labels: Path, *, train_ids: bool = False) -> tuple[list[Sample], list[Path]]:
    """Images with a label of the same stem, by name, and images without one. Paths are as those that are given.

    Sub-folders are searched where a folder holds no file itself; where stems occur twice, their folders tell them
    apart. Cityscapes' and CamVid's own endings are left out where no two stems are the same.

    With `train_ids`, of Cityscapes' label maps `*_labelTrainIds` is taken, not `*_labelIds`.

    Raises:
        InputError: a label without its image, no pair at all, or two files of one name; names the first.
    """
    found = {"images": _files(images, "images"), "labels": _files(labels, "labels")}
    alone = all(len({path.stem for path in files}) == len(files) for files in found.values())
    by_image = _by_name(found["images"], images, alone)
    by_label = _by_name(found["labels"], labels, alone)
    if not by_image.keys() & by_label.keys():
        by_image = _renamed(by_image, lambda name: name.removesuffix(IMAGE_ENDING))
        by_label = _without_endings(by_label, labels, train_ids)
    no_image, no_label = sorted(by_label.keys() - by_image.keys()), sorted(by_image.keys() - by_label.keys())
    both = sorted(by_image.keys() & by_label.keys())
    for names, have, lack, files in ((no_image, "labels", "image", by_label), (no_label, "images", "label", by_image)):
        if names and (have == "labels" or not both):
            raise InputError(
                f"{len(names)} of {len(files)} {have} have no {lack} of the same stem, the first is {files[names[0]]}",
                hint="images and labels are paired by file name without its ending",
            )
    paired = [
        Sample(name, str(by_image[name]), str(by_label[name]), "", "fine", "", "report", city_of(name), *_UNKNOWN)
        for name in both
    ]
    return paired, [by_image[name] for name in no_label]


def _files(folder: Path, what: str) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"--{what} {folder}: no such folder")
    found = [folder / name for name in list_files(folder)] or list(_files_below(folder))
    if not found:
        raise InputError(f"--{what} {folder}: no JPEG, PNG, WebP or TIFF file in this folder")
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    for name in list_folders(folder):
        yield from (folder / name / file for file in list_files(folder / name))
        yield from _files_below(folder / name)


def _by_name(files: Sequence[Path], folder: Path, alone: bool) -> dict[str, Path]:
    """Files by stem, or with their folders where stems do not tell them apart."""
    names = [path.stem if alone else path.relative_to(folder).with_suffix("").as_posix() for path in files]
    return _unique(zip(names, files, strict=True), "stem")


def _renamed(files: Mapping[str, Path], bare: Callable[[str], str]) -> dict[str, Path]:
    return _unique(((bare(name), path) for name, path in files.items()), "name but for their endings")


def _unique(files: Iterable[tuple[str, Path]], what: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in files:
        if found.setdefault(name, path) is not path:
            raise InputError(f"{found[name]} and {path} have the same {what}")
    return found


def _without_endings(labels: dict[str, Path], folder: Path, train_ids: bool) -> dict[str, Path]:
    """Labels by their bare names; of the maps that Cityscapes has of each image, the one that is wanted."""
    ending = _LABEL_ENDINGS["train" if train_ids else "ids"]
    if any(name.endswith(tuple(_LABEL_ENDINGS.values())) for name in labels):
        wanted = {name: path for name, path in labels.items() if name.endswith(ending)}
        if not wanted:
            raise InputError(
                f"{folder}: no label is called *{ending}",
                hint="*_labelTrainIds are read with --ids train, *_labelIds without",
            )
        labels = _renamed(wanted, lambda name: name.removesuffix(ending))
    part = next((part for part in _PARTS if all(name.endswith(part) for name in labels)), "")
    return _renamed(labels, lambda name: name.removesuffix(part))


def in_order_of(classes: ClassTable, names: Sequence[str]) -> ClassTable:
    """The same classes and ids with trainIds in another order of the (lower-case) names."""
    known = [name.lower() for name in classes.classes]
    order = [known.index(name) for name in names]
    moved = np.full(256, IGNORE, np.uint8)
    moved[order] = np.arange(len(order))
    return replace(
        classes,
        classes=tuple(classes.classes[i] for i in order),
        colours=tuple(classes.colours[i] for i in order),
        groups=tuple(classes.groups[i] for i in order),
        id_to_train=moved[classes.id_to_train],
        train_to_id=tuple(classes.train_to_id[i] for i in order),
    )


def label_reader(classes: ClassTable, *, colours: bool = False) -> LabelReader:
    """How a label file becomes trainIds: by its ids, or by the colours of the classes (black = ignored)."""
    if not colours:
        return lambda path: read_label(path, classes)
    known: dict[tuple[int, int, int], int] = {(0, 0, 0): IGNORE}
    for number, colour in enumerate(classes.colours):
        if known.setdefault(colour, number) not in (number, IGNORE):
            text = f"{classes.name}: two classes have the colour {colour}, so a label's colour names no single class"
            raise ConfigError(text, hint="give each class its own colour, or give labels of ids")
        known[colour] = number
    keys = np.array([(r << 16) | (g << 8) | b for r, g, b in known], np.int32)
    values = np.array(list(known.values()), np.uint8)
    order = np.argsort(keys)
    return lambda path: _by_colour(path, keys[order], values[order], classes)


def _by_colour(
    path: str | Path, keys: NDArray[np.int32], values: NDArray[np.uint8], classes: ClassTable
) -> NDArray[np.uint8]:
    if read_header(path).format == "JPEG":
        raise DecodeError(
            f"{path}: a JPEG's colours are not those that were drawn",
            reason="wrong-mode",
            hint="label maps are lossless: PNG, TIFF or WebP",
        )
    pixels = read_image(path).astype(np.int32)
    packed = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    place = np.minimum(np.searchsorted(keys, packed), len(keys) - 1)
    wrong = packed[keys[place] != packed]
    if len(wrong):
        first = int(wrong[0])
        raise DecodeError(
            f"{path}: {len(wrong)} pixels have colours of no class of {classes.name}, the first: "
            f"{(first >> 16, first >> 8 & 255, first & 255)}",
            reason="ids-out-of-range",
            hint="give the colours of these labels in the class file; black is ignored where no class has it",
        )
    return values[place]


def check_labels(files: Sequence[Sample], classes: ClassTable, read: LabelReader, ids: Ids = "auto") -> list[str]:
    """Read every label, and of every image what may refuse it; what does not hinder scoring comes back in words.

    `classes` are those that were given, in that order.

    Raises:
        DecodeError: a damaged label, or a value that is no class; an image of a form that is not read.
        InputError: a label whose proportions are not those of its image; "auto", and they look like trainIds.
    """
    with Progress(len(files), what="read labels") as progress:
        sizes = [_other_size(file, classes, read, ids, progress.update) for file in files]
    if ids == "auto" and classes.has_own_ids:
        _refuse_train_ids(files, classes)
    resized = [note for note in sizes if note]
    text = f"{len(resized)} of {len(files)} labels have another size than their image and are scored at their own"
    return [f"{text}; the first: {resized[0]}"] if resized else []


def _other_size(file: Sample, classes: ClassTable, read: LabelReader, ids: Ids, advance: Callable[[], None]) -> str:
    try:
        label = read(file.label)
    except DecodeError as error:
        hint = "" if ids == "colours" else _hint_of(error, classes)
        if not hint:
            raise
        raise DecodeError(error.message, reason=error.reason, hint=hint) from error
    (height, width), image = label.shape, _readable(file.image)
    advance()
    if (height, width) == (image.height, image.width):
        return ""
    text = f"{file.label} is {width}x{height}, {file.image} is {image.width}x{image.height}"
    if not alike(width, height, image.width, image.height):
        raise InputError(f"{text}: they do not show the same", hint="give each label its own image's proportions")
    return text


def _hint_of(error: DecodeError, classes: ClassTable) -> str:
    if error.reason == "wrong-mode":
        return f"{error.hint}; maps that hold the colours of the class file are read with --ids colours"
    if error.reason != "ids-out-of-range":
        return ""
    if classes.has_own_ids:
        return f"labels that hold trainIds (0..{classes.num_classes - 1}, 255 = ignored) are read with --ids train"
    return 'pixels without a class hold 255, or what the class file gives as "ignore_id"'


def _readable(path: str) -> Header:
    """An image's header; one whose form may be refused (CMYK, transparent pixels) is decoded at once."""
    header = read_header(path)
    if header.mode not in ("RGB", "L") or (header.format == "PNG" and not header.plain):
        read_image(path)
    return header


def _refuse_train_ids(files: Sequence[Sample], classes: ClassTable) -> None:
    """Numbers that are ids and trainIds alike would be scored as other classes, and nobody would notice."""
    last = classes.num_classes  # often void
    if max(classes.train_to_id) <= last:
        return
    for file in files:
        if holds_train_ids(file.label) or read_label_ids(file.label).max() > last:
            return
    raise InputError(
        f"no label in {Path(files[0].label).parent} holds a number above {last}: trainIds, or ids of {classes.name}?",
        hint="say --ids train or --ids file",
    )


def alike(width: int, height: int, image_width: int, image_height: int) -> bool:
    """Whether two sizes show the same, one of them resized and rounded."""
    expected = image_width * height / image_height
    return abs(width - expected) <= 1 + image_width / image_height + _SHAPE_ERROR * expected


def blocks_of(names: Sequence[str], length: int) -> list[str]:
    """Block of each name for intervals, "sequence/place": runs of `length` neighbours of a sequence.

    A Cityscapes name belongs to its city, in the order of names; another one to the sequence before its last number,
    the size of the picture (`0001TP_008550_480x360`) left out.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        sequence, frame = _sequence_of(name)
        groups.setdefault(sequence, []).append((frame, name))
    found = {
        name: f"{sequence}/{place // length:04d}"
        for sequence, members in groups.items()
        for place, (_, name) in enumerate(sorted(members))
    }
    return [found[name] for name in names]


def _sequence_of(name: str) -> tuple[str, int]:
    city = city_of(Path(name).name.removesuffix(IMAGE_ENDING))
    if city:
        return city, 0
    bare = _SIZE.sub("", name)
    number = _LAST_NUMBER.search(bare)
    return (bare[: number.start()], int(number.group())) if number else ("", -1)
