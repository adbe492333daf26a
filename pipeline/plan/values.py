"""What label maps hold: numbers or colours, how many pixels and images have each, and which sizes differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.checks import TURNED
from hmsa_core.data.decode import read_header, read_label_values
from hmsa_core.io.errors import DecodeError, InputError
from pipeline.plan.findings import Findings
from pipeline.plan.reading import Reading

Colour = tuple[int, int, int]
MOST_MAPS = 2000  # maps that are read; of more, those with the smallest hashes of their names
MOST_CLASSES = 254
_SIZES = 3  # that a plan lists
_SIZED = 50  # images whose size alone is read
_MOST_COLOURS = 1000  # of one map; a photograph has more
_MANY = 10  # values of one map: of fewer it is not asked how they lie


@dataclass
class Values:
    """What the label maps of a data set hold."""

    kind: str  # "ids" or "colours"; colours are packed: 65536 r + 256 g + b
    pixels: Counter[int] = field(default_factory=Counter)
    maps: Counter[int] = field(default_factory=Counter)
    example: dict[int, str] = field(default_factory=dict)  # an image with the value
    palette: dict[int, Colour] = field(default_factory=dict)  # of ids
    of_image: dict[str, frozenset[int]] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # height, width of images

    @property
    def size(self) -> tuple[int, int]:
        """Median height and width of the images."""
        heights, widths = zip(*self.sizes, strict=True)
        return int(median(heights)), int(median(widths))

    @property
    def sizes_text(self) -> str:
        """The most frequent sizes as width x height, with counts where there are several."""
        common = Counter(self.sizes).most_common(_SIZES)
        texts = [f"{width}x{height}" + (f" ({count})" if len(common) > 1 else "") for (height, width), count in common]
        return ", ".join(texts) + (", ..." if len(set(self.sizes)) > _SIZES else "")

    def share(self, value: int) -> float:
        """Share of all pixels."""
        return self.pixels[value] / max(1, self.pixels.total())


def colour_of(value: int) -> Colour:
    """RGB of a packed colour."""
    return value >> 16, value >> 8 & 255, value & 255


def packed(colour: Iterable[int]) -> int:
    """The number of a colour: 65536 r + 256 g + b."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def sampled(names: list[str], most: int) -> list[str]:
    """At most so many of the names, chosen by their hashes."""
    if len(names) <= most:
        return names
    return sorted(sorted(names, key=lambda name: sha256(name.encode()).digest())[:most])


def read_sizes(reading: Reading) -> Values:
    """Sizes of some images alone; InputError: none of them can be read."""
    values, fault = Values(""), ""
    for path in [*map(reading.image, sampled(reading.pairs.images, _SIZED)), *reading.new_images()[:_SIZED]]:
        try:
            header = read_header(path, is_image=True)
            values.sizes.append((header.height, header.width))
        except DecodeError as error:
            fault = error.message
    if not values.sizes:
        raise InputError(f"no image can be read: {fault}", hint="give a folder of PNG, JPEG, WebP or TIFF files")
    return values


def read_values(reading: Reading, findings: Findings) -> Values:
    """Read the label maps.

    Raises:
        InputError: maps that are photographs or of several kinds; more than `MOST_BAD` maps of another size than their
            images, or files that cannot be read.
    """
    values, hint = Values(""), ""
    faults, sizes, soft = dict[str, str](), dict[str, str](), dict[str, str]()
    images = sampled(reading.labelled, MOST_MAPS)
    if len(images) < len(reading.labelled):
        findings.note(f"{len(images)} of {len(reading.labelled)} label maps were looked at; `prepare` checks all")
    for image in images:
        try:
            header = read_header(reading.image(image), is_image=True)
            pixels, palette = read_label_values(reading.label(image))
        except DecodeError as error:
            where = reading.label(image) if str(reading.label(image)) in error.message else reading.image(image)
            faults[image], hint = error.message.removeprefix(f"{where}: "), hint or error.hint
            continue
        if pixels.shape[:2] != (header.height, header.width):
            sizes[image] = f"{pixels.shape[1]}x{pixels.shape[0]}, its image is {header.width}x{header.height}"
            sizes[image] += TURNED if header.orientation > 1 else ""
            continue
        values.sizes.append((header.height, header.width))
        lines = _add(values, image, pixels, palette, reading)
        if lines:
            soft[image] = f"{lines} of its values cover no 2x2 pixels"
    for what, found, cure in (
        ("or their images cannot be read", faults, hint or "repair or remove the files"),
        ("have another size than their image", sizes, "export the label maps in the size of the images"),
        ("seem to be drawn or resized with soft edges", soft, "export them without smoothing, resized by nearest"),
    ):
        if found:
            first = f"{reading.pairs.labels[min(found)]}: {found[min(found)]}"
            findings.count(len(found), len(images), f"{len(found)} label maps {what}, first {first}", cure)
    return values


def _add(values: Values, image: str, pixels: NDArray[Any], palette: list[Colour], reading: Reading) -> int:
    """Count a map; returns its `_values_on_lines`."""
    kind = "colours" if pixels.ndim == 3 else "ids"
    where = reading.pairs.labels[image]
    if values.kind not in ("", kind):
        raise InputError(
            f"{where} holds {kind}, maps before it {values.kind}: one folder of label maps has one meaning",
            hint="export all label maps in one form",
        )
    values.kind = kind
    numbers = pixels.astype(np.int32) @ np.array([65536, 256, 1], np.int32) if pixels.ndim == 3 else pixels
    found, counts = np.unique(numbers, return_counts=True)
    if len(found) > _MOST_COLOURS or (kind == "ids" and len(found) > MOST_CLASSES):
        raise InputError(
            f"{where}: {len(found)} different values in one label map: a photograph, or drawn with soft edges",
            hint="give the folder of label maps, exported as PNG without smoothing",
        )
    if kind == "ids" and found[-1] > 255:
        raise InputError(
            f"{where}: 16-bit values up to {found[-1]}, ids are at most 255",
            hint="ids of single things (class * 1000 + thing)? give the folder of class ids; else renumber the classes "
            "in the maps and in their file",
        )
    for value, count in zip(found.tolist(), counts.tolist(), strict=True):
        values.pixels[value] += count
        values.maps[value] += 1
        values.example.setdefault(value, image)
        if value < len(palette):
            values.palette.setdefault(value, palette[value])
    values.of_image[image] = frozenset(found.tolist())
    return _values_on_lines(numbers, len(found))


def _values_on_lines(numbers: NDArray[Any], count: int) -> int:
    """How many of a map's values cover no 2x2 pixels, as on soft edges; 0 where most of them do."""
    if count < _MANY:
        return 0
    corner = numbers[:-1, :-1]
    is_flat = (corner == numbers[1:, 1:]) & (corner == numbers[:-1, 1:]) & (corner == numbers[1:, :-1])
    lines = count - len(np.unique(corner[is_flat]))
    return lines if 2 * lines > count else 0
