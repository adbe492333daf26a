"""Every command finds the same files in a folder, pairs the same ones, and says what it does not read."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from hmsa_core.data.layouts import scan
from hmsa_core.data.source import SourceSpec
from hmsa_core.data.walk import walk
from hmsa_core.inference.evaluation.labelled_files import pairs_of
from hmsa_core.io.errors import InputError
from hmsa_core.labels.importing import find_files
from hmsa_core.training import run
from pipeline.review.certification import TrueLabels
from pipeline.review.view import StoreView
from tests.support.label_maps import stored
from tests.support.training import class_file

NFC, NFD = normalize("NFC", "Köln"), normalize("NFD", "Köln")

# what lies there -> names of the pairs, and words that tell what is left out. "=" makes a link, "|" a named pipe,
# "0" an empty file
TREES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "plain": (["images/a.png", "labels/a.png"], ["a"], []),
    "one Unicode form": ([f"images/{NFD}.png", f"labels/{NFC}.png"], [NFC], []),
    "ending of all labels": (["images/a.b.png", "images/ab.png", "labels/a.b_mask.png", "labels/ab_mask.png"], ["a.b", "ab"], []),
    "an empty twin": (["images/a.jpg 0", "images/a.png", "labels/a.png"], ["a"], []),
    "a named pipe": (["images/a.png", "images/p.png |", "labels/a.png", "labels/p.png |"], ["a"], ["pipes", "p.png"]),
    "a hidden file": (["images/a.png", "images/...b.png", "labels/a.png"], ["a"], ["hidden 1 (...b.png)"]),
    "six kinds of other files": (
        ["images/a.png", *(f"images/x.{kind}" for kind in ["bmp", "gif", "avif", "heic", "jp2", "tga"]), "labels/a.png"],
        ["a"],
        ["files of other kinds", "and 1 more"],
    ),
    "a link to itself": (["images/a.png", "images/loop.txt = loop.txt", "labels/a.png"], ["a"], [".txt 1"]),
}  # fmt: skip


def made(folder: Path, lines: list[str]) -> None:
    for number, line in enumerate(lines):
        name, _, more = line.partition(" ")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if more == "|":
            os.mkfifo(path)
        elif more.startswith("="):
            path.symlink_to(more[2:])
        elif more == "0" or path.suffix != ".png":
            path.touch()
        else:
            Image.fromarray(np.full((8, 8), number % 2, np.uint8)).save(path)
    class_file(folder, ["road", "sky"])


def by_prepare(folder: Path) -> tuple[list[str], str]:
    found = scan(SourceSpec(kind="folder", root=str(folder)))
    return [one.name for one in found.found if one.label], str(found.notes)


def by_evaluate(folder: Path) -> tuple[list[str], str]:
    pairs, _, notes = pairs_of(folder / "images", folder / "labels")
    return [pair.name for pair in pairs], str(notes)


def by_certify(folder: Path) -> tuple[list[str], str]:
    names = sorted({normalize("NFC", path.stem) for path in walk(folder / "images").paths()})
    stored(folder / "store", {name: np.zeros((8, 8), np.uint8) for name in names})
    return list(TrueLabels(folder / "labels", StoreView(folder / "store"), "file").files), ""


DOORS: dict[str, Callable[[Path], tuple[list[str], str]]] = {
    "prepare": by_prepare,
    "evaluate": by_evaluate,
    "certify": by_certify,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("tree", TREES)
def test_the_same_pairs_are_found_everywhere(tmp_path: Path, tree: str, door: str) -> None:
    lines, pairs, message = TREES[tree]
    made(tmp_path, lines)
    found, notes = DOORS[door](tmp_path)
    assert sorted(found) == pairs
    assert all(words in notes for words in message if door != "certify")


def test_sub_folders_and_links_are_walked_once_and_files_next_to_them_count(tmp_path: Path) -> None:
    drives = [f"{drive}/{i}.png" for drive in ("a", "b", "b/night") for i in range(2)]
    made(tmp_path, [f"{part}/{file}" for part in ("images", "labels") for file in [*drives, "top.png"]])
    (tmp_path / "images/b/up").symlink_to(tmp_path / "images")
    (tmp_path / "images/z.png").symlink_to(tmp_path / "images/top.png")
    (tmp_path / "images/b/loop.txt").symlink_to("loop.txt")
    (tmp_path / "labels/unused").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "labels/unused/9.png")
    pairs, unlabelled, notes = pairs_of(tmp_path / "images", tmp_path / "labels")
    assert sorted(pair.name for pair in pairs) == sorted([*(Path(d).with_suffix("").as_posix() for d in drives), "top"])
    assert not unlabelled
    assert [words in str(notes) for words in ("b/up", "1 images are links", "1 labels in sub-folders")] == [True] * 3
    format_, imported = find_files(tmp_path / "labels/a")
    assert (format_, [file.name for file in imported]) == ("masks", ["0", "1"])


def test_an_image_whose_label_is_of_a_kind_that_is_not_read_is_told_so(tmp_path: Path) -> None:
    made(tmp_path, ["images/a.png", "images/b.png", "labels/a.png", "labels/b.bmp"])
    (refused,) = scan(SourceSpec(kind="folder", root=str(tmp_path))).refused
    assert (refused.path, refused.reason) == ("images/b.png", "unpaired")
    assert "its label b.bmp is of a kind that is not read" in refused.detail


def test_a_name_that_leaves_no_room_for_the_endings_of_exports_is_refused_at_once(tmp_path: Path) -> None:
    made(tmp_path, [f"images/{'街' * 66}.png", f"images/{'街' * 67}.png"])
    found = scan(SourceSpec(kind="folder", root=str(tmp_path), labels=""))
    assert [one.name for one in found.found] == ["街" * 66]
    assert [(row.reason, "200 bytes" in row.detail) for row in found.refused] == [("bad-name", True)]


def test_training_says_how_many_images_learn_and_why_not_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{drive}/{i}.png" for drive in ("a", "b") for i in range(3)]
    made(tmp_path, [f"{part}/{file}" for part in ("images", "labels") for file in names])
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "images" / name)
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "labels/b/2.png")
    monkeypatch.setattr(run, "train_spec", lambda spec: spec.work)
    with caplog.at_level(logging.INFO):
        run.train(tmp_path / "images", tmp_path / "labels", classes=tmp_path / "classes.json", out=tmp_path / "out")
    assert "6 images found, 5 learn, left out: 1 ids-out-of-range; each is named in" in caplog.text


def test_a_link_to_itself_and_one_folder_for_both_are_one_line(tmp_path: Path) -> None:
    made(tmp_path, ["images/a.png", "images/loop.png = loop.png", "labels/a.png"])
    pairs, unlabelled, _ = pairs_of(tmp_path / "images", tmp_path / "labels")
    assert ([pair.name for pair in pairs], [path.name for path in unlabelled]) == (["a"], ["loop.png"])
    with pytest.raises(InputError, match="images and labels are one folder"):
        pairs_of(tmp_path / "images", tmp_path / "images")
