"""The same label map is read to the same labels, or refused for the same reason, by every command that reads one."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hmsa_core.data.decode import read_label
from hmsa_core.data.index import Index, read_quarantine
from hmsa_core.data.prepare import build
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.inference.evaluation.labelled_files import label_reader
from hmsa_core.io.errors import DecodeError, HmsaError
from hmsa_core.labels import LabelStore
from hmsa_core.labels.importing import import_folder
from hmsa_core.taxonomy import from_file
from pipeline.review.certification import TrueLabels
from pipeline.review.view import StoreView
from tests.support.label_maps import stored
from tests.support.training import class_file
from tests.unit.hmsa_core.data.hostile_images import png

IDS = np.kron(np.array([[0, 1, 2, 3], [3, 255, 0, 1]], np.uint8), np.ones((8, 8), np.uint8))
KNOWN = np.where(IDS == 255, 0, IDS)  # for forms that have no room for 255
COLOURS = np.zeros((256, 3), np.uint8)
COLOURS[:4] = [(90 * i % 256, 5, 7) for i in range(4)]
FOREIGN = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 77)], -1).astype(np.uint8)


def saved(pixels: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    image, out = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels), io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def palette(numbers: np.ndarray, colours: np.ndarray) -> bytes:
    image = Image.frombytes("P", numbers.shape[::-1], numbers.tobytes())
    image.putpalette(colours.tobytes())
    return saved(image)


def few_bits(ids: np.ndarray, depth: int) -> bytes:
    bits = np.unpackbits(ids[..., None], axis=-1)[..., -depth:].reshape(ids.shape[0], -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    return png(*ids.shape[::-1], depth=depth, colour=0, body=zlib.compress(rows))


def upright_by_exif(pixels: np.ndarray) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(np.ascontiguousarray(np.rot90(pixels)), exif=exif)


def compact() -> bytes:
    numbers = np.array([0, 1, 2])[np.array([0, 1, 2, 2])[KNOWN]].astype(np.uint8)
    return palette(numbers, np.repeat(np.array([0, 1, 3], np.uint8)[:, None], 3, 1))


def with_alpha(pixels: np.ndarray, alpha: int) -> np.ndarray:
    return (
        np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
        if alpha == 255
        else np.dstack([pixels, np.where(IDS == 0, alpha, 255).astype(np.uint8)])
    )


def buffered(array: np.ndarray) -> bytes:
    np.save(out := io.BytesIO(), array)
    return out.getvalue()


# name -> (ending, content, labels or the reason of a refusal; "unread": no command takes files of this ending)
MAPS: dict[str, tuple[str, bytes, np.ndarray | str]] = {
    "grey": (".png", saved(IDS), IDS),
    "grey, other ids": (".png", saved(np.where(IDS == 3, 9, IDS).astype(np.uint8)), "ids-out-of-range"),
    "grey TIFF": (".tif", saved(IDS, "TIFF", compression="tiff_lzw"), IDS),
    "grey with alpha": (".png", saved(Image.fromarray(np.dstack([IDS, np.full_like(IDS, 255)]), "LA")), IDS),
    "grey JPEG": (".jpg", saved(IDS, "JPEG"), "wrong-mode"),
    "grey, turned by EXIF": (".png", upright_by_exif(IDS), IDS),
    "16 bits": (".png", saved(IDS.astype(np.uint16)), IDS),
    "16 bits, instances": (".png", saved(IDS.astype(np.uint16) * 300), "ids-out-of-range"),
    "1 bit": (".png", few_bits(KNOWN % 2, 1), KNOWN % 2),
    "2 bits": (".png", few_bits(KNOWN, 2), KNOWN),
    "4 bits": (".png", few_bits(KNOWN, 4), KNOWN),
    "palette of the classes": (".png", palette(KNOWN, COLOURS), KNOWN),
    "palette of other colours": (".png", palette(IDS, FOREIGN), IDS),
    "palette of classes in another order": (".png", palette(KNOWN, COLOURS[[1, 0, 2, 3]]), "wrong-mode"),
    "palette with void before a class": (".png", palette(KNOWN, COLOURS[[0, 9, 1, 2]]), "wrong-mode"),
    "palette whose numbers are no ids": (".png", palette(KNOWN + 40, np.roll(COLOURS, 40, axis=0)), KNOWN),
    "palette of greys that are the ids": (".png", compact(), "wrong-mode"),
    "palette of greys for people": (
        ".png",
        palette(KNOWN, np.repeat(np.arange(0, 256, 80, np.uint8)[:, None], 3, 1)),
        KNOWN,
    ),
    "colours": (".png", saved(COLOURS[IDS]), IDS),
    "colours with alpha": (".png", saved(with_alpha(COLOURS[IDS], 255)), IDS),
    "colours, some transparent": (".png", saved(with_alpha(COLOURS[IDS], 9)), "wrong-mode"),
    "colours, lossless WebP": (".webp", saved(COLOURS[IDS], "WEBP", lossless=True), IDS),
    "colours, turned by EXIF": (".png", upright_by_exif(COLOURS[IDS]), IDS),
    "colours of no class": (
        ".png",
        saved(np.where(IDS[..., None] == 0, 3, COLOURS[IDS]).astype(np.uint8)),
        "ids-out-of-range",
    ),
    "grey, saved by an editor as RGB": (".png", saved(np.repeat(IDS[..., None], 3, 2)), IDS),
    "grey, saved by an editor as RGB with alpha": (
        ".png",
        saved(with_alpha(np.repeat(IDS[..., None], 3, 2), 255)),
        IDS,
    ),
    "grey as RGB, other ids": (".png", saved(np.repeat(IDS[..., None] * np.uint8(7), 3, 2)), "ids-out-of-range"),
    "BMP": (".bmp", saved(IDS, "BMP"), "unread"),
    "GIF": (".gif", saved(IDS, "GIF"), "unread"),
    "NumPy": (".npy", buffered(IDS), "unread"),
}


def prepared(folder: Path, part: str) -> np.ndarray:
    """Through `prepare`, then as training reads it: with the digest of the index."""
    others = {"labels": "" if part == "coarse" else "labels", "coarse": "coarse" if part == "coarse" else ""}
    spec = SourceSpec(kind="folder", root=str(folder), max_bad=1.0, **others)
    build(spec, RolesSpec(), folder / "out")
    (sample,) = Index.load(folder / "out/target.parquet").samples
    refused = read_quarantine(folder / "out/quarantine.parquet")
    if refused:
        raise DecodeError(refused[0].detail, reason=refused[0].reason)
    path = getattr(sample, part.removesuffix("s"))
    return read_label(
        folder / path, from_file(folder / "classes.json"), sha256=getattr(sample, f"{part.removesuffix('s')}_sha256")
    )


def imported(folder: Path) -> np.ndarray:
    classes = from_file(folder / "classes.json")
    import_folder(folder / "labels", folder / "store", classes, ids="file")
    store = LabelStore.open(folder / "store")
    return store.read(store.names()[0])[0]


def answering(folder: Path) -> np.ndarray:
    stored(folder / "store", {"a": np.zeros(IDS.shape, np.uint8)}, classes=from_file(folder / "classes.json"))
    truth = TrueLabels(folder / "labels", StoreView(folder / "store"))
    return truth._read(truth.files["a"])


DOORS: dict[str, Callable[[Path], np.ndarray]] = {
    "prepare": lambda folder: prepared(folder, "labels"),
    "coarse": lambda folder: prepared(folder, "coarse"),
    "evaluate": lambda folder: label_reader(from_file(folder / "classes.json"))(next((folder / "labels").iterdir())),
    "import": imported,
    "certify": answering,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", MAPS)
def test_a_label_map_means_the_same_everywhere(tmp_path: Path, form: str, door: str) -> None:
    ending, data, expected = MAPS[form]
    class_file(tmp_path, [f"class {i}" for i in range(4)])
    rng = np.random.default_rng(1)
    for part in ("images", "labels", "coarse"):
        (tmp_path / part).mkdir()
    Image.fromarray(rng.integers(0, 256, (*IDS.shape, 3), np.uint8)).save(tmp_path / "images/a.png")
    for part in ("labels", "coarse"):
        (tmp_path / part / f"a{ending}").write_bytes(data)
    if isinstance(expected, str):
        with pytest.raises(HmsaError) as caught:
            DOORS[door](tmp_path)
        assert "\n" not in caught.value.message
        if expected == "unread":
            assert ending in caught.value.message
        if isinstance(caught.value, DecodeError) and expected != "unread":
            assert caught.value.reason == expected
        elif door == "prepare" and expected != "unread":
            assert expected in caught.value.message
    else:
        assert np.array_equal(DOORS[door](tmp_path), expected)
