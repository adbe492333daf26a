from __future__ import annotations

import hashlib
import io
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from hmsa_core import taxonomy
from hmsa_core.data.decode import REASONS, is_constant, read_header, read_image, read_label, read_label_ids
from hmsa_core.errors import DecodeError, IntegrityError

from .conftest import blocks, encode, picture

RGB = picture(1)
IDS = blocks(1)
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_lzw"}}
SUFFIX = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif"}


def put(tmp_path: Path, data: bytes, suffix: str = ".png") -> Path:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(data)
    return path


def refused(path: Path, read=read_image, **options) -> str:
    with pytest.raises(DecodeError) as caught:
        read(path, **options)
    assert caught.value.reason in REASONS
    assert str(path) in caught.value.message
    return caught.value.reason


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int = 8, colour: int = 2, body: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", body or zlib.compress(b"\0")), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("form", sorted(LOSSLESS))
def test_lossless_formats_give_exactly_the_stored_pixels(tmp_path, form):
    path = put(tmp_path, encode(RGB, form, **LOSSLESS[form]), SUFFIX[form])
    assert np.array_equal(read_image(path), RGB)
    header = read_header(path)
    assert (header.height, header.width, header.format) == (*RGB.shape[:2], form)


def test_jpeg_gives_the_pixels_of_pillow(tmp_path):
    data = encode(RGB, "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(read_image(put(tmp_path, data, ".JPEG")), expected)


def test_plain_png_gives_the_same_pixels_through_both_decoders(tmp_path):
    # A gAMA chunk keeps OpenCV out of it: it must not change a value.
    plain = encode(RGB, "PNG")
    with_gamma = plain[:33] + png_chunk(b"gAMA", struct.pack(">I", 22222)) + plain[33:]
    assert read_header(put(tmp_path, plain)).plain
    assert not read_header(put(tmp_path, with_gamma)).plain
    assert np.array_equal(read_image(put(tmp_path, plain)), read_image(put(tmp_path, with_gamma)))


def test_grey_images_become_rgb_of_equal_channels(tmp_path):
    grey = RGB[..., 0]
    image = read_image(put(tmp_path, encode(grey, "PNG")))
    assert image.shape == RGB.shape
    assert all(np.array_equal(image[..., c], grey) for c in range(3))


def test_palette_image_is_expanded_to_its_colours(tmp_path):
    indexed = Image.fromarray(RGB).quantize(16)
    out = io.BytesIO()
    indexed.save(out, "PNG")
    assert np.array_equal(read_image(put(tmp_path, out.getvalue())), np.asarray(indexed.convert("RGB")))


def test_opaque_alpha_is_dropped_and_transparency_is_refused(tmp_path):
    alpha = np.full((*RGB.shape[:2], 1), 255, np.uint8)
    assert np.array_equal(read_image(put(tmp_path, encode(np.dstack([RGB, alpha]), "PNG"))), RGB)
    alpha[0, 0] = 254
    assert refused(put(tmp_path, encode(np.dstack([RGB, alpha]), "PNG"))) == "wrong-mode"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = put(tmp_path, encode(RGB, "PNG", exif=exif))
    upright = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1), 7: np.rot90(RGB, 2).transpose(1, 0, 2), 8: np.rot90(RGB),
    }[orientation]  # fmt: skip
    assert np.array_equal(read_image(path), upright)
    header = read_header(path)
    assert (header.height, header.width) == upright.shape[:2]


def test_sixteen_bits_are_refused_not_scaled(tmp_path):
    deep = Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)
    for form, suffix in (("PNG", ".png"), ("TIFF", ".tif")):
        out = io.BytesIO()
        deep.save(out, form)
        assert refused(put(tmp_path, out.getvalue(), suffix)) == "wrong-mode"
        assert refused(put(tmp_path, out.getvalue(), suffix), read_label_ids) == "wrong-mode"
    assert refused(put(tmp_path, png(4, 4, depth=16, colour=2))) == "wrong-mode"


def test_cmyk_is_refused(tmp_path):
    out = io.BytesIO()
    Image.fromarray(RGB).convert("CMYK").save(out, "JPEG")
    assert refused(put(tmp_path, out.getvalue(), ".jpg")) == "wrong-mode"


@pytest.mark.parametrize(("form", "suffix"), [("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif")])
def test_animations_and_pages_are_refused(tmp_path, form, suffix):
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, form, save_all=True, append_images=[Image.fromarray(picture(2))])
    assert refused(put(tmp_path, out.getvalue(), suffix)) == "many-frames"


def test_wrong_extension_is_named(tmp_path):
    path = put(tmp_path, encode(RGB, "PNG"), ".jpg")
    with pytest.raises(DecodeError, match="the name says JPEG, the content is PNG") as caught:
        read_image(path)
    assert caught.value.reason == "wrong-extension"


@pytest.mark.parametrize("data", [b"GIF89a" + bytes(100), b"<svg/>", b"\0" * 500, b"BM" + bytes(200), b"%PDF-1.7"])
def test_other_content_is_not_an_image(tmp_path, data):
    assert refused(put(tmp_path, data)) == "not-an-image"


def test_missing_folder_and_empty_file_have_their_own_reasons(tmp_path):
    assert refused(tmp_path / "missing.png") == "unreadable"
    assert refused(tmp_path) == "unreadable"
    assert refused(put(tmp_path, b"")) == "truncated"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_truncation_is_refused(tmp_path, form):
    data = encode(RGB, form)
    for cut in {1, 3, 11, 29, 33, len(data) // 3, len(data) // 2, len(data) - 40, len(data) - 9}:
        reason = refused(put(tmp_path, data[:cut], SUFFIX[form]))
        assert reason in ("truncated", "corrupt", "not-an-image"), (cut, reason)


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("colour", [0, 2, 3, 6])
def test_a_png_whose_pixel_stream_ends_early_is_refused(tmp_path, colour, interlace, capfd):
    height, width = 9, 13
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[colour]
    rows = [width] if not interlace else [2, 2, 4, 3, 7, 6, 13]
    heights = [height] if not interlace else [2, 2, 1, 3, 2, 5, 4]
    full = b"".join(b"\0" + b"\xff" * (w * channels) for w, h in zip(rows, heights, strict=True) for _ in range(h))

    def build(body: bytes) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlace)
        palette = png_chunk(b"PLTE", bytes(range(256)) * 3) if colour == 3 else b""
        idat = png_chunk(b"IDAT", zlib.compress(body))
        return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + palette + idat + png_chunk(b"IEND", b"")

    assert read_image(put(tmp_path, build(full))).shape == (height, width, 3)
    assert refused(put(tmp_path, build(full[:-20]))) in ("truncated", "corrupt")


def test_a_flipped_bit_in_a_png_is_caught_by_its_checksum(tmp_path):
    data = bytearray(encode(RGB, "PNG"))
    data[len(data) // 2] ^= 4
    assert refused(put(tmp_path, bytes(data))) == "corrupt"


@pytest.mark.parametrize(("width", "height"), [(178_956_971, 1), (65_000, 65_000), (2**31 - 1, 2**31 - 1), (8001, 8000)])
def test_own_ceiling_is_raised_before_decoding(tmp_path, width, height):
    started = time.perf_counter()
    assert refused(put(tmp_path, png(width, height))) == "too-large"
    assert time.perf_counter() - started < 0.5


def test_ceiling_counts_pixels_not_sides(tmp_path):
    row = zlib.compress(b"".join(b"\0" + bytes(65_000) for _ in range(1)))
    path = put(tmp_path, png(65_000, 1, colour=0, body=row))
    assert read_image(path).shape == (1, 65_000, 3)
    assert refused(path, max_pixels=64_999) == "too-large"


def test_jpeg_webp_and_tiff_bombs_are_refused_by_their_headers(tmp_path):
    jpeg = bytearray(encode(RGB, "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    assert refused(put(tmp_path, bytes(jpeg), ".jpg")) == "too-large"
    lossless = bytearray(encode(RGB, "WEBP", lossless=True))
    lossless[21:25] = (16_383 | 16_383 << 14).to_bytes(4, "little")
    assert refused(put(tmp_path, bytes(lossless), ".webp")) == "too-large"
    lossy = bytearray(encode(RGB, "WEBP", quality=80))
    lossy[26:30] = struct.pack("<HH", 16_000, 16_000)
    assert refused(put(tmp_path, bytes(lossy), ".webp")) == "too-large"
    extended = b"RIFF" + struct.pack("<I", 60) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff" * 6 + bytes(40)
    assert refused(put(tmp_path, extended, ".webp")) == "too-large"
    tiff = _with_tiff_tags(encode(RGB, "TIFF"), {256: 60_000, 257: 60_000})
    assert refused(put(tmp_path, tiff, ".tif")) == "too-large"


def _with_tiff_tags(data: bytes, values: dict[int, int]) -> bytes:
    """A little-endian TIFF with other values (as LONG) in entries of its first directory."""
    out = bytearray(data)
    (at,) = struct.unpack_from("<I", data, 4)
    for entry in range(struct.unpack_from("<H", data, at)[0]):
        place = at + 2 + 12 * entry
        (tag,) = struct.unpack_from("<H", data, place)
        if tag in values:
            out[place : place + 12] = struct.pack("<HHII", tag, 4, 1, values[tag])
    return bytes(out)


def test_no_pixels_is_its_own_reason(tmp_path):
    assert refused(put(tmp_path, png(0, 0))) in ("empty", "corrupt")
    assert refused(put(tmp_path, png(0, 7))) in ("empty", "corrupt")


def test_a_file_too_long_for_its_ceiling_is_not_read(tmp_path):
    path = tmp_path / "long.png"
    with path.open("wb") as file:
        file.write(encode(RGB, "PNG"))
        file.truncate(1 << 30)  # a sparse file
    assert refused(path, max_pixels=1_000_000) == "too-large"


# The high-water mark of the process's own memory: what getrusage says begins with that of the process that started it.
_MEMORY = """
import sys
from pathlib import Path
from hmsa_core import taxonomy
from hmsa_core.data.decode import read_image, read_label, read_label_ids
from hmsa_core.errors import DecodeError, IntegrityError
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
base = peak()
read = {"image": read_image, "label": lambda p: read_label(p, taxonomy.cityscapes()),
        "changed": lambda p: read_image(p, sha256="0" * 64)}[sys.argv[2]]
try:
    read(sys.argv[1])
except DecodeError as error:
    print(error.reason, (peak() - base) // 1024)
except IntegrityError:
    print("changed", (peak() - base) // 1024)
"""


def _cost(path: Path, what: str = "image") -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(path), what], capture_output=True, text=True, check=True, timeout=60
    )
    reason, mebibytes = done.stdout.split()
    return reason, int(mebibytes)


def _big_png(colour: int, rows: int = 8000, cut: float = 1.0) -> bytes:
    """A picture of 64 million pixels just under the ceiling, from compressed zeros."""
    line = b"\0" + bytes(8000 * (3 if colour == 2 else 1))
    compress = zlib.compressobj(1)
    body = b"".join(compress.compress(line) for _ in range(int(rows * cut))) + compress.flush()
    return png(8000, rows, colour=colour, body=body)


def _big_file(form: str, **options: object) -> bytes:
    """The same size in another format, without its last tenth."""
    rows = np.zeros((7990, 8000), np.uint8)
    rows[::7] = 9
    out = io.BytesIO()
    Image.fromarray(rows).convert("RGB").save(out, form, **options)
    return out.getvalue()[: len(out.getvalue()) * 9 // 10]


@pytest.mark.parametrize(
    ("form", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("TIFF", {})],
    ids=["JPEG", "progressive JPEG", "TIFF"],
)  # fmt: skip
def test_a_cut_file_of_any_format_costs_less_than_200_mb(tmp_path, form, options):
    reason, mebibytes = _cost(put(tmp_path, _big_file(form, **options), SUFFIX[form]))
    assert reason in ("truncated", "corrupt")
    assert mebibytes * 1.048576 < 200


def _picture(form: str, rows: int, *, alpha: bool = False, hurt: float = 0.0, **options: object) -> bytes:
    """A picture 8000 pixels wide; with bytes overwritten at `hurt` of its length; its last row see-through."""
    grey = np.zeros((rows, 8000), np.uint8)
    grey[::7] = 9
    grey[:, ::5] += 3
    image = Image.fromarray(grey).convert("RGB")
    if alpha:
        opaque = np.full((rows, 8000), 255, np.uint8)
        opaque[-1] = 7
        image.putalpha(Image.fromarray(opaque))
    out = io.BytesIO()
    image.save(out, form, **options)
    data = bytearray(out.getvalue())
    if hurt:
        place = int(len(data) * hurt)
        # A JPEG forgives nearly all; not a table of codes in the midst of the scan that ends too soon.
        new = b"\xff\xc4\x00\x05\xff\xff" if form == "JPEG" else bytes(range(200, 136, -1))
        data[place : place + len(new)] = new
    return bytes(data)


_LZW = {"compression": "tiff_lzw"}
_ONE_STRIP = {"compression": "tiff_adobe_deflate", "tiffinfo": {278: 3200}}
_WEBP = {"quality": 1, "method": 0}


@pytest.mark.parametrize(
    ("form", "rows", "options", "reason"),
    [
        ("JPEG", 7990, {"hurt": 0.97}, "corrupt"),
        ("JPEG", 7990, {"hurt": 0.97, "progressive": True}, "corrupt"),
        ("TIFF", 5500, {"hurt": 0.97, **_LZW}, "corrupt"),
        ("TIFF", 7990, {"hurt": 0.97, **_LZW}, "too-large"),
        ("TIFF", 3200, {"hurt": 0.5, **_ONE_STRIP}, "corrupt"),
        ("TIFF", 3600, {"hurt": 0.5, **_ONE_STRIP, "tiffinfo": {278: 3600}}, "too-large"),
        ("WEBP", 3740, {"hurt": 0.5, **_WEBP}, "corrupt"),
        ("WEBP", 3760, {"hurt": 0.5, **_WEBP}, "too-large"),
        ("WEBP", 1240, {"alpha": True, **_WEBP}, "wrong-mode"),
        ("WEBP", 1270, {"alpha": True, **_WEBP}, "too-large"),
        ("PNG", 3740, {"alpha": True}, "wrong-mode"),
        ("PNG", 3760, {"alpha": True}, "too-large"),
    ],
)
def test_a_large_file_that_is_damaged_inside_costs_less_than_200_mb(tmp_path, form, rows, options, reason):
    found, mebibytes = _cost(put(tmp_path, _picture(form, rows, **options), SUFFIX[form]))
    assert found == reason
    assert mebibytes * 1.048576 < 200


def test_a_changed_large_file_is_refused_before_it_is_in_memory(tmp_path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(250 << 20)  # a sparse file
    reason, mebibytes = _cost(path, "changed")
    assert reason == "changed"
    assert mebibytes < 50


def test_a_large_jpeg_is_tried_at_an_eighth_and_read_as_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("hmsa_core.data.decode.TRIED_MEMORY", 0)
    for image in (Image.fromarray(RGB), Image.fromarray(RGB).convert("L")):
        out = io.BytesIO()
        image.save(out, "JPEG")
        assert np.array_equal(read_image(put(tmp_path, out.getvalue(), ".jpg")), _shown(out.getvalue()))


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm(tmp_path):
    data = encode(RGB, "JPEG")
    for more in (b"", b"\0", b"\xff", bytes(70_000), b"\xff\xd9" + bytes(1 << 16)):
        path = put(tmp_path, data + more, ".jpg")
        assert np.array_equal(read_image(path), _shown(data))


def test_an_end_marker_in_a_thumbnail_is_not_the_end_of_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "\xff\xd9"  # a description with the bytes of the marker
    data = encode(RGB, "JPEG", exif=exif, comment=b"\xff\xd9")
    assert data.count(b"\xff\xd9") > 1
    assert read_image(put(tmp_path, data, ".jpg")).shape == RGB.shape
    assert refused(put(tmp_path, data[:-40], ".jpg")) == "truncated"
    assert refused(put(tmp_path, data[:-2], ".jpg")) == "truncated"


@pytest.mark.parametrize("case", ["bomb", "cut file", "cut stream", "bad ids"])
def test_a_refused_file_costs_less_than_200_mb(tmp_path, case):
    if case == "bomb":
        found = _cost(put(tmp_path, png(178_956_971, 1)))
        assert found[0] == "too-large"
    elif case == "cut file":
        data = _big_png(2)
        found = _cost(put(tmp_path, data[: len(data) * 9 // 10]))
        assert found[0] == "truncated"
    elif case == "cut stream":  # whole chunks with right checksums, but rows are missing inside
        found = _cost(put(tmp_path, _big_png(2, cut=0.5)))
        assert found[0] in ("truncated", "corrupt")
    else:
        data = png(8000, 7900, colour=0, body=zlib.compress((b"\0" + b"\xc8" * 8000) * 7900, 1))
        found = _cost(put(tmp_path, data), "label")
        assert found[0] == "ids-out-of-range"
    assert found[1] * 1.048576 < 200, found


def test_label_ids_are_mapped_and_every_other_value_is_refused(tmp_path):
    table = taxonomy.cityscapes()
    label = read_label(put(tmp_path, encode(IDS, "PNG")), table)
    assert np.array_equal(label, table.id_to_train[IDS])
    wrong = IDS.copy()
    wrong[3, 5] = 200
    path = put(tmp_path, encode(wrong, "PNG"))
    with pytest.raises(DecodeError, match="values 200 are not ids of cityscapes") as caught:
        read_label(path, table)
    assert caught.value.reason == "ids-out-of-range"


def test_train_id_maps_are_taken_as_they_are(tmp_path):
    table = taxonomy.cityscapes()
    path = tmp_path / "aachen_000000_000019_gtFine_labelTrainIds.png"
    label = blocks(2, (0, 5, 18, 255))
    Image.fromarray(label).save(path)
    assert np.array_equal(read_label(path, table), label)
    Image.fromarray(np.where(label == 18, 19, label).astype(np.uint8)).save(path)
    assert refused(path, lambda p: read_label(p, table)) == "ids-out-of-range"


def test_palette_labels_give_indices_not_colours(tmp_path):
    table = taxonomy.mapillary("v1.2")
    ids = blocks(4, (0, 13, 65))
    image = Image.fromarray(ids).convert("P")
    image.putdata(list(ids.ravel()))
    image.putpalette([v for k in range(256) for v in (255 - k, k, 3)])
    out = io.BytesIO()
    image.save(out, "PNG")
    label = read_label(put(tmp_path, out.getvalue()), table)
    assert np.array_equal(label, np.where(ids == 65, 255, ids))


def test_pictures_are_no_label_maps(tmp_path):
    assert refused(put(tmp_path, encode(RGB, "PNG")), read_label_ids) == "wrong-mode"
    assert refused(put(tmp_path, encode(IDS, "JPEG"), ".jpg"), read_label_ids) == "wrong-mode"
    assert refused(put(tmp_path, encode(IDS, "WEBP", lossless=True), ".webp"), read_label_ids) == "wrong-mode"
    small = Image.fromarray(IDS % 2 * 255).convert("1")
    out = io.BytesIO()
    small.save(out, "PNG")
    assert refused(put(tmp_path, out.getvalue()), read_label_ids) == "wrong-mode"


def test_four_bit_grey_labels_are_refused_because_decoders_stretch_them(tmp_path):
    body = zlib.compress(b"".join(b"\0" + b"\x12" * 4 for _ in range(8)))
    path = put(tmp_path, png(8, 8, depth=4, colour=0, body=body))
    assert refused(path, read_label_ids) == "wrong-mode"
    assert read_image(path).max() == 2 * 17


def test_digest_is_checked_on_the_bytes_that_are_decoded(tmp_path):
    data = encode(RGB, "JPEG")
    path = put(tmp_path, data, ".jpg")
    good = hashlib.sha256(data).hexdigest()
    assert np.array_equal(read_image(path, sha256=good), read_image(path))
    changed = bytearray(data)
    changed[-10] ^= 1
    path.write_bytes(changed)
    read_image(path)  # a changed JPEG still decodes: only the digest tells
    with pytest.raises(IntegrityError, match="SHA-256"):
        read_image(path, sha256=good)
    for other in (b"", data + bytes(40 << 20)):
        path.write_bytes(other)
        with pytest.raises(IntegrityError, match="recorded"):
            read_image(path, sha256=good, max_pixels=1_000_000)


def test_constant_pictures_are_recognised():
    assert is_constant(np.zeros((5, 7, 3), np.uint8))
    assert is_constant(np.full((5, 7), 9, np.uint8))
    almost = np.zeros((5, 7, 3), np.uint8)
    almost[4, 6, 2] = 1
    assert not is_constant(almost)


def _mutations(seed: int, count: int):
    """(suffix, bytes, SHA-256 of the whole file) of damaged files: flipped bits, cut ends, swapped, doubled and zeroed parts, and oddities."""
    rng = np.random.default_rng(seed)
    exif = Image.Exif()
    exif[0x0112] = 6
    small = picture(7, (24, 32))
    cmyk, deep = io.BytesIO(), io.BytesIO()
    Image.fromarray(small).convert("CMYK").save(cmyk, "JPEG")
    Image.fromarray(small[..., 0].astype(np.uint16) * 200).save(deep, "PNG")
    originals = [
        (".png", encode(small, "PNG")), (".jpg", encode(small, "JPEG", exif=exif)), (".webp", encode(small, "WEBP")),
        (".webp", encode(small, "WEBP", lossless=True)), (".tif", encode(small, "TIFF")),
        (".tif", encode(small, "TIFF", compression="tiff_lzw")), (".tif", encode(small, "TIFF", compression="tiff_adobe_deflate")),
        (".jpg", cmyk.getvalue()), (".png", deep.getvalue()), (".jpg", encode(small, "JPEG", progressive=True)),
        (".png", encode(blocks(1, size=(24, 32)), "PNG")),
    ]  # fmt: skip
    for i in range(count):
        suffix, original = originals[i % len(originals)]
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
        yield (suffix if rng.random() > 0.02 else ".png"), bytes(data), hashlib.sha256(original).hexdigest()


def _shown(data: bytes) -> np.ndarray:
    """The picture that another program shows for the same bytes."""
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


OWN_LIMIT_S = 0  # seconds for a file, after which the process ends; 0 = none


def _fuzz(tmp_path: Path, seed: int, count: int) -> dict[str, int]:
    outcome: dict[str, int] = {}
    table = taxonomy.cityscapes()
    for i, (suffix, data, digest) in enumerate(_mutations(seed, count)):
        path = put(tmp_path, data, suffix)
        if hashlib.sha256(data).hexdigest() != digest:
            with pytest.raises(IntegrityError, match="SHA-256|recorded"):  # whatever it decodes to
                read_image(path, sha256=digest)
        for read in (read_image, lambda p: read_label(p, table)):
            started = time.process_time()
            signal.alarm(OWN_LIMIT_S)
            try:
                pixels = read(path)
                reason = "decoded"
                assert pixels.dtype == np.uint8
                assert pixels.ndim in (2, 3)
                if pixels.ndim == 3:
                    assert np.array_equal(pixels, _shown(data)), (seed, i)
            except DecodeError as error:
                reason = error.reason
                one_line = "\n" not in error.message
                assert reason in REASONS and one_line, (seed, i)  # noqa: PT018
            signal.alarm(0)
            assert time.process_time() - started < 2.0, (seed, i)
            outcome[reason] = outcome.get(reason, 0) + 1
    return outcome


def test_a_thousand_damaged_files_are_refused_with_a_reason_or_decoded(tmp_path, capfd):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = _fuzz(tmp_path, seed=20, count=1000)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sum(outcome.values()) == 2000
    assert outcome["decoded"] > 50  # else the mutations are too wild to test anything
    assert len(outcome) >= 6
    assert grown < 200 * 1000, f"{grown} kB more than before"
    assert "Traceback" not in capfd.readouterr().err  # libtiff says a line of its own on standard error


_LIMITED = """
import resource, sys
from pathlib import Path
from tests.unit.hmsa_core.data import test_data_decode as tests
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
tests.OWN_LIMIT_S = 10
assert sum(tests._fuzz(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])).values()) == 2 * int(sys.argv[3])
"""


def fuzz_in_a_process_of_its_own(tmp_path: Path, seed: int, count: int) -> None:
    """With 1 GiB of memory and 10 s for each file: the kernel ends the process that takes more."""
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path), str(seed), str(count)], cwd=Path(__file__).parents[4],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_damaged_files_stay_within_memory_and_time(tmp_path):
    fuzz_in_a_process_of_its_own(tmp_path, seed=21, count=50)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_many_more_damaged_files(tmp_path, seed):
    fuzz_in_a_process_of_its_own(tmp_path, seed=100 + seed, count=5000)
