"""`python -m research.scene`: roles and labels of the scene that it makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from research.scene import main

FINE = ["a_1", "a_2", "a_3", "b_1", "b_2", "b_3"]
LISTS = {"fine": FINE, "calibration": ["b_4"], "selection": ["a_5", "b_5"], "unlabelled": ["b_6"], "guard": []}


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Two drives in CamVid's layout; the true label of the unlabelled picture is in `ceiling/`."""
    root = tmp_path / "camvid"
    folders = {name: root / name for name in ("train/images", "train/labels", "train_coarse", "ceiling")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for name in [name for names in LISTS.values() for name in names]:
        Image.fromarray(np.full((360, 480, 3), 90, np.uint8)).save(folders["train/images"] / f"{name}.jpg")
        for place in ("train_coarse", "ceiling" if name in LISTS["unlabelled"] else "train/labels"):
            Image.fromarray(np.full((360, 480), 3, np.uint8)).save(folders[place] / f"{name}.png")
    classes = [{"id": i, "name": f"c{i}", "colour": [i, 0, 0]} for i in range(11)]
    (root / "classes.json").write_text(json.dumps({"ignore_id": 255, "classes": classes}))
    (root / "splits.json").write_text(json.dumps({"default": {**LISTS, "coarse": LISTS["unlabelled"]}}))
    return root


def test_labels_that_are_not_kept_join_the_ceiling_and_pictures_get_smaller(camvid: Path, tmp_path: Path) -> None:
    assert main([str(camvid), str(tmp_path / "w"), "--fine", "2", "--height", "180"]) == 0
    lists = json.loads((tmp_path / "w-scene/splits.json").read_text())["default"]
    assert lists["fine"] == ["a_1", "b_3"]
    assert lists["unlabelled"] == ["a_2", "a_3", "b_1", "b_2", "b_6"]
    assert sorted(path.stem for path in (tmp_path / "w-scene/ceiling").iterdir()) == lists["unlabelled"]
    with Image.open(tmp_path / "w-scene/train/images/a_1.jpg") as picture:
        assert picture.size == (240, 180)
    crop = json.loads((tmp_path / "w/params.yaml").read_text())["teacher_train"]["crop"]
    assert crop == [96, 144]


def test_a_drive_that_arrives_has_no_fine_label_and_alone_judges(camvid: Path, tmp_path: Path) -> None:
    assert main([str(camvid), str(tmp_path / "w"), "--fine", "2", "--arrives", "b"]) == 0
    lists = json.loads((tmp_path / "w-scene/splits.json").read_text())["default"]
    assert (lists["fine"], lists["selection"], lists["guard"]) == (["a_1", "a_3"], ["b_5"], ["a_5"])
    assert {"b_1", "b_2", "b_3"} <= set(lists["unlabelled"])


def test_more_fine_labels_than_there_are_is_one_line(
    camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(camvid), str(tmp_path / "w"), "--fine", "4", "--arrives", "b"]) == 2
    assert "--fine 4: 3 fine labels can stay" in capsys.readouterr().err
