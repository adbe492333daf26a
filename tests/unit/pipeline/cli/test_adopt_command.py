"""`autolabel adopt` prints its evidence and writes a file that `autolabel label` takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from hmsa_core.labels import LabelStore
from hmsa_core.taxonomy import from_file
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
    assert "no network in use" not in printed
    said("label", "--teacher", "teacher.yaml", "--images", "images", "--out", "store", "--threads", "1")
    assert LabelStore.open("store").classes == from_file(given / "classes.json")
    again = ("label", "--teacher", "teacher.yaml", "--scales", "1", "--images", "images", "--out", "other")
    assert "says itself at which scales" in said(*again, status=2).err
    (given / "other.txt").write_text("weather\nmachine\nhome\nway\n")
    theirs = ("--images", "images", "--out", "other", "--classes", "other.txt")
    refused = said("label", "--teacher", "teacher.yaml", *theirs, status=2).err
    assert "was made for other classes" in refused
    assert "run `autolabel adopt` with these classes" in refused
    (given / "away").mkdir()
    (given / "teacher.yaml").rename(given / "away/teacher.yaml")
    gone = said("label", "--teacher", "away/teacher.yaml", "--images", "images", "--out", "third", status=3).err
    assert "paths in away/teacher.yaml start from its folder" in gone


def test_classes_that_no_network_gives_are_named(given: Path, said) -> None:
    colour_network(given / "net.onnx", names=NAMES[:4], ours=OURS)
    printed = said(*ADOPT).out
    assert "no network in use gives these classes, so their pixels get others: road" in printed


def test_what_is_no_network_is_one_line(given: Path, said) -> None:
    colour_network(given / "net.onnx", names=NAMES, ours=OURS)
    said(*ADOPT)
    (given / "net.pth").touch()
    (given / "empty").mkdir()
    for spec, wrong, status in (
        ("teacher.yaml", "is what `adopt` has written", 2),
        ("missing.yaml", "missing.yaml: cannot be read", 2),
        ("net.pth", "net.pth: is a file of torch", 2),
        ("scores:empty", "scores:empty: no .npz", 3),
        ("hf:empty", "hf:empty: no config.json", 3),
    ):
        assert wrong in said("adopt", spec, *ADOPT[2:], status=status).err
    missing = ("label", "--teacher", "missing.yaml", "--images", "images", "--out", "store", "--classes")
    assert "--out missing.yaml` writes such a file" in said(*missing, "classes.json", status=2).err


def test_classes_that_labels_alone_name_are_written_after_a_look(given: Path, said) -> None:
    colour_network(given / "net.onnx", names=NAMES, ours=OURS, metadata={})
    assert "delete the line `unconfirmed`" in said(*ADOPT).out
    label = ("label", "--teacher", "teacher.yaml", "--images", "images", "--out", "store", "--classes", "classes.json")
    refused = said(*label, status=2).err
    assert "labels alone say what the classes of onnx:net.onnx are" in refused
    assert "delete the line `unconfirmed`" in refused
    text = (given / "teacher.yaml").read_text()
    (given / "teacher.yaml").write_text("".join(x for x in text.splitlines(True) if not x.startswith("unconfirmed:")))
    said(*label)
    looked_at = (given / "teacher.yaml").read_text()
    said(*ADOPT, "--yes")
    without_times = [
        [line for line in text.splitlines() if not line.startswith("#")]
        for text in (looked_at, (given / "teacher.yaml").read_text())
    ]
    assert without_times[0] == without_times[1]
