"""`autolabel adopt` prints its evidence and writes a file that `autolabel label` takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from hmsa_core.labels import LabelStore
from tests.support.teachers import colour_network
from tests.support.training import CLASSES, class_file, picture

NAMES = ("cloud", "automobile", "dog", "house", "street")
OURS = {"cloud": "sky", "automobile": "car", "house": "building", "street": "road"}


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pictures with labels and a class file; the current folder."""
    for i in range(4):
        image, label = picture(i, len(CLASSES), (64, 96))
        for folder, pixels in (("images", image), ("labels", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"drive_{i}.png")
    class_file(tmp_path, CLASSES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


ADOPT = [
    "adopt",
    "onnx:net.onnx",
    "--images",
    "images",
    "--labels",
    "labels",
    "--classes",
    "classes.json",
    "--threads",
    "1",
]


def test_the_written_file_labels_a_folder(given: Path, said) -> None:
    colour_network(given / "net.onnx", names=NAMES, ours=OURS)
    printed = said(*ADOPT).out
    assert "automobile -> car (by name" in printed
    assert "ignored: dog" in printed
    said("label", "--teacher", "teacher.yaml", "--images", "images", "--out", "store", "--threads", "1")
    assert LabelStore.open("store").classes.classes == CLASSES
    again = ("label", "--teacher", "teacher.yaml", "--scales", "1", "--images", "images", "--out", "other")
    assert "says itself at which scales" in said(*again, status=2).err


def test_classes_that_labels_alone_name_are_written_after_a_look(given: Path, said) -> None:
    colour_network(given / "net.onnx", names=NAMES, ours=OURS, metadata={})
    assert "repeat the command with --yes" in said(*ADOPT, status=2).err
    assert not (given / "teacher.yaml").exists()
    said(*ADOPT, "--yes")
    assert (given / "teacher.yaml").exists()
