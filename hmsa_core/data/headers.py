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
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image, PngImagePlugin

from hmsa_core.data import containers
from hmsa_core.data.containers import PLAIN_CHUNKS
from hmsa_core.data.containers_jpeg import check_jpeg
from hmsa_core.data.spec import MAX_PIXELS
from hmsa_core.io.errors import DecodeError, IntegrityError

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
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
# Bytes of memory that a picture may need before it is known to be good: a refused one stays under 200 MB.
TRIED_MEMORY = 180_000_000
# The same where nothing is estimated; a JPEG of several scans (4:2:0) at the full ceiling takes as much.
_COUNTED_MEMORY = 193_000_000
_JSON_BYTES = 4 << 20  # objects of up to 24 times as many
_HASHED_FIRST = 64 << 20  # bytes; a larger file is hashed before memory is taken for it
_TOO_MUCH = (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning)
# Bytes a pixel at the peak of decoding, measured with room to spare.
_WEBP_BYTES, _WEBP_LOSSLESS_BYTES, _WEBP_ALPHA_BYTES, _ALPHA_BYTES = 6, 8, 18, 6
# Of characters, all texts of a PNG together. Pillow's own limit is 64 MB; each may take 4 bytes.
PngImagePlugin.MAX_TEXT_MEMORY = containers.MOST_TEXT
# All that Pillow's readers of these four formats are known to raise on damaged content.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Warning,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Header:
    """What the first bytes say, after EXIF rotation."""

    format: str
    mode: str
    height: int
    width: int
    orientation: int
    plain: bool  # a PNG without anything that could change the meaning of its pixels


@dataclass(frozen=True)
class _Form:
    """What a walk over the file has found before Pillow opens it."""

    size: int  # bytes
    chunks: set[bytes] = field(default_factory=set)  # of a PNG
    orientation: int = 0  # of a PNG; 0 = to be asked for
    tags: int = 0  # bytes in those of a TIFF


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
    most = _JSON_BYTES if path.suffix.lower() == ".json" else _most_bytes(max_pixels)
    if sha256 and not 0 < size <= most:
        file.close()
        raise IntegrityError(f"{path}: has {size} bytes now, its recorded SHA-256 was {sha256}", hint=_CHANGED)
    if size == 0:
        file.close()
        raise DecodeError(f"{path}: the file is empty", reason="truncated")
    if size > most:
        file.close()
        raise DecodeError(f"{path}: {size} bytes, more than the {most} that are read", reason="too-large")
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
    kind = containers.sniff(head)
    if kind is None:
        raise DecodeError(f"{where}: not a PNG, JPEG, WebP or TIFF image", reason="not-an-image")
    named = _EXTENSIONS.get(Path(where).suffix.lower(), kind)
    if named != kind:
        raise DecodeError(
            f"{where}: the name says {named}, the content is {kind}", reason="wrong-extension", hint="rename it"
        )
    form = _check_form(kind, file, head, where, max_pixels)
    file.seek(0)
    image = guarded(lambda: Image.open(file, formats=[kind]), where)
    try:
        return _judge(image, kind, where, max_pixels, form, head), image
    except BaseException:
        image.close()
        raise


def _check_form(kind: str, file: IO[bytes], head: bytes, where: str, max_pixels: int) -> _Form:
    """Refuse what would cost too much already while Pillow opens it, or too much when it turns out to be damaged."""
    size = file.seek(0, os.SEEK_END)
    if kind == "PNG":
        return _check_png(file, head, size, where, max_pixels)
    if kind == "JPEG":
        _check_memory(check_jpeg(file, where), "a JPEG of several scans", where, _COUNTED_MEMORY)
    if kind == "WEBP":  # Pillow takes memory for the whole canvas, and for the file twice
        height, width, alpha = containers.webp_size(head, where)
        _check_size(height, width, where, max_pixels)
        lossless = containers.check_webp(file, where)
        each = _WEBP_ALPHA_BYTES if alpha else _WEBP_LOSSLESS_BYTES if lossless else _WEBP_BYTES
        _check_memory(size + max(size, each * height * width), "a WebP", where)
    return _Form(size, tags=containers.check_tiff(file, where) if kind == "TIFF" else 0)


def _check_png(file: IO[bytes], head: bytes, size: int, where: str, max_pixels: int) -> _Form:
    depth, _, width, height = _png_header(head, where)
    _check_size(height, width, where, max_pixels)
    if depth == 16:
        raise DecodeError(f"{where}: 16 bits a channel", reason="wrong-mode", hint="convert it to 8 bits")
    if size > _most_bytes(height * width):
        raise DecodeError(f"{where}: {size} bytes are too many for {height * width} pixels", reason="too-large")
    chunks = containers.check_png(file, where)
    if b"acTL" in chunks:
        _check_memory(_ALPHA_BYTES * height * width, "an animated PNG", where)
    plain, large = chunks <= PLAIN_CHUNKS, size + 4 * height * width > TRIED_MEMORY
    if large:  # OpenCV holds file and picture before it sees that something is wrong with them
        containers.check_png_length(file, where, ended=plain)
    # Pillow reads what follows the pixels with the whole picture in memory; OpenCV inflates texts of any size.
    if chunks & {b"eXIf", b"zTXt", b"iTXt"} or (large and not plain):
        probe = io.BytesIO(containers.one_pixel_png(file))
        return _Form(size, chunks, guarded(lambda: _orientation(probe, b"eXIf" in chunks), where))
    return _Form(size, chunks, 1)


def _orientation(file: IO[bytes], has_exif: bool) -> int:
    """EXIF orientation of a PNG that is read to its end. Without EXIF data 1: Pillow would also believe texts."""
    with Image.open(file, formats=["PNG"]) as image:
        image.load()
        return int(image.getexif().get(0x0112) or 1) if has_exif else 1


def _judge(image: Image.Image, kind: str, where: str, max_pixels: int, form: _Form, head: bytes) -> Header:
    width, height = image.size
    _check_size(height, width, where, max_pixels)
    if kind != "JPEG" and getattr(image, "is_animated", False):  # not `n_frames`: it reads all pages of a TIFF
        raise DecodeError(f"{where}: holds several frames or pages", reason="many-frames")
    mode = image.mode
    if kind == "TIFF":
        guarded(lambda: _check_tiff(image, where, max_pixels, form), where)
        guarded(lambda: _check_tiff_end(image, form.size, where), where)
    if mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        _check_memory(_ALPHA_BYTES * height * width, "a picture with transparency", where)
    if kind == "PNG" and head[24] < 8 and mode == "L":
        # Pillow stretches 2- and 4-bit grey to 0..255: right for a picture, wrong for ids.
        mode = "1"
    orientation = form.orientation or guarded(lambda: int(image.getexif().get(0x0112) or 1), where)
    if kind == "TIFF":  # Pillow brings it upright by itself, when it reads the pixels
        width, height = image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
    if 5 <= orientation <= 8:
        width, height = height, width
    plain = kind == "PNG" and form.chunks <= PLAIN_CHUNKS and orientation == 1 and mode in ("L", "RGB")
    return Header(kind, mode, height, width, 1 if kind == "TIFF" else orientation, plain)


def _check_tiff(image: Image.Image, where: str, max_pixels: int, form: _Form) -> None:
    tags: Any = image.tag_v2  # type: ignore[attr-defined]  # only TIFF images have it
    bits = tags.get(258, (1,))
    if max(bits if isinstance(bits, tuple) else (bits,)) > 8:
        raise DecodeError(f"{where}: more than 8 bits a channel", reason="wrong-mode", hint="convert it to 8 bits")
    # libtiff takes memory for one whole tile or strip, whatever the size of the picture.
    width, height = tags[256], tags[257]  # as stored; `size` is upright
    tile = int(tags.get(322, 1) or 1) * int(tags.get(323, 1) or 1)
    if tile > max_pixels:
        raise DecodeError(f"{where}: tiles of {tile} pixels", reason="too-large")
    if tags.get(259, 1) != 1:  # compressed: only decoding shows whether it is whole
        strip = min(int(tags.get(278, height) or height), height) * width
        grey = len(image.getbands()) == 1
        memory = (1 if grey else 4) * height * width + (1 if grey else 3) * max(tile, strip if tile == 1 else 0)
        memory += form.size + 2 * form.tags  # libtiff maps the file
        _check_memory(memory, "a compressed TIFF", where, _COUNTED_MEMORY)
    exif = image.getexif()
    for directory in containers.TIFF_DIRECTORIES:  # Pillow reads them behind the pixels
        if directory in exif:
            exif.get_ifd(directory)


def _check_tiff_end(image: Image.Image, size: int, where: str) -> None:
    """All strips or tiles lie in the file: found out by decoding, a lack costs the memory of the picture."""
    opened_image: Any = image  # a TIFF image, with tags
    tags = opened_image.tag_v2
    offsets, lengths = (tags.get(273) or tags.get(324) or ()), (tags.get(279) or tags.get(325) or ())
    if any(offset + length > size for offset, length in zip(offsets, lengths, strict=False)):
        raise DecodeError(f"{where}: ends before its pixels do", reason="truncated")
    if tags.get(259, 1) != 1:
        return
    # Pillow believes no length here: it reads on behind the offset, and leaves black what has none.
    bits, planes, drawn = int(tags.get(258, (1,))[0]), 1, 0  # of a sample
    if tags.get(284, 1) == 2:  # each channel has strips of its own
        planes = len(image.getbands())
    else:
        bits *= tags.get(277, 1)
    for _, (left, top, right, bottom), offset, (_, stride, _) in opened_image.tile:
        row = ((right - left) * bits + 7) // 8
        drawn += (right - left) * (bottom - top)
        if offset + (bottom - top - 1) * max(stride, row) + row > size:
            raise DecodeError(f"{where}: ends before its pixels do", reason="truncated")
    if drawn < tags[256] * tags[257] * planes:
        raise DecodeError(f"{where}: strips or tiles are missing", reason="truncated")


def _check_size(height: int, width: int, where: str, max_pixels: int) -> None:
    if height <= 0 or width <= 0:
        raise DecodeError(f"{where}: {width}x{height} has no pixels", reason="empty")
    if height * width > max_pixels:
        raise DecodeError(
            f"{where}: {width}x{height} is more than {max_pixels} pixels",
            reason="too-large",
            hint="make the picture smaller",
        )


def _check_memory(needed: int, what: str, where: str, most: int = TRIED_MEMORY) -> None:
    """Formats whose damage shows only when all their pixels are in memory: an own, lower ceiling."""
    if needed > most:
        raise DecodeError(
            f"{where}: {what} of this size takes {needed / 1e6:.0f} MB before it is known to be whole, more than "
            f"{most / 1e6:.0f} MB",
            reason="too-large",
            hint="convert it to an opaque PNG or a JPEG of one scan",
        )


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
        if "too much memory" in text or isinstance(error, _TOO_MUCH):
            reason = "too-large"
        raise DecodeError(f"{where}: cannot be decoded ({error or type(error).__name__})", reason=reason) from error
