"""Photographs and human labels of a store's images: looked up by name, never outside of the image root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import ConfigError, InputError, StoreError
from hmsa_core.taxonomy import ClassTable

__all__ = ["Pictures"]

UInt8 = NDArray[np.uint8]


class Pictures:
    """Files below the image root.

    Attributes:
        root: folder outside of which no file is read, or None.
        note: what the user should know of it: no photograph is found, or the paths begin above the root; else "".

    Args:
        root: folder that `image_path` and `coarse_path` of the store are relative to, or the folder that was labelled
            (then the paths begin with its name), or None.
        info: what the store knows of an image by name (an unknown name is an InputError).
        classes: class table that human labels are read with.
        paths: `image_path` of all images; only asked for with a root.
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
        self._start = self._find_start(self.root, str(root), [path for path in paths() if path])

    def _find_start(self, root: Path, given: str, paths: list[str]) -> Path:
        """The folder that the store's paths begin in: `root`, or its parent where only that leads into `root`."""
        for start in (root, root.parent):
            found = next((path for path in paths if _is_below(start, path, root)), None)
            if found is not None:
                if start != root:
                    self.note = f"its paths begin one folder above {given} ({found!r}); nothing else there is read"
                return start
        where = f"; give --images the folder that holds {paths[0]!r}" if paths else " (it names none)"
        self.note = f"0 of its {len(paths)} photographs are below {given}{where}"
        return root

    def _file(self, name: str, column: str) -> Path | None:
        """A file of an image below the image root; None when there is none. Names come from the store alone."""
        relative = self._info(name)[column]
        if self.root is None or not relative:
            return None
        try:
            path = _follow(self._start, str(relative), self.root)
        except StoreError as error:
            raise StoreError(f"image {name!r}: its {column} {error.message}") from None
        return path if path.is_file() else None

    def has_picture(self, name: str) -> bool:
        """Whether the photograph is there."""
        try:
            return self._file(name, "image_path") is not None
        except StoreError:
            return False

    def has_human_label(self, name: str) -> bool:
        """Whether a human label file is there."""
        try:
            return self._file(name, "coarse_path") is not None
        except StoreError:
            return False

    def picture_path(self, name: str) -> Path:
        """Path of the photograph, inside the image root."""
        path = self._file(name, "image_path")
        if path is None:
            raise InputError(f"image {name!r}: no photograph", hint="give the folder of the images with --images ROOT")
        return path

    def picture(self, name: str) -> tuple[bytes, str]:
        """The photograph's bytes and media type; formats that browsers cannot show are turned into PNG."""
        path = self.picture_path(name)
        data = path.read_bytes()
        for magic, media in _MEDIA.items():
            if data.startswith(magic) and (media != "image/webp" or data[8:12] == b"WEBP"):
                return data, media
        return _encode(self._decode(path), ".png"), "image/png"

    @staticmethod
    def _decode(path: Path) -> UInt8:
        from hmsa_core.data.decode import read_image

        return read_image(path)

    def thumb(self, name: str, width: int = 288) -> bytes:
        """A small JPEG of the photograph, at most four times as high as `width`."""
        from hmsa_core.data.decode import read_header

        path = self.picture_path(name)
        read_header(path)  # refuses bombs and what is no picture before a decoder sees it
        image = _reduced(path)
        if image is None:
            image = cv2.cvtColor(self._decode(path), cv2.COLOR_RGB2BGR)
        height = max(1, round(image.shape[0] * width / image.shape[1]))
        if height > 4 * width:  # a JPEG has at most 65500 rows
            width, height = max(1, round(image.shape[1] * 4 * width / image.shape[0])), 4 * width
        return _encode(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), ".jpg", bgr=True)

    def human(self, name: str) -> UInt8:
        """The human label as trainIds (uint8 HxW)."""
        from hmsa_core.data.decode import read_label

        path = self._file(name, "coarse_path")
        if path is None:
            raise InputError(f"image {name!r}: no human label")
        return read_label(path, self._classes)


def _follow(start: Path, relative: str, root: Path) -> Path:
    """Where a path of the store leads, links followed; out of `root` is a StoreError."""
    try:
        path = (start / relative).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a NUL, links in a circle
        raise StoreError(f"is no path ({error})") from error
    if not path.is_relative_to(root):
        raise StoreError("leads outside of the image root")
    return path


def _is_below(start: Path, relative: str, root: Path) -> bool:
    try:
        # The cheap question first: in a wrong folder it is asked for every image.
        return (start / relative).is_file() and _follow(start, relative, root).is_file()
    except (OSError, ValueError, StoreError):
        return False


_MEDIA = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png", b"RIFF": "image/webp"}


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
