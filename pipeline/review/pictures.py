"""Photographs and human labels of a store's images, never read outside of the image root; colours of the classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import read_header, read_image, read_label
from hmsa_core.data.walk import IMAGE_SUFFIXES, stem_of, walk
from hmsa_core.io.errors import ConfigError, InputError, StoreError
from hmsa_core.labels.formats.cityscapes import IMAGE_ENDING
from hmsa_core.taxonomy import ClassTable

UInt8 = NDArray[np.uint8]


class Pictures:
    """Files below the image root.

    Attributes:
        root: folder outside of which no file is read, or None.
        note: message for the user where no photograph is found; else "".

    Args:
        root: as `root`: `image_path` and `coarse_path` of the store are relative to it or begin with its name. In an
            imported store, which has no paths, photographs are found by name.
        info: function from an image's name to what the store records of the image (an unknown name is an InputError).
        classes: class table that human labels are read with.
        paths: function that returns `image_path` of all images; called only with a root.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        info: Callable[[str], dict[str, Any]],
        classes: ClassTable,
        paths: Callable[[], list[str]],
    ) -> None:
        self.root = None if root is None else Path(root).resolve()
        self.note = ""
        self._info, self._classes = info, classes
        if self.root is None:
            return
        if not self.root.is_dir():
            raise ConfigError(f"{root}: image root not found")
        named = [path for path in paths() if path]
        self._stems = {} if named else _by_stem(self.root)
        self._start = self.root if self._stems else self._find_start(self.root, str(root), named)

    def _find_start(self, root: Path, given: str, paths: list[str]) -> Path:
        """Folder that image paths are relative to: `root`, or its parent if only from there they lead into `root`."""
        for start in (root, root.parent):
            if any(_is_below(start, path, root) for path in paths):
                return start
        where = f"; give --images the folder that holds {paths[0]!r}" if paths else " (it names none)"
        self.note = f"0 of its {len(paths)} photographs are below {given}{where}"
        return root

    def _file(self, name: str, column: str) -> Path | None:
        """Path of an image's file below the image root; None if it does not exist. Names come from the store alone."""
        relative = self._info(name)[column]
        if self.root is None:
            return None
        if not relative:
            return self._stems.get(name) if column == "image_path" else None
        try:
            path = _follow(self._start, str(relative), self.root)
        except StoreError as error:
            raise StoreError(f"image {name!r}: its {column} {error.message}") from None
        return path if path.is_file() else None

    def has_picture(self, name: str, column: str = "image_path") -> bool:
        """Whether the photograph exists (with "coarse_path": the human label)."""
        try:
            return self._file(name, column) is not None
        except StoreError:
            return False

    def picture_path(self, name: str) -> Path:
        """Path of the photograph, inside the image root."""
        path = self._file(name, "image_path")
        if path is None:
            wanted = self._info(name)["image_path"]
            where = f" {wanted or 'of this name alone'} below {self.root}" if self.root else ""
            raise InputError(
                f"image {name!r}: no photograph{where}", hint="give the folder of the images with --images ROOT"
            )
        return path

    def picture(self, name: str) -> tuple[bytes, str]:
        """The photograph's bytes and media type; formats that browsers cannot show are turned into PNG."""
        path = self.picture_path(name)
        data = path.read_bytes()
        for magic, media in _MEDIA.items():
            if data.startswith(magic) and (media != "image/webp" or _is_upright_webp(data, path)):
                return data, media
        return _encode(read_image(path), ".png"), "image/png"

    def thumb(self, name: str, width: int = 288) -> bytes:
        """A small JPEG of the photograph's `middle`, `width` pixels wide."""
        path = self.picture_path(name)
        header = read_header(path)  # refuses bombs and files that are no picture before a decoder reads them
        image = _reduced(path) if min(header.width, header.height) >= _REDUCED else None
        if image is None:
            image = cv2.cvtColor(read_image(path), cv2.COLOR_RGB2BGR)
        image = image[middle(image)]
        height = max(1, round(image.shape[0] * width / image.shape[1]))
        return _encode(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), ".jpg", bgr=True)

    def human(self, name: str) -> UInt8:
        """The human label as trainIds (uint8 HxW)."""
        path = self._file(name, "coarse_path")
        if path is None:
            raise InputError(f"image {name!r}: no human label")
        return read_label(path, self._classes)


def middle(image: NDArray[Any]) -> tuple[slice, slice]:
    """Rows and columns of the middle that a thumbnail shows, at most four times as long as the short side."""
    starts = [max(0, length - 4 * min(image.shape[:2])) // 2 for length in image.shape[:2]]
    return slice(starts[0], image.shape[0] - starts[0]), slice(starts[1], image.shape[1] - starts[1])


def _by_stem(root: Path) -> dict[str, Path]:
    """Photographs below a folder by their stems, and by folders and stem; those of one name are left out."""
    files: list[tuple[str, Path]] = []
    for path in walk(root, IMAGE_SUFFIXES).paths():
        stem = stem_of(path).removesuffix(IMAGE_ENDING)
        files += [(name, path) for name in {stem, "__".join((*path.relative_to(root).parts[:-1], stem))}]
    counts = Counter(stem for stem, _ in files)
    return {stem: path for stem, path in files if counts[stem] == 1 and path.resolve().is_relative_to(root)}


def _follow(start: Path, relative: str, root: Path) -> Path:
    """Resolve a path of the store with all links; a path out of `root` is a StoreError."""
    try:
        path = (start / relative).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a NUL, links in a circle
        raise StoreError(f"is no path ({error})") from error
    if not path.is_relative_to(root):
        raise StoreError("leads outside of the image root")
    return path


def _is_below(start: Path, relative: str, root: Path) -> bool:
    try:
        # The cheap test comes first: in a wrong folder it runs for every image.
        return (start / relative).is_file() and _follow(start, relative, root).is_file()
    except (OSError, ValueError, StoreError):
        return False


_REDUCED = 256  # pixels of the short side from which a thumbnail is read at a quarter of the size
_MEDIA = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png", b"RIFF": "image/webp"}


def _is_upright_webp(data: bytes, path: Path) -> bool:
    """Whether a file is a WebP without rotation in EXIF data: browsers do not rotate a WebP, but labels are rotated."""
    return data[8:12] == b"WEBP" and read_header(path).orientation == 1


def _reduced(path: Path) -> NDArray[Any] | None:
    """Decode at a quarter of the size where the format allows it (JPEG); None when OpenCV cannot."""
    try:
        return cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_4)
    except cv2.error:
        return None


def _encode(image: NDArray[Any], suffix: str, *, bgr: bool = False) -> bytes:
    done, data = cv2.imencode(suffix, image if bgr else cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise StoreError(f"could not encode a picture as {suffix}")
    return bytes(data.tobytes())


# -- class colours ------------------------------------------------------------------------------------

Colour = tuple[int, int, int]

# Levels 0 to 5 of red, green and blue, 51 apart. Of this grid each colour is the one farthest from those before it in
# OKLab, for the nearest of four kinds of vision (Machado and others 2009), and from black and grey: photographs below
# an overlay are mostly grey road and dark scenery, and black looks like no label.
_SAFE = """
555 102 040 515 200 444 104 333 251 410 001 212 100 313 414 535 301 103 005 543 032 434 035 454 323 424 532 420 045
315 210 010 022 523 545 221 214 343 312 113 552 441 012 514 023 423 510 202 242 432 231 353 534 134 355 244 101 425
321 115 054 224 520 201 404 033 445 540 525 422 332 400 415 120 222 311 111 223 043 052 030 443 340 213 451 014 412
124 300 413 211 011 110 554 505 402 112 455 002 204 331 352 431 053 354 310 553 542
"""


def safe_colours(count: int) -> tuple[Colour, ...]:
    """`count` RGB colours that four kinds of colour vision tell apart; beyond 108 colours this is not ensured.

    Each colour is as far as possible from those before it: give the first ones to frequent classes.
    """
    safe = _SAFE.split()
    if count > len(safe):
        return tuple((17 * i % 256, 53 * i % 256, 97 * i % 256) for i in range(count))
    return tuple((51 * int(one[0]), 51 * int(one[1]), 51 * int(one[2])) for one in safe[:count])
