"""Convert pixels of a label map to trainIds, by the numbers or by the colours in its file.

Numbers are read where a file has numbers, and colours where it has colours. A palette image has both. If numbers and
colours mean different classes, the right class is unknown, so the image is refused. A grey map that an editor saved as
RGB is read as grey where its greys are ids and no colours of classes.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import DecodeError
from hmsa_core.taxonomy import IGNORE, ClassTable

UInt8 = NDArray[np.uint8]
Colour = tuple[int, int, int]
Palette = list[Colour]
_BLACK = (0, 0, 0)  # ignored if no class has this colour


def to_train_ids(
    pixels: NDArray[np.uint8] | NDArray[np.uint16],
    palette: Palette,
    classes: ClassTable,
    where: str,
    *,
    by_colour: bool = False,
) -> UInt8:
    """TrainIds (uint8 HxW, 255 = ignored) of a decoded label map.

    Args:
        pixels: numbers HxW, or RGB HxWx3.
        palette: colours of the numbers, empty where the file has none.
        classes: the table that maps ids and colours. Unknown values are refused, never dropped.
        where: the file, for messages.
        by_colour: read numbers by their colours, too (grey is a colour).

    Raises:
        DecodeError: a number or colour of no class; a palette whose numbers and colours mean different classes.
    """
    if pixels.ndim == 3 and (by_colour or not _are_grey_ids(pixels, classes)):
        return _of_colours(np.asarray(pixels, np.uint8), classes, where)
    numbers = narrowed(pixels if pixels.ndim == 2 else pixels[..., 0].copy(), where)
    used = np.asarray(cv2.calcHist([numbers], [0], None, [256], [0, 256])).ravel() > 0
    shown = palette or [(i, i, i) for i in range(256)]
    if by_colour or (palette and _only_colours_fit(np.flatnonzero(used).tolist(), palette, classes, where)):
        table = np.zeros((256, 1, 3), np.uint8)
        table[: len(shown), 0] = shown
        return np.asarray(cv2.LUT(numbers, _of_colours(table, classes, where, used).ravel()), np.uint8)
    wrong = np.flatnonzero(used & ~classes.valid_ids).tolist()
    if wrong:
        raise _no_class(f"values {', '.join(map(str, wrong[:5]))} are not {_known(classes, where)}", where)
    return np.asarray(cv2.LUT(numbers, classes.id_to_train), np.uint8)


def _are_grey_ids(rgb: NDArray[Any], classes: ClassTable) -> bool:
    """Whether an editor saved a grey map of ids as RGB: no colour of a class is in it, and all greys are ids."""
    if (rgb[:1] != rgb[:1, :, :1]).any() or (rgb != rgb[..., :1]).any():
        return False
    used = np.unique(rgb).tolist()
    shown = {colour[0] for colour in classes.colours if len(set(colour)) == 1 and colour != _BLACK}
    return used != [0] and bool(classes.valid_ids[used].all()) and shown.isdisjoint(used)


def narrowed(pixels: NDArray[np.uint8] | NDArray[np.uint16], where: str) -> UInt8:
    """Convert numbers of 16 bits to bytes; DecodeError for a number above 255, which is no id."""
    if pixels.dtype != np.uint8 and pixels.max() > IGNORE:
        cure = "give maps of class ids, not of single things; renumber larger class ids in maps and class file"
        raise _no_class(f"16-bit values up to {pixels.max()}, ids are at most {IGNORE}", where, cure)
    return pixels.astype(np.uint8, copy=False)


def holds_train_ids(path: object) -> bool:
    """Whether a label map's name marks its pixels as trainIds, not ids."""
    return str(path).endswith("_labelTrainIds.png")


def _known(classes: ClassTable, where: str) -> str:
    return f"trainIds 0..{classes.num_classes - 1} and 255" if holds_train_ids(where) else f"ids of {classes.name}"


def _no_class(text: str, where: str, hint: str = "") -> DecodeError:
    return DecodeError(f"{where}: {text}", reason="ids-out-of-range", hint=hint)


def _by_colour(classes: ClassTable, where: str) -> dict[Colour, int]:
    """TrainId of each colour; DecodeError where two classes have one colour."""
    known: dict[Colour, int] = {}
    for number, colour in enumerate(classes.colours):
        if known.setdefault(colour, number) != number:
            raise DecodeError(
                f"{where}: holds colours, but two classes of {classes.name} have the colour {colour}",
                reason="wrong-mode",
                hint="give each class a colour of its own, or write ids as 8-bit grey",
            )
    return {_BLACK: IGNORE, **dict.fromkeys(classes.void_colours, IGNORE), **known}


def _of_colours(rgb: UInt8, classes: ClassTable, where: str, used: NDArray[np.bool_] | None = None) -> UInt8:
    """TrainIds of RGB pixels HxWx3; `used` limits the check to these rows."""
    known = _by_colour(classes, where)
    keys = np.array(list(known), np.int32) @ [65536, 256, 1]
    order = np.argsort(keys)
    packed = rgb.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    place = order[np.minimum(np.searchsorted(keys, packed, sorter=order), len(keys) - 1)]
    strange = keys[place] != packed
    if used is not None:
        strange &= used[:, None]
    if strange.any():
        first = tuple(int(v) for v in rgb[strange][0])
        count = f"{int(strange.sum())} pixels have" if used is None else f"{int(strange.sum())} palette numbers have"
        raise _no_class(
            f"{count} colours of no class of {classes.name}, the first: {first}",
            where,
            "give the colours of these labels in the class file (black is ignored where no class has it), or write "
            "ids as 8-bit grey",
        )
    return np.array(list(known.values()), np.uint8)[place]


def _only_colours_fit(used: list[int], palette: Palette, classes: ClassTable, where: str) -> bool:
    """Whether the numbers of a palette image are no ids, and its colours are those of classes.

    Raises:
        DecodeError: a number is a valid id and its colour means another id.
    """
    by_id = dict(zip(map(int, classes.train_to_id), classes.colours, strict=True))
    shown = {number: palette[number] for number in used if number < len(palette)}
    known = set(by_id.values())
    if not known.isdisjoint(shown.values()):
        known.add(_BLACK)
        if not all(classes.valid_ids[used]):
            return known.issuperset(shown.values())
    for number, colour in shown.items():
        if colour in known and by_id.get(number, colour) != colour:
            other = next((f"class {i}" for i, one in by_id.items() if one == colour), "no class")
            raise DecodeError(
                f"{where}: number {number} has the colour of {other} in its palette",
                reason="wrong-mode",
                hint="a colour mask that was saved with a palette: write the ids as 8-bit grey, or the colours as RGB",
            )
    greys = [(number, colour[0]) for number, colour in shown.items() if len(set(colour)) == 1]
    valid = {*by_id, classes.ignored_id, IGNORE}
    are_ids = len(greys) == len(used) and valid.issuperset(grey for _, grey in greys)
    if are_ids and any(number != grey for number, grey in greys):
        raise DecodeError(
            f"{where}: a grey map in palette form, whose numbers are not its grey values",
            reason="wrong-mode",
            hint="write it as 8-bit grey without a palette",
        )
    return False
