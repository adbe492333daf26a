"""What tools make of an export: each file is read to the person's pixels, or refused in one line that names it."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from hmsa_core.io.errors import InputError
from hmsa_core.labels import LabelStore, LabelStoreWriter
from hmsa_core.labels.corrections import Exported, bring_back
from hmsa_core.labels.exporting import export_store
from hmsa_core.labels.review import UNTOUCHED, ReviewFile, reviewed
from hmsa_core.labels.store.format import png_bytes
from tests.support.hostile_exports import TOOLS
from tests.support.label_maps import opened
from tests.support.training import class_table

TABLE = class_table()
ROAD, CAR = TABLE.classes.index("road"), TABLE.classes.index("car")
SHAPE = (24, 40)
BOX = np.s_[4:12, 8:20]  # what a person gives another class
PERCENT = {"x": 20.0, "y": 100 / 6, "width": 30.0, "height": 100 / 3}
CORNERS = [[20.0, 100 / 6], [50.0, 100 / 6], [50.0, 50.0], [20.0, 50.0]]
PIXELS = [8.0, 4.0, 20.0, 4.0, 20.0, 12.0, 8.0, 12.0]


def painted(value: int = CAR, rest: int = ROAD) -> np.ndarray:
    label = np.full(SHAPE, rest, np.uint8)
    label[BOX] = value
    return label


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """Two images, all road; "b" has an EXIF rotation. Look, do not touch."""
    folder = tmp_path_factory.mktemp("store")
    exif = Image.Exif()
    exif[0x112] = 6
    with LabelStoreWriter(folder / "raw", {"teacher": "0" * 64}, classes=TABLE) as writer:
        for name in ("a", "b"):
            stored = np.random.default_rng(len(name)).integers(0, 256, (*SHAPE[::-1], 3), np.uint8)
            upright = stored if name == "b" else np.ascontiguousarray(np.rot90(stored, -1))
            options = {"exif": exif} if name == "b" else {}
            Image.fromarray(upright).save(folder / f"{name}.jpg", **options)
            writer.add(name, np.full(SHAPE, ROAD, np.uint8), np.ones(SHAPE, np.float32))
    return opened(folder / "raw")


@pytest.fixture(scope="module")
def exports(store: LabelStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    for fmt in TOOLS:
        export_store(store, folder / fmt, fmt, picture=lambda name: store.path.parent / f"{name}.jpg")
    return folder


# --- Hugging Face -----------------------------------------------------------------------------------


def _parquet(out: Path) -> Path:
    return next((out / "data").glob("*.parquet"))


def _as_pandas(change: Callable[[pd.DataFrame], None]) -> Callable[[Path, Path], Path]:
    def make(out: Path, tmp: Path) -> Path:
        frame = pd.read_parquet(_parquet(out))
        frame.at[0, "label"] = {"bytes": png_bytes(painted()), "path": "a.png"}
        change(frame)
        frame.to_parquet(tmp / "x.parquet")
        return tmp / "x.parquet"

    return make


def _polars(out: Path, tmp: Path) -> Path:
    _as_pandas(lambda frame: None)(out, tmp)
    pl.read_parquet(tmp / "x.parquet").select("label", "name").write_parquet(tmp / "y.parquet")
    return tmp / "y.parquet"


def _duckdb(out: Path, tmp: Path) -> Path:
    _as_pandas(lambda frame: None)(out, tmp)
    duckdb.sql(f"COPY (SELECT name, label FROM '{tmp}/x.parquet') TO '{tmp}/z.parquet' (FORMAT parquet)")
    return tmp / "z.parquet"


# --- Label Studio -----------------------------------------------------------------------------------


def _brush(mask: np.ndarray) -> dict[str, Any]:
    from label_studio_sdk.converter.brush import mask2rle

    return {"format": "rle", "rle": mask2rle(mask * np.uint8(255))}


def region(value: dict[str, Any], kind: str, **more: Any) -> dict[str, Any]:
    about = {"from_name": "label", "to_name": "image", "original_width": SHAPE[1], "original_height": SHAPE[0]}
    return {**about, "type": kind, "value": value, **more}


def brush(**more: Any) -> dict[str, Any]:
    return region(_brush(painted(1, 0)) | {"brushlabels": ["car"]}, "brushlabels", **more)


def _studio(
    *results: dict[str, Any], by: Any = 3, lost: tuple[str, ...] = (), **data: Any
) -> Callable[[Path, Path], Path]:
    def make(out: Path, tmp: Path) -> Path:
        (task,) = [task for task in json.loads((out / "tasks.json").read_text()) if task["data"]["file"] == "a.jpg"]
        task["data"] = {key: value for key, value in (task["data"] | data).items() if key not in lost}
        kept = [{key: value for key, value in one.items() if key not in lost} for one in results]
        (tmp / "export.json").write_text(
            json.dumps([{"data": task["data"], "annotations": [{"result": kept, "completed_by": by}]}])
        )
        return tmp / "export.json"

    return make


def _json_min(out: Path, tmp: Path) -> Path:
    """By Label Studio's own converter."""
    from label_studio_sdk.converter import Converter

    full = _studio(brush())(out, tmp)
    tasks = json.loads(full.read_text())
    tasks[0] |= {"id": 1}
    tasks[0]["annotations"][0] |= {"id": 9, "created_at": "2026-01-01", "updated_at": "2026-01-02", "lead_time": 1.0}
    full.write_text(json.dumps(tasks))
    Converter((out / "label_config.xml").read_text(), str(tmp)).convert_to_json_min(
        str(full), str(tmp / "min"), is_dir=False
    )
    return tmp / "min" / "result.json"


_CHOICE = region({"choices": ["night"]}, "choices")

# --- COCO -------------------------------------------------------------------------------------------


def _coco(segmentation: Any, **more: Any) -> Callable[[Path, Path], Path]:
    def make(out: Path, tmp: Path) -> Path:
        value = json.loads((out / "panoptic.json").read_text())
        (number,) = [row["id"] for row in value["images"] if row["file_name"] == "a.jpg"]
        row = {"id": 1, "image_id": number, "category_id": CAR + 1, "iscrowd": 0, "segmentation": segmentation}
        (tmp / "instances.json").write_text(json.dumps(value | {"annotations": [row | more]}))
        return tmp / "instances.json"

    return make


def _rle() -> dict[str, Any]:
    found = coco.encode(np.asfortranarray(painted(1, 0)))
    return {"size": list(SHAPE), "counts": found["counts"].decode()}


def _runs() -> list[int]:
    flat = painted(1, 0).ravel(order="F")
    return np.diff(np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1])), prepend=0).tolist()


# --- masks that an editor saved again ---------------------------------------------------------------


def _edited(save: Callable[[np.ndarray, Path], None]) -> Callable[[Path, Path], Path]:
    def make(out: Path, tmp: Path) -> Path:
        (tmp / "masks").mkdir()
        save(painted() + np.uint8(1), tmp / "masks" / "a.png")
        return tmp / "masks"

    return make


def _indexed(ids: np.ndarray, path: Path) -> None:
    image = Image.fromarray(ids).convert("P")
    image.putpalette([v for i in range(256) for v in (i, i, i)])
    image.save(path)


def _other_ending(ids: np.ndarray, path: Path) -> None:
    Image.fromarray(ids).save(path.with_suffix(".TIF"))
    path.with_name("a.png~").write_bytes(b"an editor's copy")
    Image.fromarray(ids).save(path.with_name("b.jpg"))


# --- CVAT -------------------------------------------------------------------------------------------


def _cvat(shapes: str) -> Callable[[Path, Path], Path]:
    def make(_out: Path, tmp: Path) -> Path:
        text = f'<annotations><image id="0" name="images/a.jpg" width="40" height="24">{shapes}</image></annotations>'
        with zipfile.ZipFile(tmp / "a.zip", "w") as archive:
            archive.writestr("annotations.xml", text)
        return tmp / "a.zip"

    return make


_POLYGON = ";".join(f"{x},{y}" for x, y in zip(PIXELS[::2], PIXELS[1::2], strict=True))

# tool, what it does -> what comes back, and words of the refusal ("" = the pixels are taken), words of a warning
CASES: dict[str, tuple[str, Callable[[Path, Path], Path], str, str]] = {
    "pandas": ("huggingface", _as_pandas(lambda frame: None), "", ""),
    "pandas, names as categories": ("huggingface", _as_pandas(lambda f: f.__setitem__("name", f["name"].astype("category"))), "", ""),
    "pandas, a row without its label": ("huggingface", _as_pandas(lambda f: f.at.__setitem__((1, "label"), None)), "label of b): has no bytes", ""),
    "pandas, paths in place of bytes": ("huggingface", _as_pandas(lambda f: f.at.__setitem__((1, "label"), {"bytes": None, "path": "b.png"})), "label of b): has no bytes", ""),
    "polars": ("huggingface", _polars, "", ""),
    "duckdb": ("huggingface", _duckdb, "", ""),
    "brush": ("label-studio", _studio(brush()), "", ""),
    "JSON-MIN": ("label-studio", _json_min, "", ""),
    "polygon": ("label-studio", _studio(region({"points": CORNERS, "closed": True, "polygonlabels": ["car"]}, "polygonlabels")), "", ""),
    "rectangle": ("label-studio", _studio(region({**PERCENT, "rotation": 0, "rectanglelabels": ["car"]}, "rectanglelabels")), "", ""),
    "rectangle, drawn turned": (
        "label-studio",
        _studio(region({"x": 50.0, "y": 100 / 6, "width": 20.0, "height": 50.0, "rotation": 90, "rectanglelabels": ["car"]}, "rectanglelabels")),
        "", "",
    ),
    "ellipse": ("label-studio", _studio(region({"x": 9, "y": 9, "radiusX": 4, "radiusY": 4, "ellipselabels": ["car"]}, "ellipselabels")), "ellipselabels are not supported", ""),
    "key point": ("label-studio", _studio(region({"x": 9, "y": 9, "width": 1, "keypointlabels": ["car"]}, "keypointlabels")), "keypointlabels are not supported", ""),
    "brush without a class": ("label-studio", _studio(region(_brush(painted(1, 0)), "brush")), "a region has 0 classes", ""),
    "answers next to regions": ("label-studio", _studio(brush(), _CHOICE, {"type": "relation", "from_id": "x"}), "", "2 answers about whole pictures are not read"),
    "picture turned in the tool": ("label-studio", _studio(brush(image_rotation=90)), "of a picture that was turned", ""),
    "lost: file": ("label-studio", _studio(brush(), lost=("file",)), "", ""),
    "lost: file, and uploaded": ("label-studio", _studio(brush(), lost=("file",), image="/data/upload/3/0a1b2c3d-a.jpg"), "", ""),
    "lost: original sizes, ids": ("label-studio", _studio(brush(), lost=("original_width", "original_height", "from_name")), "", ""),
    "lost: who": ("label-studio", _studio(brush(), by=None), "", ""),
    "no annotations": ("label-studio", lambda out, tmp: out / "tasks.json", "has no annotations", ""),
    "RLE as text": ("coco-panoptic", _coco(_rle()), "", ""),
    "RLE as numbers": ("coco-panoptic", _coco({"size": list(SHAPE), "counts": _runs()}), "", ""),
    "polygons": ("coco-panoptic", _coco([PIXELS]), "", ""),
    "RLE of another size": ("coco-panoptic", _coco({"size": [40, 24], "counts": _runs()}), "a.jpg".removesuffix(".jpg") + ": a mask is not of 40x24", ""),
    "RLE that is too short": ("coco-panoptic", _coco({"size": list(SHAPE), "counts": _runs()[:-1]}), "runs of a mask", ""),
    "a category that nobody knows": ("coco-panoptic", _coco(_rle(), category_id=99), "no coco-panoptic file that can be read (KeyError(99))", ""),
    "grey as RGB": ("fiftyone", _edited(lambda ids, path: Image.fromarray(ids).convert("RGB").save(path)), "", ""),
    "grey as RGBA": ("fiftyone", _edited(lambda ids, path: Image.fromarray(ids).convert("RGBA").save(path)), "", ""),
    "grey with a palette": ("fiftyone", _edited(_indexed), "", ""),
    "16 bits": ("fiftyone", _edited(lambda ids, path: cv2.imwrite(str(path), ids.astype(np.uint16))), "", ""),
    "TIFF, with files of the editor": ("fiftyone", _edited(_other_ending), "", ".png~ 1, .jpg 1"),
    "cropped": ("fiftyone", _edited(lambda ids, path: Image.fromarray(ids[:, :30]).save(path)), "is (24, 30)", ""),
    "soft brush": ("fiftyone", _edited(lambda ids, path: Image.fromarray(cv2.blur(ids * 9, (3, 3))).save(path)), "are not ids of", ""),
    "CVAT polygon": ("cvat", _cvat(f'<polygon label="car" points="{_POLYGON}"/>'), "", ""),
    "CVAT box": ("cvat", _cvat('<box label="car" xtl="8" ytl="4" xbr="20" ybr="12"/>'), "<box> is not supported", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_tool_sends_back_is_taken_or_named(
    store: LabelStore, exports: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    fmt, make, refusal, warning = CASES[case]
    returned, review = make(exports / fmt, tmp_path), ReviewFile(store.path)
    with caplog.at_level(logging.WARNING):
        if refusal:
            with pytest.raises(InputError) as caught:
                bring_back(returned, Exported(exports / fmt), store, by="kim")
            assert refusal in caught.value.message
            assert "\n" not in caught.value.message
            assert not review.path.exists()
            return
        found = bring_back(returned, Exported(exports / fmt), store, by="kim")
    assert found.corrected == ["a"]
    corrected = reviewed(review.by_name()["a"], *SHAPE, TABLE)[1]
    review.path.unlink()
    # Runs and masks are exact; corners of polygons lie on pixels, which libraries count in or out.
    assert np.array_equal(corrected[5:11, 9:19], np.full((6, 10), CAR))
    corrected[3:13, 7:21] = UNTOUCHED
    assert not (corrected == CAR).any()
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.records)


def test_an_image_that_nobody_annotated_is_counted(store: LabelStore, exports: Path, tmp_path: Path) -> None:
    for fmt, make in (("label-studio", _studio()), ("coco-panoptic", _coco(_rle())), ("cvat", _cvat(""))):
        found = bring_back(make(exports / fmt, tmp_path), Exported(exports / fmt), store, by="kim")
        ReviewFile(store.path).path.unlink(missing_ok=True)
        assert (found.images, found.empty) == ((1, 1) if fmt == "coco-panoptic" else (0, 1))


def test_pycocotools_opens_the_panoptic_file(exports: Path) -> None:
    opened_file = COCO(exports / "coco-panoptic" / "panoptic.json")
    assert len(opened_file.getImgIds()) == len(opened_file.getAnnIds()) == 2


@pytest.mark.parametrize("fmt", TOOLS)
def test_a_photograph_with_an_exif_rotation_is_exported_upright_for_every_reader(exports: Path, fmt: str) -> None:
    if fmt == "huggingface":
        rows = pd.read_parquet(_parquet(exports / fmt)).to_dict("records")
        pictures = {
            row["name"]: cv2.imdecode(np.frombuffer(row["image"]["bytes"], np.uint8), cv2.IMREAD_UNCHANGED)
            for row in rows
        }
    else:
        files = (exports / fmt / ("data" if fmt == "fiftyone" else "images")).iterdir()
        pictures = {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in files}  # which turns nothing
    assert {name: picture.shape[:2] for name, picture in pictures.items()} == {"a": SHAPE, "b": SHAPE}
