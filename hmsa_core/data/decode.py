"""Reading one image or label map from a file that somebody else made: decoded to known pixels, or refused.

Every refusal is a `DecodeError` with one of `REASONS`. Size, depth and mode are judged from the header,
before memory for pixels is taken. What is read, and as what, is written down in docs/data.md.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmsa_core.data.containers import PLAIN_CHUNKS, check_png, check_png_length, sniff, webp_size
from hmsa_core.data.spec import MAX_PIXELS
from hmsa_core.errors import DecodeError, IntegrityError
from hmsa_core.taxonomy import IGNORE, ClassTable

__all__ = ["REASONS", "Header", "is_constant", "read_header", "read_image", "read_label", "read_label_ids"]

UInt8 = NDArray[np.uint8]

# OpenCV's threads do not survive a fork: a loader process would wait for them for ever. Processes are our
# parallelism, so there are none.
cv2.setNumThreads(1)

REASONS = {
    "unreadable": "the file cannot be opened or read",
    "not-an-image": "the content is none of PNG, JPEG, WebP, TIFF",
    "wrong-extension": "the name says one format, the content is another",
    "too-large": "more pixels than the ceiling, or more bytes than such a picture can need",
    "empty": "no pixels; or a label map without one labelled pixel",
    "truncated": "the file ends early",
    "corrupt": "the content contradicts itself or its checksums",
    "wrong-mode": "a colour mode or depth that is not defined here (CMYK, 16 bit, transparency, colour labels)",
    "many-frames": "an animation or a file of several pages",
    "constant": "all pixels are the same",
    "ids-out-of-range": "the label map holds a value that is no id of its classes",
    "size-mismatch": "image and label map differ in size",
    "bad-name": "the file name does not fit the layout",
    "unpaired": "an image without its label, or a label without its image",
    "duplicate": "the same bytes as another image",
    "duplicate-name": "two images have one name",
}

_EXTENSIONS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
_IMAGE_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}
_LABEL_MODES = {"L", "P"}
# EXIF orientation -> how to bring the stored pixels upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
# All that Pillow's readers of these four formats are known to raise on damaged content.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError,
    MemoryError, RuntimeError, struct.error, zlib.error, Warning, Image.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What the first bytes say, after EXIF rotation."""

    format: str
    mode: str
    height: int
    width: int
    orientation: int
    plain: bool  # a PNG without anything that could change the meaning of its pixels


def read_header(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Size and mode of an image file without decoding it; DecodeError as in `read_image`."""
    with _opened(Path(path), max_pixels, "") as file:
        header, image = _inspect(file, str(path), max_pixels)
        image.close()
        return header


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
    with _opened(Path(path), max_pixels, sha256) as file:
        header, image = _inspect(file, where, max_pixels)
        with image:
            if header.mode not in _IMAGE_MODES:
                raise DecodeError(
                    f"{where}: colour mode {header.mode} is not read as an image", reason="wrong-mode",
                    hint="convert it to 8-bit RGB",
                )  # fmt: skip
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
    if str(path).endswith("_labelTrainIds.png"):
        valid = np.zeros(256, bool)
        valid[: classes.num_classes] = valid[IGNORE] = True
        _check_ids(present & ~valid, f"{path}", f"trainIds 0..{classes.num_classes - 1} and 255")
        return ids
    _check_ids(present & ~classes.valid_ids, f"{path}", f"ids of {classes.name}")
    return np.asarray(cv2.LUT(ids, classes.id_to_train), np.uint8)


def read_label_ids(path: str | Path, *, max_pixels: int = MAX_PIXELS, sha256: str = "") -> UInt8:
    """Decode a label map to the values that its file holds (uint8 HxW), unmapped and unchecked."""
    where = str(path)
    with _opened(Path(path), max_pixels, sha256) as file:
        if where.lower().endswith(".json"):
            # Imported here: polygons are the rare form, and their module reads JSON of the taxonomy.
            from hmsa_core.data.polygons import rasterise

            return rasterise(file.read(), where, max_pixels=max_pixels)
        header, image = _inspect(file, where, max_pixels)
        with image:
            if header.mode not in _LABEL_MODES or header.format == "JPEG":
                raise DecodeError(
                    f"{where}: a {header.format} of mode {header.mode} is no label map", reason="wrong-mode",
                    hint="label maps are lossless 8-bit grey (ids) or palette images",
                )  # fmt: skip
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


def _opened(path: Path, max_pixels: int, sha256: str) -> IO[bytes]:
    try:
        file = path.open("rb")
        size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DecodeError(f"{path}: cannot be read ({error.strerror})", reason="unreadable") from error
    if size == 0:
        file.close()
        raise DecodeError(f"{path}: the file is empty", reason="truncated")
    # No format here needs more bytes than raw 8-bit RGBA plus some metadata.
    if size > 4 * max_pixels + (16 << 20):
        file.close()
        raise DecodeError(f"{path}: {size} bytes are too many for {max_pixels} pixels", reason="too-large")
    if not sha256:
        return file
    with file:
        data = file.read()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise IntegrityError(
            f"{path}: SHA-256 is {found}, recorded was {sha256}",
            hint="the file changed after `prepare`: restore it, or run `prepare` again",
        )
    return io.BytesIO(data)


def _inspect(file: IO[bytes], where: str, max_pixels: int) -> tuple[Header, Image.Image]:
    """Judge the header; returns Pillow's image with pixels still unread."""
    head = file.read(64)
    kind = sniff(head)
    if kind is None:
        raise DecodeError(f"{where}: not a PNG, JPEG, WebP or TIFF image", reason="not-an-image")
    named = _EXTENSIONS.get(Path(where).suffix.lower(), kind)
    if named != kind:
        raise DecodeError(
            f"{where}: the name says {named}, the content is {kind}", reason="wrong-extension", hint="rename it"
        )
    if kind == "WEBP":  # Pillow would take memory for the whole canvas already when it opens the file
        _check_size(*webp_size(head, where), where, max_pixels)
    chunks: set[bytes] = set()
    if kind == "PNG":
        depth, _, width, height = _png_header(head, where)
        _check_size(height, width, where, max_pixels)
        if depth == 16:
            raise DecodeError(f"{where}: 16 bits a channel", reason="wrong-mode", hint="convert it to 8 bits")
        file.seek(0)
        chunks = check_png(file, where)
    file.seek(0)
    image = _guarded(lambda: Image.open(file, formats=[kind]), where)
    try:
        return _judge(image, kind, where, max_pixels, chunks, head), image
    except BaseException:
        image.close()
        raise


def _judge(
    image: Image.Image, kind: str, where: str, max_pixels: int, chunks: set[bytes], head: bytes
) -> Header:
    width, height = image.size
    _check_size(height, width, where, max_pixels)
    if kind != "JPEG" and _guarded(lambda: getattr(image, "n_frames", 1), where) != 1:
        raise DecodeError(f"{where}: holds several frames or pages", reason="many-frames")
    mode = image.mode
    if kind == "TIFF":
        _guarded(lambda: _check_tiff(image, where, max_pixels), where)
    if kind == "PNG" and head[24] < 8 and mode == "L":
        # Pillow stretches 2- and 4-bit grey to 0..255: right for a picture, wrong for ids.
        mode = "1"
    # Asked for the EXIF data of a PNG without any, Pillow decodes the whole picture to look behind it.
    has_exif = kind != "PNG" or b"eXIf" in chunks
    orientation = _guarded(lambda: int(image.getexif().get(0x0112) or 1), where) if has_exif else 1
    if 5 <= orientation <= 8:
        width, height = height, width
    plain = kind == "PNG" and chunks <= PLAIN_CHUNKS and orientation == 1 and mode in ("L", "RGB")
    return Header(kind, mode, height, width, orientation, plain)


def _check_tiff(image: Image.Image, where: str, max_pixels: int) -> None:
    tags: Any = image.tag_v2  # type: ignore[attr-defined]  # only TIFF images have it
    bits = tags.get(258, (1,))
    if max(bits if isinstance(bits, tuple) else (bits,)) > 8:
        raise DecodeError(f"{where}: more than 8 bits a channel", reason="wrong-mode", hint="convert it to 8 bits")
    # libtiff takes memory for one whole tile, whatever the size of the picture.
    tile = int(tags.get(322, 1) or 1) * int(tags.get(323, 1) or 1)
    if tile > max_pixels:
        raise DecodeError(f"{where}: tiles of {tile} pixels", reason="too-large")


def _check_size(height: int, width: int, where: str, max_pixels: int) -> None:
    if height <= 0 or width <= 0:
        raise DecodeError(f"{where}: {width}x{height} has no pixels", reason="empty")
    if height * width > max_pixels:
        raise DecodeError(
            f"{where}: {width}x{height} is more than {max_pixels} pixels", reason="too-large",
            hint="make the picture smaller",
        )  # fmt: skip


def _png_header(head: bytes, where: str) -> tuple[int, int, int, int]:
    """(depth, colour type, width, height) from the IHDR chunk."""
    if len(head) < 29 or head[12:16] != b"IHDR":
        raise DecodeError(f"{where}: PNG without a header", reason="truncated" if len(head) < 29 else "corrupt")
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    return depth, colour, width, height


def _guarded(call: Any, where: str) -> Any:
    """Call into Pillow: whatever it raises or warns about a damaged file becomes a DecodeError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return call()
    except _DAMAGE as error:
        text = str(error).lower()
        reason = "truncated" if "truncat" in text or isinstance(error, EOFError) else "corrupt"
        if isinstance(error, (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning)):
            reason = "too-large"
        raise DecodeError(f"{where}: cannot be decoded ({error or type(error).__name__})", reason=reason) from error


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
    _guarded(image.load, where)
    if header.orientation in _UPRIGHT:
        return image.transpose(_UPRIGHT[header.orientation])
    return image


def _to_rgb(image: Image.Image, where: str) -> UInt8:
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        low, _ = image.getchannel("A").getextrema()
        if low != 255:
            raise DecodeError(
                f"{where}: has transparent pixels", reason="wrong-mode", hint="flatten it to 8-bit RGB"
            )
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
