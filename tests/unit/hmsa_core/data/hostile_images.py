"""Files that are made to cost memory or time, and what reading them costs in a process of their own."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from research.bench.memory import status_kib

from .conftest import encode, picture

SUFFIX = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif"}
SIDE = 8000  # pixels; pictures of 8000x7990 are just under the ceiling


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def png(
    width: int, height: int, depth: int = 8, colour: int = 2, body: bytes = b"", before: bytes = b"", after: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = png_chunk(b"IDAT", body or zlib.compress(b"\0"))
    parts = [b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", header), before, pixels, after, png_chunk(b"IEND", b"")]
    return b"".join(parts)


def small_png(before: bytes = b"", after: bytes = b"") -> bytes:
    """A good picture of 8x8 with other chunks around its pixels."""
    return png(
        8,
        8,
        body=zlib.compress(b"".join(b"\0" + bytes(range(i, i + 24)) for i in range(8))),
        before=before,
        after=after,
    )


@cache
def zero_rows(rows: int, channels: int = 3, last_filter: int = 0) -> bytes:
    compress = zlib.compressobj(1)
    line = bytes(channels * SIDE)
    parts = [compress.compress(b"\0" + line) for _ in range(rows - 1)]
    return b"".join([*parts, compress.compress(bytes([last_filter]) + line), compress.flush()])


def noise_rows(rows: int) -> bytes:
    """Pixel data that no compression makes smaller: the file is as long as the picture."""
    block = np.random.default_rng(3).integers(0, 256, (64, 3 * SIDE + 1), np.uint8)
    block[:, 0] = 0
    compress = zlib.compressobj(0)
    return b"".join(compress.compress(block[: rows - i].tobytes()) for i in range(0, rows, 64)) + compress.flush()


def exif(tag: int = 0x0112, numbers: int = 1) -> bytes:
    """EXIF data whose only entry holds so many numbers."""
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", tag, 3, numbers, 26) + bytes(4) + b"\x09\x01" * numbers


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(segments: bytes = b"", in_scan: bytes = b"", **options: object) -> bytes:
    """A good JPEG of 24x32 with bytes behind its first marker, and others in its scan."""
    data = encode(picture(7, (24, 32)), "JPEG", **options)
    at = data.index(b"\xff\xda") + 30
    return data[:2] + segments + data[2:at] + in_scan + data[at:]


def scans(count: int) -> bytes:
    """A progressive JPEG of 1000x1000 whose last scan comes again and again."""
    data = encode(np.zeros((1000, 1000, 3), np.uint8), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda")) : -2] * count + data[-2:]


def webp(*chunks: tuple[bytes, bytes], flags: int = 0) -> bytes:
    """An extended WebP of 24x32 with chunks behind its pixels."""
    pixels = encode(picture(7, (24, 32)), "WEBP")[12:]
    canvas = bytes([flags, 0, 0, 0, 31, 0, 0, 23, 0, 0])
    parts = [b"VP8X", struct.pack("<I", 10), canvas, pixels]
    for kind, data in chunks:
        parts += [kind, struct.pack("<I", len(data)), data, bytes(len(data) % 2)]
    body = b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def tiff(
    width: int = 8,
    height: int = 8,
    more: dict[int, tuple[int, int, bytes]] | None = None,
    pixels: bytes = b"",
    following: int = 0,
) -> bytes:
    """An RGB TIFF with all tags outside of its directory: {tag: (type, count, value)}; offsets count from the pixels."""
    tags = {
        256: (4, 1, struct.pack("<I", width)),
        257: (4, 1, struct.pack("<I", height)),
        258: (3, 3, b"\x08\0" * 3),
        259: (3, 1, b"\x01\0"),
        262: (3, 1, b"\x02\0"),
        273: (4, 1, bytes(4)),
        277: (3, 1, b"\x03\0"),
        278: (4, 1, struct.pack("<I", height)),
        279: (4, 1, struct.pack("<I", 3 * width * height)),
    } | (more or {})
    at = 8 + 2 + 12 * len(tags) + 4
    begin = at + sum(len(value) for _, _, value in tags.values())
    entries, values = b"", b""
    for tag, (kind, count, value) in sorted(tags.items()):
        if tag in (273, 34665):
            value = (np.frombuffer(value, "<u4") + begin).astype("<u4").tobytes()
        inline = len(value) <= 4
        entries += struct.pack("<HHI", tag, kind, count) + (value.ljust(4, b"\0") if inline else struct.pack("<I", at))
        values += b"" if inline else value
        at += 0 if inline else len(value)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return (b"II*\0\x08\0\0\0" + directory + values).ljust(begin, b"\0") + (pixels or bytes(range(192)))


def tiff_pages(count: int) -> bytes:
    grey = {258: (3, 1, b"\x08\0"), 262: (3, 1, b"\1\0"), 277: (3, 1, b"\1\0")}
    page = tiff(more=grey)[8:118]
    length = len(page) + 4
    pages = (page + struct.pack("<I", 8 + length * i if i < count else 0) for i in range(1, count + 1))
    return b"II*\0\x08\0\0\0" + b"".join(pages) + bytes(64)


def peak() -> int:
    """High-water mark of this process's own memory in KiB.

    Mapped pages of libraries are left out: how many there are depends on what the page cache holds.
    """
    return status_kib("VmHWM") - status_kib("RssFile")


# Each file is read by a child that is forked when everything is imported.
_MEASURE = """
import json, os, resource, signal, sys, time
from PIL import Image
from hmsa_core import taxonomy
from hmsa_core.data.decode import read_image, read_label
from hmsa_core.io.errors import DecodeError, IntegrityError
from tests.unit.hmsa_core.data.hostile_images import peak
def measure(path, read):
    base, started = peak(), time.process_time()
    try:
        read(path)
        reason = "decoded"
    except DecodeError as error:
        reason = error.reason
    except IntegrityError:
        reason = "changed"
    except BaseException as error:
        reason = repr(error)
    print(json.dumps([reason, (peak() - base) * 1.024e-3, time.process_time() - started]), flush=True)
Image.init()
table = taxonomy.cityscapes()
read = {"image": read_image, "label": lambda p: read_label(p, table), "changed": lambda p: read_image(p, sha256="0" * 64)}
for path in sys.argv[2:]:
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
        signal.alarm(30)
        measure(path, read[sys.argv[1]])
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        print(json.dumps([f"ended with status {status}", 0, 0]), flush=True)
"""


class Cost(NamedTuple):
    """What happened to a file, and what memory and processor time it took beyond the imports."""

    reason: str
    megabytes: float
    seconds: float


def costs(paths: list[Path], what: str = "image") -> list[Cost]:
    """Read files as images, labels, or with a digest that is not theirs; each with 2 GiB and 30 s."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, what, *map(str, paths)],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [Cost(*json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) == len(paths)
    return found


def cost(path: Path, what: str = "image") -> Cost:
    return costs([path], what)[0]


def large(form: str, rows: int, *, alpha: bool = False, hurt: float = 0.0, **options: object) -> bytes:
    """A picture 8000 pixels wide; with bytes overwritten at `hurt` of its length; its last row see-through."""
    grey = np.zeros((rows, SIDE), np.uint8)
    grey[::7] = 9
    grey[:, ::5] += 3
    image = Image.fromarray(grey).convert("RGB")
    if alpha:
        opaque = np.full((rows, SIDE), 255, np.uint8)
        opaque[-1] = 7
        image.putalpha(Image.fromarray(opaque))
    data = bytearray(encode(image, form, **options))
    if hurt:
        place = int(len(data) * hurt)
        # A JPEG forgives nearly all; not a table of codes in the midst of the scan that ends too soon.
        new = b"\xff\xc4\x00\x05\xff\xff" if form == "JPEG" else bytes(range(200, 136, -1))
        data[place : place + len(new)] = new
    return bytes(data)
