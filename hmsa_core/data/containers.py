"""The outer form of image files: which format it is, and whether a PNG is whole (length and CRC of each chunk)."""

from __future__ import annotations

import struct
import zlib
from typing import IO

from hmsa_core.errors import DecodeError

__all__ = ["PLAIN_CHUNKS", "check_png", "check_png_length", "sniff", "webp_size"]

# Chunks that do not change what the pixels of a grey or RGB PNG mean.
PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tIME", b"tEXt", b"zTXt", b"iTXt"}
_BLOCK = 1 << 20


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


def check_png(file: IO[bytes], where: str) -> set[bytes]:
    """Walk over the chunks of a PNG from its start: types found; DecodeError when it is cut or a CRC is wrong."""
    file.read(8)
    seen: set[bytes] = set()
    while b"IEND" not in seen:
        head = file.read(8)
        if len(head) < 8:
            raise DecodeError(f"{where}: the PNG ends without IEND", reason="truncated")
        left, kind = int.from_bytes(head[:4], "big"), head[4:]
        crc = zlib.crc32(kind)
        while left:
            block = file.read(min(left, _BLOCK))
            if not block:
                raise DecodeError(f"{where}: the PNG ends inside a {kind!r} chunk", reason="truncated")
            crc = zlib.crc32(block, crc)
            left -= len(block)
        stored = file.read(4)
        if len(stored) < 4:
            raise DecodeError(f"{where}: the PNG ends inside a {kind!r} chunk", reason="truncated")
        if int.from_bytes(stored, "big") != crc:
            raise DecodeError(f"{where}: wrong CRC in a {kind!r} chunk", reason="corrupt")
        seen.add(kind)
    return seen


_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def check_png_length(file: IO[bytes], where: str) -> None:
    """Inflate the pixels of a PNG without keeping them; DecodeError when there are too few.

    Pillow takes a stream that ends early, if it ends properly, and leaves the missing rows black.
    """
    file.seek(8)
    left = -1
    inflate = zlib.decompressobj()
    while True:
        length, kind = struct.unpack(">I4s", file.read(8))
        data = file.read(length)
        file.read(4)
        if kind == b"IHDR":
            left = _raw_length(data)
        elif kind == b"IEND":
            break
        while kind == b"IDAT" and data and left > 0:
            try:
                left -= len(inflate.decompress(data, _BLOCK))
            except zlib.error as error:
                raise DecodeError(f"{where}: damaged pixel data ({error})", reason="corrupt") from error
            data = inflate.unconsumed_tail
    if left > 0:
        raise DecodeError(f"{where}: {left} bytes of pixel data are missing", reason="truncated")


def _raw_length(header: bytes) -> int:
    """Bytes of the inflated pixel data: rows with one filter byte each."""
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS.get(colour, 1)
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    total = 0
    for x0, y0, step_x, step_y in passes:
        columns, rows = -(-(width - x0) // step_x), -(-(height - y0) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total
