"""What an image file says about itself before a pixel is decoded, and whether it may be decoded at all.

Format by content, size, depth, mode, frames, EXIF rotation. Memory for pixels is taken only after the
verdict; see docs/data.md for what is read as what.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image

from hmsa_core.data.containers import PLAIN_CHUNKS, check_png, sniff, webp_size
from hmsa_core.data.spec import MAX_PIXELS
from hmsa_core.errors import DecodeError, IntegrityError

__all__ = ["REASONS", "TRIED_MEMORY", "Header", "guarded", "inspect", "opened", "read_header"]

T = TypeVar("T")
_CHANGED = "the file changed after `prepare`: restore it, or run `prepare` again"

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
# Bytes of memory that a picture may need before it is known to be good: a refused one stays under 200 MB.
TRIED_MEMORY = 180_000_000
_HASHED_FIRST = 64 << 20  # bytes; a larger file is hashed before memory is taken for it
# Bytes a pixel at the peak of decoding, measured with room to spare.
_WEBP_BYTES, _WEBP_ALPHA_BYTES, _ALPHA_BYTES = 6, 18, 6
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
    with opened(Path(path), max_pixels, "") as file:
        header, image = inspect(file, str(path), max_pixels)
        image.close()
        return header


def opened(path: Path, max_pixels: int, sha256: str) -> IO[bytes]:
    """Open a file whose length is plausible; with a digest, its bytes in memory once they agree with it."""
    try:
        file = path.open("rb")
        size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DecodeError(f"{path}: cannot be read ({error.strerror})", reason="unreadable") from error
    if sha256 and not 0 < size <= _most_bytes(max_pixels):
        file.close()
        raise IntegrityError(f"{path}: has {size} bytes now, its recorded SHA-256 was {sha256}", hint=_CHANGED)
    if size == 0:
        file.close()
        raise DecodeError(f"{path}: the file is empty", reason="truncated")
    if size > _most_bytes(max_pixels):
        file.close()
        raise DecodeError(f"{path}: {size} bytes are too many for {max_pixels} pixels", reason="too-large")
    if not sha256:
        return file
    with file:
        if size > _HASHED_FIRST:
            _check_digest(hashlib.file_digest(file, "sha256").hexdigest(), sha256, path)
            file.seek(0)
        data = file.read()
    _check_digest(hashlib.sha256(data).hexdigest(), sha256, path)  # of the very bytes that are decoded
    return io.BytesIO(data)


def _check_digest(found: str, recorded: str, path: Path) -> None:
    if found != recorded:
        raise IntegrityError(f"{path}: SHA-256 is {found}, recorded was {recorded}", hint=_CHANGED)


def _most_bytes(max_pixels: int) -> int:
    """No format here needs more bytes than raw 8-bit RGBA plus some metadata."""
    return 4 * max_pixels + (16 << 20)


def inspect(file: IO[bytes], where: str, max_pixels: int) -> tuple[Header, Image.Image]:
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
        height, width, alpha = webp_size(head, where)
        _check_size(height, width, where, max_pixels)
        _check_memory((_WEBP_ALPHA_BYTES if alpha else _WEBP_BYTES) * height * width, "a WebP", where)
    chunks: set[bytes] = set()
    if kind == "PNG":
        depth, _, width, height = _png_header(head, where)
        _check_size(height, width, where, max_pixels)
        if depth == 16:
            raise DecodeError(f"{where}: 16 bits a channel", reason="wrong-mode", hint="convert it to 8 bits")
        file.seek(0)
        chunks = check_png(file, where)
    if kind == "JPEG":
        _check_jpeg_end(file, where)
    file.seek(0)
    image = guarded(lambda: Image.open(file, formats=[kind]), where)
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
    if kind != "JPEG" and guarded(lambda: getattr(image, "n_frames", 1), where) != 1:
        raise DecodeError(f"{where}: holds several frames or pages", reason="many-frames")
    mode = image.mode
    if kind == "TIFF":
        guarded(lambda: _check_tiff(image, where, max_pixels), where)
        guarded(lambda: _check_tiff_end(image, where), where)
    if mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        _check_memory(_ALPHA_BYTES * height * width, "a picture with transparency", where)
    if kind == "PNG" and head[24] < 8 and mode == "L":
        # Pillow stretches 2- and 4-bit grey to 0..255: right for a picture, wrong for ids.
        mode = "1"
    # Asked for the EXIF data of a PNG without any, Pillow decodes the whole picture to look behind it.
    has_exif = kind != "PNG" or b"eXIf" in chunks
    orientation = guarded(lambda: int(image.getexif().get(0x0112) or 1), where) if has_exif else 1
    if 5 <= orientation <= 8:
        width, height = height, width
    plain = kind == "PNG" and chunks <= PLAIN_CHUNKS and orientation == 1 and mode in ("L", "RGB")
    return Header(kind, mode, height, width, orientation, plain)


def _check_tiff(image: Image.Image, where: str, max_pixels: int) -> None:
    tags: Any = image.tag_v2  # type: ignore[attr-defined]  # only TIFF images have it
    bits = tags.get(258, (1,))
    if max(bits if isinstance(bits, tuple) else (bits,)) > 8:
        raise DecodeError(f"{where}: more than 8 bits a channel", reason="wrong-mode", hint="convert it to 8 bits")
    # libtiff takes memory for one whole tile or strip, whatever the size of the picture.
    width, height = image.size
    tile = int(tags.get(322, 1) or 1) * int(tags.get(323, 1) or 1)
    if tile > max_pixels:
        raise DecodeError(f"{where}: tiles of {tile} pixels", reason="too-large")
    if tags.get(259, 1) != 1:  # compressed: only decoding shows whether it is whole
        strip = min(int(tags.get(278, height) or height), height) * width
        grey = len(image.getbands()) == 1
        memory = (1 if grey else 4) * height * width + (1 if grey else 3) * max(tile, strip if tile == 1 else 0)
        _check_memory(memory, "a compressed TIFF", where)


def _check_tiff_end(image: Image.Image, where: str) -> None:
    """All strips or tiles lie in the file: found out by decoding, a lack costs the memory of the picture."""
    opened_image: Any = image  # a TIFF image, with tags and its file
    tags = opened_image.tag_v2
    offsets, lengths = (tags.get(273) or tags.get(324) or ()), (tags.get(279) or tags.get(325) or ())
    size = opened_image.fp.seek(0, os.SEEK_END)
    if any(offset + length > size for offset, length in zip(offsets, lengths, strict=False)):
        raise DecodeError(f"{where}: ends before its pixels do", reason="truncated")


def _check_jpeg_end(file: IO[bytes], where: str) -> None:
    """An end marker follows the start of the first scan; scans hold none. The same reason as for TIFF."""
    start, size = _jpeg_scan(file), file.seek(0, os.SEEK_END)
    end = size
    while end > start:
        begin = max(start, end - (1 << 16))
        file.seek(begin)
        if b"\xff\xd9" in file.read(end - begin + 1):  # one byte more: the marker may lie across two blocks
            return
        end = begin
    raise DecodeError(f"{where}: ends before its pixels do", reason="truncated")


def _jpeg_scan(file: IO[bytes]) -> int:
    """Position of the first scan, or of whatever is no segment."""
    at = 2
    while True:
        file.seek(at)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:
            return at
        if head[1] == 0xFF:  # fill bytes
            at += 1
        elif head[1] == 0x01 or 0xD0 <= head[1] <= 0xD8:  # markers without a length
            at += 2
        else:
            at += 2 + int.from_bytes(head[2:4], "big")


def _check_size(height: int, width: int, where: str, max_pixels: int) -> None:
    if height <= 0 or width <= 0:
        raise DecodeError(f"{where}: {width}x{height} has no pixels", reason="empty")
    if height * width > max_pixels:
        raise DecodeError(
            f"{where}: {width}x{height} is more than {max_pixels} pixels", reason="too-large",
            hint="make the picture smaller",
        )  # fmt: skip


def _check_memory(needed: int, what: str, where: str) -> None:
    """Formats whose damage shows only when all their pixels are in memory: an own, lower ceiling."""
    if needed > TRIED_MEMORY:
        raise DecodeError(
            f"{where}: {what} of this size takes {needed / 1e6:.0f} MB before it is known to be whole, more than "
            f"{TRIED_MEMORY / 1e6:.0f} MB", reason="too-large", hint="convert it to an opaque PNG or JPEG",
        )  # fmt: skip


def _png_header(head: bytes, where: str) -> tuple[int, int, int, int]:
    """(depth, colour type, width, height) from the IHDR chunk."""
    if len(head) < 29 or head[12:16] != b"IHDR":
        raise DecodeError(f"{where}: PNG without a header", reason="truncated" if len(head) < 29 else "corrupt")
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    return depth, colour, width, height


def guarded(call: Callable[[], T], where: str) -> T:
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
