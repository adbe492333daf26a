"""Reading one image or label map from a file that somebody else made: decoded to known pixels, or refused.

Every refusal is a `DecodeError` with one of `REASONS`. Size, depth and mode are judged from the header,
before memory for pixels is taken. What is read, and as what, is written down in docs/data.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmsa_core.data.containers import check_png_length
from hmsa_core.data.headers import REASONS, TRIED_MEMORY, Header, guarded, inspect, opened, read_header
from hmsa_core.data.spec import MAX_PIXELS
from hmsa_core.io.errors import DecodeError
from hmsa_core.taxonomy import IGNORE, ClassTable

__all__ = [
    "REASONS",
    "Header",
    "holds_train_ids",
    "is_constant",
    "read_header",
    "read_image",
    "read_label",
    "read_label_ids",
]

UInt8 = NDArray[np.uint8]

# OpenCV's threads do not survive a fork: a loader process would wait for them for ever. Processes are our
# parallelism, so there are none.
cv2.setNumThreads(1)

_IMAGE_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}
_LABEL_MODES = {"L", "P"}
# EXIF orientation -> how to bring the stored pixels upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, sha256: str = "") -> UInt8:
    """Decode an image to uint8 HxWx3 RGB, upright.

    Args:
        path: PNG, JPEG, WebP or TIFF (judged by content; the extension must agree).
        max_pixels: ceiling, checked from the header.
        sha256: expected hex digest of the file; the very bytes that were hashed are decoded.

    Raises:
        DecodeError: with a reason of `REASONS`.
        IntegrityError: the file's digest is not `sha256`.
    """
    where = str(path)
    with opened(Path(path), max_pixels, sha256) as file:
        header, image = inspect(file, where, max_pixels)
        with image:
            if header.mode not in _IMAGE_MODES:
                raise DecodeError(
                    f"{where}: colour mode {header.mode} is not read as an image",
                    reason="wrong-mode",
                    hint="convert it to 8-bit RGB",
                )
            if header.plain:
                return _decode_cv2(file, cv2.IMREAD_COLOR_RGB, where)
            return _to_rgb(_decode(image, header, file, where), where)


def read_label(path: str | Path, classes: ClassTable, *, max_pixels: int = MAX_PIXELS, sha256: str = "") -> UInt8:
    """Decode a label map to uint8 HxW trainIds, 255 = ignore.

    Args:
        path: 8-bit grey or palette image of ids; `*_labelTrainIds.png` of trainIds; Cityscapes' `*_polygons.json`.
        classes: the table that maps ids; a value it does not know is refused, never dropped.
        max_pixels: ceiling, checked from the header.
        sha256: expected hex digest of the file, "" = not checked.

    Raises:
        DecodeError: with a reason of `REASONS`.
        IntegrityError: the file's digest is not `sha256`.
    """
    ids = read_label_ids(path, max_pixels=max_pixels, sha256=sha256)
    present = _present(ids)
    if holds_train_ids(path):
        valid = np.zeros(256, bool)
        valid[: classes.num_classes] = valid[IGNORE] = True
        _check_ids(present & ~valid, f"{path}", f"trainIds 0..{classes.num_classes - 1} and 255")
        return ids
    _check_ids(present & ~classes.valid_ids, f"{path}", f"ids of {classes.name}")
    return np.asarray(cv2.LUT(ids, classes.id_to_train), np.uint8)


def holds_train_ids(path: str | Path) -> bool:
    """Whether a label map's name says that it holds trainIds, not ids."""
    return str(path).endswith("_labelTrainIds.png")


def read_label_ids(path: str | Path, *, max_pixels: int = MAX_PIXELS, sha256: str = "") -> UInt8:
    """Decode a label map to the values that its file holds (uint8 HxW), unmapped and unchecked."""
    where = str(path)
    with opened(Path(path), max_pixels, sha256) as file:
        if where.lower().endswith(".json"):
            # Imported here: polygons are the rare form, and their module reads JSON of the taxonomy.
            from hmsa_core.data.polygons import rasterise

            return rasterise(file.read(), where, max_pixels=max_pixels)
        header, image = inspect(file, where, max_pixels)
        with image:
            if header.mode not in _LABEL_MODES or header.format == "JPEG":
                raise DecodeError(
                    f"{where}: a {header.format} of mode {header.mode} is no label map",
                    reason="wrong-mode",
                    hint="label maps are lossless 8-bit grey (ids) or palette images",
                )
            if header.plain:
                return _decode_cv2(file, cv2.IMREAD_GRAYSCALE, where)
            return np.array(_decode(image, header, file, where))


def is_constant(pixels: UInt8) -> bool:
    """Whether all pixels of an image or a map are equal."""
    first = pixels[:1, :1]
    # A row is enough to say no for nearly every picture; the whole is only compared for the rest.
    return bool((pixels[:1] == first).all() and (pixels == first).all())


def _present(ids: UInt8) -> NDArray[np.bool_]:
    histogram = cv2.calcHist([ids], [0], None, [256], [0, 256])
    return np.asarray(histogram).ravel() > 0


def _check_ids(bad: NDArray[np.bool_], where: str, expected: str) -> None:
    if bad.any():
        shown = ", ".join(str(v) for v in np.flatnonzero(bad)[:5])
        raise DecodeError(f"{where}: values {shown} are not {expected}", reason="ids-out-of-range")


def _decode_cv2(file: IO[bytes], flags: int, where: str) -> UInt8:
    """Plain 8-bit PNG through OpenCV: the same pixels as Pillow's, faster, and with less memory."""
    file.seek(0)
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise DecodeError(f"{where}: damaged pixel data", reason="corrupt")
    return np.asarray(pixels, np.uint8)


def _decode(image: Image.Image, header: Header, file: IO[bytes], where: str) -> Image.Image:
    if header.format == "PNG":
        check_png_length(file, where)
    if header.format == "JPEG" and 4 * header.height * header.width > TRIED_MEMORY:
        _try_small(file, where)
    guarded(image.load, where)
    if header.orientation in _UPRIGHT:
        return image.transpose(_UPRIGHT[header.orientation])
    return image


def _try_small(file: IO[bytes], where: str) -> None:
    """Read all data of a large JPEG at an eighth of its size: damage shows before memory for the whole is taken."""
    position = file.tell()
    file.seek(0)
    with guarded(lambda: Image.open(file, formats=["JPEG"]), where) as small:
        small.draft(small.mode, (small.width // 8, small.height // 8))
        guarded(small.load, where)
    file.seek(position)


def _to_rgb(image: Image.Image, where: str) -> UInt8:
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        if image.mode not in ("LA", "RGBA"):
            image = image.convert("RGBA")
        low, _ = image.getchannel("A").getextrema()
        if low != 255:
            raise DecodeError(f"{where}: has transparent pixels", reason="wrong-mode", hint="flatten it to 8-bit RGB")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
