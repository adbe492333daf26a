"""No file, whatever is in it, takes more than 200 MB or ten seconds before it is refused."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.hmsa_core.data.hostile_images import (
    SIDE,
    SUFFIX,
    Cost,
    cost,
    costs,
    exif,
    jpeg,
    jpeg_segment,
    large,
    noise_rows,
    png,
    png_chunk,
    scans,
    small_png,
    tiff,
    tiff_pages,
    webp,
    zero_rows,
)

from .conftest import encode, put

pytestmark = pytest.mark.fault  # hostile files, measured in processes of their own

GAMMA = png_chunk(b"gAMA", struct.pack(">I", 45455))  # keeps OpenCV out


def _texts(count: int) -> bytes:
    """Texts of a million characters, four bytes each in memory because of the first."""
    packed = zlib.compress(("\U0001f600" + "a" * 1_000_000).encode())
    return b"".join(png_chunk(b"iTXt", b"k%d\0\1\0\0\0" % i + packed) for i in range(count))


def _exif_segments(data: bytes) -> bytes:
    return b"".join(jpeg_segment(0xE1, b"Exif\0\0" + data[i : i + 65_000]) for i in range(0, len(data), 65_000))


# What a file holds besides its pixels: kept in memory and made objects of by Pillow, some of it read byte by byte.
# Name: (suffix, content[, reason]); the reason is "too-large" where none is named. The files are far smaller than what is allowed for a picture of 64 million pixels;
# before they were refused unread they took several seconds, or several times their length in memory.
BESIDES = {
    "a text of 13 MB": (".png", lambda: small_png(png_chunk(b"tEXt", b"a\0" + bytes(13 << 20)))),
    "an unknown chunk of 15 MB": (".png", lambda: small_png(png_chunk(b"prVt", bytes(15 << 20)))),
    "a text of 73 MB": (".png", lambda: small_png(png_chunk(b"tEXt", b"a\0" + bytes(73 << 20)))),
    "surplus pixel data": (".png", lambda: small_png(after=png_chunk(b"IDAT", bytes(40 << 20)))),
    "texts that inflate": (".png", lambda: small_png(_texts(60))),
    "texts behind the pixels that inflate": (".png", lambda: small_png(after=_texts(60))),
    "a text that inflates for OpenCV only": (
        ".png",
        lambda: small_png(after=png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(7 << 20), 9)) * 300),
        "corrupt",
    ),
    "profiles that inflate": (
        ".png",
        lambda: small_png(png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000), 9)[:-4]) * 5000),
    ),
    "a million empty chunks": (".png", lambda: small_png(png_chunk(b"prVt", b"") * 1_000_000)),
    "EXIF of 10 MB in a PNG": (".png", lambda: small_png(png_chunk(b"eXIf", exif(numbers=5_000_000)))),
    "EXIF of 3 MB in a text": (
        ".png",
        lambda: small_png(png_chunk(b"tEXt", b"exif\0" + exif(numbers=1_500_000)), png_chunk(b"eXIf", b"II*\0")),
    ),
    "fill bytes before a segment": (".jpg", lambda: jpeg(b"\xff" * 10_000_000)),
    "fill bytes in a scan": (".jpg", lambda: jpeg(in_scan=b"\xff" * 4_000_000), "corrupt"),
    "zeros between segments": (".jpg", lambda: jpeg(jpeg_segment(0xFE, b"a") + bytes(20_000_000))),
    "restart markers between segments": (".jpg", lambda: jpeg(b"\xff\xd0" * 5_000_000)),
    "comments of 60 MB": (".jpg", lambda: jpeg(jpeg_segment(0xFE, bytes(65_533)) * 920)),
    "a million empty comments": (".jpg", lambda: jpeg(jpeg_segment(0xFE, b"") * 1_000_000)),
    "EXIF of 10 MB in a JPEG": (".jpg", lambda: jpeg(_exif_segments(exif(0x0128, 5_000_000)))),
    "ten thousand scans": (".jpg", lambda: scans(10_000)),
    "XMP of 40 MB": (".webp", lambda: webp((b"XMP ", bytes(40 << 20)), flags=4)),
    "bytes behind a WebP": (".webp", lambda: webp() + bytes(100_000_000)),
    "a million chunks of a WebP": (".webp", lambda: webp(*[(b"abcd", b"")] * 1_000_000)),
    "EXIF of 10 MB in a WebP": (".webp", lambda: webp((b"EXIF", exif(numbers=5_000_000)), flags=8)),
    "a tag of 40 MB": (".tif", lambda: tiff(more={65_000: (1, 40 << 20, bytes(40 << 20))})),
    "a million strips": (".tif", lambda: tiff(more={273: (4, 1_000_000, bytes(4_000_000)), 278: (4, 1, b"\1\0\0\0")})),
    "a tag of five million numbers": (".tif", lambda: tiff(more={274: (3, 5_000_000, b"\x09\x01" * 5_000_000)})),
    "EXIF of five million numbers": (
        ".tif",
        lambda: tiff(more={34665: (4, 1, struct.pack("<I", 200))}, pixels=bytes(192) + exif(0x9000, 5_000_000)),
    ),
    "a hundred thousand pages": (".tif", lambda: tiff_pages(30_000), "many-frames"),
}


@pytest.fixture(scope="module")
def besides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cost]:
    folder = tmp_path_factory.mktemp("besides")
    paths = [folder / f"{i}{suffix}" for i, (suffix, *_) in enumerate(BESIDES.values())]
    for path, (_, content, *_) in zip(paths, BESIDES.values(), strict=True):
        path.write_bytes(content())
    return dict(zip(BESIDES, costs(paths), strict=True))


@pytest.mark.parametrize("name", BESIDES)
def test_what_no_picture_needs_is_refused_before_it_costs_memory_or_time(besides, name):
    found = besides[name]
    assert found.reason == (*BESIDES[name], "too-large")[2]
    assert found.megabytes < 35, found
    assert found.seconds < 2, found


def test_what_the_hostile_files_are_made_of_is_good_and_so_is_metadata_of_ordinary_size(tmp_path):
    profile = png_chunk(b"iCCP", b"a\0\0" + zlib.compress(os.urandom(900_000)))
    texts = b"".join(png_chunk(b"iTXt", b"key%d\0\0\0\0\0" % i + "caf\u00e9".encode()) for i in range(200))
    good = {
        "a.png": small_png(_texts(1), png_chunk(b"eXIf", exif())),
        "b.png": small_png(profile + texts, png_chunk(b"tEXt", b"k\0" + bytes(3 << 20))),
        "a.jpg": jpeg(jpeg_segment(0xFE, b"a") * 99 + b"\xff" * 99),
        "b.jpg": jpeg(b"".join(jpeg_segment(0xE2, bytes(65_000)) for _ in range(60)) + b"\xff" * 5000),
        "c.jpg": scans(50),
        "a.webp": webp((b"XMP ", bytes(3 << 20)), flags=4),
        "a.tif": tiff(more={65_000: (1, 9, bytes(9))}),
        "b.tif": tiff(more={700: (1, 700_000, bytes(700_000))}),
    }
    for name, content in good.items():
        (tmp_path / name).write_bytes(content)
    assert [found.reason for found in costs([tmp_path / name for name in good])] == ["decoded"] * len(good)


def _raw_tiff(path: Path, **changes: object) -> Path:
    """An uncompressed TIFF of the largest size, whose pixels take no room on the disk."""
    head = tiff(SIDE, 7990, pixels=b"\0", **changes)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) - 1 + 3 * SIDE * 7990)
    return path


def _noisy_tiff() -> bytes:
    """44 million pixels in strips that do not compress, the last one damaged: the file is as long as the picture."""
    strip = zlib.compress(np.random.default_rng(4).bytes(3 * SIDE * 100), 0)
    offsets = np.arange(55, dtype="<u4") * len(strip)
    more = {
        259: (3, 1, b"\x08\0"),
        278: (4, 1, struct.pack("<I", 100)),
        273: (4, 55, offsets.tobytes()),
        279: (4, 55, np.full(55, len(strip), "<u4").tobytes()),
    }
    return tiff(SIDE, 5500, more, strip * 54 + strip[:-9] + b"\xff" * 9)


SHORT_GAMMA = png_chunk(b"gAMA", b"\0\0")
ROWS = 4400  # of a PNG with other chunks: what follows its pixels is read with the whole picture in memory
# Found out late: by the last rows of a picture as large as it may be, or by what follows them.
LATE = {
    "noise without its last rows": lambda: png(SIDE, 7990, body=noise_rows(7900)),
    "noise without a checksum": lambda: png(SIDE, 7990, body=noise_rows(7990)[:-4]),
    "rows missing behind which EXIF data come": lambda: png(
        SIDE, ROWS, body=zero_rows(ROWS - 90), after=png_chunk(b"eXIf", exif())
    ),
    "an unknown filter in the last row": lambda: png(SIDE, ROWS, body=zero_rows(ROWS, last_filter=9), before=GAMMA),
    "pixel data in two parts": lambda: png(
        SIDE,
        ROWS,
        body=zero_rows(ROWS)[:-100_000],
        before=GAMMA,
        after=GAMMA + png_chunk(b"IDAT", zero_rows(ROWS)[-100_000:]),
    ),
    "a bad chunk behind the pixels": lambda: png(SIDE, ROWS, body=zero_rows(ROWS), before=GAMMA, after=SHORT_GAMMA),
}


def test_a_large_tiff_that_turns_out_damaged_late_costs_less_than_200_mb(tmp_path):
    two = {278: (4, 1, struct.pack("<I", 3995)), 279: (4, 2, b"\x63\0\0\0" * 2)}
    files = [
        _raw_tiff(tmp_path / "exif.tif", more={34665: (4, 1, struct.pack("<I", 3 * SIDE * 7990 + 9))}),
        _raw_tiff(tmp_path / "lengths.tif", more=two | {273: (4, 2, struct.pack("<II", 0, 150_000_000))}),
        _raw_tiff(tmp_path / "strips.tif", more=two | {273: (4, 1, bytes(4)), 279: (4, 1, b"\x63\0\0\0")}),
        put(tmp_path, _noisy_tiff(), ".tif"),
    ]
    found = costs(files)
    assert [f.reason for f in found] == ["corrupt", "truncated", "truncated", "too-large"]
    assert max(f.megabytes for f in found) < 200, found


def _big_png(colour: int, rows: int = 7990, cut: float = 1.0) -> bytes:
    """A picture just under the ceiling, from compressed zeros."""
    return png(SIDE, rows, colour=colour, body=zero_rows(int(rows * cut), 3 if colour == 2 else 1))


def _big_file(form: str, **options: object) -> bytes:
    """The same size in another format, without its last tenth."""
    rows = np.zeros((7990, SIDE), np.uint8)
    rows[::7] = 9
    data = encode(Image.fromarray(rows).convert("RGB"), form, **options)
    return data[: len(data) * 9 // 10]


_LZW = {"compression": "tiff_lzw"}
_ONE_STRIP = {"compression": "tiff_adobe_deflate", "tiffinfo": {278: 3200}}
_WEBP = {"quality": 1, "method": 0}
_LOSSLESS = {"quality": 0, "method": 0, "lossless": True}


# Damaged inside, or at the end: (format, rows, options, reason).
INSIDE = [
    ("JPEG", 7990, {"hurt": 0.97}, "corrupt"),
    ("JPEG", 7990, {"hurt": 0.97, "progressive": True}, "corrupt"),
    ("JPEG", 3900, {"hurt": 0.97, "progressive": True, "subsampling": 0}, "corrupt"),
    ("JPEG", 5500, {"hurt": 0.97, "progressive": True, "subsampling": 0}, "too-large"),
    ("TIFF", 5500, {"hurt": 0.97, **_LZW}, "corrupt"),
    ("TIFF", 7990, {"hurt": 0.97, **_LZW}, "too-large"),
    ("TIFF", 3200, {"hurt": 0.5, **_ONE_STRIP}, "corrupt"),
    ("TIFF", 3600, {"hurt": 0.5, **_ONE_STRIP, "tiffinfo": {278: 3600}}, "too-large"),
    ("WEBP", 3740, {"hurt": 0.5, **_WEBP}, "corrupt"),
    ("WEBP", 3760, {"hurt": 0.5, **_WEBP}, "too-large"),
    ("WEBP", 2700, {"hurt": 0.5, **_LOSSLESS}, "corrupt"),
    ("WEBP", 2900, {"hurt": 0.5, **_LOSSLESS}, "too-large"),
    ("WEBP", 1240, {"alpha": True, **_WEBP}, "wrong-mode"),
    ("WEBP", 1270, {"alpha": True, **_WEBP}, "too-large"),
    ("PNG", 3740, {"alpha": True}, "wrong-mode"),
    ("PNG", 3760, {"alpha": True}, "too-large"),
]


def _large_files() -> Iterator[tuple[str, Callable[[], bytes], set[str], str]]:
    """(suffix, content, reasons, read as) of files that are refused when much of them was read."""
    ends = {"truncated", "corrupt"}
    yield from ((".png", content, ends, "image") for content in LATE.values())
    for form, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("TIFF", {})):
        yield SUFFIX[form], partial(_big_file, form, **options), ends, "image"
    for form, rows, options, reason in INSIDE:
        yield SUFFIX[form], partial(large, form, rows, **options), {reason}, "image"
    yield ".png", lambda: png(178_956_971, 1), {"too-large"}, "image"
    yield ".png", lambda: _big_png(2)[:-90_000], {"truncated"}, "image"
    yield ".png", lambda: _big_png(2, cut=0.5), ends, "image"  # whole chunks with right checksums; rows are missing
    rows = (b"\0" + b"\xc8" * 8000) * 7900
    yield ".png", lambda: png(8000, 7900, colour=0, body=zlib.compress(rows, 1)), {"ids-out-of-range"}, "label"


_NUMBERS = range(len(LATE) + 3 + len(INSIDE) + 4)


@pytest.mark.parametrize("number", [n if n % 3 == 0 else pytest.param(n, marks=pytest.mark.slow) for n in _NUMBERS])
def test_a_large_file_that_is_refused_late_costs_less_than_200_mb(tmp_path, number):
    suffix, content, reasons, what = next(islice(_large_files(), number, None))
    found = cost(put(tmp_path, content(), suffix), what)
    assert found.reason in reasons
    assert found.megabytes < 200, found


def test_a_changed_large_file_is_refused_before_it_is_in_memory(tmp_path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(250 << 20)  # a sparse file
    found = cost(path, "changed")
    assert found.reason == "changed"
    assert found.megabytes < 50, found


def test_a_file_of_polygons_is_read_up_to_a_length(tmp_path):
    objects = b'{"imgHeight": 8, "imgWidth": 8, "objects": [' + b"{}," * 5_000_000 + b"{}]}"
    found = cost(put(tmp_path, objects, "_gtFine_polygons.json"), "label")
    assert found.reason == "too-large"
    assert found.megabytes < 50, found
