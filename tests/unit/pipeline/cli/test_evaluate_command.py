"""`autolabel evaluate`: folders in, JSON or a table out, and one clear line for what does not fit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import hmsa_core
from hmsa_core import models, taxonomy
from hmsa_core.data.checks import perceptual_hash
from hmsa_core.inference.evaluation.labelled_files import blocks_of, pairs_of
from hmsa_core.inference.network.predictor import Predictor, label_image
from hmsa_core.io import atomic
from hmsa_core.io.atomic import write_json
from hmsa_core.io.errors import IntegrityError
from hmsa_core.lineage import LearnedImage, Lineage
from hmsa_core.metrics import ConfusionMatrix, iou_of, mean_iou_of
from hmsa_core.taxonomy import cityscapes
from tests.support.inference import save_model, small_model
from tests.support.teachers import TO_OURS, colour_network, table
from tests.support.training import CLASSES, class_table, picture

pytestmark = pytest.mark.long

SIZES = ((40, 56), (33, 47), (64, 40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    for part in ("images", "labels"):
        (root / part).mkdir()
    for i, size in enumerate(SIZES):
        image, label = picture(i, 4, size)
        cv2.imwrite(str(root / f"images/frame{i}.{'jpg' if i == 1 else 'png'}"), image[..., ::-1])
        cv2.imwrite(str(root / f"labels/frame{i}.png"), label)
    save_model(root / "model", scales=[0.5, 1.0], flip=False)
    write_classes(root / "classes.json")
    return root


def write_classes(path: Path, names: tuple[str, ...] = CLASSES, colours=None, ignore: int = 255) -> None:
    colours = [[i, i, i] for i in range(len(names))] if colours is None else colours
    rows = [{"id": i, "name": name, "colour": list(colours[i])} for i, name in enumerate(names)]
    write_json(path, {"classes": rows, "ignore_id": ignore})


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


@pytest.fixture
def evaluate(said):
    """Run the command on a folder, and return what it wrote; folders and options that are given win."""

    def run(folder: Path, *more: object, status: int = 0, **given: object):
        usual = {"checkpoint": "model", "images": "images", "labels": "labels", "classes": "classes.json"} | given
        folders = [part for name, place in usual.items() if place for part in (f"--{name}", folder / place)]
        return said("evaluate", *folders, "--device", "cpu", "--threads", "1", *more, status=status)

    return run


@pytest.fixture
def scores(evaluate):
    return lambda folder, *more, **given: json.loads(evaluate(folder, "--json", *more, **given).out)


@pytest.fixture
def refused(evaluate):
    """The one line of error of a command that writes nothing else."""

    def run(folder: Path, *more: object, status: int = 3, **given: object) -> str:
        printed = evaluate(folder, *more, status=status, **given)
        assert printed.out == ""
        errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, printed.err
        return errors[0]

    return run


@pytest.fixture
def nothing_scored(monkeypatch) -> None:
    monkeypatch.setattr(
        "hmsa_core.inference.evaluation.evaluate_folder._score", lambda *_args, **_more: pytest.fail("scored")
    )


def redraw(copied: Path, change) -> None:
    """Put `change(label)` in the place of each label."""
    for path in (copied / "labels").iterdir():
        cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))


def expected_scores(folder: Path, scales: tuple[float, ...], flip: bool) -> NDArray[np.float64]:
    predictor, matrix = Predictor(small_model()), ConfusionMatrix(4)
    for path in sorted((folder / "images").iterdir()):
        image = cv2.imread(str(path))[..., ::-1]
        label, _ = label_image(predictor, np.ascontiguousarray(image), scales, flip)
        matrix.update(label, cv2.imread(str(folder / f"labels/{path.stem}.png"), cv2.IMREAD_UNCHANGED))
    return iou_of(matrix.counts)


def test_json_holds_the_scores_of_the_checkpoints_own_scales_or_of_chosen_ones(folder, scores):
    found, expected = scores(folder), expected_scores(folder, (0.5, 1.0), False)
    assert found["mean_iou"] == pytest.approx(mean_iou_of(expected), abs=1e-3)
    assert list(found["iou"]) == list(CLASSES)
    np.testing.assert_allclose(list(found["iou"].values()), expected, atol=1e-3)
    assert (found["images"], found["scales"], found["flip"]) == (3, [0.5, 1.0], False)
    assert found["precision"] == "fp32"
    chosen = scores(folder, "--scales", "1,2", "--flip")
    assert (chosen["scales"], chosen["flip"]) == ([1.0, 2.0], True)
    assert chosen["mean_iou"] == pytest.approx(mean_iou_of(expected_scores(folder, (1.0, 2.0), True)), abs=1e-3)
    single = scores(folder, "--mode", "single")
    assert (single["mode"], single["mean_iou"] != found["mean_iou"]) == ("single", True)


def test_without_json_a_table_names_every_class(folder, evaluate):
    printed = evaluate(folder)
    assert "one block: no interval" in printed.err, "three pictures in a row"
    assert printed.out.splitlines()[-1].endswith("   (3 images)")
    lines = evaluate(folder, "--block-length", "1").out.splitlines()
    assert [line.split()[0] for line in lines] == [*CLASSES, "mean"]
    assert re.search(r"mean IoU +\d+\.\d \[\d+\.\d, \d+\.\d\]   \(3 images\)$", lines[-1])


def test_details_hold_boundaries_reliability_cities_and_the_confusions(folder, scores, evaluate):
    found = scores(folder, "--details")
    counts = np.array(found["confusion"])
    assert counts.shape == (4, 4)
    assert found["classes"] == list(CLASSES), "whose row is whose must not hang on the order of JSON keys"
    assert found["pixel_accuracy"] == pytest.approx(np.trace(counts) / counts.sum())
    assert sum(found["reliability"]["pixels"]) == counts.sum()
    assert set(found["boundary"]["iou"]) == set(CLASSES)
    assert 0 <= found["ece"] <= 1
    assert set(found["weights"]) == {"0.5", "1"}
    assert found["category_iou"]["flat"] == pytest.approx(found["iou"]["road"])
    assert found["cities"] == {}, "frame0 names no city"
    lines = evaluate(folder, "--details").out.splitlines()
    assert [line.split()[0] for line in lines] == [*CLASSES, "mean", "boundary", "ECE"]


def test_an_answer_says_what_made_it_and_how_each_city_was_scored(folder, scores, tmp_path):
    copied = tmp_path / "cities"
    for part in ("images", "labels"):
        (copied / part).mkdir(parents=True)
    for i, (stem, city) in enumerate((("frame0.png", "ulm"), ("frame2.png", "aachen"))):
        shutil.copy(folder / "images" / stem, copied / f"images/{city}_00000{i}_000019_leftImg8bit.png")
        shutil.copy(folder / "labels" / stem, copied / f"labels/{city}_00000{i}_000019_gtFine_labelIds.png")
    cities = {"images": copied / "images", "labels": copied / "labels"}
    found = scores(folder, "--details", "--no-flip", **cities)
    assert {name: row["images"] for name, row in found["cities"].items()} == {"aachen": 1, "ulm": 1}
    again = scores(folder, "--no-flip", **cities)
    assert (again["mean_iou"], again["iou"]) == (found["mean_iou"], found["iou"])
    assert again["made"]["command"].startswith("autolabel evaluate --checkpoint ")
    assert again["made"]["command"].endswith(" --json --no-flip")
    assert {"machine", "versions", "commit", "uncommitted"} < set(again["made"])
    assert again["judged"] == found["judged"]
    shutil.copy(folder / "labels/frame0.png", copied / "labels/aachen_000001_000019_gtFine_labelIds.png")
    shutil.copy(folder / "images/frame0.png", copied / "images/aachen_000001_000019_leftImg8bit.png")
    assert scores(folder, "--no-flip", **cities)["judged"] != found["judged"], "another picture"


def test_pictures_of_confusions_and_reliability_are_drawn_for_both_checkpoints(folder, evaluate, tmp_path):
    plots = tmp_path / "new/plots"
    printed = evaluate(folder, "--plots", plots, "--baseline", folder / "model", "--block-length", "1")
    assert "ECE" in printed.out, "pictures need the details"
    names = ["confusion-baseline.png", "confusion-model.png", "iou.png", "reliability.png"]
    assert sorted(path.name for path in plots.iterdir()) == names
    drawn = {name: cv2.imread(str(plots / name)) for name in names}
    assert all(picture is not None and picture.std() > 5 for picture in drawn.values())
    differs = drawn["confusion-model.png"] != drawn["confusion-baseline.png"]
    assert differs.any(), "their titles"
    assert differs.mean() < 0.05, "the same weights have the same confusions"
    (tmp_path / "file").touch()
    printed = evaluate(folder, "--plots", tmp_path / "file", status=3).err
    assert "evaluate" not in printed.partition("error: ")[0], "told before the first picture is scored"


def test_mapillarys_65_classes_are_scored_at_2177_at_the_labels_size_and_as_released(tmp_path, scores):
    table = taxonomy.mapillary().to_json()
    models.save(small_model(classes=65), tmp_path / "model", class_table=table, lineage={}, inference=None)
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 66, (6, 8)), np.ones((16, 16))).astype(np.uint8)  # 65: Unlabeled, which is ignored
    label[:16, :16] = 65
    for part, pixels in (("images", rng.integers(0, 256, (*label.shape, 3)).astype(np.uint8)), ("labels", label)):
        (tmp_path / part).mkdir()
        cv2.imwrite(str(tmp_path / part / "a.png"), pixels)

    def counted(*more: str) -> int:
        options = ("--classes", "mapillary_v1.2", "--details", "--scales", "1", "--no-flip", "--long-edge", "2177")
        found = scores(tmp_path, *options, *more)
        assert len(found["iou"]) == 65
        assert found["long_edge"] == 2177
        return int(np.sum(found["confusion"]))

    assert counted() == int((label != 65).sum())
    assert counted("--score-at", "resized") == pytest.approx((label != 65).mean() * 2177 * 1633, rel=0.001), (
        "the released code judges this many"
    )


def test_files_without_a_partner_are_counted_and_images_left_out_where_that_was_said(copied, evaluate, refused):
    (copied / "labels/frame1.png").unlink()
    assert "--skip-unlabelled" in evaluate(copied, status=3).err
    printed = evaluate(copied, "--skip-unlabelled", "--json")
    assert json.loads(printed.out)["images"] == 2
    assert "1 of 3 images have no label of the same stem" in printed.err
    line = refused(copied)
    assert "1 of 3 images have no label of the same stem" in line
    assert "frame1.jpg" in line
    (copied / "images/frame1.jpg").unlink()
    (copied / "images/frame2.png").unlink()
    assert "1 of 2 labels have no image of the same stem" in refused(copied)


def test_another_number_or_order_of_classes_is_refused_of_a_baseline_too(folder, refused, tmp_path):
    write_classes(tmp_path / "five.json", (*CLASSES, "more"))
    assert "has 5 classes" in refused(folder, classes=tmp_path / "five.json", status=2)
    write_classes(tmp_path / "moved.json", (CLASSES[1], CLASSES[0], *CLASSES[2:-1], "another"))
    line = refused(folder, classes=tmp_path / "moved.json", status=2)
    assert "class 0 is 'building', in" in line
    assert "'building' has another number" in line
    # Counts of both go by one order: the first checkpoint would be scored as the second one's classes.
    table = class_table().to_json()
    table["classes"] = [table["classes"][i] for i in (1, 0, 2, 3)]
    models.save(small_model(), tmp_path / "other", class_table=table, lineage={})
    line = refused(folder, "--baseline", tmp_path / "other", status=2)
    assert "they cannot be compared by number" in line


def test_classes_in_another_order_are_taken_by_name(folder, copied, evaluate, scores, refused):
    order = (2, 0, 3, 1)  # of the checkpoint's class at each id of these labels
    write_classes(copied / "classes.json", tuple(CLASSES[i] for i in order))
    ids = np.full(256, 255, np.uint8)
    ids[list(order)] = range(4)
    redraw(copied, lambda label: ids[label])
    printed = evaluate(copied, "--json")
    assert "taken by name" in printed.err
    assert json.loads(printed.out)["iou"] == scores(folder)["iou"]
    line = refused(copied, "--ids", "train", status=2)
    assert "'car' has another number" in line, "whose order are trainIds in?"


@pytest.mark.parametrize(
    ("images", "labels", "pairs", "alone"),
    [
        (["0001", "0001_L"], ["0001_L"], [("0001_L", "0001_L")], ["0001"]),
        (["a_leftImg8bit", "b_leftImg8bit"], ["a_leftImg8bit"], [("a_leftImg8bit",) * 2], ["b_leftImg8bit"]),
        (["x/0001", "y/0001"], ["x/0001", "y/0001"], [("x/0001", "x/0001"), ("y/0001", "y/0001")], []),
        (["a", "b"], ["a", "b", "colour/a"], [("a", "a"), ("b", "b")], []),
        (["a", "labels/a"], ["a"], [("a", "a")], []),
    ],
)
def test_which_files_belong_together(tmp_path, images, labels, pairs, alone):
    for part, names in (("images", images), ("labels", labels)):
        for name in names:
            path = tmp_path / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    found, unlabelled, _ = pairs_of(tmp_path / "images", tmp_path / "labels")
    named = [tuple(str(Path(path).relative_to(tmp_path).with_suffix("")) for path in (f.image, f.label)) for f in found]
    assert named == [(f"images/{image}", f"labels/{label}") for image, label in pairs]
    assert [path.stem for path in unlabelled] == alone


def test_the_maps_that_are_there_are_reported_where_the_others_are_wanted(copied, evaluate):
    for i in range(3):
        (copied / f"labels/frame{i}.png").rename(copied / f"labels/frame{i}_labelTrainIds.png")
    printed = evaluate(copied, status=3).err
    assert "no label is called *_labelIds" in printed
    assert "--ids train" in printed


def test_a_class_that_only_a_prediction_has_and_a_single_sequence_are_reported(folder, copied, evaluate):
    redraw(copied, lambda label: np.where(label == 1, 255, label))
    printed = evaluate(copied).err
    assert re.search(rf"note: {CLASSES[1]} is in no label and predicted at \d+ pixels", printed)
    assert "by their names all of one sequence" not in printed, "one block has no interval at all"
    for part in ("images", "labels"):
        for i, path in enumerate(sorted((folder / part).iterdir())):
            shutil.copy(path, copied / part / f"frame{i + 3}{path.suffix}")
    assert "2 blocks of 3 neighbours, by their names all of one sequence" in evaluate(copied).err


def test_labels_of_colours_are_read_by_the_class_files_colours(folder, copied, evaluate, scores, refused):
    colours = np.zeros((256, 3), np.uint8)
    colours[:4] = [[128, 64, 128], [70, 70, 70], [220, 20, 60], [0, 0, 142]]
    write_classes(copied / "classes.json", colours=colours.tolist())
    redraw(copied, lambda label: colours[label][..., ::-1])
    for given in ((), ("--ids", "colours")):
        assert scores(copied, *given)["iou"] == scores(folder)["iou"]
    strange = cv2.imread(str(copied / "labels/frame2.png"))
    strange[:2, :3] = (3, 2, 1)
    cv2.imwrite(str(copied / "labels/frame2.png"), strange)
    line = refused(copied, "--ids", "colours")
    assert all(words in line for words in ("frame2.png", "6 pixels have colours of no class", "(1, 2, 3)")), line


def test_colour_maps_of_cityscapes_may_hold_its_void_colours(copied, scores):
    (copied / "scores").mkdir()
    for i, size in enumerate(SIZES):
        shown = np.full((*size, 3), cityscapes().colours[0], np.uint8)
        shown[:5] = (111, 74, 0)  # "dynamic", which is no class
        cv2.imwrite(str(copied / f"labels/frame{i}.png"), shown[..., ::-1])
        np.save(copied / f"scores/frame{i}.npy", np.eye(19, dtype=np.float32)[0][:, None, None] + np.zeros(size))
    run = ("--teacher", f"scores:{copied}/scores", "--classes", "cityscapes")
    for given in ((), ("--ids", "colours")):
        assert scores(copied, *run, *given, checkpoint="", classes="")["iou"]["road"] == 1.0


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        (
            "val/ulm/ulm_00000{}_000019_leftImg8bit",
            ["val/ulm/ulm_00000{}_000019_gtFine_labelIds", "val/ulm/ulm_00000{}_000019_gtFine_color"],
        ),
        ("0001TP_00000{}", ["0001TP_00000{}_L"]),
    ],
)
def test_names_of_cityscapes_and_of_camvids_own_release_are_paired(folder, scores, tmp_path, image, labels):
    for i in range(3):
        source = next((folder / "images").glob(f"frame{i}.*"))
        for part, name, file in (
            ("images", image + source.suffix, source),
            *(("labels", label + ".png", folder / f"labels/frame{i}.png") for label in labels),
        ):
            path = tmp_path / part / name.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, path)
    found = scores(folder, images=tmp_path / "images", labels=tmp_path / "labels")
    assert found["iou"] == scores(folder)["iou"]


def test_an_image_that_cannot_be_read_or_a_label_without_a_class_is_named_before_any_is_scored(
    copied, refused, nothing_scored, monkeypatch
):
    pixels = cv2.imread(str(copied / "images/frame2.png"))
    cv2.imwrite(str(copied / "images/frame2.png"), np.dstack([pixels, np.full(pixels.shape[:2], 7, np.uint8)]))
    with monkeypatch.context() as patch:
        patch.setattr(
            "hmsa_core.inference.evaluation.evaluate_folder.load_predictor",
            lambda *_: pytest.fail("the network was loaded"),
        )
        assert "frame2.png: has transparent pixels" in refused(copied)
    cv2.imwrite(str(copied / "images/frame2.png"), pixels)
    cv2.imwrite(str(copied / "labels/frame2.png"), np.full(SIZES[2], 77, np.uint8))
    line = refused(copied)
    assert ("frame2.png" in line, "77" in line) == (True, True)


def test_void_of_another_value_is_fixed_by_the_class_file_as_the_error_says(folder, copied, evaluate, scores):
    redraw(copied, lambda label: np.where(label == 255, 4, label))
    error = evaluate(copied, status=3).err
    assert "values 4 are not ids of" in error
    assert '"ignore_id"' in error
    write_classes(copied / "classes.json", ignore=4)
    assert scores(copied)["iou"] == scores(folder)["iou"]


def test_labels_that_hold_train_ids_are_scored_as_such_and_never_taken_for_ids(folder, evaluate, scores, tmp_path):
    model = save_model(tmp_path / "model", small_model(classes=19))
    table = taxonomy.cityscapes()
    ids = np.full(256, 0, np.uint8)
    ids[:19] = table.train_to_id
    drawn = {}
    for path in sorted((folder / "labels").iterdir()):
        drawn[path.name] = np.array([2, 7, 12, 17])[cv2.imread(str(path), cv2.IMREAD_UNCHANGED) % 4].astype(np.uint8)

    def given(name: str, to_file, *more: str) -> tuple:
        (tmp_path / name).mkdir(exist_ok=True)
        for file, train in drawn.items():
            cv2.imwrite(str(tmp_path / name / file), to_file(train))
        return folder, "--checkpoint", model, "--labels", tmp_path / name, "--classes", "cityscapes", *more

    def score(*what) -> dict:
        return scores(*given(*what))["iou"]

    expected = score("ids", lambda train: ids[train])
    printed = evaluate(*given("train", lambda train: train), status=3).err
    assert "holds a number above 19: trainIds, or ids of cityscapes?\nhint: say --ids train or --ids file" in printed
    assert score("train", lambda train: train, "--ids", "train") == expected
    assert score("train", lambda train: train, "--ids", "file") != expected

    def partly(void: int):
        return lambda train: np.where(train == 12, void, train).astype(np.uint8)

    printed = evaluate(*given("void", partly(255)), status=3).err
    assert "labels that hold trainIds (0..18, 255 = ignored) are read with --ids train" in printed
    assert score("void", partly(255), "--ids", "train") == score("void-ids", lambda train: ids[partly(255)(train)])


def test_a_label_of_other_proportions_is_refused_and_one_of_another_size_is_said(copied, evaluate, refused):
    path = copied / "labels/frame0.png"
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), cv2.resize(label, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_NEAREST))
    assert "note: 1 of 3 labels have another size than their image" in evaluate(copied).err
    cv2.imwrite(str(path), label[:20])
    assert "frame0.png is 56x20" in refused(copied)


def test_two_checkpoints_are_compared_on_the_same_pictures_with_an_interval(folder, copied, evaluate, scores, tmp_path):
    other = save_model(tmp_path / "other", small_model(seed=5), scales=[1.0], flip=False)
    alone = scores(folder, "--block-length", "1")
    both = scores(folder, "--block-length", "1", "--baseline", other)
    assert both["mean_iou"] == alone["mean_iou"]
    assert both["baseline"]["scales"] == [1.0]
    gain = both["difference"]
    assert gain["value"] == pytest.approx(both["mean_iou"] - both["baseline"]["mean_iou"])
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert (gain["blocks"], gain["runs"]) == (3, 1)
    assert gain["low"] < gain["high"]
    lines = evaluate(folder, "--block-length", "1", "--baseline", folder / "model").out.splitlines()
    assert lines[0] == "both at {0.5, 1}"
    assert lines[1].split() == ["model", "baseline", "difference"]
    assert re.search(r"mean IoU .* \+0\.0 \[\+0\.0, \+0\.0\]   \(3 images\)$", lines[-2])
    lines = evaluate(folder, "--baseline", other).out.splitlines()
    assert lines[0] == "model at {0.5, 1}, baseline at {1}"
    assert re.search(r"mean IoU .*  [+-]\d+\.\d   \(3 images\)$", lines[-2]), "the value of one block is known"
    assert "no interval: all images are one block" in lines[-1]
    redraw(copied, lambda label: np.full_like(label, 255))
    printed = evaluate(copied, "--block-length", "1", "--baseline", folder / "model")
    assert "too few labelled pixels" in printed.out


def test_a_damaged_baseline_is_found_before_anything_is_scored(folder, evaluate, tmp_path, nothing_scored):
    shutil.copytree(folder / "model", tmp_path / "other")
    weights = next((tmp_path / "other").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    printed = evaluate(folder, "--baseline", tmp_path / "other", status=IntegrityError.exit_code)
    assert weights.name in printed.err


def teach(copied: Path, seen: LearnedImage) -> None:
    """Let the model of a folder have learned from one picture."""
    shutil.rmtree(copied / "model")
    digest = (lineage := Lineage({seen.sha256: seen})).save(copied / "lineage.json")
    models.save(small_model(), copied / "model", class_table=class_table().to_json(), lineage=lineage.summary(digest))
    shutil.move(copied / "lineage.json", copied / "model/lineage.json")


def test_pictures_that_a_model_has_learned_from_are_counted_near_copies_too(copied, evaluate):
    sha = atomic.sha256_file(copied / "images/frame0.png")
    teach(copied, LearnedImage(sha, "old_name", "target", "", "", -1, "fine"))
    printed = evaluate(copied, "--json")
    assert "has learned from 1 of these 3 images (frame0 is old_name: same file)" in printed.err
    assert json.loads(printed.out)["learned"]["images"] == 1
    (copied / "model/lineage.json").unlink()
    printed = evaluate(copied, "--json")  # a checkpoint that was copied without its list can be scored
    assert "knows these images is not proven: " in printed.err
    assert "lineage.json" in json.loads(printed.out)["learned"]["unknown"][0]
    copy = perceptual_hash(cv2.imread(str(copied / "images/frame0.png"))[..., ::-1] // 2 * 2)
    teach(copied, LearnedImage("0" * 64, "brighter", "target", copy, "", -1, "pseudo"))
    assert "(frame0 is brighter: perceptual hash, " in evaluate(copied).err


def test_blocks_are_runs_of_neighbours_of_one_drive():
    names = ["b_10", "a_9", "a_10", "a_11", "a_100", "b_9", "nine"]
    found = dict(zip(names, blocks_of(names, 2), strict=True))
    assert found["a_9"] == found["a_10"] != found["a_11"] == found["a_100"]
    assert found["b_9"] == found["b_10"] not in (found["a_9"], found["a_11"], found["nine"])
    sized = blocks_of([f"0001TP_{i:06d}_480x360" for i in range(6)], 3)
    assert [len(set(sized[:3])), len(set(sized))] == [1, 2], "the size of a picture counts no frames"
    drives = blocks_of([f"drive{i:02d}_frame0001" for i in range(6)], 3)
    assert len(set(drives)) == 6, "drives are no neighbours"
    cities = [f"{city}_{i:06d}_000019{end}" for city, end in (("ulm", ""), ("bonn", "_leftImg8bit")) for i in range(6)]
    assert len(set(blocks_of(cities, 3))) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "nowhere"}, "no such folder"),
        ({"classes": "nowhere.json"}, "class file not found"),
        ({"labels": "model"}, "no JPEG, PNG, WebP or TIFF file in this folder"),
        ({"checkpoint": "images"}, "no checkpoint"),
    ],
)
def test_missing_folders_and_files_are_one_line(folder, refused, change, message):
    assert message in refused(folder, **change)


def test_a_network_of_another_tool_scores_what_its_labels_do(folder, scores, evaluate, refused, tmp_path):
    network = colour_network(tmp_path / "colours.onnx")
    spec = f"onnx:{network}"
    assert "5 of its 5 classes are none of" in refused(folder, "--baseline", spec, status=2)
    table(network, f"classes: {json.dumps(TO_OURS)}")
    pairs = folder / "images", folder / "labels", folder / "classes.json"
    alone, both = hmsa_core.evaluate(spec, *pairs, block_length=1), scores(folder, "--baseline", spec)
    assert both["baseline"]["iou"] == alone["iou"]
    assert both["difference"]["value"] == pytest.approx(both["mean_iou"] - alone["mean_iou"])
    assert "is not listed" in alone["learned"]["unknown"][0]
    store, matrix = hmsa_core.label(pairs[0], spec, tmp_path / "store", classes=pairs[2]), ConfusionMatrix(4)
    for name in store.names():
        matrix.update(store.read_label(name), cv2.imread(str(pairs[1] / f"{name}.png"), cv2.IMREAD_UNCHANGED))
    np.testing.assert_allclose(list(alone["iou"].values()), iou_of(matrix.counts))
    assert "only checkpoints fuse scales" in refused(folder, "--baseline", spec, "--mode", "average", status=2)
    member = {"teacher": "onnx:colours.onnx", "scales": [1.5], "classes": TO_OURS}
    images = [atomic.sha256_file(folder / "images/frame0.png")]
    write_json(tmp_path / "teacher.yaml", {"classes": list(CLASSES), "members": [member], "images": images})
    adopted = scores(folder, "--teacher", tmp_path / "teacher.yaml", checkpoint=None)
    assert (adopted["scales"], adopted["flip"]) == (None, None)
    assert adopted["mean_iou"] != alone["mean_iou"]
    printed = evaluate(folder, "--baseline", tmp_path / "teacher.yaml")
    assert "warning: by 1 of these 3 images it was chosen how " in printed.err
    lines = printed.out.splitlines()
    assert lines[0] == "model at {0.5, 1}, baseline at the scales of its file"
    assert "at which scales each network runs" in refused(
        folder, "--baseline", tmp_path / "teacher.yaml", "--flip", status=2
    )


@pytest.mark.parametrize("scales", ["0.5,2", "1,nan"])
def test_scales_without_1_or_that_no_image_can_be_brought_to_are_refused(folder, refused, scales):
    line = refused(folder, "--scales", scales, status=2)
    assert "scales must be different numbers above 0 and up to 8, one of them 1, found" in line
