"""`autolabel label`: any folder of images becomes a store; bad ones are listed; the same command resumes."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmsa_core.inference.network.predictor import Predictor, label_image
from hmsa_core.io import sealed
from hmsa_core.io.locks import FileLock
from hmsa_core.labels import LabelStore
from hmsa_core.models import read_meta
from hmsa_core.taxonomy import cityscapes
from pipeline.review.session import image_root
from pipeline.review.view import StoreView
from tests.support.inference import label_here, noise_image, save_model, small_model
from tests.support.teachers import colour_network, table
from tests.support.waiting import assert_left_at_once, leave


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several formats and sizes, one turned by EXIF, one in a sub-folder, three bad ones."""
    root = tmp_path_factory.mktemp("own")
    images = root / "frames"
    (images / "more").mkdir(parents=True)
    Image.fromarray(noise_image(0, 40, 56)).save(images / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise_image(1, 32, 64)).save(images / "b.jpg", exif=turned.tobytes())
    Image.fromarray(noise_image(2, 41, 33)).save(images / "c.webp", lossless=True)
    Image.fromarray(noise_image(3, 30, 30)).save(images / "more" / "d.tiff")
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and then nothing")
    (images / "empty.png").write_bytes(b"")
    (images / "note.png").write_bytes(b"this is text")
    save_model(root / "model", scales=[0.5, 1.0], flip=False)
    return root


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    label_here(monkeypatch)


def label(folder: Path, out: Path, *more: str, images: Path | None = None) -> list[str]:
    """The arguments of the command."""
    given = {"images": images or folder / "frames", "checkpoint": folder / "model", "out": out, "device": "cpu"}
    given |= {"threads": 1, "images-per-shard": 2}
    return ["label", *(part for name, value in given.items() for part in (f"--{name}", str(value))), *more]


def test_every_readable_image_is_labelled_upright_and_bad_ones_are_listed(folder, tmp_path, said):
    captured = said(*label(folder, tmp_path / "store"))
    assert captured.out == f"{tmp_path / 'store'}: 4 images labelled, 0 were labelled before, 3 left out\n"
    left_out = [line for line in captured.err.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 3
    assert any("note.png: not-an-image" in line for line in left_out)
    store = LabelStore.open(tmp_path / "store", strict=True)
    assert sorted(store.names()) == ["a", "b", "c", "d"]
    assert store.read("b")[0].shape == (64, 32), "turned by EXIF"
    assert store.row("d")["image_path"] == "frames/more/d.tiff"
    expected, _ = label_image(Predictor(small_model()), noise_image(0, 40, 56), (0.5, 1.0), False)
    assert (store.read("a")[0] == expected).mean() > 0.999
    assert store.lineage["scales"] == [0.5, 1.0]


def test_a_network_of_another_tool_labels_with_the_classes_that_are_asked_for(folder, tmp_path, said):
    net = table(colour_network(tmp_path / "net.onnx"), "classes: {himmel: sky, fahrbahn: road}\n")
    given = ["label", "--images", str(folder / "frames"), "--device", "cpu", "--threads", "1"]
    given += ["--teacher", f"onnx:{net}", "--out", str(tmp_path / "store")]
    assert "which classes the labels shall have is not known" in said(*given, status=2).err
    printed = said(*given, "--classes", "cityscapes", "--scales", "0.5,1").out
    assert "4 images labelled, 0 were labelled before, 3 left out" in printed
    store = LabelStore.open(tmp_path / "store", strict=True)
    assert store.classes == cityscapes()
    assert set(np.unique(store.read("a")[0])) <= {cityscapes().index("road"), cityscapes().index("sky")}
    printed = said(*given, "--classes", "cityscapes", "--scales", "0.5,1").out
    assert "0 images labelled, 4 were labelled before" in printed
    assert "holds labels of another teacher, scales" in said(*given, "--classes", "cityscapes", status=2).err


def test_a_class_table_may_lie_anywhere_and_counts_as_the_one_next_to_the_teacher(folder, tmp_path, said):
    net, text = colour_network(tmp_path / "net.onnx"), "classes: {himmel: sky, fahrbahn: road}\n"
    (tmp_path / "map.yaml").write_text(text)
    given = [
        "label",
        "--images",
        str(folder / "frames"),
        *["--device", "cpu", "--threads", "1", "--classes", "cityscapes"],
    ]
    given += ["--out", str(tmp_path / "store"), "--teacher", f"onnx:{net}"]
    assert "4 images labelled" in said(*given, "--map", tmp_path / "map.yaml").out
    table(net, text)
    assert "0 images labelled, 4 were labelled before" in said(*given).out
    (tmp_path / "empty.yaml").write_text("multiple: 32\n")
    for more, reported in (
        (["--map", str(tmp_path / "none.yaml")], "none.yaml: no such file, but it shall be the class table of onnx:"),
        (["--map", str(tmp_path / "empty.yaml")], "says nothing of classes"),
        ([f"onnx:{net}", "--map", str(tmp_path / "map.yaml")], "--map is of one teacher"),
    ):
        assert reported in said(*given, *more, status=2).err


def test_the_same_command_goes_on_and_takes_in_new_images(folder, tmp_path, said):
    images = Path(shutil.copytree(folder / "frames", tmp_path / "frames"))
    (images / "c.webp").rename(tmp_path / "c.webp")
    said(*label(folder, tmp_path / "store", images=images))
    first = {p.name: p.stat().st_ino for p in (tmp_path / "store").glob("shard-*.parquet")}
    (tmp_path / "c.webp").rename(images / "c.webp")
    assert "1 images labelled, 3 were labelled before" in said(*label(folder, tmp_path / "store", images=images)).out
    assert sorted(LabelStore.open(tmp_path / "store", strict=True).names()) == ["a", "b", "c", "d"]
    for name, inode in first.items():
        assert (tmp_path / "store" / name).stat().st_ino == inode


def test_drives_that_count_from_one_are_told_apart_by_their_folders(folder, tmp_path, said):
    drives = tmp_path / "drives"
    for i, drive in enumerate(("one", "two/left")):
        (drives / drive).mkdir(parents=True)
        Image.fromarray(noise_image(i, 32, 48)).save(drives / drive / "000001.png")
    captured = said(*label(folder, tmp_path / "store", images=drives))
    assert "two/left/000001.png: duplicate-name (drives/one/000001.png has the same name)" in captured.err
    assert "1 images were left out because another one has the same name: --names path" in captured.err
    error = said(*label(folder, tmp_path / "store", "--names", "path", images=drives), status=2).err
    assert "the images of this store are called by their stem" in error
    printed = said(*label(folder, tmp_path / "both", "--names", "path", images=drives)).out
    assert "2 images labelled, 0 were labelled before, 0 left out" in printed
    store = LabelStore.open(tmp_path / "both", strict=True)
    assert sorted(store.names()) == ["one__000001", "two__left__000001"]
    assert store.row("two__left__000001")["image_path"] == "drives/two/left/000001.png"
    printed = said(*label(folder, tmp_path / "both", "--names", "path", images=drives)).out
    assert "0 images labelled, 2 were labelled before" in printed


def test_linked_folders_are_labelled_once_and_a_link_upwards_ends(folder, tmp_path, said):
    (tmp_path / "disk" / "night").mkdir(parents=True)
    Image.fromarray(noise_image(0, 32, 48)).save(tmp_path / "disk" / "night" / "x.png")
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "all").symlink_to(tmp_path / "disk")
    (frames / "again").symlink_to(tmp_path / "disk" / "night")
    (frames / "day").mkdir()
    Image.fromarray(noise_image(1, 32, 48)).save(frames / "day" / "y.png")
    (frames / "also").symlink_to("day")
    (tmp_path / "disk" / "up").symlink_to(frames)
    printed = said(*label(folder, tmp_path / "store", "--names", "path", images=frames)).out
    assert printed.endswith("2 images labelled, 0 were labelled before, 0 left out\n")
    assert sorted(LabelStore.open(tmp_path / "store", strict=True).names()) == ["again__x", "day__y"]


def test_a_second_run_into_the_same_store_leaves_at_once_and_names_the_first(folder, tmp_path, said):
    with FileLock(tmp_path / "store.work" / "label.lock"):
        tries = [leave(tmp_path, "autolabel", *label(folder, tmp_path / "store")) for _ in range(3)]
    assert_left_at_once(tries)
    assert all(f"labelling into {tmp_path}/store is in use by process {os.getpid()} " in done.text for done in tries)
    assert [path.name for path in tmp_path.rglob("*")] == ["store.work", "label.lock"], (
        "the first one's work is left alone"
    )
    said(*label(folder, tmp_path / "store"))


def test_a_file_system_whose_locks_keep_nobody_out_is_refused(folder, tmp_path, said, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda _fd, _how: None)
    assert "file locks do not work on this file system" in said(*label(folder, tmp_path / "store"), status=2).err
    assert not (tmp_path / "store").exists()


def test_other_scales_or_progress_that_is_gone_need_another_store(folder, tmp_path, said):
    store = tmp_path / "store"
    said(*label(folder, store))
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.parquet")}
    assert "labels of another teacher, scales" in said(*label(folder, store, "--scales", "1"), status=2).err
    shutil.rmtree(tmp_path / "store.work")
    assert "was not made here" in said(*label(folder, store), status=2).err
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*.parquet")} == before


def test_a_folder_without_usable_images_or_too_few_ranks_are_one_line(folder, tmp_path, said):
    (tmp_path / "none").mkdir()
    error = said(*label(folder, tmp_path / "store", images=tmp_path / "none"), status=3).err
    assert "no JPEG, PNG, WebP or TIFF file in this folder or below it" in error
    (tmp_path / "none" / "x.png").write_bytes(b"text")
    error = said(*label(folder, tmp_path / "store", images=tmp_path / "none"), status=3).err
    assert "none of the 1 image files can be used" in error
    assert not list(tmp_path.glob("*.work")), "nothing was begun"
    assert "no such folder" in said(*label(folder, tmp_path / "store", images=tmp_path / "nowhere"), status=3).err
    assert "must be at least 1" in said(*label(folder, tmp_path / "store", "--ranks", "0"), status=2).err


def test_a_checkpoint_that_cannot_label_is_refused_as_itself(folder, tmp_path, said):
    meta = read_meta(folder / "model")
    for name, change, status, reported in (
        ("trunk", {"kind": "trunk", "num_classes": 0}, 3, "holds only the weights of a trunk"),
        ("many", {"num_classes": 255}, 2, "at most 254 classes, the model has 255"),
    ):
        shutil.copytree(folder / "model", tmp_path / name)
        sealed.write(tmp_path / name / "model.json", {**meta, **change})
        again = label(folder, tmp_path / "store", "--checkpoint", str(tmp_path / name))
        assert reported in said(*again, status=status).err
        assert not list(tmp_path.glob("store*"))


def test_a_folder_that_no_table_can_name_is_left_out_and_reported(folder, tmp_path, said):
    images = Path(shutil.copytree(folder / "frames", tmp_path / "frames"))
    (images / "more").rename(images / os.fsdecode(b"m\xfcnchen"))
    printed = said(*label(folder, tmp_path / "store", images=images))
    assert "bad-name" in printed.err
    assert "3 images labelled" in printed.out


def test_the_photographs_of_a_store_are_found_again_also_where_both_were_moved(folder, tmp_path, said):
    shutil.copytree(folder / "frames", tmp_path / "a" / "frames")
    (tmp_path / "a" / "later").mkdir()
    shutil.copy(folder / "frames" / "a.png", tmp_path / "a" / "later" / "e.png")
    store = tmp_path / "a" / "store"
    said(*label(folder, store, images=tmp_path / "a" / "frames"))
    assert image_root(store) == tmp_path / "a" / "frames"
    said(*label(folder, store, images=tmp_path / "a" / "later"))
    (tmp_path / "a").rename(tmp_path / "b")
    moved = tmp_path / "b" / "store"
    pictures = StoreView(moved, images=image_root(moved)).pictures
    assert (pictures.picture_path("a"), pictures.picture_path("e")) == (
        tmp_path / "b" / "frames" / "a.png",
        tmp_path / "b" / "later" / "e.png",
    )
    shutil.rmtree(tmp_path / "b" / "store.work")
    assert image_root(moved) is None
