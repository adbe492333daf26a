"""Images and their label maps as they lie in folders: paired by name, read, and put into blocks of neighbours."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.checks import TURNED
from hmsa_core.data.decode import Header, holds_train_ids, read_header, read_image, read_label, read_label_ids
from hmsa_core.data.index import Sample
from hmsa_core.data.walk import by_image, is_empty, stem_of, walk
from hmsa_core.io.errors import DecodeError, InputError
from hmsa_core.labels.formats.cityscapes import IMAGE_ENDING, city_of
from hmsa_core.runtime.progress import Progress
from hmsa_core.taxonomy import IGNORE, ClassTable, cityscapes, cityscapes_void_colours

Ids = Literal["auto", "file", "train", "colours"]  # what labels hold
LabelReader = Callable[[str | Path], NDArray[np.uint8]]

_SHAPE_ERROR = 0.01  # share by which a label's proportions may differ from its image's, besides rounding to pixels
_LABEL_ENDINGS = {"ids": "_labelIds", "train": "_labelTrainIds"}
_SIZE = re.compile(r"[_-]?\d+x\d+$")
_LAST_NUMBER = re.compile(r"\d+(?=\D*$)")
_UNKNOWN = ("", -1, "", 0, 0, "", "", "", "")  # of a row: sequence, frame, block, size, digests, perceptual hash


def pairs_of(images: Path, labels: Path, *, train_ids: bool = False) -> tuple[list[Sample], list[Path], list[str]]:
    """Images with a label of the same stem, by name; images without one; and in words what else was left out.

    Where stems occur twice, their folders tell them apart, and folders without a pair are left out. So is an ending
    that all labels have more than their images.

    With `train_ids`, of Cityscapes' label maps `*_labelTrainIds` is taken, not `*_labelIds`.

    Raises:
        InputError: a label without its image, no pair at all, or two files of one name; names the first.
    """
    notes: list[str] = []
    if images.is_dir() and os.path.realpath(images) == os.path.realpath(labels):
        raise InputError(f"{images}: images and labels are one folder", hint="move the label maps into another one")
    pictures, maps = _without_copies(_files(images, "images", notes), notes), _files(labels, "labels", notes)
    alone = all(len({stem_of(path) for path in files}) == len(files) for files in (pictures, maps))
    with_image, with_label = _by_name(pictures, images, alone), _by_name(maps, labels, alone)
    with_image, with_label = _of_paired_folders(with_image, with_label, notes)
    if with_image.keys().isdisjoint(with_label):
        with_image = {name.removesuffix(IMAGE_ENDING): path for name, path in with_image.items()}
        with_label = by_image(_wanted(with_label, labels, train_ids), with_image)[0]
    no_image, no_label = sorted(with_label.keys() - with_image.keys()), sorted(with_image.keys() - with_label.keys())
    both = sorted(with_image.keys() & with_label.keys())
    for names, have, lack, files in (
        (no_image, "labels", "image", with_label),
        (no_label, "images", "label", with_image),
    ):
        if names and (have == "labels" or not both):
            raise InputError(
                f"{len(names)} of {len(files)} {have} have no {lack} of the same stem, the first is {files[names[0]]}",
                hint="images and labels are paired by file name without its ending",
            )
    pairs = [
        Sample(name, str(with_image[name]), str(with_label[name]), "", "fine", "", "report", city_of(name), *_UNKNOWN)
        for name in both
    ]
    return pairs, [with_image[name] for name in no_label], notes


def _files(folder: Path, what: str, notes: list[str]) -> list[Path]:
    """All files; of two of one name in a folder the one that is not empty."""
    if not folder.is_dir():
        raise InputError(f"--{what} {folder}: no such folder")
    found = walk(folder)
    pairing = [f"--{what} {folder}: {note}" for note in found.notes()]
    files: dict[tuple[Path, str], Path] = {}
    for path in found.paths():
        other = files.setdefault((path.parent, stem_of(path)), path)
        if other is not path and not is_empty(path):
            if not is_empty(other):
                raise InputError(f"{other} and {path} have the same stem")
            files[path.parent, stem_of(path)] = path
    if not files:
        none = f"--{what} {folder}: no JPEG, PNG, WebP or TIFF file in this folder"
        raise InputError("; ".join([none, *found.notes()]))
    notes += pairing
    return list(files.values())


def _without_copies(files: Sequence[Path], notes: list[str]) -> list[Path]:
    """The same without links to files that are among them: a picture counts once."""
    links = {path for path in files if path.is_symlink()}
    real = {os.path.realpath(path) for path in files if path not in links} if links else set()
    kept = [path for path in files if path not in links or os.path.realpath(path) not in real]
    if len(kept) < len(files):
        notes.append(f"{len(files) - len(kept)} images are links to others of them: left out")
    return kept


def _by_name(files: Sequence[Path], folder: Path, alone: bool) -> dict[str, Path]:
    """Files by stem, or with their folders where stems do not tell them apart."""
    return {stem_of(path) if alone else _place(path, folder): path for path in files}


def _place(path: Path, folder: Path) -> str:
    return normalize("NFC", (path.relative_to(folder).parent / path.stem).as_posix())


def _of_paired_folders(
    images: dict[str, Path], labels: dict[str, Path], notes: list[str]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """What lies in folders that hold a pair; all where there is none."""
    folders = {name.rpartition("/")[0] for name in images.keys() & labels.keys()}
    kept = [{n: p for n, p in files.items() if n.rpartition("/")[0] in folders} for files in (images, labels)]
    for files, paired, what in zip((images, labels), kept, ("images", "labels"), strict=True):
        if folders and (left := sorted(files.keys() - paired.keys())):
            notes.append(
                f"{len(left)} {what} in sub-folders without a pair are not scored, the first is {files[left[0]]}"
            )
    return (kept[0], kept[1]) if folders else (images, labels)


def _wanted(labels: dict[str, Path], folder: Path, train_ids: bool) -> dict[str, Path]:
    """Of the maps that Cityscapes has of each image, the one that is wanted, without its ending."""
    ending = _LABEL_ENDINGS["train" if train_ids else "ids"]
    if not any(name.endswith(tuple(_LABEL_ENDINGS.values())) for name in labels):
        return labels
    wanted = {name.removesuffix(ending): path for name, path in labels.items() if name.endswith(ending)}
    if not wanted:
        raise InputError(
            f"{folder}: no label is called *{ending}",
            hint="*_labelTrainIds are read with --ids train, *_labelIds without",
        )
    return wanted


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
    """How a label file becomes trainIds: as `read_label` says, or always by the colours of the classes.

    Cityscapes' colours of pixels without a class are read, too; its table is part of keys and does not have them.
    """
    if set(classes.classes) == set(cityscapes().classes):
        classes = replace(classes, void_colours=(*classes.void_colours, *cityscapes_void_colours()))
    return partial(read_label, classes=classes, by_colour=colours)


def check_labels(files: Sequence[Sample], classes: ClassTable, read: LabelReader, ids: Ids = "auto") -> list[str]:
    """Read every label, and of every image what may refuse it; what does not hinder scoring comes back in words.

    `classes` are those that were given, in that order.

    Raises:
        DecodeError: a damaged label, or a value that is no class; an image of a form that is not read.
        InputError: a label whose proportions are not those of its image; "auto", and they look like trainIds.
    """
    with Progress(len(files), what="read labels") as progress:
        sizes = [_other_size(file, classes, read, ids, progress.update) for file in files]
    if ids == "auto" and classes.has_file_ids:
        _refuse_train_ids(files, classes)
    resized, turned = [note for note, _ in sizes if note], sum(is_turned for _, is_turned in sizes)
    summary = f"{len(resized)} of {len(files)} labels have another size than their image and are scored at their own"
    notes = [f"{summary}; the first: {resized[0]}"] if resized else []
    if turned:
        notes.append(f"{turned} images have an EXIF rotation and are read upright: so must their label maps be")
    return notes


def _other_size(
    file: Sample, classes: ClassTable, read: LabelReader, ids: Ids, advance: Callable[[], None]
) -> tuple[str, bool]:
    try:
        label = read(file.label)
    except DecodeError as error:
        hint = "" if ids == "colours" or error.hint else _hint_of(error, classes)
        if not hint:
            raise
        raise DecodeError(error.message, reason=error.reason, hint=hint) from error
    (height, width), image = label.shape, _readable(file.image)
    advance()
    if (height, width) == (image.height, image.width):
        return "", image.orientation > 1
    turned = TURNED if image.orientation > 1 else ""
    sizes = f"{file.label} is {width}x{height}, {file.image} is {image.width}x{image.height}{turned}"
    if not alike(width, height, image.width, image.height):
        raise InputError(f"{sizes}: they do not show the same", hint="give each label its own image's proportions")
    return sizes, bool(turned)


def _hint_of(error: DecodeError, classes: ClassTable) -> str:
    if error.reason != "ids-out-of-range":
        return ""
    if classes.has_file_ids:
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
        holds_colours = read_header(file.label).mode in ("RGB", "RGBA")
        if holds_train_ids(file.label) or holds_colours or read_label_ids(file.label).max() > last:
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
