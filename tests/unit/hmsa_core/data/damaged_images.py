"""Damaged images and label maps without end, and what reading must make of each of them."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageOps

from hmsa_core import taxonomy
from hmsa_core.data.checks import Task, Verifier
from hmsa_core.data.decode import REASONS, read_image, read_label
from hmsa_core.data.found import Found
from hmsa_core.io.errors import DecodeError, IntegrityError
from tests.unit.hmsa_core.data.hostile_images import exif, jpeg, jpeg_segment, png, png_chunk, tiff, tiff_pages, webp

from .conftest import blocks, encode, indexed, picture, save

SIZE = (24, 32)
OWN_LIMIT_S = 10  # seconds for a file, after which the process ends


class File(NamedTuple):
    """A damaged file, the SHA-256 of the whole one, and whether it must be refused whatever else is in it."""

    suffix: str
    data: bytes
    digest: str
    bomb: bool = False


def shown(data: bytes) -> np.ndarray:
    """The picture that another program shows for the same bytes."""
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def stored(data: bytes) -> np.ndarray:
    """The ids that another program finds in a label map."""
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
        return np.array(ImageOps.exif_transpose(image))


def images(seed: int) -> list[tuple[str, bytes]]:
    """One good image of each kind: (suffix, content)."""
    turned = Image.Exif()
    turned[0x0112] = 6
    small = picture(seed, SIZE)
    return [
        (".png", encode(small, "PNG")),
        (".jpg", encode(small, "JPEG", exif=turned)),
        (".webp", encode(small, "WEBP")),
        (".webp", encode(small, "WEBP", lossless=True)),
        (".tif", encode(small, "TIFF", exif=turned)),
        (".tif", encode(small, "TIFF", compression="tiff_lzw")),
        (".tif", encode(small, "TIFF", compression="tiff_adobe_deflate")),
        (".jpg", encode(Image.fromarray(small).convert("CMYK"), "JPEG")),
        (".png", encode(small[..., 0].astype(np.uint16) * 200, "PNG")),
        (".jpg", encode(small, "JPEG", progressive=True)),
        (".png", encode(small, "PNG", exif=turned)),
    ]


def labels(seed: int) -> list[tuple[str, bytes]]:
    """Label maps of each kind, some of another size than the images."""
    maps = [blocks(seed + i, size=size) for i, size in enumerate((SIZE, SIZE, SIZE, (25, 32), (24, 31), (32, 24)))]
    return [
        (".png", encode(maps[0], "PNG")),
        (".png", encode(indexed(maps[1]), "PNG")),
        (".tif", encode(maps[2], "TIFF")),
        (".tif", encode(maps[0], "TIFF", compression="tiff_lzw")),
        (".png", encode(maps[3], "PNG")),
        (".tif", encode(maps[4], "TIFF")),
        (".png", encode(maps[5], "PNG")),
    ]


def bomb(rng: np.random.Generator) -> tuple[str, bytes]:
    """A file of less than six MB that promises much more, or has much read over before its pixels."""
    suffix, build = BOMBS[int(rng.integers(0, len(BOMBS)))]
    return suffix, build(int(rng.integers(9000, 16_000)))


def _patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def _large_jpeg(n: int) -> bytes:
    data = jpeg()
    return _patched(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", n, n))


def _large_tiff(n: int, compression: bytes) -> bytes:
    size = (4, 1, struct.pack("<I", n))
    return tiff(more={256: size, 257: size, 259: (3, 1, compression)})


# A number of about ten thousand -> what is too much.
BOMBS: list[tuple[str, Callable[[int], bytes]]] = [
    (".png", lambda n: png(n, n)),
    (".png", lambda n: png(8000, 7000, body=zlib.compress(bytes(n)))),
    (".png", lambda n: png(8, 8, before=png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(150 * n))))),
    (".png", lambda n: png(8, 8, before=png_chunk(b"eXIf", exif(numbers=60 * n)))),
    (".png", lambda n: png(8, 8, before=png_chunk(b"prVt", b"") * (100_000 + n))),
    (".jpg", _large_jpeg),
    (".jpg", lambda n: jpeg(b"\xff" * (60_000 + n))),
    (".jpg", lambda n: jpeg(in_scan=b"\xff" * (130_000 + n))),
    (".jpg", lambda n: jpeg(jpeg_segment(0xFE, b"") * n)),
    (
        ".webp",
        lambda n: _patched(encode(picture(1, SIZE), "WEBP", lossless=True), 21, (n | n << 14).to_bytes(4, "little")),
    ),
    (".webp", lambda n: _patched(encode(picture(1, SIZE), "WEBP"), 26, struct.pack("<HH", n, n))),
    (".webp", lambda n: webp((b"abcd", bytes(5_000_000 + n)))),
    (".webp", lambda n: _patched(webp(), 24, 2 * (n - 1).to_bytes(3, "little"))),
    (".tif", lambda n: _large_tiff(n, b"\1\0")),
    (".tif", lambda n: _large_tiff(n, b"\5\0")),
    (".tif", lambda n: tiff(more={273: (4, 270_000 + n, bytes(4 * (270_000 + n)))})),
    (".tif", tiff_pages),
]


def mutated(rng: np.random.Generator, original: bytes) -> bytes:
    """Flipped bits, cut ends, swapped, doubled and zeroed parts, and oddities in the header: one to three of them."""
    data = bytearray(original)
    for _ in range(int(rng.integers(1, 4))):
        at, length = int(rng.integers(0, len(data))), int(rng.integers(1, 40))
        kind = rng.integers(0, 6)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[at] = int(rng.integers(0, 256))
        elif kind == 2:
            data = data[: max(1, at)]
        elif kind == 3:
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif kind == 4:
            data[at:at] = data[max(0, at - length) : at]
        else:  # headers are where the interesting damage is
            data[int(rng.integers(0, min(64, len(data))))] = int(rng.choice([0, 1, 127, 128, 255]))
    return _with_right_checksums(data) if rng.random() < 0.5 else bytes(data)


def _with_right_checksums(data: bytearray) -> bytes:
    """The same with right CRCs, if it is a PNG: else they hide all other damage."""
    at = 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end])) if end + 4 <= len(data) else b""
        at = end + 4
    return bytes(data)


def files(seed: int, count: int) -> Iterator[File]:
    """Every twentieth a bomb, every fortieth whole; of the rest two thirds images, one third label maps."""
    rng = np.random.default_rng(seed)
    originals = [images(7), labels(1), images(7)]
    for i in range(count):
        if i % 20 == 19:
            suffix, data = bomb(rng)
            yield File(suffix, data, "0" * 64, bomb=True)
            continue
        suffix, original = originals[i % 3][i // 3 % len(originals[i % 3])]
        data = original if i % 40 == 10 else mutated(rng, original)
        yield File(suffix if rng.random() > 0.02 else ".png", data, hashlib.sha256(original).hexdigest())


def fuzz(tmp_path: Path, seed: int, count: int) -> dict[str, int]:
    """Read each file as an image, as a label map, and as the label map of a good image: counts of the outcomes."""
    table = taxonomy.cityscapes()
    save(tmp_path / "image.png", picture(3, SIZE))
    verifier = Verifier(tmp_path, table, 64_000_000, 16, 0)
    outcome: Counter[str] = Counter()
    for i, file in enumerate(files(seed, count)):
        path = tmp_path / f"file{file.suffix}"
        path.write_bytes(file.data)
        if hashlib.sha256(file.data).hexdigest() != file.digest:
            with pytest.raises(IntegrityError, match="SHA-256|recorded"):  # whatever it decodes to
                read_image(path, sha256=file.digest)
        for what in ("image", "label", "pair"):
            started = time.process_time()
            signal.alarm(OWN_LIMIT_S)
            found = _pair(verifier, path, file.data) if what == "pair" else _read(path, what, file.data, table)
            signal.alarm(0)
            assert time.process_time() - started < 2.0, (seed, i)
            assert not file.bomb or found != "decoded", (seed, i)
            outcome[f"{what} {found}"] += 1
    return outcome


def _read(path: Path, what: str, data: bytes, table: taxonomy.ClassTable) -> str:
    try:
        pixels = read_image(path) if what == "image" else read_label(path, table)
    except DecodeError as error:
        refused = error
    else:
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, shown(data) if what == "image" else table.id_to_train[stored(data)])
        return "decoded"
    assert refused.reason in REASONS
    assert "\n" not in refused.message
    return refused.reason


def _pair(verifier: Verifier, path: Path, data: bytes) -> str:
    checked = verifier(Task(Found("image", "image.png", path.name), "learn", "block"))
    if checked.sample is None:
        (row,) = checked.refused
        assert (row.part, row.path) == ("label", path.name)
        assert row.reason in REASONS
        return row.reason
    assert stored(data).shape == SIZE == (checked.sample.height, checked.sample.width)
    return "decoded"


_LIMITED = """
import json, resource, sys
from pathlib import Path
from research.bench.memory import status_kib
from tests.unit.hmsa_core.data import damaged_images
from tests.unit.hmsa_core.data.hostile_images import peak
limit = 1024 * status_kib("VmData") + (200 << 20)  # the libraries hold 0.8 to 1.1 GB, depending on the machine
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
before = peak()
outcome = damaged_images.fuzz(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
print(json.dumps([outcome, (peak() - before) * 1.024e-3]))
"""


def fuzz_in_a_process_of_its_own(tmp_path: Path, seed: int, count: int) -> tuple[dict[str, int], float]:
    """(outcomes, MB that its memory grew by); 200 MiB above the libraries and 10 s for each file, or the kernel ends it."""
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path), str(seed), str(count)],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr  # libtiff says a line of its own on standard error
    outcome, grown = json.loads(done.stdout)
    assert sum(outcome.values()) == 3 * count
    return outcome, grown
