"""The segments of a JPEG: whether it is whole, and how much decoders would keep of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import IO

from hmsa_core.data.containers import Budget
from hmsa_core.io.errors import DecodeError

__all__ = ["check_jpeg"]

_STEP = 1 << 16  # bytes read at a time where a few are looked for
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_NO_CONTENT = {0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)}


def check_jpeg(file: IO[bytes], where: str) -> int:
    """Walk over the segments of a JPEG: bytes kept before the picture is, of metadata and of several scans.

    DecodeError when there is no end marker behind the first scan (found out by decoding, a lack costs the memory of
    the picture), or too much besides the scans.
    """
    budget, kind, frame, kept = Budget(where), 0, b"", 0
    segments = _jpeg_segments(file, budget, where)
    for marker, skipped, at, length in segments:
        budget.add("bytes between segments", skipped)  # Pillow reads them one by one
        file.seek(at + 2)
        start = file.read(min(max(length - 2, 0), 64))
        if marker == 0xDA:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            kind, frame = marker, start
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE:
            kept = budget.add("bytes of metadata", length)
            budget.add("bytes of EXIF data", length if start.startswith(b"Exif\0\0") else 0)
    else:
        raise DecodeError(f"{where}: ends before its pixels do", reason="truncated")
    begin = at
    # What is no marker's in a damaged scan may look like one: the end counts wherever it is.
    for marker, _, _, _ in segments:
        budget.add("scans", int(marker == 0xDA))
        if marker == 0xD9:
            break
    else:
        _check_jpeg_end(file, begin, where)
    return kept + _coefficients(kind, frame, start[:1])


def _jpeg_segments(file: IO[bytes], budget: Budget, where: str) -> Iterator[tuple[int, int, int, int]]:
    """(marker, bytes skipped before it, place behind it, length there) in a JPEG, up to its end or a broken one."""
    at = 2
    while (place := _next_marker(file, at, where)) >= 0:
        budget.add("segments")
        file.seek(place + 1)
        marker, length = file.read(1)[0], 0
        if marker >= 0xC0 and marker not in _NO_CONTENT:
            length = max(2, int.from_bytes(file.read(2), "big"))
        yield marker, place - at, place + 2, length
        at = place + 2 + length


def _next_marker(file: IO[bytes], at: int, where: str) -> int:
    """Position of the next marker that is neither fill byte nor restart, -1 when there is none."""
    file.seek(at)
    block = b""
    while more := file.read(_STEP):
        if more == b"\xff" * _STEP:
            # libjpeg begins such a run anew with each block that it gets.
            raise DecodeError(f"{where}: more than {_STEP} fill bytes in a row", reason="corrupt")
        block = block[-1:] + more
        if found := _MARKER.search(block):
            return file.tell() - len(block) + found.start()
    return -1


def _check_jpeg_end(file: IO[bytes], start: int, where: str) -> None:
    """An end marker is somewhere behind `start`."""
    end = file.seek(0, os.SEEK_END)
    while end > start:
        begin = max(start, end - _STEP)
        file.seek(begin)
        if b"\xff\xd9" in file.read(end - begin + 1):  # one byte more: the marker may lie across two blocks
            return
        end = begin
    raise DecodeError(f"{where}: ends before its pixels do", reason="truncated")


def _coefficients(kind: int, frame: bytes, scan: bytes) -> int:
    """Bytes that libjpeg keeps while it reads several scans, from the contents of the frame and of the first scan."""
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    factors = [(f >> 4, f & 15) for f in frame[7 : 7 + 3 * sum(frame[5:6]) : 3]]
    single = kind not in (0xC2, 0xC6, 0xCA, 0xCE) and sum(scan) >= len(factors)
    if single or not factors or not all(h and v for h, v in factors):
        return 0
    columns, rows = (8 * max(f[i] for f in factors) for i in (0, 1))
    return 128 * -(-width // columns) * -(-height // rows) * sum(h * v for h, v in factors)
