from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hmsa_core import taxonomy
from hmsa_core.data.decode import read_label, read_label_ids
from hmsa_core.data.layouts import cv_split, scan
from hmsa_core.data.roles import assign_roles
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.io.errors import ConfigError, DecodeError, InputError, LayoutError
from tests.support.training import class_file

from .conftest import SIZE, blocks, pair, picture, save

REFERENCE = Path(__file__).resolve().parents[3] / "reference"


def source(kind: str, root: Path, **options) -> SourceSpec:
    return SourceSpec(kind=kind, root=str(root), **options)


@pytest.mark.parametrize("convention", ["A", "B"])
def test_both_cityscapes_conventions_are_read_and_named(cities, convention):
    tree = cities(convention).standard()
    found = scan(source("cityscapes", tree.root))
    assert found.layout == f"cityscapes, root convention {convention}"
    assert len(found.found) == 8 + 3 + 2 + 2
    assert not found.refused
    sample = next(f for f in found.found if f.name == "bad-honnef_000001_000019")
    assert (sample.city, sample.sequence, sample.frame) == ("bad-honnef", "bad-honnef_000001", 19)
    assert sample.label == ""
    assert (tree.root / sample.coarse).is_file()
    assert all((tree.root / f.image).is_file() for f in found.found)


def test_a_mixture_of_conventions_is_read_and_named(cities):
    tree = cities("A").standard()
    shutil.move(tree.root / "gtCoarse", tree.root / "moved/gtCoarse")
    (tree.root / "moved").rename(tree.root / "gtCoarse")
    assert scan(source("cityscapes", tree.root)).layout == "cityscapes, root convention A+B"


@pytest.mark.parametrize("labelled", [False, True])
def test_dummy_labels_of_the_test_split_are_never_used(cities, labelled):
    found = scan(source("cityscapes", cities().standard().root, test_is_labelled=labelled)).found
    assert [bool(f.label) for f in found if f.split == "test"] == [labelled] * 2


def test_train_id_maps_come_before_ids_and_ids_before_polygons(cities):
    tree = cities()
    tree.pair("train", "aachen_000000_000019").pair("train", "aachen_000001_000019")
    tree.label("train", "aachen_000000_000019", blocks(1, (0, 255)), suffix="labelTrainIds")
    tree.label("train", "aachen_000001_000019", blocks(1).astype(np.uint8), suffix="instanceIds")
    labels = {f.name: f.label for f in scan(source("cityscapes", tree.root)).found}
    assert labels["aachen_000000_000019"].endswith("_gtFine_labelTrainIds.png")
    assert labels["aachen_000001_000019"].endswith("_gtFine_labelIds.png")


def polygons(objects: list[dict], size=SIZE) -> str:
    return json.dumps({"imgHeight": size[0], "imgWidth": size[1], "objects": objects})


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def test_polygons_stand_in_for_missing_label_maps(cities):
    tree = cities()
    image = tree.image("train", "aachen_000000_000019")
    path = tree.fine / "train" / "aachen" / "aachen_000000_000019_gtFine_polygons.json"
    path.parent.mkdir(parents=True)
    objects = [
        {"label": "road", "polygon": box(-50, 20, 500, 900)},
        {"label": "cargroup", "polygon": box(10, 25, 30, 40)},
        {"label": "person", "polygon": box(20, 25, 25, 30), "deleted": 1},
        {"label": "license plate", "polygon": box(12, 30, 14, 32)},
        {"label": "sky", "polygon": box(0, 0, 95, 9), "deleted": 0, "verified": 1, "user": "x", "date": "y", "id": 3},
        {"label": "pole", "polygon": box(28, 5, 29, 45)},
    ]
    path.write_text(polygons(objects))
    (sample,) = scan(source("cityscapes", tree.root)).found
    assert sample.label.endswith("_polygons.json")
    assert image.is_file()
    ids = read_label_ids(path)
    at = {"road": ids[44, 90], "car": ids[30, 22], "sky": ids[5, 90], "pole": ids[30, 28], "nothing": ids[15, 60]}
    assert at == {"road": 7, "car": 26, "sky": 23, "pole": 17, "nothing": 0}
    assert read_label(path, taxonomy.cityscapes())[15, 60] == 255


def test_polygons_are_drawn_as_the_official_script_draws_them(tmp_path):
    official = pytest.importorskip("cityscapesscripts.preparation.json2labelImg")
    from cityscapesscripts.helpers.annotation import Annotation

    rng = np.random.default_rng(5)
    names = ["road", "cargroup", "person", "sky", "pole", "license plate", "static", "bicyclegroup", "train"]
    objects = [
        {"label": str(rng.choice(names)), "polygon": rng.integers(-20, 130, (int(rng.integers(3, 9)), 2)).tolist()}
        for _ in range(60)
    ]
    path = tmp_path / "aachen_000000_000019_gtFine_polygons.json"
    path.write_text(polygons(objects))
    annotation = Annotation()
    annotation.fromJsonText(path.read_text())
    expected = np.asarray(official.createLabelImage(annotation, "ids"))
    assert np.array_equal(read_label_ids(path), expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "corrupt"),
        ("[]", "corrupt"),
        ('{"imgHeight": 4, "imgWidth": 4}', "corrupt"),
        (polygons([{"label": "road", "polygon": [[1]]}]), "corrupt"),
        (polygons([{"label": "road", "polygon": [[1, None]]}]), "corrupt"),
        (polygons([{"label": "road", "polygon": []}]), "corrupt"),
        (polygons([{"label": "unicorn", "polygon": box(0, 0, 2, 2)}]), "ids-out-of-range"),
        (polygons([], size=(0, 5)), "empty"),
        (polygons([], size=(90_000, 90_000)), "too-large"),
        ("[" * 100_000, "corrupt"),
    ],
)
def test_bad_polygon_files_are_refused(tmp_path, text, reason):
    path = tmp_path / "aachen_000000_000019_gtFine_polygons.json"
    path.write_text(text)
    with pytest.raises(DecodeError) as caught:
        read_label(path, taxonomy.cityscapes())
    assert caught.value.reason == reason


def test_names_that_do_not_fit_are_refused_one_by_one(cities):
    tree = cities().pair("train", "aachen_000000_000019")
    odd = os.fsdecode(b"d\xfc_000000_000009_leftImg8bit.png")
    for name in ("bremen_000000_000019_leftImg8bit.png", "aachen_0_19_leftImg8bit.png", odd):
        save(tree.images["train"] / "aachen" / name, picture(5))
    (tree.images["train"] / "aachen" / "notes.txt").write_text("x")
    (tree.images["train"] / "aachen" / ".hidden_leftImg8bit.png").write_text("x")
    result = scan(source("cityscapes", tree.root))
    assert [f.name for f in result.found] == ["aachen_000000_000019"]
    assert [r.reason for r in result.refused] == ["bad-name"] * 3


@pytest.mark.parametrize("convention", ["A", "B"])
@pytest.mark.parametrize("gone", ["images", "gtFine", "split", "root"])
def test_a_missing_folder_is_one_clear_line(cities, convention, gone, tmp_path):
    tree = cities(convention).standard()
    options = {}
    if gone == "images":
        for folder in {p.parent for p in tree.images.values()}:
            folder.rename(folder.with_name("gone"))
    elif gone == "gtFine":
        tree.fine.rename(tree.fine.with_name("gone"))
    elif gone == "split":
        tree.images["val"].rename(tree.images["val"].with_name("gone"))
        options = {"splits": ("train", "val")}
    root = tmp_path / "nowhere" if gone == "root" else tree.root
    with pytest.raises(LayoutError) as caught:
        scan(source("cityscapes", root, **options))
    assert str(root) in caught.value.message
    assert "\n" not in caught.value.message
    empty = tmp_path / "empty"
    (empty / "leftImg8bit/train/aachen").mkdir(parents=True)
    with pytest.raises(LayoutError, match="no file ends with _leftImg8bit.png"):
        scan(source("cityscapes", empty))


def test_cross_validation_splits_are_the_released_ones():
    golden = json.loads((REFERENCE / "data_cv_splits.json").read_text())
    golden = {key: [c.split("/")[-1] for c in golden[key]] for key in golden if key != "_note"}
    for cv in range(4):
        train, val = cv_split(cv, golden["cv0_train"], golden["cv0_val"])
        assert sorted(train) == sorted(golden[f"cv{cv}_train"])
        assert val == golden[f"cv{cv}_val"]
    with pytest.raises(InputError, match="0, 1, 2 or 3"):
        cv_split(4, [], [])


@pytest.mark.parametrize(
    ("layout", "variant", "labels_in", "classes"),
    [("v1", None, "labels", 65), ("combined", None, "v1.2/labels", 65), ("combined", "v2.0", "v2.0/labels", 123)],
)
def test_vistas_layouts_are_read_with_their_own_class_list(vistas, layout, variant, labels_in, classes):
    tree = vistas(layout)
    result = scan(source("mapillary", tree.root, variant=variant))
    assert result.classes.num_classes == classes
    assert result.classes.classes[3] == "Thing 3"
    first = min(result.found, key=lambda f: f.name)
    assert first.name == "--NSVcUgfVhFd6uzkqHOOg"
    assert first.label == f"training/{labels_in}/--NSVcUgfVhFd6uzkqHOOg.png"
    label = read_label(tree.root / first.label, result.classes)
    assert set(np.unique(label)) <= {0, 13, 27, 255}
    if (layout, variant) == ("combined", None):
        with pytest.raises(DecodeError, match="values 123 are not ids"):
            read_label(tree.folder("training", "v2.0") / f"{tree.KEYS[0]}.png", result.classes)


def test_vistas_pairs_are_checked_and_testing_needs_no_labels(vistas):
    tree = vistas()
    (tree.folder("training", "v1.2") / f"{tree.KEYS[0]}.png").unlink()
    save(tree.folder("training", "v1.2") / "without-image.png", blocks(1, (0,)))
    save(tree.root / "testing" / "images" / "abc.jpg", picture(77))
    result = scan(source("mapillary", tree.root, splits=("training", "testing")))
    assert sorted((r.part, r.reason) for r in result.refused) == [("image", "unpaired"), ("label", "unpaired")]
    assert [(f.name, f.label) for f in result.found if f.split == "testing"] == [("abc", "")]


def test_vistas_problems_are_one_clear_line(vistas):
    tree = vistas()
    with pytest.raises(LayoutError, match="holds the labels of mapillary_v1.2, asked for was v2.0"):
        scan(source("mapillary", tree.root, variant="v2.0"))
    (tree.root / "config.json").write_text('{"labels": [1, 2]}')
    with pytest.raises(InputError, match="66 or 124 labels"):
        scan(source("mapillary", tree.root))
    (tree.root / "config.json").unlink()
    with pytest.raises(LayoutError, match="no Mapillary Vistas config"):
        scan(source("mapillary", tree.root))
    combined = vistas("combined")
    (combined.root / "training").rename(combined.root / "gone")
    with pytest.raises(LayoutError, match="folder not found"):
        scan(source("mapillary", combined.root, splits=("training",)))
    (combined.root / "validation").rename(combined.root / "gone2")
    with pytest.raises(LayoutError, match="no Mapillary Vistas split"):
        scan(source("mapillary", combined.root))


def test_camvid_roles_drives_and_frames_come_from_its_files(camvid_tree):
    result = scan(source("camvid", camvid_tree))
    by_name = {f.name: f for f in result.found}
    assert len(by_name) == 18
    assert result.notes == ["2 images are in no list of variant default and are not used"]
    day = by_name["0006R0_f00300"]
    assert (day.sequence, day.frame, day.role, day.label) == ("0006R0", 300, "unlabelled", "")
    assert day.coarse == "train_coarse/0006R0_f00300.png"
    assert (camvid_tree / "train/labels/0006R0_f00300.png").is_file()  # it is there, and is not looked at
    assert by_name["0001TP_006750"].role == "guard"
    assert by_name["0001TP_006750"].label == ""
    assert {by_name[n].role for n in ("0001TP_006690", "0001TP_006720")} == {"learn"}
    assert by_name["0001TP_006780"].role == "calibrate"
    assert "0016E5_07959" not in by_name


def test_camvid_problems_are_named(camvid_tree):
    (camvid_tree / "train/images/0001TP_006690.jpg").unlink()
    (camvid_tree / "train/labels/0001TP_006720.png").unlink()
    result = scan(source("camvid", camvid_tree))
    assert sorted((r.name, r.reason) for r in result.refused) == [
        ("0001TP_006690", "unpaired"),
        ("0001TP_006720", "unpaired"),
    ]
    splits = camvid_tree / "splits.json"
    for break_it, variant, message in (
        (lambda: None, "drive_shift", "no variant 'drive_shift'"),
        (lambda: splits.write_text("{"), None, "not valid JSON"),
        (splits.unlink, None, "splits.json: not found"),
    ):
        break_it()
        with pytest.raises(LayoutError, match=message):
            scan(source("camvid", camvid_tree, variant=variant))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    root = tmp_path / "plain"
    for i in range(3):
        pair(root, f"cam1_drive{i}_{i:03d}", 300 + i)
    class_file(root, "ab")
    return root


def test_plain_folders_pair_by_stem_and_read_names_by_pattern(plain):
    pattern = r"^(?P<city>[a-z0-9]+)_(?P<sequence>drive\d)_(?P<frame>\d+)$"
    result = scan(source("folder", plain, pattern=pattern))
    assert [(f.city, f.sequence, f.frame) for f in result.found] == [("cam1", f"cam1_drive{i}", i) for i in range(3)]
    pair(plain, "cam2_drive0_007", 309)
    drives = {f.sequence for f in scan(source("folder", plain, pattern=pattern)).found}
    assert len(drives) == 4, "drives may count from one in each city"
    assert result.classes.classes == ("a", "b")
    pair(plain, "odd", 310)
    assert [r.reason for r in scan(source("folder", plain, pattern=pattern)).refused] == ["bad-name"]


def test_only_the_splits_that_have_coarse_labels_need_files_of_them(plain):
    for i, drive in enumerate(("drive1", "drive2", "drive3")):
        pair(plain, f"{drive}/{drive}", 340 + i)
    save(plain / "coarse" / "drive1" / "drive1.png", blocks(0, (0, 1)))
    (plain / "coarse" / "drive3").mkdir()
    result = scan(source("folder", plain, splits=("drive1", "drive2", "drive3"), coarse="coarse"))
    assert {f.name: f.coarse for f in result.found} == {
        "drive1": "coarse/drive1/drive1.png",
        "drive2": "",
        "drive3": "",
    }
    assert "split drive2 has no file in coarse/: its images have no coarse labels" in result.notes
    with pytest.raises(LayoutError, match="corse"):
        scan(source("folder", plain, splits=("drive1",), coarse="corse"))


def test_drives_that_count_from_one_are_named_by_their_folders(plain):
    for i, drive in enumerate(("drive1", "drive2")):
        pair(plain, f"{drive}/000001", 330 + i)
    drives = {"splits": ("drive1", "drive2"), "pattern": r"^(?P<sequence>drive\d)__(?P<frame>\d+)$"}
    found = scan(source("folder", plain, names="path", **drives)).found
    assert [(f.name, f.sequence, f.frame, f.label) for f in found] == [
        ("drive1__000001", "drive1", 1, "labels/drive1/000001.png"),
        ("drive2__000001", "drive2", 1, "labels/drive2/000001.png"),
    ]
    assert {f.name for f in scan(source("folder", plain, splits=("drive1", "drive2"))).found} == {"000001"}


def test_a_role_or_split_that_finds_nothing_says_what_is_there(plain):
    found = scan(source("folder", plain, pattern=r"^(?P<city>cam1)_(?P<sequence>drive\d)_(?P<frame>\d+)$")).found
    with pytest.raises(ConfigError, match="no image is of 'drive9'; the cities are: cam1"):
        assign_roles(found, RolesSpec(calibrate=("drive9",)))
    with pytest.raises(ConfigError, match="of split 'trian'; did you mean train"):
        assign_roles(found, RolesSpec(learn_splits=("trian",)))
    for file in (plain / "images").iterdir():
        (plain / "images" / "drive1").mkdir(exist_ok=True)
        file.rename(plain / "images" / "drive1" / file.name) if file.is_file() else None
    with pytest.raises(LayoutError, match="no image files") as caught:
        scan(source("folder", plain))
    assert "it holds folders (drive1): name those with images in `splits`" in caught.value.hint


def test_drives_in_folders_take_roles_by_split_and_sequence(tmp_path):
    splits = ["train/drive1", "train/drive2", "test/drive3", "new/drive4"]
    pattern = r"^[a-z]+__(?P<sequence>drive\d+)__(?P<frame>\d+)$"
    target = {"kind": "folder", "splits": splits, "names": "path", "pattern": pattern, "block": "sequence"}
    roles = {"learn_splits": splits[:2], "report_splits": splits[2:3], "calibrate": ["drive2"]}
    root = tmp_path / "mine"
    root.mkdir()
    rows = [{"id": 0, "name": "road", "group": "flat"}, {"id": 1, "name": "car", "group": "vehicle"}]
    (root / "classes.json").write_text(json.dumps({"dataset": "mine", "ignore_id": 255, "classes": rows}))
    for i, split in enumerate(splits):
        save(root / "images" / split / "000001.jpg", picture(340 + i))
        if not split.startswith("new"):
            save(root / "labels" / split / "000001.png", blocks(i, (0, 1)))
    found = scan(SourceSpec.model_validate(target | {"root": str(root)})).found
    given = assign_roles(found, RolesSpec.model_validate(roles | {"unlabelled_splits": splits[3:]}))
    assert {f.name: role for f, role in zip(found, given, strict=True)} == {
        "train__drive1__000001": "learn",
        "train__drive2__000001": "calibrate",
        "test__drive3__000001": "report",
        "new__drive4__000001": "unlabelled",
    }


def test_files_of_cityscapes_without_a_partner_are_named_and_extra_images_need_none(cities):
    tree = cities().standard()
    tree.image("train", "aachen_000009_000019")
    tree.label("train", "aachen_000008_000019")
    tree.coarse_of("train", "aachen_000007_000019")
    tree.image("train_extra", "bamberg_000001_000019")
    result = scan(source("cityscapes", tree.root))
    assert [(r.name, r.part, r.reason) for r in result.refused] == [
        ("aachen_000008_000019", "label", "unpaired"),
        ("aachen_000007_000019", "coarse", "unpaired"),
        ("aachen_000009_000019", "image", "unpaired"),
    ]
    coarse = {f.name: f.coarse for f in result.found}
    assert coarse["bamberg_000001_000019"] == ""
    assert coarse["bad-honnef_000001_000019"]
    assert "1 images of train_extra have no coarse label: they are unlabelled" in result.notes
    assert result.layout == "cityscapes, root convention A"


def test_plain_folders_name_what_does_not_pair(plain):
    save(plain / "images" / "alone.png", picture(320))
    save(plain / "labels" / "lost.png", blocks(1, (0, 1)))
    save(plain / "images" / "cam1_drive0_000.jpg", picture(321))
    result = scan(source("folder", plain))
    assert sorted((r.name, r.part, r.reason) for r in result.refused) == [
        ("alone", "image", "unpaired"),
        ("cam1_drive0_000", "image", "duplicate-name"),
        ("lost", "label", "unpaired"),
    ]


@pytest.mark.parametrize("names", ["stem", "path"])
@pytest.mark.parametrize("name", [b"bad\xe9.png", b"new\nline.png", b"m\xfcnchen/new.png", b"two\nlines/new.png"])
def test_names_of_files_and_folders_that_no_table_can_hold_are_refused(plain, name, names):
    odd = plain / "images" / os.fsdecode(name)
    odd.parent.mkdir(exist_ok=True)
    shutil.copy(plain / "images" / "cam1_drive0_000.png", odd)
    splits = ("", odd.parent.name) if b"/" in name else ()
    result = scan(source("folder", plain, splits=splits, labels="", names=names))
    assert len(result.found) == 3
    (refused,) = result.refused
    assert refused.reason == "bad-name"
    for text in (refused.name, refused.path, refused.split):
        text.encode("ascii")


def test_a_file_of_mapillary_with_such_a_name_is_refused_alone(vistas):
    root = vistas().root
    found = len(scan(source("mapillary", root)).found)
    save(root / "training" / "images" / os.fsdecode(b"k\xfc.jpg"), picture(8))
    result = scan(source("mapillary", root))
    assert len(result.found) == found
    (refused,) = result.refused
    refused.name.encode("ascii")


def test_plain_folders_may_have_coarse_labels_splits_or_no_labels(plain):
    save(plain / "coarse" / "extra.png", blocks(1, (0, 1)))
    save(plain / "images" / "extra.png", picture(330))
    found = {f.name: f for f in scan(source("folder", plain, coarse="coarse")).found}
    assert (found["extra"].label, found["extra"].coarse) == ("", "coarse/extra.png")
    nothing = scan(source("folder", plain, labels="", classes="cityscapes"))
    assert all(f.label == "" for f in nothing.found)
    assert nothing.classes.num_classes == 19
    for split in ("train", "val"):
        pair(plain, f"{split}/{split}", 5)
    split = scan(source("folder", plain, splits=("train", "val"), classes="mapillary_v2.0"))
    assert [(f.name, f.split) for f in split.found] == [("train", "train"), ("val", "val")]
    save(plain / "images" / "extra" / "more.png", picture(6))
    extra = scan(source("folder", plain, splits=("train", "extra"), classes="cityscapes"))
    assert [(f.name, f.label) for f in extra.found] == [("train", "labels/train/train.png"), ("more", "")]
    assert extra.notes == ["split extra has no folder in labels/: its images are unlabelled"]


def test_plain_folder_problems_are_one_clear_line(plain):
    (plain / "empty").mkdir()
    for options, error, message in (
        ({"pattern": "("}, ConfigError, "no regular expression"),
        ({"pattern": "(", "kind": "plain"}, ConfigError, "no regular expression"),
        ({"pattern": "(?P<frame>d)", "kind": "plain"}, ConfigError, "is 'd', expected a whole number"),
        ({"images": "pictures"}, LayoutError, "folder not found"),
        ({"classes": "none.json"}, InputError, "class file not found"),
        ({"labels": "empty"}, LayoutError, "no image files"),
        ({"pattern": r"^(?P<sequenz>drive\d)"}, ConfigError, "pattern: group 'sequenz' is unknown"),
        (
            {"pattern": r"^(?P<city>nowhere)_"},
            LayoutError,
            "3 refused, the first: images/cam1_drive0_000.png: the name cam1_drive0_000 does not fit",
        ),
    ):
        with pytest.raises(error, match=message):
            scan(source(**{"kind": "folder", "root": plain} | options))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"kind": "cityscapes", "splits": ("training",)}, "'training' is not a split of cityscapes"),
        ({"kind": "mapillary", "variant": "v3"}, "'v3' is unknown for mapillary"),
        ({"kind": "folder", "variant": "default"}, "folder has no variants"),
        ({"kind": "mapillary", "name": "Bad Name"}, "String should match"),
    ],
)
def test_impossible_sources_are_refused(values, match):
    with pytest.raises(ValueError, match=match):
        SourceSpec(**values)
