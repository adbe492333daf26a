"""Reading an image or a label map from an untrusted file: decoded to known pixels, or refused.

Every refusal is a `DecodeError` with one of `REASONS`. Pillow opens the file. Size, depth, mode and the cost of
decoding are judged from its header, before memory for pixels is taken. A file whose digest an index holds was checked
when that index was made, so it is only decoded. The page docs/data.md lists the accepted files and their meaning.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from hmsa_core.data.label_maps import Palette, narrowed, to_train_ids
from hmsa_core.data.label_maps import holds_train_ids as holds_train_ids
from hmsa_core.data.polygons import rasterise
from hmsa_core.data.source import MAX_PIXELS
from hmsa_core.io.errors import DecodeError, IntegrityError
from hmsa_core.io.remote import fetched
from hmsa_core.taxonomy import ClassTable

T = TypeVar("T")
UInt8 = NDArray[np.uint8]

# docs/data.md explains them.
REASONS = (
    *("unreadable", "not-an-image", "wrong-extension", "too-large", "empty", "truncated", "corrupt", "wrong-mode"),
    *("many-frames", "constant", "ids-out-of-range", "size-mismatch", "bad-name", "unpaired", "duplicate"),
    "duplicate-name",
)

# OpenCV's threads do not survive a fork: a loader process would wait for them for ever. The package runs
# several processes instead of threads.
cv2.setNumThreads(1)

_FORMATS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "WEBP": (".webp",), "TIFF": (".tif", ".tiff")}
_IMAGE_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}
_LABEL_MODES = {"1", "L", "P", "I;16", "LA", "RGB", "RGBA"}
_PLAIN_MODES, _PALETTE = {0: "L", 2: "RGB"}, 3  # colour types of a PNG
_DEEP = 16  # bits
_ORIENTATION = 0x0112  # EXIF tag; its value -> operation that turns the stored pixels upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Bytes of memory that an image may need before its checks end: a refused image stays under 200 MB.
_TRIED_MEMORY = 180_000_000
# The limit for exact counts; a JPEG of several scans (4:2:0) at the full ceiling takes as much.
_COUNTED_MEMORY = 193_000_000
_ALPHA_BYTES = 6  # bytes a pixel at the peak of decoding, measured with room to spare
_BESIDES = 4 << 20  # bytes of a file except its pixels; EXIF numbers take 30 times as many in memory
_TIFF_TAGS = 3 << 19  # the same of a TIFF, read twice; each number in a tag may stand for a strip
_EXIF = 1 << 20
_READS = 20_000  # calls to open a file: Pillow looks for the next marker of a JPEG byte by byte
_CHUNKS = 512  # of a PNG except its pixels: a compressed chunk may inflate to a megabyte
_PIXEL_CHUNKS = 100_000  # of a PNG: the usual 8 kB each in the largest file
_SCANS = 100  # of a JPEG, as in libtiff: each one goes over the whole picture
_BLOCK = 1 << 16
_IN_MEMORY = 16 << 20  # bytes; OpenCV reads a longer file by itself, a part at a time
# Chunks that do not change what the pixels of a grey or RGB PNG mean, and that no decoder inflates.
_PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tIME", b"tEXt"}
# Characters, all texts of a PNG together. Pillow's limit is 64 MB; each may take 4 bytes.
PngImagePlugin.MAX_TEXT_MEMORY = _BESIDES
_JSON_BYTES = 4 << 20  # objects of up to 24 times as many
_HASHED_FIRST = 64 << 20  # bytes; a larger file is hashed before memory is taken for it
_CHANGED = "the file changed after `prepare`: restore it, or run `prepare` again"
_ADDRESS = re.compile(r"<[^<>]*>")  # an object of Pillow or Python, which differs from run to run
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # none of pixel data
_TOO_MUCH = (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning)
# All known errors of Pillow's readers of these four formats for damaged content. OSError, ValueError and
# RuntimeError have subclasses that matter: UnidentifiedImageError, UnicodeDecodeError, RecursionError.
_FLAWED = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, EOFError, ArithmeticError),
    *(RuntimeError, struct.error, zlib.error),
)
_DAMAGE = (*_FLAWED, MemoryError, Warning, Image.DecompressionBombError)


@dataclass(frozen=True)
class Header:
    """Facts in a file about its image, after EXIF rotation (height and width of the upright image)."""

    format: str
    mode: str
    height: int
    width: int
    orientation: int
    plain: bool  # a PNG without chunks that could change the meaning of its pixels
    bits: int = 8  # bits of a channel; 0: Pillow changes the file's numbers


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, sha256: str = "") -> UInt8:
    """Decode a PNG, JPEG, WebP or TIFF (judged by content; the extension must agree) to uint8 HxWx3 RGB, upright.

    Args:
        path: the file.
        max_pixels: ceiling, checked from the header.
        sha256: expected hex digest of the file; the very bytes that were hashed are decoded.

    Raises:
        DecodeError: with a reason of `REASONS`.
        IntegrityError: the file's digest is not `sha256`.
    """
    return read_picture(path, max_pixels=max_pixels, sha256=sha256)[1]


def read_picture(path: str | Path, *, max_pixels: int = MAX_PIXELS, sha256: str = "") -> tuple[Header, UInt8]:
    """Decode an image as `read_image` does; also return its header."""
    where = str(path)
    with _opened(Path(path), max_pixels, sha256) as file:
        header = _known(file, where) if sha256 else _judge(file, where, max_pixels)
        return header, _rgb(file, header, where, bool(sha256))


def read_header(path: str | Path, *, is_image: bool = False) -> Header:
    """Return size and mode of a file without decoding it; DecodeError as in `read_image`, of modes if `is_image`."""
    with _opened(Path(path), MAX_PIXELS, "") as file:
        header = _judge(file, str(path), MAX_PIXELS)
    if is_image:
        _check_mode(header, str(path))
    return header


def read_label(
    path: str | Path, classes: ClassTable, *, max_pixels: int = MAX_PIXELS, sha256: str = "", by_colour: bool = False
) -> UInt8:
    """Decode a label map to uint8 HxW trainIds, 255 = ignore.

    Args:
        path: lossless grey or palette image of ids, RGB image of class colours; `*_labelTrainIds.png` of trainIds;
            Cityscapes' `*_polygons.json`.
        classes: the table that maps ids and colours. Unknown values are refused, never dropped.
        max_pixels, sha256: as in `read_image`, with its errors.
        by_colour: read grey and palette images by their colours as well.
    """
    pixels, palette = _label(Path(path), max_pixels, sha256)
    if holds_train_ids(path):
        classes = classes.of_train_ids()
    return to_train_ids(pixels, palette, classes, str(path), by_colour=by_colour)


def read_label_ids(path: str | Path, *, sha256: str = "") -> UInt8:
    """Decode a label map to the numbers that its file holds (uint8 HxW), unmapped and unchecked."""
    pixels, _ = _label(Path(path), MAX_PIXELS, sha256)
    if pixels.ndim == 3:
        raise DecodeError(f"{path}: holds colours, no ids", reason="wrong-mode", hint="write ids as 8-bit grey")
    return narrowed(pixels, str(path))


def read_label_values(path: str | Path) -> tuple[NDArray[Any], Palette]:
    """Decode a label map without a class table: numbers HxW (uint8, uint16) and their palette, or RGB HxWx3."""
    return _label(Path(path), MAX_PIXELS, "")


def read_label_bytes(data: bytes, where: str, classes: ClassTable, *, max_pixels: int = MAX_PIXELS) -> UInt8:
    """Decode a label map in memory as `read_label` does; `where` names it in messages."""
    return to_train_ids(*_label_pixels(io.BytesIO(data), where, max_pixels), classes, where)


def _label(path: Path, max_pixels: int, sha256: str) -> tuple[NDArray[Any], Palette]:
    with _opened(path, max_pixels, sha256) as file:
        if path.suffix.lower() == ".json":
            return rasterise(file.read(), str(path), max_pixels=max_pixels), []
        return _label_pixels(file, str(path), max_pixels, bool(sha256))


def _label_pixels(file: IO[bytes], where: str, max_pixels: int, is_known: bool = False) -> tuple[NDArray[Any], Palette]:
    """Numbers HxW (uint8, or uint16 of a PNG) and their palette, or RGB HxWx3."""
    header = _known(file, where) if is_known else _judge(file, where, max_pixels)
    if header.format == "JPEG" or not header.bits or header.mode not in _LABEL_MODES:
        form = f"of mode {header.mode}" if header.bits else "whose numbers decoders change"
        raise DecodeError(
            f"{where}: a {header.format} {form} is no label map",
            reason="wrong-mode",
            hint="label maps are lossless: ids as grey or palette images, or the colours of the class file as RGB",
        )
    if header.mode in ("RGB", "RGBA"):
        return _rgb(file, header, where, is_known), []
    if header.mode == "LA":
        return _rgb(file, header, where, is_known)[..., 0], []
    if header.plain:
        return _decode_plain(file, cv2.IMREAD_GRAYSCALE, header, where, is_known), []
    image = _decode(file, header, where, is_known)
    if image.mode == "P":
        flat = image.getpalette("RGB") or []
        return np.array(image), list(zip(flat[::3], flat[1::3], flat[2::3], strict=False))
    numbers = np.array(image.convert("L") if image.mode == "1" else image)
    # Decoders stretch grey of fewer bits to 0..255.
    return (numbers // (255 // (2**header.bits - 1)) if header.bits < 8 else numbers), []


def is_constant(pixels: UInt8) -> bool:
    """Whether all pixels of an image or a label map are equal."""
    first = pixels[:1, :1]
    # One row already differs in nearly every image; only the rest are compared as a whole.
    return bool((pixels[:1] == first).all() and (pixels == first).all())


# ---- Opening


def _opened(path: Path, max_pixels: int, sha256: str) -> IO[bytes]:
    """Open a file of plausible length; with a digest, return its bytes in memory after a check of the digest."""
    try:
        # Does not wait for the writer of a named pipe.
        file = open(fetched(path), "rb", opener=lambda name, _: os.open(name, os.O_RDONLY | os.O_NONBLOCK))  # noqa: SIM115
        about = os.fstat(file.fileno())
    except OSError as error:
        raise DecodeError(f"{path}: cannot be read ({error.strerror})", reason="unreadable") from error
    size, most = about.st_size, _JSON_BYTES if path.suffix.lower() == ".json" else _most_bytes(max_pixels)
    try:
        if not stat.S_ISREG(about.st_mode):
            raise DecodeError(f"{path}: a pipe or a device, no file", reason="not-an-image")
        if 0 < size <= most:
            return _hashed(file, size, sha256, path) if sha256 else file
        if sha256:
            raise IntegrityError(f"{path}: has {size} bytes now, its recorded SHA-256 was {sha256}", hint=_CHANGED)
        if not size:
            raise DecodeError(f"{path}: the file is empty", reason="truncated")
        problem = f"{path}: the file has {size} bytes, at most {most} are allowed"
        raise DecodeError(problem, reason="too-large", hint="save it in fewer bytes")
    except BaseException:
        file.close()
        raise


def _hashed(file: io.BufferedReader, size: int, recorded: str, path: Path) -> IO[bytes]:
    with file:
        found = hashlib.file_digest(file, "sha256").hexdigest() if size > _HASHED_FIRST else recorded
        file.seek(0)
        data = file.read() if found == recorded else b""
    if found == recorded:
        found = hashlib.sha256(data).hexdigest()  # digest of the very bytes that are decoded
    if found != recorded:
        raise IntegrityError(f"{path}: SHA-256 is {found}, recorded was {recorded}", hint=_CHANGED)
    return io.BytesIO(data)


def _most_bytes(pixels: int) -> int:
    """Largest plausible file in bytes: no format needs more than raw 8-bit RGBA plus some metadata."""
    return 4 * pixels + _BESIDES


class _Metered:
    """A file that Pillow opens: more reads (bytes or calls) than a header needs are refused."""

    def __init__(self, file: IO[bytes], where: str, most: int) -> None:
        self._file, self._where, self.left, self._calls = file, where, most, 0
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        wanted = self.left + 1 if size < 0 else min(size, self.left + 1)
        data = self._file.read(wanted)
        self.left, self._calls = self.left - len(data), self._calls + 1
        if self.left < 0 or self._calls > _READS:
            raise _too_much("bytes or parts besides the pixels", self._where)
        return data


def _too_much(what: str, where: str) -> DecodeError:
    return DecodeError(
        f"{where}: more {what} than a picture needs", reason="too-large", hint="save it again without metadata"
    )


def _guarded(call: Callable[[], T], where: str, kind: str = "TIFF") -> T:
    """Call Pillow: its errors and warnings about a damaged file become a DecodeError.

    Tags are part of the image only in a TIFF. In other formats tags are EXIF data, and damaged tags do no harm.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if kind != "TIFF":
                warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
            return call()
    except _DAMAGE as error:
        problem = _ADDRESS.sub("the file", str(error)) or type(error).__name__
        text = problem.lower()
        reason = "truncated" if "truncat" in text or isinstance(error, EOFError) else "corrupt"
        if "too much memory" in text or isinstance(error, _TOO_MUCH):
            reason, problem = "too-large", re.sub("limit of .*|decompression bomb.*", "max_pixels", problem)
        elif "unknown pixel mode" in text:
            reason, problem = "wrong-mode", "other channels than grey, a palette or RGB"
        raise DecodeError(f"{where}: cannot be decoded ({problem})", reason=reason) from error


# ---- Judging


def _judge(file: IO[bytes], where: str, max_pixels: int) -> Header:
    """Refuse files that are damaged, too costly or meaningless, as far as the header shows."""
    head, size = file.read(64), file.seek(0, os.SEEK_END)
    kind = _sniff(head)
    suffix = Path(where).suffix.lower()
    named = next((form for form, suffixes in _FORMATS.items() if suffix in suffixes), kind)
    if kind is None:
        raise DecodeError(f"{where}: not a PNG, JPEG, WebP or TIFF image", reason="not-an-image")
    if named != kind:
        raise DecodeError(
            f"{where}: the name says {named}, the content is {kind}", reason="wrong-extension", hint="rename it"
        )
    chunks = _png_chunks(file, where) if kind == "PNG" else set()
    if kind == "WEBP":
        _check_webp(head, size, where, max_pixels)
    file.seek(0)
    most = {"JPEG": _BESIDES, "TIFF": _TIFF_TAGS}.get(kind, 2 * size)
    metered: Any = _Metered(file, where, most)
    with _open(metered, kind, where) as image:
        metered.left = most  # Pillow reads the tags of a TIFF again, for EXIF data
        _check_size(*image.size, 0 if kind == "JPEG" else size, where, max_pixels)
        if kind == "JPEG":
            _check_jpeg(image, file, where)
        elif _guarded(lambda: getattr(image, "is_animated", False), where):  # not `n_frames`: it reads all pages
            raise DecodeError(f"{where}: holds several frames or pages", reason="many-frames")
        if kind == "TIFF":
            _guarded(lambda: _check_tiff(image, size, where, max_pixels), where)
        return _guarded(lambda: _header(image, kind, head, chunks, where), where, kind)


def _known(file: IO[bytes], where: str) -> Header:
    """Return the header of a file that was checked before; its bytes are the same."""
    head = file.read(64)
    kind = _sniff(head) or ""
    chunks = _png_chunks(file, where, is_known=True) if kind == "PNG" else set()
    if chunks and chunks <= _PLAIN_CHUNKS and head[24] == 8 and head[25] in _PLAIN_MODES:
        width, height = struct.unpack(">II", head[16:24])
        return Header(kind, _PLAIN_MODES[head[25]], height, width, 1, plain=True)
    file.seek(0)
    with _open(file, kind, where) as image:
        return _guarded(lambda: _header(image, kind, head, chunks, where), where, kind)


def _open(file: Any, kind: str, where: str) -> Image.Image:
    """Open by Pillow's reader of this format; of a JPEG with several pictures (MPO), the first one."""
    if reader := {"JPEG": JpegImagePlugin.JpegImageFile, "TIFF": TiffImagePlugin.TiffImageFile}.get(kind):
        return _guarded(lambda: reader(file), where, kind)
    return _guarded(lambda: Image.open(file, formats=[kind]), where, kind)


def _sniff(head: bytes) -> str | None:
    """Return the format by the first bytes; None for all but the four accepted formats."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return "TIFF" if head[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+") else None


def _check_size(width: int, height: int, size: int, where: str, max_pixels: int) -> None:
    if height <= 0 or width <= 0:
        raise DecodeError(f"{where}: {width}x{height} has no pixels", reason="empty")
    if height * width > max_pixels:
        raise DecodeError(
            f"{where}: {width}x{height} is more than {max_pixels} pixels (max_pixels)",
            reason="too-large",
            hint=f"cut it into tiles; max_pixels is at most {MAX_PIXELS}",
        )
    if size > _most_bytes(height * width):
        raise DecodeError(f"{where}: {size} bytes are too many for {height * width} pixels", reason="too-large")


def _check_memory(needed: int, what: str, where: str, most: int = _TRIED_MEMORY) -> None:
    """Refuse too much memory: some formats show damage only after all pixels are in memory."""
    if needed > most:
        raise DecodeError(
            f"{where}: {what} of this size takes {needed / 1e6:.0f} MB of memory before damage would show; "
            f"the limit is {most / 1e6:.0f} MB",
            reason="too-large",
            hint="convert it to an opaque PNG without metadata or a JPEG of one scan",
        )


def _header(image: Image.Image, kind: str, head: bytes, chunks: set[bytes], where: str) -> Header:
    """Read mode, size and orientation; refuse PNGs of 16 bits and images that need too much memory."""
    width, height = image.size
    mode, bits = image.mode, head[24] if kind == "PNG" and head[25] != _PALETTE else 8
    if mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        _check_memory(_ALPHA_BYTES * height * width, "a picture with transparency", where)
    plain = kind == "PNG" and chunks <= _PLAIN_CHUNKS and bits == 8 and mode in ("L", "RGB")
    if kind == "PNG" and not plain:  # Pillow's image, and OpenCV's grey image
        each = 2 if mode in ("1", "L", "P") else 5
        _check_memory(each * height * width, "a PNG with metadata or transparency", where)
    if kind == "TIFF":
        # Pillow stretches grey of fewer bits to 0..255, and inverts "white is zero": wrong for ids.
        bits = 0 if mode in ("1", "L") and image.tile[0][3][0] not in ("L", "L;R") else 8  # type: ignore[attr-defined]
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height, orientation = tags[256], tags[257], tags.get(_ORIENTATION, 1)
    else:
        orientation = _orientation(image, where) if kind != "PNG" or b"eXIf" in chunks else 1
    if 5 <= orientation <= 8:
        width, height = height, width
    return Header(kind, mode, height, width, orientation, plain, bits)


def _orientation(image: Image.Image, where: str) -> int:
    """Orientation by EXIF data alone: Pillow also reads XMP and texts, viewers do not. Damaged data: no rotation."""
    if image.format == "PNG" and "exif" not in image.info:
        image.load()  # EXIF data may lie behind the pixels
    data = image.info.get("exif", b"")
    if len(data) > _EXIF:
        raise _too_much("EXIF data", where)
    exif = Image.Exif()
    try:
        exif.load(data)
        found = exif.get(_ORIENTATION)
    except _FLAWED:
        return 1
    return found if found in _UPRIGHT else 1


def _png_chunks(file: IO[bytes], where: str, *, is_known: bool = False) -> set[bytes]:
    """Return the types of a PNG's chunks. DecodeError: a truncated chunk, a wrong CRC, or too many chunks.

    Pillow's `verify` checks CRCs, too, but holds each chunk in memory twice and does not count those behind the pixels.
    """
    kinds: set[bytes] = set()
    besides = others = pixels = 0
    file.seek(8)
    while b"IEND" not in kinds:
        head = file.read(8)
        if len(head) < 8:
            raise DecodeError(f"{where}: the PNG ends before its last chunk", reason="truncated")
        left, kind = struct.unpack(">I4s", head)
        if is_known:
            kinds.add(kind)
            file.seek(left + 4, os.SEEK_CUR)
            continue
        if kind == b"IDAT":
            pixels += 1
        else:
            others, besides = others + 1, besides + left
        # OpenCV holds a whole chunk; pixels of this size need no chunk longer than this limit.
        if besides > _BESIDES or others > _CHUNKS or pixels > _PIXEL_CHUNKS or left > _COUNTED_MEMORY:
            raise _too_much("bytes or chunks besides the pixels", where)
        crc = zlib.crc32(kind)
        while left and (block := file.read(min(left, _BLOCK))):
            crc, left = zlib.crc32(block, crc), left - len(block)
        stored = file.read(4)
        if len(stored) < 4:
            raise DecodeError(f"{where}: the PNG ends inside a chunk {kind.decode('latin-1')!r}", reason="truncated")
        if int.from_bytes(stored, "big") != crc:
            raise DecodeError(f"{where}: wrong CRC in a chunk {kind.decode('latin-1')!r}", reason="corrupt")
        kinds.add(kind)
    return kinds


def _check_jpeg(image: Image.Image, file: IO[bytes], where: str) -> None:
    """Check libjpeg's memory for all scans before the first pixels, and data that libjpeg reads repeatedly."""
    opened_image: Any = image  # a JPEG, with the sampling factors of its components
    factors = [(h, v) for _, h, v, _ in opened_image.layer]
    if not all(h and v for h, v in factors):
        raise DecodeError(f"{where}: a sampling factor of 0", reason="corrupt")
    # Behind the header of the first scan: its length, number of components, two bytes each, three more bytes.
    file.seek(-2 * len(factors) - 4, os.SEEK_CUR)
    is_one_scan = not image.info.get("progressive") and file.read(1)[0] == len(factors)
    if not is_one_scan:
        blocks = [-(-side // (8 * max(f[i] for f in factors))) for i, side in enumerate(image.size)]
        memory = 128 * blocks[0] * blocks[1] * sum(h * v for h, v in factors)
        _check_memory(memory, "a JPEG of several scans", where, _COUNTED_MEMORY)
    file.seek(2 * len(factors) + 3, os.SEEK_CUR)
    _check_size(*image.size, _end_of_jpeg(file, where), where, sys.maxsize)


def _end_of_jpeg(file: IO[bytes], where: str) -> int:
    """Find the end of a JPEG from its first pixels on: phones append a video. DecodeError for too many scans."""
    at, scans, parts = file.tell(), 1, 0
    while parts <= _READS:
        file.seek(at)
        block = file.read(_BLOCK)
        if block == b"\xff" * _BLOCK:  # libjpeg rereads such a run with each new block
            raise DecodeError(
                f"{where}: more than {_BLOCK} fill bytes (0xFF) in a row", reason="corrupt", hint="save the image again"
            )
        marker = _JPEG_MARKER.search(block)
        if marker is None and len(block) < _BLOCK:
            return at + len(block)
        at += len(block) - 1 if marker is None else marker.end()
        if marker is None:
            continue
        if marker[0] == b"\xff\xd9":
            return at
        scans, parts = scans + (marker[0] == b"\xff\xda"), parts + 1
        if scans > _SCANS:
            raise _too_much("scans", where)
        file.seek(at)
        at += int.from_bytes(file.read(2), "big")
    raise _too_much("parts", where)


def _check_webp(head: bytes, size: int, where: str, max_pixels: int) -> None:
    """Check a WebP by its first bytes: Pillow reads the whole file to open it, and allocates the canvas."""
    kind, lossless, alpha = head[12:16], False, False
    if kind == b"VP8X" and len(head) >= 30:
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        lossless, alpha = True, bool(head[20] & 0x10)  # it may be lossless
    elif kind == b"VP8L" and head[20:21] == b"\x2f" and len(head) >= 25:
        bits = int.from_bytes(head[21:25], "little")
        width, height, lossless, alpha = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), True, bool(bits >> 28 & 1)
    elif kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a" and len(head) >= 30:
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", head[26:30]))
    else:
        raise DecodeError(f"{where}: unknown WebP header", reason="truncated" if len(head) < 30 else "corrupt")
    _check_size(width, height, size, where, max_pixels)
    each = 18 if alpha else 8 if lossless else 6
    _check_memory(size + max(size, each * height * width), "a WebP", where)


def _check_tiff(image: Image.Image, size: int, where: str, max_pixels: int) -> None:
    """Check depth, memory and completeness of a TIFF by its tags."""
    opened_image: Any = image  # a TIFF image, with tags
    tags = opened_image.tag_v2
    bits = tags.get(258, (1,))
    bits = max(bits) if isinstance(bits, tuple) else bits
    if bits > 8:
        raise DecodeError(f"{where}: more than 8 bits per channel", reason="wrong-mode", hint="convert it to 8 bits")
    # libtiff allocates one whole tile or strip, independent of the image's size.
    width, height = tags[256], tags[257]  # as stored; `size` is upright
    tile = int(tags.get(322, 1) or 1) * int(tags.get(323, 1) or 1)
    if tile > max_pixels:
        raise DecodeError(f"{where}: tiles of {tile} pixels", reason="too-large")
    if tags.get(259, 1) == 1:
        _check_raw_tiff(opened_image, bits, size, where)
    else:  # only decoding shows whether the data are complete
        strip = min(int(tags.get(278, height) or height), height) * width
        grey = len(image.getbands()) == 1
        memory = (1 if grey else 4) * height * width + (1 if grey else 3) * max(tile, strip if tile == 1 else 0)
        _check_memory(memory + size + 2 * _TIFF_TAGS, "a compressed TIFF", where, _COUNTED_MEMORY)  # it is mapped
    exif = image.getexif()
    for directory in (34665, 34853, 40965):  # EXIF, GPS, interoperability: Pillow reads these after the pixels
        if directory in exif:
            exif.get_ifd(directory)


def _check_raw_tiff(image: Any, bits: int, size: int, where: str) -> None:
    """Check that all strips or tiles lie in the file: Pillow ignores their lengths, and leaves missing ones black."""
    tags, planes, drawn = image.tag_v2, 1, 0
    if tags.get(284, 1) == 2:  # each channel has separate strips
        planes = len(image.getbands())
    else:
        bits *= tags.get(277, 1)
    lengths = tags.get(279) or tags.get(325) or ()
    ends = [offset + length for offset, length in zip(tags.get(273) or tags.get(324) or (), lengths, strict=False)]
    for _, (left, top, right, bottom), offset, (_, stride, _) in image.tile:
        row = ((right - left) * bits + 7) // 8
        drawn += (right - left) * (bottom - top)
        ends.append(offset + (bottom - top - 1) * max(stride, row) + row)
    whole = tags[256] * tags[257] * planes
    if max(ends, default=0) > size or drawn < whole:
        raise DecodeError(f"{where}: ends before its pixels do, or strips or tiles are missing", reason="truncated")
    if drawn > whole:
        raise DecodeError(f"{where}: more strips or tiles than pixels", reason="corrupt")


# ---- Decoding


def _decode_plain(file: IO[bytes], flags: int, header: Header, where: str, is_known: bool) -> UInt8:
    """Decode a plain 8-bit PNG by OpenCV: the pixels of Pillow, faster, and with less memory."""
    if (
        not is_known and 4 * header.height * header.width > _TRIED_MEMORY
    ):  # damage shows in a grey image before the full memory is allocated
        _opencv(file, cv2.IMREAD_GRAYSCALE, where)
    return _opencv(file, flags, where)


def _opencv(file: IO[bytes], flags: int, where: str) -> UInt8:
    """Decode a PNG by OpenCV, which refuses truncated, missing or damaged pixel data."""
    file.seek(0, os.SEEK_END)
    flags |= cv2.IMREAD_IGNORE_ORIENTATION
    if isinstance(file, io.BytesIO) or file.tell() < _IN_MEMORY:
        file.seek(0)
        pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), flags)
    else:  # avoids file and pixels in memory together
        pixels = cv2.imread(where, flags)
    if pixels is None:
        raise DecodeError(f"{where}: damaged pixel data", reason="corrupt")
    return np.asarray(pixels, np.uint8)


def _decode(file: IO[bytes], header: Header, where: str, is_known: bool) -> Image.Image:
    if not is_known and header.format == "JPEG" and 4 * header.height * header.width > _TRIED_MEMORY:
        # All data are read at an eighth of the size: damage shows before the full memory is allocated.
        with _reopened(file, header, where) as small:
            small.draft(small.mode, (small.width // 8, small.height // 8))
            _guarded(small.load, where)
    image = _reopened(file, header, where)
    _guarded(image.load, where, header.format)
    if header.format == "PNG" and not is_known:
        # Pillow accepts pixel data that end early but properly, and leaves the missing rows black.
        _opencv(file, cv2.IMREAD_GRAYSCALE, where)
    # Pillow turns a TIFF upright by itself.
    turn = None if header.format == "TIFF" else _UPRIGHT.get(header.orientation)
    return image if turn is None else image.transpose(turn)


def _reopened(file: IO[bytes], header: Header, where: str) -> Image.Image:
    file.seek(0)
    return _open(file, header.format, where)


def _check_mode(header: Header, where: str) -> None:
    problem = "16 bits per channel are" if header.bits == _DEEP else f"colour mode {header.mode} is"
    if header.bits == _DEEP or header.mode not in _IMAGE_MODES:
        raise DecodeError(
            f"{where}: {problem} not supported in images", reason="wrong-mode", hint="convert it to 8-bit RGB"
        )


def _rgb(file: IO[bytes], header: Header, where: str, is_known: bool) -> UInt8:
    _check_mode(header, where)
    if header.plain:
        return _decode_plain(file, cv2.IMREAD_COLOR_RGB, header, where, is_known)
    return _to_rgb(_decode(file, header, where, is_known), where)


def _to_rgb(image: Image.Image, where: str) -> UInt8:
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        if image.mode not in ("LA", "RGBA"):
            image = image.convert("RGBA")
        low, _ = image.getchannel("A").getextrema()
        if low != 255:
            raise DecodeError(f"{where}: has transparent pixels", reason="wrong-mode", hint="flatten it to 8-bit RGB")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
