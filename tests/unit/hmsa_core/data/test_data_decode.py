from __future__ import annotations

import hashlib
import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from hmsa_core import taxonomy
from hmsa_core.data.decode import REASONS, is_constant, read_header, read_image, read_label, read_label_ids
from hmsa_core.io.errors import DecodeError, IntegrityError
from tests.unit.hmsa_core.data.damaged_images import BOMBS, shown
from tests.unit.hmsa_core.data.hostile_images import SUFFIX, png, png_chunk, small_png, tiff

from .conftest import blocks, encode, indexed, picture, put

RGB = picture(1)
IDS = blocks(1)
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_lzw"}}


def refused(path: Path, read=read_image, **options) -> str:
    with pytest.raises(DecodeError) as caught:
        read(path, **options)
    assert caught.value.reason in REASONS
    assert str(path) in caught.value.message
    assert "b'" not in caught.value.message, "text for people, not Python's bytes"
    return caught.value.reason


@pytest.mark.parametrize("form", sorted(LOSSLESS))
def test_lossless_formats_give_exactly_the_stored_pixels(tmp_path, form):
    path = put(tmp_path, encode(RGB, form, **LOSSLESS[form]), SUFFIX[form])
    assert np.array_equal(read_image(path), RGB)
    header = read_header(path)
    assert (header.height, header.width, header.format) == (*RGB.shape[:2], form)


def test_plain_png_gives_the_same_pixels_through_both_decoders(tmp_path):
    # A gAMA chunk keeps OpenCV out of it: it must not change a value.
    plain = encode(RGB, "PNG")
    with_gamma = plain[:33] + png_chunk(b"gAMA", struct.pack(">I", 22222)) + plain[33:]
    assert read_header(put(tmp_path, plain)).plain
    assert not read_header(put(tmp_path, with_gamma)).plain
    assert np.array_equal(read_image(put(tmp_path, plain)), read_image(put(tmp_path, with_gamma)))


def test_grey_images_become_rgb_of_equal_channels_and_palettes_their_colours(tmp_path):
    grey = RGB[..., 0]
    image = read_image(put(tmp_path, encode(grey, "PNG")))
    assert image.shape == RGB.shape
    assert all(np.array_equal(image[..., c], grey) for c in range(3))
    few = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(read_image(put(tmp_path, encode(few, "PNG"))), np.asarray(few.convert("RGB")))


def test_a_jpeg_of_several_pictures_is_read_as_its_first(tmp_path):
    buffer = io.BytesIO()
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[::-1])
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    path = put(tmp_path, buffer.getvalue(), ".jpg")
    with Image.open(path) as several:
        assert several.format == "MPO"
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    for image in (read_image(path), read_image(path, sha256=digest)):
        assert np.array_equal(image, shown(encode(RGB, "JPEG", quality=75)))
    assert (read_header(path).height, read_header(path).width) == RGB.shape[:2]


def test_opaque_alpha_is_dropped_and_transparency_is_refused(tmp_path):
    alpha = np.full((*RGB.shape[:2], 1), 255, np.uint8)
    assert np.array_equal(read_image(put(tmp_path, encode(np.dstack([RGB, alpha]), "PNG"))), RGB)
    alpha[0, 0] = 254
    assert refused(put(tmp_path, encode(np.dstack([RGB, alpha]), "PNG"))) == "wrong-mode"


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_once(tmp_path, orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = put(tmp_path, encode(RGB, form, exif=exif), SUFFIX[form])
    upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: np.rot90(RGB, 2).transpose(1, 0, 2),
        8: np.rot90(RGB),
    }[orientation]
    assert np.array_equal(read_image(path), upright)
    header = read_header(path)
    assert (header.height, header.width) == upright.shape[:2]
    for compression in (None, "tiff_lzw") if (orientation, form) == (6, "TIFF") else ():
        label = put(tmp_path, encode(IDS, "TIFF", exif=exif, compression=compression), ".tif")
        assert np.array_equal(read_label_ids(label), np.rot90(IDS, -1))


def test_sixteen_bits_are_refused_not_scaled_and_so_is_cmyk(tmp_path):
    deep = RGB[..., 0].astype(np.uint16) * 257
    for form in ("PNG", "TIFF"):
        path = put(tmp_path, encode(deep, form), SUFFIX[form])
        assert refused(path) == "wrong-mode"
        assert refused(path, read_label_ids) == ("ids-out-of-range" if form == "PNG" else "wrong-mode")
    with pytest.raises(DecodeError) as error:
        read_label_ids(put(tmp_path, encode(deep, "PNG")))
    assert "renumber larger class ids in maps and class file" in error.value.hint
    assert refused(put(tmp_path, png(4, 4, depth=16, colour=2))) == "wrong-mode"
    assert refused(put(tmp_path, encode(Image.fromarray(RGB).convert("CMYK"), "JPEG"), ".jpg")) == "wrong-mode"


def _exif(*entries: tuple[int, int, int, bytes], count: int = 0) -> bytes:
    rows = b"".join(struct.pack("<HHI", *row[:3]) + row[3].ljust(4, b"\0") for row in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count or len(entries)) + rows + bytes(4)


@pytest.mark.parametrize(
    "data",
    [
        _exif((0x112, 3, 1, b"\1"), (0x10F, 2, 40, struct.pack("<I", 60_000))),
        _exif((0x112, 3, 1, b"\1"), count=10),
        _exif((0x112, 3, 2, b"\1\0\1\0")),
        _exif((0x112, 3, 1, b"\x09")),
        _exif((0x112, 2, 4, b"six\0")),
        b"Exif\0\0II",
        b"Exif\0\0nothing that is EXIF",
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
def test_flawed_exif_data_do_not_make_a_picture_bad(tmp_path, form, data):
    plain = encode(RGB, form, **LOSSLESS.get(form, {}))
    flawed = encode(RGB, form, exif=data, **LOSSLESS.get(form, {}))
    path = put(tmp_path, flawed, SUFFIX[form])
    assert np.array_equal(read_image(path), shown(plain))


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
def test_a_rotation_that_only_xmp_or_a_text_names_is_not_applied(tmp_path, form):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    if form == "PNG":
        about = PngImagePlugin.PngInfo()
        about.add_itxt("XML:com.adobe.xmp", xmp.decode())
        data = encode(RGB, form, pnginfo=about)
    else:
        data = encode(RGB, form, xmp=xmp, **LOSSLESS.get(form, {}))
    assert b"tiff:Orientation" in data
    assert read_image(put(tmp_path, data, SUFFIX[form])).shape == RGB.shape


def test_what_a_phone_writes_behind_a_jpeg_is_no_part_of_it(tmp_path):
    film = np.random.default_rng(0).integers(0, 256, 8 << 20, np.uint8).tobytes()
    for options in ({}, {"progressive": True}):
        data = encode(RGB, "JPEG", **options)
        path = put(tmp_path, data + film, ".jpg")
        assert np.array_equal(read_image(path), shown(data))
        assert np.array_equal(read_image(path, sha256=hashlib.sha256(data + film).hexdigest()), shown(data))


def test_big_tiffs_are_read_and_a_tiff_of_five_bands_is_named_the_same_each_time(tmp_path):
    assert np.array_equal(read_image(put(tmp_path, encode(RGB, "TIFF", big_tiff=True), ".tif")), RGB)
    bands = {
        258: (3, 5, struct.pack("<5H", *[8] * 5)),
        277: (3, 1, b"\5\0"),
        262: (3, 1, b"\1\0"),
        279: (4, 1, struct.pack("<I", 320)),
        338: (3, 4, bytes(8)),
    }
    path = put(tmp_path, tiff(more=bands, pixels=bytes(320)), ".tif")
    with pytest.raises(DecodeError, match="other channels than grey, a palette or RGB") as caught:
        read_image(path)
    assert caught.value.reason == "wrong-mode"


def test_a_named_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert refused(tmp_path / "pipe.png") == "not-an-image"


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_animations_and_pages_are_refused(tmp_path, form):
    data = encode(RGB, form, save_all=True, append_images=[Image.fromarray(picture(2))])
    assert refused(put(tmp_path, data, SUFFIX[form])) == "many-frames"


@pytest.mark.parametrize("data", [b"GIF89a" + bytes(100), b"<svg/>", b"\0" * 500, b"BM" + bytes(200), b"%PDF-1.7"])
def test_other_content_is_not_an_image(tmp_path, data):
    assert refused(put(tmp_path, data)) == "not-an-image"
    assert refused(put(tmp_path, encode(RGB, "PNG"), ".jpg")) == "wrong-extension"


def test_missing_folder_and_empty_file_have_their_own_reasons(tmp_path):
    assert refused(tmp_path / "missing.png") == "unreadable"
    assert refused(tmp_path) == "unreadable"
    assert refused(put(tmp_path, b"")) == "truncated"
    assert refused(put(tmp_path, png(0, 7))) in ("empty", "corrupt")


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


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("before", [b"", png_chunk(b"gAMA", bytes(4))], ids=["OpenCV", "Pillow"])
def test_large_png_are_judged_as_small_ones_before_they_are_decoded(tmp_path, monkeypatch, before, interlace, capfd):
    rows = [(3, 9), (3, 9), (3, 18), (6, 18), (6, 36), (12, 36), (12, 72)] if interlace else [(24, 72)]
    raw = b"".join(b"\4" + bytes(range(length)) for count, length in rows for _ in range(count))
    good = zlib.compress(raw)

    def read(body: bytes, *more: bytes) -> str:
        data = bytearray(png(24, 24, body=body, before=before, after=b"".join(png_chunk(b"IDAT", m) for m in more)))
        data[16:33] = struct.pack(">IIBBBBB", 24, 24, 8, 2, 0, 0, interlace) + bytes(4)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
        try:
            read_image(put(tmp_path, bytes(data)))
        except DecodeError as error:
            return error.reason
        return "decoded"

    bodies = {
        "good": [good],
        "in parts": [good[:9], b"", good[9:-3], good[-3:]],
        "more": [zlib.compress(raw + bytes(999))],
        "bytes behind": [good + b"bytes", b"bytes"],
        "too few": [zlib.compress(raw[:-1])],
        "sum": [good[:-1] + b"?"],
        "filter": [zlib.compress(b"\5" + raw[1:])],
        "last filter": [zlib.compress(raw[: -rows[-1][1] - 1] + b"\x09" + raw[-rows[-1][1] :])],
        "cut": [good[:-9]],
        "none": [b""],
        "no sum": [good[:-4]],
    }
    small = {name: read(*body) for name, body in bodies.items()}
    if not before:  # others have a lower ceiling
        monkeypatch.setattr("hmsa_core.data.decode._TRIED_MEMORY", 0)
        monkeypatch.setattr("hmsa_core.data.decode._IN_MEMORY", 0)
        assert {name: read(*body) for name, body in bodies.items()} == small
    assert [n for n, r in small.items() if r == "decoded"] == ["good", "in parts", "more", "bytes behind"]


def test_a_png_has_one_header_of_thirteen_bytes_and_right_checksums(tmp_path):
    good = small_png(png_chunk(b"gAMA", bytes(4)))
    assert read_image(put(tmp_path, good)).shape == (8, 8, 3)
    header = good[16:29]
    assert refused(put(tmp_path, good[:8] + png_chunk(b"IHDR", header + b"\0") + good[33:])) == "corrupt"
    assert refused(put(tmp_path, good[:33] + png_chunk(b"IHDR", header) + good[33:])) == "corrupt"
    data = bytearray(encode(RGB, "PNG"))
    data[len(data) // 2] ^= 4
    assert refused(put(tmp_path, bytes(data))) == "corrupt"


def test_a_tiff_without_some_of_its_strips_is_refused(tmp_path):
    halves = {
        278: (4, 1, struct.pack("<I", 4)),
        273: (4, 2, struct.pack("<II", 0, 96)),
        279: (4, 2, struct.pack("<II", 96, 96)),
    }
    planes = {
        284: (3, 1, b"\2\0"),
        273: (4, 3, struct.pack("<III", 0, 64, 128)),
        279: (4, 3, struct.pack("<III", 64, 64, 64)),
    }
    for more in (halves, planes):
        data = tiff(more=more)
        assert np.array_equal(read_image(put(tmp_path, data, ".tif")), shown(data))
        one_less = more | {tag: (4, more[tag][1] - 1, more[tag][2][:-4]) for tag in (273, 279)}
        assert refused(put(tmp_path, tiff(more=one_less), ".tif")) == "truncated"


def test_a_grey_tiff_whose_values_pillow_would_change_is_no_label_map(tmp_path):
    grey = {258: (3, 1, b"\x08\0"), 262: (3, 1, b"\1\0"), 277: (3, 1, b"\1\0"), 279: (4, 1, struct.pack("<I", 64))}
    ids = np.arange(64, dtype=np.uint8).reshape(8, 8)
    whole = tiff(more=grey, pixels=ids.tobytes())
    assert np.array_equal(read_label_ids(put(tmp_path, whole, ".tif")), ids)
    four_bits = grey | {258: (3, 1, b"\4\0"), 279: (4, 1, struct.pack("<I", 32))}
    turned = tiff(more=grey | {262: (3, 1, b"\0\0")}, pixels=ids.tobytes())
    for data in (tiff(more=four_bits, pixels=bytes(32)), turned):
        path = put(tmp_path, data, ".tif")
        assert refused(path, read_label_ids) == "wrong-mode"
        assert np.array_equal(read_image(path), shown(data))


@pytest.mark.parametrize(
    ("width", "height"), [(178_956_971, 1), (65_000, 65_000), (2**31 - 1, 2**31 - 1), (8001, 8000)]
)
def test_own_ceiling_is_raised_before_decoding(tmp_path, width, height):
    started = time.perf_counter()
    assert refused(put(tmp_path, png(width, height))) == "too-large"
    assert time.perf_counter() - started < 0.5


def test_ceiling_counts_pixels_not_sides_and_a_file_too_long_for_it_is_not_read(tmp_path):
    row = zlib.compress(b"".join(b"\0" + bytes(65_000) for _ in range(1)))
    path = put(tmp_path, png(65_000, 1, colour=0, body=row))
    assert read_image(path).shape == (1, 65_000, 3)
    assert refused(path, max_pixels=64_999) == "too-large"
    with path.open("wb") as file:
        file.write(encode(RGB, "PNG"))
        file.truncate(1 << 30)  # a sparse file
    assert refused(path, max_pixels=1_000_000) == "too-large"


@pytest.mark.parametrize("number", range(len(BOMBS)))
def test_files_that_promise_or_hold_too_much_are_refused(tmp_path, number, capfd):
    suffix, build = BOMBS[number]
    others = dict.fromkeys((1, 2, 7), "corrupt") | {len(BOMBS) - 1: "many-frames"}
    reason = others.get(number, "too-large")
    assert refused(put(tmp_path, build(12_000), suffix)) == reason


def test_a_large_jpeg_is_tried_at_an_eighth_and_read_as_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("hmsa_core.data.decode._TRIED_MEMORY", 0)
    for image in (Image.fromarray(RGB), Image.fromarray(RGB).convert("L")):
        data = encode(image, "JPEG")
        assert np.array_equal(read_image(put(tmp_path, data, ".jpg")), shown(data))


def test_jpeg_gives_the_pixels_of_pillow_whatever_lies_behind_its_end(tmp_path):
    data = encode(RGB, "JPEG", quality=90)
    for more in (b"", b"\0", b"\xff", bytes(70_000), b"\xff\xd9" + bytes(1 << 16)):
        assert np.array_equal(read_image(put(tmp_path, data + more, ".JPEG")), shown(data))


def test_an_end_marker_in_a_thumbnail_is_not_the_end_of_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "\xff\xd9"  # a description with the bytes of the marker
    data = encode(RGB, "JPEG", exif=exif, comment=b"\xff\xd9")
    assert data.count(b"\xff\xd9") > 1
    assert read_image(put(tmp_path, data, ".jpg")).shape == RGB.shape
    assert refused(put(tmp_path, data[:-40], ".jpg")) == "truncated"
    assert refused(put(tmp_path, data[:-2], ".jpg")) == "truncated"


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
    ids = blocks(4, (0, 13, 65))
    path = put(tmp_path, encode(indexed(ids, lambda k: (255 - k, k, 3)), "PNG"))
    assert np.array_equal(read_label(path, taxonomy.mapillary("v1.2")), np.where(ids == 65, 255, ids))


def test_pictures_are_no_label_maps_and_grey_of_few_bits_is_not_stretched_in_one(tmp_path):
    four_bits = png(8, 8, depth=4, colour=0, body=zlib.compress(b"".join(b"\0" + b"\x12" * 4 for _ in range(8))))
    for data, suffix in (
        (encode(RGB, "PNG"), ".png"),
        (encode(IDS, "JPEG"), ".jpg"),
        (encode(IDS, "WEBP", lossless=True), ".webp"),
    ):
        assert refused(put(tmp_path, data, suffix), read_label_ids) == "wrong-mode"
    assert read_image(put(tmp_path, four_bits)).max() == 2 * 17
    assert np.array_equal(read_label_ids(put(tmp_path, four_bits)), np.tile([1, 2], (8, 4)))
    one_bit = put(tmp_path, encode(Image.fromarray(IDS % 2 * 255).convert("1"), "PNG"))
    assert np.array_equal(read_label_ids(one_bit), IDS % 2)


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
