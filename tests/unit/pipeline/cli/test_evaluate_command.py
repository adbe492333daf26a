"""`autolabel evaluate`: folders in, JSON or a table out, and one clear line for what does not fit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmsa_core import models, taxonomy
from hmsa_core.data.checks import perceptual_hash
from hmsa_core.inference.predictor import Predictor, label_image
from hmsa_core.inference.scored_files import blocks_of, pairs_of
from hmsa_core.io import atomic
from hmsa_core.io.atomic import write_json
from hmsa_core.io.errors import IntegrityError
from hmsa_core.lineage import LearnedImage, Lineage
from hmsa_core.metrics import ConfusionMatrix
from pipeline.cli.main import main
from tests.support.inference import save_model, small_model
from tests.support.training import CLASSES, class_table, picture

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
    write_classes(root / "classes.json", CLASSES)
    return root


def write_classes(path: Path, names: tuple[str, ...]) -> None:
    rows = [{"id": i, "name": name, "colour": [i, i, i]} for i, name in enumerate(names)]
    write_json(path, {"classes": rows, "ignore_id": 255})


def evaluate(folder: Path, *more: str, images: str = "images", labels: str = "labels", classes: str = "classes.json"):
    return main(
        [
            "evaluate",
            "--checkpoint",
            str(folder / "model"),
            "--images",
            str(folder / images),
            "--labels",
            str(folder / labels),
            "--classes",
            str(folder / classes),
            "--device",
            "cpu",
            "--threads",
            "1",
            *more,
        ]
    )


def expected_scores(folder: Path, scales: tuple[float, ...], flip: bool) -> ConfusionMatrix:
    predictor, matrix = Predictor(small_model()), ConfusionMatrix(4)
    for path in sorted((folder / "images").iterdir()):
        image = cv2.imread(str(path))[..., ::-1]
        label, _ = label_image(predictor, np.ascontiguousarray(image), scales, flip)
        matrix.update(label, cv2.imread(str(folder / f"labels/{path.stem}.png"), cv2.IMREAD_UNCHANGED))
    return matrix


def test_json_holds_the_scores_of_the_checkpoints_own_scales(folder, capsys):
    assert evaluate(folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    expected = expected_scores(folder, (0.5, 1.0), False)
    assert found["mean_iou"] == pytest.approx(expected.mean_iou(), abs=1e-3)
    assert list(found["iou"]) == list(CLASSES)
    np.testing.assert_allclose(list(found["iou"].values()), expected.iou(), atol=1e-3)
    assert (found["images"], found["scales"], found["flip"]) == (3, [0.5, 1.0], False)
    assert found["precision"] == "fp32"


def test_scales_flip_and_mode_can_be_chosen(folder, capsys):
    assert evaluate(folder, "--json", "--scales", "1,2", "--flip") == 0
    chosen = json.loads(capsys.readouterr().out)
    assert (chosen["scales"], chosen["flip"]) == ([1.0, 2.0], True)
    assert chosen["mean_iou"] == pytest.approx(expected_scores(folder, (1.0, 2.0), True).mean_iou(), abs=1e-3)
    assert evaluate(folder, "--json", "--mode", "single") == 0
    single = json.loads(capsys.readouterr().out)
    assert single["mode"] == "single"
    assert single["mean_iou"] != chosen["mean_iou"]


def test_without_json_a_table_names_every_class(folder, capsys):
    assert evaluate(folder) == 0
    captured = capsys.readouterr()
    assert "one block: no interval" in captured.err, "three pictures in a row"
    assert captured.out.splitlines()[-1].endswith("   (3 images)")
    assert evaluate(folder, "--block-length", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*CLASSES, "mean"]
    assert re.search(r"mean IoU +\d+\.\d \[\d+\.\d, \d+\.\d\]   \(3 images\)$", lines[-1])


def test_details_hold_boundaries_reliability_cities_and_the_confusions(folder, capsys):
    assert evaluate(folder, "--json", "--details") == 0
    found = json.loads(capsys.readouterr().out)
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
    assert evaluate(folder, "--details") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*CLASSES, "mean", "boundary", "ECE"]


def test_an_answer_says_what_made_it_and_how_each_city_was_scored(folder, capsys, tmp_path):
    own = tmp_path / "cities"
    for part in ("images", "labels"):
        (own / part).mkdir(parents=True)
    for i, (stem, city) in enumerate((("frame0.png", "ulm"), ("frame2.png", "aachen"))):
        shutil.copy(folder / "images" / stem, own / f"images/{city}_00000{i}_000019_leftImg8bit.png")
        shutil.copy(folder / "labels" / stem, own / f"labels/{city}_00000{i}_000019_gtFine_labelIds.png")
    arguments = (str(own / "images"), str(own / "labels"))
    assert evaluate(folder, "--json", "--details", "--no-flip", images=arguments[0], labels=arguments[1]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: row["images"] for name, row in found["cities"].items()} == {"aachen": 1, "ulm": 1}
    assert evaluate(folder, "--json", "--no-flip", images=arguments[0], labels=arguments[1]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["mean_iou"], again["iou"]) == (found["mean_iou"], found["iou"])
    assert again["made"]["command"].startswith("autolabel evaluate --checkpoint ")
    assert again["made"]["command"].endswith(" --json --no-flip")
    assert {"machine", "versions", "commit", "uncommitted"} < set(again["made"])
    assert again["judged"] == found["judged"]
    shutil.copy(folder / "labels/frame0.png", own / "labels/aachen_000001_000019_gtFine_labelIds.png")
    shutil.copy(folder / "images/frame0.png", own / "images/aachen_000001_000019_leftImg8bit.png")
    assert evaluate(folder, "--json", "--no-flip", images=arguments[0], labels=arguments[1]) == 0
    assert json.loads(capsys.readouterr().out)["judged"] != found["judged"], "another picture"


def test_pictures_of_confusions_and_reliability_are_drawn_for_both_checkpoints(folder, capsys, tmp_path):
    plots = tmp_path / "new/plots"
    assert evaluate(folder, "--plots", str(plots), "--baseline", str(folder / "model"), "--block-length", "1") == 0
    assert "ECE" in capsys.readouterr().out, "pictures need the details"
    names = ["confusion-baseline.png", "confusion-model.png", "iou.png", "reliability.png"]
    assert sorted(path.name for path in plots.iterdir()) == names
    drawn = {name: cv2.imread(str(plots / name)) for name in names}
    assert all(picture is not None and picture.std() > 5 for picture in drawn.values())
    differs = drawn["confusion-model.png"] != drawn["confusion-baseline.png"]
    assert differs.any(), "their titles"
    assert differs.mean() < 0.05, "the same weights have the same confusions"
    (tmp_path / "file").touch()
    assert evaluate(folder, "--plots", str(tmp_path / "file")) != 0
    assert "evaluate" not in capsys.readouterr().err.partition("error: ")[0], "told before the first picture is scored"


def test_mapillarys_65_classes_are_scored_at_2177_at_the_labels_size_and_as_released(tmp_path, capsys):
    table = taxonomy.mapillary().to_json()
    models.save(small_model(classes=65), tmp_path / "model", class_table=table, lineage={}, inference=None)
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 66, (6, 8)), np.ones((16, 16))).astype(np.uint8)  # 65: Unlabeled, which is ignored
    label[:16, :16] = 65
    for part, pixels in (("images", rng.integers(0, 256, (*label.shape, 3)).astype(np.uint8)), ("labels", label)):
        (tmp_path / part).mkdir()
        cv2.imwrite(str(tmp_path / part / "a.png"), pixels)

    def counted(*more: str) -> int:
        asked = [
            "--json",
            "--details",
            "--scales",
            "1",
            "--no-flip",
            "--long-edge",
            "2177",
            "--device",
            "cpu",
            "--threads",
            "1",
            *more,
        ]
        folders = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
        model = ["--checkpoint", str(tmp_path / "model"), "--classes", "mapillary_v1.2"]
        assert main(["evaluate", *model, *folders, *asked]) == 0
        found = json.loads(capsys.readouterr().out)
        assert len(found["iou"]) == 65
        assert found["long_edge"] == 2177
        return int(np.sum(found["confusion"]))

    assert counted() == int((label != 65).sum())
    enlarged = counted("--score-at", "resized")
    assert enlarged == pytest.approx((label != 65).mean() * 2177 * 1633, rel=0.001), (
        "the released code judges this many"
    )


def test_a_long_edge_is_scored_at_the_labels_size_or_as_released(folder, capsys):
    def pixels(*more: str) -> int:
        assert evaluate(folder, "--json", "--details", "--scales", "1", "--long-edge", "28", *more) == 0
        return int(np.sum(json.loads(capsys.readouterr().out)["confusion"]))

    labels = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (folder / "labels").iterdir()]
    assert pixels() == sum(int((label != 255).sum()) for label in labels)
    assert 0 < pixels("--score-at", "resized") <= 3 * 28 * 28
    with pytest.raises(SystemExit):
        evaluate(folder, "--long-edge", "wide")
    assert "'wide' is not a whole number of at least 1" in capsys.readouterr().err


def one_error_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, captured.err
    return errors[0]


def test_files_without_a_partner_are_counted_and_the_first_is_named(folder, capsys, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    (own / "labels/frame1.png").unlink()
    assert evaluate(own) == 3
    line = one_error_line(capsys)
    assert "1 of 3 images have no label of the same stem" in line
    assert "frame1.jpg" in line
    (own / "images/frame1.jpg").unlink()
    (own / "images/frame2.png").unlink()
    assert evaluate(own) == 3
    assert "1 of 2 labels have no image of the same stem" in one_error_line(capsys)


def test_another_number_or_order_of_classes_is_refused(folder, capsys, tmp_path):
    write_classes(tmp_path / "five.json", (*CLASSES, "more"))
    assert evaluate(folder, classes=str(tmp_path / "five.json")) == 2
    assert "has 5 classes" in one_error_line(capsys)
    write_classes(tmp_path / "moved.json", (CLASSES[1], CLASSES[0], *CLASSES[2:-1], "another"))
    assert evaluate(folder, classes=str(tmp_path / "moved.json")) == 2
    line = one_error_line(capsys)
    assert "class 0 is 'building', in" in line
    assert "'building' has another number" in line


def test_classes_in_another_order_are_taken_by_name(folder, capsys, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    order = (2, 0, 3, 1)  # of the checkpoint's class at each id of these labels
    write_classes(own / "classes.json", tuple(CLASSES[i] for i in order))
    for path in (own / "labels").iterdir():
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        ids = np.full(256, 255, np.uint8)
        ids[list(order)] = range(4)
        cv2.imwrite(str(path), ids[label])
    assert evaluate(own, "--json") == 0
    captured = capsys.readouterr()
    assert "taken by name" in captured.err
    assert evaluate(folder, "--json") == 0
    assert json.loads(captured.out)["iou"] == json.loads(capsys.readouterr().out)["iou"]
    assert evaluate(own, "--ids", "train") == 2, "whose order are trainIds in?"
    assert "'car' has another number" in one_error_line(capsys)


def test_a_baseline_with_another_order_of_classes_is_refused(folder, capsys, tmp_path):
    """Counts of both go by one order: the first checkpoint would be scored as the second one's classes."""
    table = class_table().to_json()
    table["classes"] = [table["classes"][i] for i in (1, 0, 2, 3)]
    models.save(small_model(), tmp_path / "other", class_table=table, lineage={})
    assert evaluate(folder, "--baseline", str(tmp_path / "other")) == 2
    assert "they cannot be compared by number" in one_error_line(capsys)


@pytest.mark.parametrize(
    ("images", "labels", "pairs", "alone"),
    [
        (["0001", "0001_L"], ["0001_L"], [("0001_L", "0001_L")], ["0001"]),
        (
            ["a_leftImg8bit", "b_leftImg8bit"],
            ["a_leftImg8bit"],
            [("a_leftImg8bit", "a_leftImg8bit")],
            ["b_leftImg8bit"],
        ),
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
    found, unlabelled = pairs_of(tmp_path / "images", tmp_path / "labels")
    assert [
        (
            f"{f.image.relative_to(tmp_path / 'images').with_suffix('')}",
            f"{f.label.relative_to(tmp_path / 'labels').with_suffix('')}",
        )
        for f in found
    ] == pairs
    assert [path.stem for path in unlabelled] == alone


def test_the_maps_that_are_there_are_told_where_the_others_are_wanted(folder, capsys, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    for i in range(3):
        (own / f"labels/frame{i}.png").rename(own / f"labels/frame{i}_labelTrainIds.png")
    assert evaluate(own) == 3
    captured = capsys.readouterr().err
    assert "no label is called *_labelIds" in captured
    assert "--ids train" in captured


def test_a_class_that_only_a_prediction_has_and_a_single_sequence_are_told(folder, capsys, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    for path in (own / "labels").iterdir():
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(label == 1, 255, label))
    assert evaluate(own) == 0
    captured = capsys.readouterr()
    assert re.search(rf"note: {CLASSES[1]} is in no label and predicted at \d+ pixels", captured.err)
    assert "by their names all of one sequence" not in captured.err, "one block has no interval at all"
    for i in range(3):
        for part in ("images", "labels"):
            for path in sorted((folder / part).glob(f"frame{i}.*")):
                shutil.copy(path, own / part / f"frame{i + 3}{path.suffix}")
    assert evaluate(own) == 0
    assert "2 blocks of 3 neighbours, by their names all of one sequence" in capsys.readouterr().err


def test_labels_of_colours_are_read_by_the_class_files_colours(folder, capsys, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    colours = np.zeros((256, 3), np.uint8)
    colours[:4] = [[128, 64, 128], [70, 70, 70], [220, 20, 60], [0, 0, 142]]
    rows = [{"id": i, "name": name, "colour": colours[i].tolist()} for i, name in enumerate(CLASSES)]
    write_json(own / "classes.json", {"classes": rows, "ignore_id": 255})
    for path in (own / "labels").iterdir():
        cv2.imwrite(str(path), colours[cv2.imread(str(path), cv2.IMREAD_UNCHANGED)][..., ::-1])
    assert evaluate(own, "--json") == 3
    assert "--ids colours" in capsys.readouterr().err
    assert evaluate(own, "--json", "--ids", "colours") == 0
    found = json.loads(capsys.readouterr().out)["iou"]
    assert evaluate(folder, "--json") == 0
    assert found == json.loads(capsys.readouterr().out)["iou"]
    strange = cv2.imread(str(own / "labels/frame2.png"))
    strange[:2, :3] = (3, 2, 1)
    cv2.imwrite(str(own / "labels/frame2.png"), strange)
    assert evaluate(own, "--ids", "colours") == 3
    line = one_error_line(capsys)
    assert "frame2.png" in line
    assert "6 pixels have colours of no class" in line
    assert "(1, 2, 3)" in line


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
def test_names_of_cityscapes_and_of_camvids_own_release_are_paired(folder, capsys, tmp_path, image, labels):
    for i in range(3):
        source = next((folder / "images").glob(f"frame{i}.*"))
        for part, name, file in (
            ("images", image + source.suffix, source),
            *(("labels", label + ".png", folder / f"labels/frame{i}.png") for label in labels),
        ):
            path = tmp_path / part / name.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, path)
    assert evaluate(folder, "--json", images=str(tmp_path / "images"), labels=str(tmp_path / "labels")) == 0
    found = json.loads(capsys.readouterr().out)
    assert evaluate(folder, "--json") == 0
    assert found["iou"] == json.loads(capsys.readouterr().out)["iou"]


def test_images_without_a_label_are_left_out_where_that_was_said(folder, capsys, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    (own / "labels/frame1.png").unlink()
    assert evaluate(own) == 3
    assert "--skip-unlabelled" in capsys.readouterr().err
    assert evaluate(own, "--skip-unlabelled", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 2
    assert "1 of 3 images have no label of the same stem" in captured.err


def test_an_image_that_cannot_be_read_is_found_before_any_is_scored(folder, capsys, tmp_path, monkeypatch):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    pixels = cv2.imread(str(own / "images/frame2.png"))
    cv2.imwrite(str(own / "images/frame2.png"), np.dstack([pixels, np.full(pixels.shape[:2], 7, np.uint8)]))
    monkeypatch.setattr("hmsa_core.inference.scoring._open", lambda *_: pytest.fail("the network was loaded"))
    assert evaluate(own) == 3
    line = one_error_line(capsys)
    assert "frame2.png: has transparent pixels" in line


def test_a_label_that_holds_no_class_is_named(folder, capsys, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    cv2.imwrite(str(own / "labels/frame0.png"), np.full(SIZES[0], 77, np.uint8))
    assert evaluate(own) == 3
    line = one_error_line(capsys)
    assert "frame0.png" in line
    assert "77" in line


def test_void_of_another_value_is_mended_by_the_class_file_as_the_error_says(folder, capsys, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    for path in (own / "labels").iterdir():
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(label == 255, 4, label))
    assert evaluate(own) == 3
    error = capsys.readouterr().err
    assert "values 4 are not ids of" in error
    assert '"ignore_id"' in error
    rows = [{"id": i, "name": name, "colour": [i, i, i]} for i, name in enumerate(CLASSES)]
    write_json(own / "classes.json", {"classes": rows, "ignore_id": 4})
    assert evaluate(own, "--json") == 0
    mended = json.loads(capsys.readouterr().out)
    assert evaluate(folder, "--json") == 0
    assert mended["iou"] == json.loads(capsys.readouterr().out)["iou"]


def test_labels_that_hold_train_ids_are_scored_as_such_and_never_taken_for_ids(folder, capsys, tmp_path):
    model = save_model(tmp_path / "model", small_model(classes=19))
    table = taxonomy.cityscapes()
    ids = np.full(256, 0, np.uint8)
    ids[:19] = table.train_to_id
    drawn = {}
    for path in sorted((folder / "labels").iterdir()):
        drawn[path.name] = np.array([2, 7, 12, 17])[cv2.imread(str(path), cv2.IMREAD_UNCHANGED) % 4].astype(np.uint8)

    def score(name: str, to_file, *more: str) -> dict | str:
        (tmp_path / name).mkdir(exist_ok=True)
        for file, train in drawn.items():
            cv2.imwrite(str(tmp_path / name / file), to_file(train))
        status = main(
            [
                "evaluate",
                "--checkpoint",
                str(model),
                "--images",
                str(folder / "images"),
                "--labels",
                str(tmp_path / name),
                "--classes",
                "cityscapes",
                "--device",
                "cpu",
                "--threads",
                "1",
                "--json",
                *more,
            ]
        )
        out, err = capsys.readouterr()
        return json.loads(out)["iou"] if status == 0 else err

    expected = score("ids", lambda train: ids[train])
    asked = score("train", lambda train: train)
    assert "holds a number above 19: trainIds, or ids of cityscapes?\nhint: say --ids train or --ids file" in asked
    assert score("train", lambda train: train, "--ids", "train") == expected
    assert score("train", lambda train: train, "--ids", "file") != expected

    def partly(void: int):
        return lambda train: np.where(train == 12, void, train).astype(np.uint8)

    assert "labels that hold trainIds (0..18, 255 = ignored) are read with --ids train" in score("void", partly(255))
    assert score("void", partly(255), "--ids", "train") == score("void-ids", lambda train: ids[partly(255)(train)])


def test_all_labels_are_read_before_any_image_is_scored(folder, capsys, tmp_path, monkeypatch):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    cv2.imwrite(str(own / "labels/frame2.png"), np.full(SIZES[2], 77, np.uint8))
    monkeypatch.setattr("hmsa_core.inference.scoring._score", lambda *_args, **_more: pytest.fail("scored"))
    assert evaluate(own) == 3
    assert "frame2.png" in one_error_line(capsys)


def test_a_label_of_other_proportions_is_refused_and_one_of_another_size_is_said(folder, capsys, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    path = own / "labels/frame0.png"
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), cv2.resize(label, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_NEAREST))
    assert evaluate(own) == 0
    assert "note: 1 of 3 labels have another size than their image" in capsys.readouterr().err
    cv2.imwrite(str(path), label[:20])
    assert evaluate(own) == 3
    assert "frame0.png is 56x20" in one_error_line(capsys)


def test_two_checkpoints_are_compared_on_the_same_pictures_with_an_interval(folder, capsys, tmp_path):
    save_model(tmp_path / "other", small_model(seed=5), scales=[1.0], flip=False)
    assert evaluate(folder, "--json", "--block-length", "1") == 0
    alone = json.loads(capsys.readouterr().out)
    assert evaluate(folder, "--json", "--block-length", "1", "--baseline", str(tmp_path / "other")) == 0
    both = json.loads(capsys.readouterr().out)
    assert both["mean_iou"] == alone["mean_iou"]
    assert both["baseline"]["scales"] == [1.0]
    gain = both["difference"]
    assert gain["value"] == pytest.approx(both["mean_iou"] - both["baseline"]["mean_iou"])
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert (gain["blocks"], gain["runs"]) == (3, 1)
    assert gain["low"] < gain["high"]
    assert evaluate(folder, "--block-length", "1", "--baseline", str(folder / "model")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "both at {0.5, 1}"
    assert lines[1].split() == ["model", "baseline", "difference"]
    assert re.search(r"mean IoU .* \+0\.0 \[\+0\.0, \+0\.0\]   \(3 images\)$", lines[-2])
    assert evaluate(folder, "--baseline", str(tmp_path / "other")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model at {0.5, 1}, baseline at {1}"
    assert re.search(r"mean IoU .*  [+-]\d+\.\d   \(3 images\)$", lines[-2]), "the value of one block is known"
    assert "no interval: all images are one block" in lines[-1]


def test_a_damaged_baseline_is_found_before_anything_is_scored(folder, capsys, tmp_path, monkeypatch):
    shutil.copytree(folder / "model", tmp_path / "other")
    weights = next((tmp_path / "other").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    monkeypatch.setattr("hmsa_core.inference.scoring._score", lambda *_args, **_more: pytest.fail("scored"))
    assert evaluate(folder, "--baseline", str(tmp_path / "other")) == IntegrityError.exit_code
    assert weights.name in capsys.readouterr().err


def test_pictures_that_a_model_has_learned_from_are_counted(folder, capsys, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    image = own / "images/frame0.png"
    seen = LearnedImage(atomic.sha256_file(image), "old_name", "target", "", "", -1, "fine")
    lineage = Lineage({seen.sha256: seen})
    shutil.rmtree(own / "model")
    digest = lineage.save(tmp_path / "lineage.json")
    models.save(small_model(), own / "model", class_table=class_table().to_json(), lineage=lineage.summary(digest))
    shutil.copy(tmp_path / "lineage.json", own / "model/lineage.json")
    assert evaluate(own, "--json") == 0
    captured = capsys.readouterr()
    assert "has learned from 1 of these 3 images (frame0 is old_name: same file)" in captured.err
    assert json.loads(captured.out)["learned"]["images"] == 1
    (own / "model/lineage.json").unlink()
    assert evaluate(own, "--json") == 0, "a checkpoint that was copied without its list can be scored"
    captured = capsys.readouterr()
    assert "what it learned from is not known in full" in captured.err
    assert "lineage.json" in json.loads(captured.out)["learned"]["unknown"][0]


def test_a_near_copy_of_a_learned_picture_is_counted(folder, capsys, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    image = cv2.imread(str(own / "images/frame0.png"))
    seen = LearnedImage("0" * 64, "brighter", "target", perceptual_hash(image[..., ::-1] // 2 * 2), "", -1, "pseudo")
    digest = (lineage := Lineage({seen.sha256: seen})).save(tmp_path / "lineage.json")
    shutil.rmtree(own / "model")
    models.save(small_model(), own / "model", class_table=class_table().to_json(), lineage=lineage.summary(digest))
    shutil.copy(tmp_path / "lineage.json", own / "model/lineage.json")
    assert evaluate(own) == 0
    assert "(frame0 is brighter: perceptual hash, " in capsys.readouterr().err


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
    ("change", "status", "message"),
    [
        ({"images": "nowhere"}, 3, "no such folder"),
        ({"classes": "nowhere.json"}, 3, "class file not found"),
        ({"labels": "model"}, 3, "no JPEG, PNG, WebP or TIFF file in this folder"),
    ],
)
def test_missing_folders_and_files_are_one_line(folder, capsys, change, status, message):
    assert evaluate(folder, **change) == status
    assert message in one_error_line(capsys)


def test_scales_without_one_are_refused(folder, capsys):
    assert evaluate(folder, "--scales", "0.5,2") == 2
    assert "--scales 0.5,2: give different numbers above 0 and up to 8, one of them 1" in one_error_line(capsys)


@pytest.mark.parametrize("scales", ["1,99", "1,nan", "1,inf", "1,-1", "1,0", "1,1"])
def test_scales_that_no_image_can_be_brought_to_are_refused(folder, capsys, scales):
    assert evaluate(folder, "--scales", scales) == 2
    assert f"--scales {scales}: give different numbers" in one_error_line(capsys)


def test_a_folder_without_a_checkpoint_is_refused(folder, capsys, tmp_path):
    status = main(
        [
            "evaluate",
            "--checkpoint",
            str(tmp_path),
            "--images",
            str(folder / "images"),
            "--labels",
            str(folder / "labels"),
            "--classes",
            str(folder / "classes.json"),
        ]
    )
    assert status == 3
    assert "no checkpoint" in one_error_line(capsys)


def test_scales_from_an_empty_variable_are_refused(folder, capsys):
    assert evaluate(folder, "--scales", "") == 2
    assert "give different numbers" in one_error_line(capsys)


def test_without_a_labelled_pixel_no_interval_is_said_to_lack_blocks(folder, capsys, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    for path in (own / "labels").iterdir():
        cv2.imwrite(str(path), np.full_like(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), 255))
    assert evaluate(own, "--block-length", "1", "--baseline", str(folder / "model")) == 0
    assert "too few labelled pixels" in capsys.readouterr().out
