"""The outer form of image files: which format it is, and whether a PNG is whole (length and CRC of each chunk)."""

from __future__ import annotations

import struct
import zlib
from typing import IO

from hmsa_core.errors import DecodeError

__all__ = ["PLAIN_CHUNKS", "check_png", "sniff", "webp_size"]

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


def webp_size(head: bytes, where: str) -> tuple[int, int]:
    """(height, width) of the canvas from a WebP header of at least 30 bytes."""
    if len(head) < 30:
        raise DecodeError(f"{where}: WebP header ends early", reason="truncated")
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[27:30], "little"), 1 + int.from_bytes(head[24:27], "little")
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", head[26:30])
        return height & 0x3FFF, width & 0x3FFF
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
