"""Labels out to other tools, as their own libraries read them, and people's corrections back into training labels."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hmsa_core.io.atomic import sha256_bytes
from hmsa_core.io.errors import ConfigError, HmsaError, InputError, IntegrityError
from hmsa_core.labels import LabelStore, LabelStoreWriter
from hmsa_core.labels.corrections import Exported, Summary, bring_back
from hmsa_core.labels.exporting import export_store
from hmsa_core.labels.finalise import Recipe, finalise
from hmsa_core.labels.formats.released import prob_bytes_of_codes
from hmsa_core.labels.review import ReviewFile
from hmsa_core.labels.store.format import SOURCES
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.taxonomy import cityscapes
from pipeline.cli.main import main
from pipeline.stages.pseudo_label import review_of
from tests.support.hostile_exports import TOOLS
from tests.support.label_maps import maps, opened

pytestmark = pytest.mark.long

IMAGES = 50
SHAPE = (24, 40)
POLICY = from_threshold("0.6", cityscapes())
CLASSES = cityscapes().classes
CAR, ROAD, SKY = (CLASSES.index(name) for name in ("car", "road", "sky"))
Labels = dict[str, np.ndarray]


def _write(folder: Path, *, seed: int = 0, count: int = IMAGES, other_picture: str = "") -> LabelStore:
    """A store of `count` small images with their photographs."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    with LabelStoreWriter(folder / "raw", {"teacher": f"{seed:064x}"}, 20) as writer:
        for i in range(count):
            name, rng = f"drive{i % 3} & <{i}>", np.random.default_rng(i + (7000 if f"<{i}>" == other_picture else 0))
            path = folder / "photos" / f"{name}.png"
            Image.fromarray(rng.integers(0, 256, (*SHAPE, 3), np.uint8)).save(path)
            facts = {"image_path": f"photos/{path.name}", "image_sha256": sha256_bytes(path.read_bytes())}
            writer.add(name, *maps(i + seed, SHAPE), city=f"drive{i % 3}", **facts)
    return opened(folder / "raw")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """Look, do not touch: reviews go into copies."""
    return _write(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def exports(first: LabelStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export of all images in each format. Look, do not touch."""
    folder = tmp_path_factory.mktemp("exports")
    for fmt in TOOLS:
        export_store(first, folder / fmt, fmt, picture=_picture(first), policy=POLICY)
    return folder


@pytest.fixture
def store(first: LabelStore, tmp_path: Path) -> LabelStore:
    shutil.copytree(first.path.parent, tmp_path / "own")
    return opened(tmp_path / "own" / "raw")


def _picture(store: LabelStore) -> Callable[[str], Path]:
    return lambda name: store.path.parent / "photos" / f"{name}.png"


def _wanted(store: LabelStore) -> Labels:
    return {name: POLICY.apply(*store.read(name)) for name in store.names()}


def _final(store: LabelStore, out: Path) -> LabelStore:
    """What `pseudo-label` makes of a store and its review file."""
    marks = ReviewFile(store.path, {row["name"]: row["image_sha256"] for row in store.rows()}).by_name()
    finalise(store, Recipe(policy=POLICY, reviewed=partial(review_of, marks, store.classes)), out)
    return opened(out)


# --- each tool's own reader -------------------------------------------------------------------------


def _cvat(out: Path) -> Labels:
    from cvat_sdk.masks import decode_mask

    found = {}
    for image in ET.parse(out / "annotations.xml").getroot().iter("image"):
        width, height = int(image.get("width")), int(image.get("height"))
        label = np.full((height, width), 255, np.uint8)
        for mask in image.iter("mask"):
            x, y, w, h = (int(mask.get(key)) for key in ("left", "top", "width", "height"))
            # As CVAT's importer makes the shape of the tag.
            points = [*(int(run) for run in mask.get("rle").split(",")), x, y, x + w - 1, y + h - 1]
            pixels = decode_mask(points, image_width=width, image_height=height)
            assert cv2.connectedComponents(pixels.astype(np.uint8))[0] == 2, "one piece a mask"
            assert (label[pixels] == 255).all()
            label[pixels] = CLASSES.index(mask.get("label"))
        found[Path(image.get("name")).stem] = label
    assert [row["name"] for row in json.loads((out / "labels.json").read_text())] == list(CLASSES)
    return found


def _label_studio(out: Path) -> Labels:
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface

    interface, found = LabelInterface((out / "label_config.xml").read_text()), {}
    interface.validate()
    for task in json.loads((out / "tasks.json").read_text()):
        assert interface.validate_task({"data": task["data"]})
        (prediction,) = task["predictions"]
        assert interface.validate_prediction(prediction)
        label = np.full(SHAPE, 255, np.uint8)
        for region in prediction["result"]:
            rgba = decode_rle(region["value"]["rle"]).reshape(*SHAPE, 4)
            label[rgba[..., 3] > 0] = CLASSES.index(region["value"]["brushlabels"][0])
        (file,) = parse_qs(urlsplit(task["data"]["image"]).query)["d"]
        assert (out / file).is_file()
        found[Path(file).stem] = label
    return found


def _coco(out: Path) -> Labels:
    from pycocotools import mask as coco

    value = json.loads((out / "panoptic.json").read_text())
    names = {row["id"]: row["name"] for row in value["categories"]}
    files, found = {row["id"]: row["file_name"] for row in value["images"]}, {}
    for row in value["annotations"]:
        rgb = np.asarray(Image.open(out / "panoptic" / row["file_name"])).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]
        label = np.full(ids.shape, 255, np.uint8)
        for segment in row["segments_info"]:
            rle = coco.encode(np.asfortranarray((ids == segment["id"]).astype(np.uint8)))
            assert int(coco.area(rle)) == segment["area"]
            assert coco.toBbox(rle).tolist() == segment["bbox"]
            label[ids == segment["id"]] = CLASSES.index(names[segment["category_id"]])
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in row["segments_info"]}
        found[Path(files[row["image_id"]]).stem] = label
    return found


def _huggingface(out: Path) -> Labels:
    import datasets

    data = datasets.load_dataset(str(out), split="train", cache_dir=str(out.parent / "cache"))
    names = json.loads((out / "id2label.json").read_text())
    assert [names[str(i)] for i in range(len(names))] == list(CLASSES)
    assert data[3]["image"].size == SHAPE[::-1]
    return {row["name"]: np.asarray(row["label"]) for row in data}


def _fiftyone(out: Path) -> Labels:
    """The layout that its documentation states; its own reader is asked by a slow test.

    Pictures and masks are paired by their paths without extension; a mask is grey or RGB; `mask_targets` names values.
    """
    found = {}
    for folder, channels in (("data", (3,)), ("confidence", ()), ("labels", ())):
        found[folder] = {path.stem: np.asarray(Image.open(path)) for path in (out / folder).iterdir()}
        assert {each.shape for each in found[folder].values()} == {(*SHAPE, *channels)}
        assert found[folder].keys() == found["data"].keys()
    script = ast.parse((out / "open_in_fiftyone.py").read_text())
    named = [n.value for n in ast.walk(script) if isinstance(n, ast.Assign) and "mask_targets" in ast.unparse(n)]
    assert [ast.literal_eval(value) for value in named] == [{i + 1: name for i, name in enumerate(CLASSES)}]
    return {name: np.where(each == 0, 255, each - 1).astype(np.uint8) for name, each in found["labels"].items()}


READERS = {
    "cvat": _cvat,
    "label-studio": _label_studio,
    "coco-panoptic": _coco,
    "huggingface": _huggingface,
    "fiftyone": _fiftyone,
}


@pytest.mark.parametrize("fmt", TOOLS)
@pytest.mark.once
def test_fifty_images_are_the_same_pixels_in_the_tools_own_reader_and_their_photographs_the_same_bytes(
    first: LabelStore, exports: Path, tmp_path: Path, fmt: str
) -> None:
    out, wanted = shutil.copytree(exports / fmt, tmp_path / "out"), _wanted(first)
    found = READERS[fmt](out)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert sum((label == 255).sum() for label in wanted.values()) > 0
    if fmt != "huggingface":  # there they lie in the table, and its reader was asked for their size
        photographs = (out / ("data" if fmt == "fiftyone" else "images")).iterdir()
        assert {p.stem: p.read_bytes() for p in photographs} == {n: _picture(first)(n).read_bytes() for n in wanted}


_FIFTYONE = """
import sys, numpy as np
from fiftyone import Heatmap
from fiftyone.utils.data.importers import ImageSegmentationDirectoryImporter
out, found = sys.argv[1], {}
with ImageSegmentationDirectoryImporter(dataset_dir=out) as importer:
    for path, _, label in importer:
        name = path.rpartition("/")[2].partition(".")[0]
        found[name] = label.mask if label.mask is not None else label.get_mask()
        heat = Heatmap(map_path=f"{out}/confidence/{name}.png", range=[0, 255]).get_map()
        assert heat.shape == found[name].shape
np.savez(sys.argv[2], **found)
"""


@pytest.mark.slow
def test_fiftyones_own_reader_gives_the_same_pixels(first: LabelStore, exports: Path, tmp_path: Path) -> None:
    """In an environment of its own (`AUTOLABEL_FIFTYONE=/path/to/python`): its OpenCV and Starlette are not ours."""
    python = os.environ.get("AUTOLABEL_FIFTYONE")
    if not python:
        pytest.skip("AUTOLABEL_FIFTYONE names no Python that has fiftyone")
    command = [python, "-c", _FIFTYONE, str(exports / "fiftyone"), str(tmp_path / "found.npz")]
    subprocess.run(command, check=True, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)})
    found, wanted = np.load(tmp_path / "found.npz"), _wanted(first)
    assert set(found) == wanted.keys()
    assert all(np.array_equal(np.where(found[n] == 0, 255, found[n] - 1), wanted[n]) for n in wanted)


def test_hugging_face_keeps_every_code_and_fiftyones_heat_is_never_above_the_confidence(
    first: LabelStore, exports: Path
) -> None:
    rows = pq.read_table(next((exports / "huggingface" / "data").iterdir())).to_pylist()
    edges = json.loads((exports / "huggingface" / "confidence.json").read_text())["edges"]
    for row in rows[:5]:
        code = cv2.imdecode(np.frombuffer(row["confidence"]["bytes"], np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(code, first.read(row["name"])[1])
        heat = np.asarray(Image.open(exports / "fiftyone" / "confidence" / f"{row['name']}.png"))
        ignored = POLICY.apply(*first.read(row["name"])) == 255
        assert np.array_equal(heat, np.where(ignored, 0, prob_bytes_of_codes(code)))
        assert (heat / 255 <= np.array(edges, float)[code] + 1e-6).all()


def test_the_dataset_card_names_the_policy_the_teacher_and_each_threshold(exports: Path) -> None:
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(exports / "huggingface" / "README.md")
    assert card.data.task_categories == ["image-segmentation"]
    assert POLICY.digest in card.text
    assert "0" * 64 in card.text
    assert all(f"| {name} | 0.60 |" in card.text for name in CLASSES)


# --- corrections ------------------------------------------------------------------------------------


def _spots(store: LabelStore) -> dict[str, tuple[slice, slice, int]]:
    """Ten regions, each of another image, and the class that a person gives them."""
    return {
        name: np.s_[4 + i : 12 + i, 3 * i : 3 * i + 7] + (CAR if i % 2 else ROAD,)
        for i, name in enumerate(store.names()[:50:5])
    }


def _correct_cvat(out: Path, spots: dict) -> Path:
    """Masks drawn on top of what is there, as CVAT dumps a task, in its zip file."""
    from cvat_sdk.masks import encode_mask

    tree = ET.parse(out / "annotations.xml")
    for image in tree.getroot().iter("image"):
        for rows, columns, class_id in [spots[s] for s in spots if s == Path(image.get("name")).stem]:
            drawn = np.zeros(SHAPE, bool)
            drawn[rows, columns] = True
            *runs, x, y, right, bottom = encode_mask(drawn)
            box = {"left": x, "top": y, "width": right - x + 1, "height": bottom - y + 1, "z_order": 0, "occluded": 0}
            given = {"label": CLASSES[class_id], "source": "manual", "rle": ", ".join(map(str, map(int, runs))), **box}
            image.insert(0, ET.Element("mask", {k: str(v) for k, v in given.items()}))
    meta = ET.fromstring(
        "<meta><task><updated>2026-11-02 10:00:00+00:00</updated><assignee><username>kim</username></assignee></task><dumped>2026-11-03</dumped></meta>"
    )
    tree.getroot().insert(1, meta)
    tree.write(out / "annotations.xml", encoding="utf-8", xml_declaration=True)
    with zipfile.ZipFile(out / "kim.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(out / "annotations.xml", "annotations.xml")
    return out / "kim.zip"


def _annotated(out: Path, spots: dict, who: Any = None) -> Path:
    """Label Studio's export: predictions that became annotations, and brush strokes of a person."""
    from label_studio_sdk.converter.brush import mask2rle

    tasks = json.loads((out / "tasks.json").read_text())
    for number, task in enumerate(tasks):
        result = task["predictions"][0]["result"]
        for rows, columns, class_id in [spots[s] for s in spots if s == Path(task["data"]["file"]).stem]:
            drawn = np.zeros(SHAPE, np.uint8)
            drawn[rows, columns] = 255
            value = {"format": "rle", "rle": mask2rle(drawn), "brushlabels": [CLASSES[class_id]]}
            result = [{**result[0], "id": "mine", "value": value}, *result]
        by = {"completed_by": who or {"email": "kim"}, "updated_at": "2026-11-02T10:00:00Z"}
        task |= {"id": number, "predictions": [], "annotations": [{"id": number, "result": result, **by}]}
    (out / "export.json").write_text(json.dumps(tasks))
    return out / "export.json"


def _painted(spots: dict, name: str, label: np.ndarray, shift: int) -> np.ndarray:
    label = label.copy()
    if name in spots:
        rows, columns, class_id = spots[name]
        label[rows, columns] = class_id + shift
    return label


def _correct_coco(out: Path, spots: dict) -> Path:
    value = json.loads((out / "panoptic.json").read_text())
    for row in value["annotations"]:
        path = out / "panoptic" / row["file_name"]
        rgb = np.array(Image.open(path))
        rgb[..., 0] = _painted(spots, path.stem, rgb[..., 0], 1)
        Image.fromarray(rgb).save(path)
        row["segments_info"] = [{"id": i, "category_id": i} for i in np.unique(rgb[..., 0]).tolist() if i]
    (out / "panoptic.json").write_text(json.dumps(value))
    return out / "panoptic.json"


def _correct_huggingface(out: Path, spots: dict) -> Path:
    import datasets

    def change(row: dict) -> dict:
        return {"label": Image.fromarray(_painted(spots, row["name"], np.asarray(row["label"]), 0))}

    data = datasets.load_dataset(str(out), split="train", cache_dir=str(out.parent / "cache"))
    data.map(change, features=data.features).to_parquet(str(out / "kim.parquet"))
    return out / "kim.parquet"


def _correct_fiftyone(out: Path, spots: dict) -> Path:
    for path in (out / "labels").iterdir():
        Image.fromarray(_painted(spots, path.stem, np.asarray(Image.open(path)), 1)).save(path)
    return out


CORRECTORS: dict[str, Callable[[Path, dict], Path]] = {
    "cvat": _correct_cvat,
    "label-studio": _annotated,
    "coco-panoptic": _correct_coco,
    "huggingface": _correct_huggingface,
    "fiftyone": _correct_fiftyone,
}


@pytest.mark.parametrize("fmt", TOOLS)
def test_ten_corrected_regions_come_back_and_win_over_the_pseudo_label(
    store: LabelStore, exports: Path, tmp_path: Path, fmt: str
) -> None:
    out, spots, before = shutil.copytree(exports / fmt, tmp_path / "out"), _spots(store), _wanted(store)
    returned = CORRECTORS[fmt](out, spots)
    who = [] if fmt in ("cvat", "label-studio") else ["--by", "kim", "--when", "2026-11-02"]
    assert main(["import", str(returned), str(store.path), "--corrections-of", str(out), *who]) == 0
    marks = ReviewFile(store.path).marks()
    assert {mark.name for mark in marks} == spots.keys()
    assert {(mark.reviewer, mark.when[:10]) for mark in marks} == {("kim", "2026-11-02")}
    final = _final(store, tmp_path / "final")
    for name, label in before.items():
        wanted, source = _painted(spots, name, label, 0), final.read_source(name)
        assert np.array_equal(final.read_label(name), wanted)
        assert (source[wanted != label] == SOURCES["human"]).all()
        assert not final.read(name)[1][wanted != label].any(), "a person has no confidence code"
        assert not (source[wanted == label] == SOURCES["human"]).any()


@pytest.mark.parametrize("fmt", ["cvat", "coco-panoptic", "huggingface", "fiftyone"])
def test_what_comes_back_as_it_went_out_corrects_nothing(store: LabelStore, exports: Path, fmt: str) -> None:
    returned = exports / fmt / "annotations.xml" if fmt == "cvat" else exports / fmt
    summary = bring_back(returned, Exported(exports / fmt), store, by="kim")
    assert (summary.images, summary.corrected, summary.conflicts) == (IMAGES, [], [])
    assert not ReviewFile(store.path).path.exists()


@pytest.mark.parametrize("fmt", ["coco-panoptic", "huggingface", "fiftyone"])
def test_an_image_that_comes_back_empty_was_not_looked_at(
    store: LabelStore, exports: Path, tmp_path: Path, fmt: str
) -> None:
    out = shutil.copytree(exports / fmt, tmp_path / "out")
    nothing = np.s_[:, :] + (255 if fmt == "huggingface" else -1,)  # in the others class + 1, so 0
    returned = CORRECTORS[fmt](out, {store.names()[0]: nothing})
    summary = bring_back(returned, Exported(out), store, by="kim")
    assert (summary.images, summary.corrected) == (IMAGES - 1, [])


def test_a_polygon_is_read_and_what_is_erased_is_ignored_and_an_image_without_regions_was_not_looked_at(
    store: LabelStore, exports: Path, tmp_path: Path
) -> None:
    text = '<annotations><image id="0" name="drive0 &amp; &lt;0>.png" width="40" height="24">{}</image></annotations>'
    for images, shape in enumerate(("", '<polygon label="sky" points="0,0;10,0;10,10;0,10" z_order="0"/>')):
        (tmp_path / "a.xml").write_text(text.format(shape))
        assert bring_back(tmp_path / "a.xml", Exported(exports / "cvat"), store, by="kim").images == images
    label = _final(store, tmp_path / "final").read_label("drive0 & <0>")
    assert (label[:10, :10] == SKY).all()
    assert (label[:, 12:] == 255).all()


def test_an_image_of_a_cvat_project_was_corrected_by_its_own_tasks_assignee(
    store: LabelStore, exports: Path, tmp_path: Path
) -> None:
    task = "<task><id>{}</id><updated>2026-01-0{} 10:00:00+00:00</updated>{}</task>"
    given = ("<assignee><username>kim</username></assignee>", "<assignee><username>lee</username></assignee>", "")
    tasks = "".join(task.format(*about) for about in zip((71, 72, 73), (5, 6, 7), given, strict=True))
    image = (
        '<image id="{0}" name="{1}.png" subset="default" task_id="{2}" width="40" height="24">'
        '<polygon label="sky" points="0,0;10,0;10,10;0,10"/></image>'
    )
    names = [name.replace("&", "&amp;").replace("<", "&lt;") for name in store.names()[:4]]
    images = "".join(image.format(*about) for about in zip(range(4), names, (72, 71, 73, 74), strict=True))
    (tmp_path / "a.xml").write_text(
        f"<annotations><meta><project><updated>2026-02-01</updated><tasks>{tasks}</tasks><assignee><username>boss"
        f"</username></assignee></project></meta>{images}</annotations>"
    )
    bring_back(tmp_path / "a.xml", Exported(exports / "cvat"), store, by="sam", when="2026-03-01")
    said = {mark.name: (mark.reviewer, mark.when[:10]) for mark in ReviewFile(store.path).marks()}
    who = [("lee", "2026-01-06"), ("kim", "2026-01-05"), ("sam", "2026-01-07"), ("sam", "2026-03-01")]
    assert said == dict(zip(store.names()[:4], who, strict=True))


@pytest.fixture
def fix(store: LabelStore, exports: Path, tmp_path: Path) -> Callable[..., Summary]:
    """A person corrects a FiftyOne export of all images and brings it back."""

    def bring(who: str, spots: dict, into: LabelStore = store, **options: Any) -> Summary:
        out = Path(shutil.copytree(exports / "fiftyone", tmp_path / who, dirs_exist_ok=True))
        return bring_back(_correct_fiftyone(out, spots), Exported(exports / "fiftyone"), into, by=who, **options)

    return bring


Fix = Callable[..., Summary]


def test_two_people_who_disagree_are_named_and_the_first_word_stands_until_it_is_overruled(
    store: LabelStore, tmp_path: Path, fix: Fix
) -> None:
    spots, path = _spots(store), ReviewFile(store.path).path
    name = next(iter(spots))
    others = {**spots, name: (*spots[name][:2], SKY)}
    assert len(fix("kim", spots).corrected) == 10
    again = fix("kim", spots)
    assert (again.known, again.corrected) == (10, [])
    lines = path.read_bytes()
    found = fix("sam", others)
    assert found.conflicts == [f"{name}: kim and sam give 56 pixels different classes"]
    assert (found.known, path.read_bytes()) == (9, lines)
    assert (_final(store, tmp_path / "one").read_label(name)[spots[name][:2]] == spots[name][2]).all()
    assert fix("sam", others, overrule=True).corrected == [name]
    assert path.read_bytes().startswith(lines), "nothing is overwritten"
    assert (_final(store, tmp_path / "two").read_label(name)[spots[name][:2]] == SKY).all()


def test_two_annotators_of_one_task_who_disagree_are_both_left_out(
    store: LabelStore, exports: Path, tmp_path: Path
) -> None:
    out, spots = shutil.copytree(exports / "label-studio", tmp_path / "out"), _spots(store)
    one = json.loads(_annotated(out, spots, {"email": "kim"}).read_text())
    other = json.loads(_annotated(out, {n: (*s[:2], SKY) for n, s in spots.items()}, 17).read_text())
    for task, second in zip(one, other, strict=True):
        task["annotations"] += second["annotations"]
    (out / "export.json").write_text(json.dumps(one))
    found = bring_back(out / "export.json", Exported(out), store)
    assert (len(found.conflicts), found.corrected) == (10, [])
    assert "kim and user 17" in found.conflicts[0]


def test_labels_made_anew_and_other_pictures_are_conflicts_with_the_export(tmp_path: Path, fix: Fix) -> None:
    newer = _write(tmp_path / "new", seed=3, other_picture="<5>")
    found = fix("kim", _spots(newer), newer)
    assert (len(found.conflicts), found.corrected) == (10, [])
    assert any("<5>: another picture now" in line for line in found.conflicts)
    assert sum("made anew" in line for line in found.conflicts) == 9
    forced = fix("kim", _spots(newer), newer, overrule=True)
    assert len(forced.corrected) == 9
    assert [line.partition(":")[0] for line in forced.conflicts] == ["drive2 & <5>"]


def test_a_conflict_has_its_own_line_and_status_and_the_rest_is_taken(
    store: LabelStore, exports: Path, tmp_path: Path, fix: Fix, capsys: pytest.CaptureFixture[str]
) -> None:
    *disputed, alone = store.names()[:25]
    spots = dict.fromkeys((*disputed, alone), np.s_[4:12, 3:10] + (CAR,))
    fix("sam", {name: (*spots[name][:2], SKY) for name in disputed})
    returned = _correct_fiftyone(shutil.copytree(exports / "fiftyone", tmp_path / "kim"), spots)
    command = ["import", str(returned), str(store.path), "--corrections-of", str(exports / "fiftyone"), "--by", "kim"]
    assert main(command) == InputError.exit_code
    said = capsys.readouterr().err
    assert "corrections of 1 images" in said
    assert "error: 24 images are in conflict, nothing of them was taken" in said
    assert all(f"conflict: {name}: sam and kim give " in said for name in disputed)


def test_a_later_export_holds_the_corrections_of_before(store: LabelStore, tmp_path: Path, fix: Fix) -> None:
    fix("kim", _spots(store))
    for fmt in ("cvat", "fiftyone"):
        export_store(store, tmp_path / fmt, fmt, picture=_picture(store), policy=POLICY)
    found, before = _cvat(tmp_path / "cvat"), _wanted(store)
    final = _final(store, tmp_path / "final")
    export_store(final, tmp_path / "heat", "fiftyone", picture=_picture(store))
    export_store(final, tmp_path / "prob", "released-flat")
    export_store(store, tmp_path / "masks", "masks", policy=POLICY)
    for name, spot in _spots(store).items():
        assert (found[name][spot[:2]] == spot[2]).all()
        assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / f"{name}.png")), found[name])
        drawn = before[name] != found[name]
        for fmt in ("fiftyone", "heat"):
            heat = np.asarray(Image.open(tmp_path / fmt / "confidence" / f"{name}.png"))
            assert (heat[drawn] == 254).all(), "what people drew is sure"
        assert np.array_equal(heat, np.asarray(Image.open(tmp_path / "prob" / f"{name}_leftImg8bit_prob.png")))


def test_a_withdrawn_correction_does_not_count_and_a_later_flag_does(
    store: LabelStore, tmp_path: Path, fix: Fix
) -> None:
    spots, review = _spots(store), ReviewFile(store.path)
    fix("kim", spots)
    gone, flagged, kept = list(spots)[:3]
    review.withdraw(gone, review.of(gone)[0].id)
    review.add(flagged, "flag", region=[[0, 0], [39, 0], [39, 11], [0, 11]])
    assert "pixels" not in review.shown(review.of(kept)[0])
    final, before = _final(store, tmp_path / "final"), _wanted(store)
    assert np.array_equal(final.read_label(gone), before[gone])
    assert (final.read_label(flagged)[:12] == 255).all()
    assert np.array_equal(final.read_label(kept), _painted(spots, kept, before[kept], 0))


def test_a_damaged_correction_in_the_review_file_stops_the_training_labels_by_name(
    store: LabelStore, tmp_path: Path, fix: Fix
) -> None:
    fix("kim", _spots(store))
    path = ReviewFile(store.path).path
    value = json.loads(path.read_text().splitlines()[0])
    changes = [({"png": "AAAA"}, "fits into"), ({"x": 39}, "fits into"), ({"classes": ["tram", "car"]}, "tram")]
    for change, reported in changes:
        path.write_text(json.dumps(value | {"pixels": value["pixels"] | change}) + "\n")
        with pytest.raises(HmsaError, match=reported):
            _final(store, tmp_path / f"final-{reported}")
    path.write_text(json.dumps(value | {"pixels": None}) + "\n")
    with pytest.raises(IntegrityError, match="a correction needs pixels"):
        ReviewFile(store.path).marks()


# --- the command ------------------------------------------------------------------------------------


def test_a_task_is_made_of_the_images_most_worth_a_look_that_nobody_reviewed(
    store: LabelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doubt = {name: float(np.mean(255 - prob_bytes_of_codes(store.read(name)[1]).astype(int))) for name in store.names()}
    worst = max(doubt, key=lambda name: doubt[name])
    ReviewFile(store.path).add(worst, "accept")
    given = ["--threshold", "0.6", "--images", str(store.path.parent), "--queue", "4"]
    assert main(["export", str(store.path), str(tmp_path / "task"), "--format", "cvat", *given]) == 0
    assert "4 images as cvat" in capsys.readouterr().err
    order = sorted(doubt, key=lambda name: -doubt[name])
    assert set(_cvat(tmp_path / "task")) <= set(order[1:8])


def test_an_image_that_is_named_twice_is_exported_once(store: LabelStore, tmp_path: Path) -> None:
    out, names = tmp_path / "out", ["--name", store.names()[0]] * 2
    given = ["--format", "coco-panoptic", "--images", str(store.path.parent), *names]
    assert main(["export", str(store.path), str(out), *given]) == 0
    assert main(["import", str(out), str(store.path), "--corrections-of", str(out), "--by", "kim"]) == 0


def test_exports_that_cannot_be_made_are_refused_and_leave_nothing_behind(
    store: LabelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(store.path), str(out), "--format", "cvat", "--images", str(tmp_path)]) != 0
    assert "--images" in capsys.readouterr().err
    _picture(store)(store.names()[7]).write_bytes(b"another")
    with pytest.raises(IntegrityError, match="another picture"):
        export_store(store, out, "fiftyone", picture=_picture(store))
    assert not out.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        export_store(store, tmp_path / "full", "fiftyone", picture=_picture(store))


@pytest.mark.parametrize(("fmt", "module"), [("cvat", "cvat_sdk"), ("label-studio", "label_studio_sdk")])
def test_a_library_that_is_not_installed_is_named_with_the_command_that_installs_it(
    store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fmt: str, module: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"{module}.* is not installed") as error:
        export_store(store, tmp_path / "out", fmt, picture=_picture(store))
    assert "pip install 'hmsa-autolabel[exchange]'" in error.value.hint
    assert not (tmp_path / "out").exists()


def test_no_tools_library_is_loaded_before_its_format_is_asked_for() -> None:
    code = (
        "import sys, pipeline.cli.export, pipeline.cli.import_, "
        "hmsa_core.labels.corrections\nfor name in ('cvat', 'coco_panoptic', 'fiftyone', 'huggingface', 'label_studio'):\n"
        "    __import__('hmsa_core.labels.formats.' + name)\n"
        "print({'cvat_sdk', 'label_studio_sdk', 'pycocotools', 'datasets', 'torch'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_cvats_auto_annotation_gives_the_masks_of_the_checkpoints_label(tmp_path: Path) -> None:
    import cvat_sdk.auto_annotation as cvat
    from cvat_sdk.auto_annotation.driver import _DetectionFunctionContextImpl
    from cvat_sdk.masks import decode_mask

    from hmsa_core.inference.folder.cvat_function import create
    from tests.support.inference import save_model

    function = create(str(save_model(tmp_path / "model")), device="cpu")
    assert isinstance(function.spec, cvat.DetectionFunctionSpec)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    label, confidence = function._tiler.label(np.asarray(image), function._passes)
    for threshold in (None, 0.5):
        found = np.full(label.shape, 255, np.uint8)
        for shape in function.detect(_DetectionFunctionContextImpl(frame_name="a", conf_threshold=threshold), image):
            found[decode_mask(shape.points, image_width=64, image_height=48)] = shape.label_id
        assert np.array_equal(found, np.where(confidence >= (threshold or 0), label, 255))
