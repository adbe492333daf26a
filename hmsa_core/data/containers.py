"""The outer form of image files: which format it is, whether a PNG is whole, and what else decoders would have to read.

Decoders keep all metadata in memory, make objects of it, and go through some of it byte by byte. So every file is
walked over first, in constant memory and a limited number of steps, and what no picture needs is refused.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, Literal

from hmsa_core.io.errors import DecodeError

__all__ = [
    "MOST_TEXT",
    "PLAIN_CHUNKS",
    "TIFF_DIRECTORIES",
    "Budget",
    "check_png",
    "check_png_length",
    "check_tiff",
    "check_webp",
    "one_pixel_png",
    "sniff",
    "webp_size",
]

# Chunks that do not change what the pixels of a grey or RGB PNG mean.
PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tIME", b"tEXt", b"zTXt", b"iTXt"}
MOST_TEXT = 4 << 20  # bytes in a PNG; characters after inflating, up to 4 bytes each
# What a file may hold besides its pixels, so that Pillow needs neither 200 MB nor ten seconds for it.
_MOST = {
    "bytes of metadata": 12 << 20,
    "bytes of text": MOST_TEXT,
    "packed texts": 512,  # inflated to a megabyte each, by both decoders
    "bytes of EXIF data": 1 << 20,  # each number in it may become an object
    "numbers in tags": 270_000,  # of a TIFF: a strip of one row each, up to the tallest picture; objects, too
    "directories of tags": 16,
    "chunks": 100_000,  # of a PNG: the usual 8 kB each in the largest file
    "segments": 1024,  # of a JPEG
    "scans": 100,  # of a JPEG, as in libtiff: each one goes over the whole picture
    "bytes between segments": 1 << 16,
}
_BLOCK = 1 << 20


class Budget:
    """Counts what a file holds against `_MOST`."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._found: Counter[str] = Counter()

    def add(self, what: str, more: int = 1) -> int:
        """The sum so far; DecodeError when it is too much."""
        self._found[what] += more
        if self._found[what] > _MOST[what]:
            raise DecodeError(
                f"{self._where}: more than {_MOST[what]} {what}",
                reason="too-large",
                hint="save it again without metadata",
            )
        return self._found[what]


def sniff(head: bytes) -> str | None:
    """Format by its first bytes: PNG, JPEG, WEBP, TIFF, or None for anything else."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:4] in (b"II*\x00", b"MM\x00*"):
        return "TIFF"
    return None


def webp_size(head: bytes, where: str) -> tuple[int, int, bool]:
    """(height, width, whether it may be transparent) of the canvas from a WebP header of at least 30 bytes."""
    if len(head) < 30:
        raise DecodeError(f"{where}: WebP header ends early", reason="truncated")
    kind = head[12:16]
    if kind == b"VP8X":
        height, width = 1 + int.from_bytes(head[27:30], "little"), 1 + int.from_bytes(head[24:27], "little")
        return height, width, bool(head[20] & 0x10)
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF), bool(bits >> 28 & 1)
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", head[26:30])
        return height & 0x3FFF, width & 0x3FFF, False
    raise DecodeError(f"{where}: unknown WebP header", reason="corrupt")


def check_webp(file: IO[bytes], where: str) -> bool:
    """Walk over the chunks of a WebP: whether it is lossless; DecodeError for several frames or too much besides."""
    size = file.seek(0, os.SEEK_END)
    file.seek(4)
    end, at, frames, budget = min(size, 8 + int.from_bytes(file.read(4), "little")), 12, 0, Budget(where)
    lossless = False
    while at + 8 <= end:
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(8))
        budget.add("chunks")
        lossless |= kind == b"VP8L"
        if kind == b"ANMF":
            frames, length = frames + 1, 16  # what follows these bytes are chunks again
        elif kind not in (b"VP8 ", b"VP8L", b"ALPH"):
            budget.add("bytes of metadata", min(length, end - at))
        if kind == b"EXIF":
            budget.add("bytes of EXIF data", min(length, end - at))
        at += 8 + length + length % 2
    if frames > 1:
        raise DecodeError(f"{where}: holds several frames", reason="many-frames")
    return lossless


def check_png(file: IO[bytes], where: str) -> set[bytes]:
    """Walk over the chunks of a PNG: types found; DecodeError when it is cut, a CRC is wrong or there is too much."""
    file.seek(8)
    seen: set[bytes] = set()
    budget = Budget(where)
    while b"IEND" not in seen:
        kind, length, start = _png_chunk(file, where)
        if kind == b"IHDR" and (seen or length != 13):
            raise DecodeError(f"{where}: not one IHDR chunk of 13 bytes", reason="corrupt")
        budget.add("chunks")
        if kind != b"IDAT":
            budget.add("bytes of metadata", length)
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            budget.add("bytes of text", length)
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            budget.add("packed texts")
        if kind == b"eXIf" or start.startswith((b"exif\0", b"Raw profile type exif\0")):
            budget.add("bytes of EXIF data", length)
        seen.add(kind)
    return seen


def _png_chunk(file: IO[bytes], where: str) -> tuple[bytes, int, bytes]:
    """(type, length, first bytes) of the next chunk, whose CRC is right."""
    head = file.read(8)
    if len(head) < 8:
        raise DecodeError(f"{where}: the PNG ends without IEND", reason="truncated")
    length, kind = struct.unpack(">I4s", head)
    crc, left, start = zlib.crc32(kind), length, b""
    while left:
        block = file.read(min(left, _BLOCK))
        if not block:
            raise DecodeError(f"{where}: the PNG ends inside a {kind!r} chunk", reason="truncated")
        crc = zlib.crc32(block, crc)
        start = start or block[:32]
        left -= len(block)
    stored = file.read(4)
    if len(stored) < 4:
        raise DecodeError(f"{where}: the PNG ends inside a {kind!r} chunk", reason="truncated")
    if int.from_bytes(stored, "big") != crc:
        raise DecodeError(f"{where}: wrong CRC in a {kind!r} chunk", reason="corrupt")
    return kind, length, start


_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def check_png_length(file: IO[bytes], where: str, *, ended: bool = False) -> None:
    """Inflate the pixels of a PNG without keeping them; DecodeError when some are missing or a row has no known filter.

    Pillow takes a stream that ends early, if it ends properly, and leaves the missing rows black. With `ended` a
    stream that stops behind its last pixel without its checksum is refused, too, as OpenCV does.
    """
    file.seek(16)
    passes = _passes(file.read(13))
    total = sum(rows * length for rows, length in passes)
    left, inflate = total, zlib.decompressobj()
    for data in _pixel_data(file):
        # Behind the last pixel one more byte is asked for: the checksum is looked at, or there is more than needed.
        while data and left >= 0 and not inflate.eof:
            try:
                block = inflate.decompress(data, min(_BLOCK, left) or 1)
            except zlib.error as error:
                raise DecodeError(f"{where}: damaged pixel data ({error})", reason="corrupt") from error
            if left and _filters(block, total - left, passes).translate(None, b"\0\1\2\3\4"):
                raise DecodeError(f"{where}: damaged pixel data (unknown filter)", reason="corrupt")
            left -= len(block)
            data = inflate.unconsumed_tail
    if left > 0:
        raise DecodeError(f"{where}: {left} bytes of pixel data are missing", reason="truncated")
    if ended and left == 0 and not inflate.eof:
        raise DecodeError(f"{where}: damaged pixel data (no checksum)", reason="corrupt")


def _pixel_data(file: IO[bytes]) -> Iterator[bytes]:
    """IDAT chunks in blocks, up to the first other chunk behind one: no decoder reads on there."""
    file.seek(8)
    begun = False
    while len(head := file.read(8)) == 8:
        left, kind = struct.unpack(">I4s", head)
        if kind != b"IDAT" and (begun or kind == b"IEND"):
            return
        if kind != b"IDAT":
            file.seek(left, os.SEEK_CUR)
            left = 0
        begun = kind == b"IDAT"
        while left and (block := file.read(min(left, _BLOCK))):
            left -= len(block)
            yield block
        file.seek(4, os.SEEK_CUR)


def _passes(header: bytes) -> list[tuple[int, int]]:
    """(rows, bytes of a row) of the inflated pixel data: rows begin with a filter byte."""
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS.get(colour, 1)
    found = []
    for x0, y0, step_x, step_y in _ADAM7 if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x0) // step_x), -(-(height - y0) // step_y)
        if columns > 0 and rows > 0:
            found.append((rows, 1 + (columns * bits + 7) // 8))
    return found


def _filters(block: bytes, at: int, passes: list[tuple[int, int]]) -> bytes:
    """The filter bytes in a block that begins `at` bytes into the pixel data."""
    found, begin = b"", 0
    for rows, length in passes:
        first = begin + max(0, -(-(at - begin) // length)) * length
        end = begin + rows * length
        found += block[max(0, first - at) : max(0, end - at) : length] if first < end else b""
        begin = end
    return found


def one_pixel_png(file: IO[bytes]) -> bytes:
    """The same PNG with a single pixel: shows what its other chunks do to Pillow, without memory for the picture."""
    file.seek(8)
    parts = [b"\x89PNG\r\n\x1a\n"]
    drawn = False
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IDAT", b"acTL", b"fcTL", b"fdAT"):  # frames of an animation would not fit into a pixel
            file.seek(length + 4, os.SEEK_CUR)
            if drawn or kind != b"IDAT":
                continue
            drawn, data = True, zlib.compress(bytes(9))
        else:
            data = file.read(length)
            file.seek(4, os.SEEK_CUR)
        if kind == b"IHDR":
            data = struct.pack(">II", 1, 1) + data[8:12] + b"\0"
        parts += [struct.pack(">I4s", len(data), kind), data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))]
    return b"".join(parts)


_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # by type
TIFF_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability: Pillow reads them with the pixels


def check_tiff(file: IO[bytes], where: str) -> int:
    """Walk over the tags of a TIFF's first page: bytes that they hold; DecodeError when they are too much."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(8)
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    entry = "<HHI4s" if order == "little" else ">HHI4s"
    budget, held, waiting = Budget(where), 0, [head[4:]]
    while waiting:
        budget.add("directories of tags")
        file.seek(int.from_bytes(waiting.pop(), order))
        entries = file.read(12 * int.from_bytes(file.read(2), order))
        for tag, kind, number, value in struct.iter_unpack(entry, entries[: len(entries) // 12 * 12]):
            length = number * _TIFF_BYTES.get(kind, 0)
            if length > size:  # Pillow refuses that by itself
                continue
            held = budget.add("bytes of metadata", length)
            budget.add("numbers in tags", 0 if kind in (1, 2, 7) else number)
            if tag in TIFF_DIRECTORIES:
                waiting.append(value[:2] if kind == 3 else value)
    return held
