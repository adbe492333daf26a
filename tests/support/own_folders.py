"""Folders of images and label maps as teams have them: tiny pictures of a few classes, in the shapes of many tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

COLOURS = {"sky": (10, 20, 200), "road": (90, 90, 95), "car": (200, 30, 30), "tree": (20, 160, 40)}
SIZE = (48, 64)  # height, width


def scene(number: int, classes: int = 4) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture (H, W, 3) and its class numbers (H, W): sky over road, a car and a tree somewhere."""
    rng = np.random.default_rng(number)
    ids = np.zeros(SIZE, np.uint8)
    ids[SIZE[0] // 2 + rng.integers(-6, 6) :] = 1
    for value in range(2, classes):
        top, left = rng.integers(8, 28), rng.integers(0, 46)
        ids[top : top + 14, left : left + 16] = value
    shown = np.array(list(COLOURS.values()), np.float64)[ids]
    light = rng.normal(0, 18, (6, 8, 3)).repeat(8, 0).repeat(8, 1)  # pictures of two scenes differ everywhere
    return np.clip(shown + light + rng.normal(0, 4, shown.shape), 0, 255).astype(np.uint8), ids


@dataclass(frozen=True)
class UserFolders:
    """Folders made by a layout, as a user would name them, and what a plan should find."""

    images: Path
    labels: Path
    classes: tuple[str, ...]
    labelled: int
    waiting: int = 0
    new: Path | None = None
    flags: tuple[str, ...] = ()
    roles: dict[str, str] = field(default_factory=dict)  # of splits

    @property
    def arguments(self) -> list[str]:
        """Arguments of `autolabel init`."""
        given = ["--images", str(self.images), "--labels", str(self.labels), *self.flags]
        return given + (["--new", str(self.new)] if self.new else [])


def save(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16], palette: Sequence[int] = ()) -> None:
    """Write a picture; with a palette as a palette image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    if palette:
        picture.putpalette(list(palette))
    picture.save(path, **({"quality": 92} if path.suffix == ".jpg" else {}))


NAMES = tuple(COLOURS)
_PALETTE = [part for colour in COLOURS.values() for part in colour] + [0] * (768 - 12)
_ANONYMOUS = tuple(f"class_{i}" for i in range(4))


def in_colours(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The label map as RGB of `COLOURS`."""
    return np.array(list(COLOURS.values()), np.uint8)[ids]


def cityscapes_like(top: Path) -> UserFolders:
    """Splits and cities as folders, long endings, other kinds of maps next to them, ids with void."""
    for n in range(24):
        split, city = ("train", "val")[n % 4 == 3], f"city{n % 8}"
        image, ids = scene(n)
        ids[:3] = 255
        stem = f"{city}_{n:06d}_000019"
        save(top / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", image)
        save(top / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", ids)
        save(top / "gtFine" / split / city / f"{stem}_gtFine_color.png", in_colours(np.minimum(ids, 3)))
    return UserFolders(top / "leftImg8bit", top / "gtFine", _ANONYMOUS, 24, roles={"val": "report"})


def voc(top: Path) -> UserFolders:
    """VOC: JPEGImages, SegmentationClass as palette images, lists of splits, names of its folders."""
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for n in range(20):
        image, ids = scene(n)
        ids[0] = 255
        stem = f"2007_{n * 137:06d}"
        save(top / "JPEGImages" / f"{stem}.jpg", image)
        save(top / "SegmentationClass" / f"{stem}.png", ids, _PALETTE)
        lists["val" if n % 5 == 0 else "train"].append(stem)
    save(top / "JPEGImages" / "2007_999999.jpg", scene(99)[0])
    (top / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, stems in lists.items():
        (top / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(stems))
    (top / "labelmap.txt").write_text("".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in COLOURS.items()))
    return UserFolders(top / "JPEGImages", top / "SegmentationClass", NAMES, 20, 1, roles={"val": "report"})


def cvat(top: Path) -> UserFolders:
    """CVAT's export of segmentation masks: RGB colours, labelmap.txt, maps of instances next to it."""
    for n in range(18):
        image, ids = scene(n)
        save(top / "JPEGImages" / f"frame_{n:06d}.png", image)
        save(top / "SegmentationClass" / f"frame_{n:06d}.png", in_colours(ids))
        save(top / "SegmentationObject" / f"frame_{n:06d}.png", in_colours(ids % 2))
    rows = "".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in COLOURS.items())
    (top / "labelmap.txt").write_text(f"# label:color_rgb:parts:actions\nbackground:0,0,0::\n{rows}")
    return UserFolders(top, top, ("background", *NAMES), 18)


def roboflow(top: Path) -> UserFolders:
    """Roboflow: train, valid, test; maps next to the images; _classes.csv in each split."""
    for n in range(24):
        split = ("train", "train", "valid", "test")[n % 4]
        image, ids = scene(n)
        stem = f"photo{n * 7919 % 1000}_png.rf.{n * 0x9E3779B1 % 2**32:08x}"
        save(top / split / f"{stem}.jpg", image)
        save(top / split / f"{stem}_mask.png", ids)
        rows = "".join(f"{i}, {name}\n" for i, name in enumerate(NAMES))
        (top / split / "_classes.csv").write_text(f"Pixel Value, Class\n{rows}")
    return UserFolders(top, top, NAMES, 24, roles={"val": "calibrate", "test": "report", "train": "learn"})


def hugging_face(top: Path) -> UserFolders:
    """A folder of the Hugging Face kind: images and labels by split, id2label.json."""
    for n in range(20):
        split = "validation" if n % 5 == 0 else "train"
        image, ids = scene(n)
        save(top / "images" / split / f"{n}_photo.jpg", image)
        save(top / "labels" / split / f"{n}_photo.png", ids)
    (top / "id2label.json").write_text(json.dumps({str(i): name for i, name in enumerate(NAMES)}))
    return UserFolders(top / "images", top / "labels", NAMES, 20, roles={"val": "report"})


def ultralytics(top: Path) -> UserFolders:
    """data.yaml with names; images/train, masks/train; three equal channels."""
    for n in range(20):
        split = "val" if n % 5 == 0 else "train"
        image, ids = scene(n)
        save(top / split / "images" / f"im{n}.jpg", image)
        save(top / split / "masks" / f"im{n}.png", np.stack([ids] * 3, -1))
    (top / "data.yaml").write_text(
        "train: train/images\nnames:\n" + "".join(f"  {i}: {n}\n" for i, n in enumerate(NAMES))
    )
    return UserFolders(top, top, NAMES, 20, roles={"val": "report"})


def colours_with_file(top: Path) -> UserFolders:
    """RGB colours with an alpha channel and a class file of ours; images wait for labels in another folder."""
    for n in range(20):
        image, ids = scene(n)
        save(top / "photos" / f"a{n}.png", image)
        save(top / "painted" / f"a{n}_L.png", np.dstack([in_colours(ids), np.full(SIZE, 255, np.uint8)]))
    for n in range(6):
        save(top / "todo" / f"a{n}.png", scene(100 + n)[0])
    rows = [{"id": i, "name": name, "colour": list(c)} for i, (name, c) in enumerate(COLOURS.items())]
    (top / "mine.json").write_text(json.dumps({"ignore_id": 255, "classes": rows}))
    flags = ("--classes", str(top / "mine.json"))
    return UserFolders(top / "photos", top / "painted", NAMES, 20, 6, top / "todo", flags)


def palette_without_names(top: Path) -> UserFolders:
    """Palette images and nothing that names the classes; drives as folders, names that repeat."""
    for n in range(27):
        image, ids = scene(n)
        save(top / "images" / f"drive{n // 3}" / f"{n % 3:06d}.jpg", image)
        if n < 24:
            save(top / "labels" / f"drive{n // 3}" / f"{n % 3:06d}.png", ids, _PALETTE)
    return UserFolders(top / "images", top / "labels", _ANONYMOUS, 24, 3)


def ids_with_gaps(top: Path) -> UserFolders:
    """16-bit ids 3, 7, 11, 40 and names for them."""
    for n in range(18):
        image, ids = scene(n)
        save(top / "img" / f"x_{n}.tif", image)
        save(top / "gt" / f"x_{n}.png", np.array([3, 7, 11, 40], np.uint16)[ids])
    (top / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in zip((3, 7, 11, 40), NAMES, strict=True)))
    return UserFolders(top / "img", top / "gt", NAMES, 18)


def one_drive(top: Path) -> UserFolders:
    """A flat folder of one drive, every second image labelled, 0 and 255 as values."""
    for n in range(60):
        image, ids = scene(n, 2)
        save(top / "images" / f"frame_{n:05d}.jpg", image)
        if n % 2 == 0:
            save(top / "labels" / f"frame_{n:05d}.png", ids * 255)
    return UserFolders(top / "images", top / "labels", ("class_0", "class_1"), 30, 30)


def six_images(top: Path) -> UserFolders:
    """Six images in all."""
    for n in range(6):
        image, ids = scene(n)
        save(top / "images" / f"p{n}.png", image)
        save(top / "labels" / f"p{n}.png", ids)
    return UserFolders(top / "images", top / "labels", _ANONYMOUS, 6)


def many_small(top: Path, count: int = 3000) -> UserFolders:
    """Thousands of small images, one of thirty labelled."""
    for n in range(count):
        image, ids = scene(n)
        save(top / "images" / f"s{n // 100}" / f"{n:05d}.jpg", image[:32, :32])
        if n % 30 == 0:
            save(top / "labels" / f"s{n // 100}" / f"{n:05d}.png", ids[:32, :32])
    return UserFolders(top / "images", top / "labels", _ANONYMOUS, count // 30, count - count // 30)


def folders_of_splits(top: Path) -> UserFolders:
    """As CamVid is often found: train and train_labels, val and val_labels, colours in class_dict.csv."""
    for n in range(24):
        split = ("train", "train", "val", "test")[n // 2 % 4]
        image, ids = scene(n)
        save(top / split / f"Seq05_{n * 30:05d}.png", image)
        save(top / f"{split}_labels" / f"Seq05_{n * 30:05d}_L.png", in_colours(ids))
    rows = "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in COLOURS.items())
    (top / "class_dict.csv").write_text(f"name,r,g,b\n{rows}")
    return UserFolders(top, top, NAMES, 24, roles={"val": "calibrate", "test": "report"})


def words_in_names(top: Path) -> UserFolders:
    """As A2D2: the kind is a word in the middle of names, and a folder; colours in class_list.json."""
    for n in range(24):
        image, ids = scene(n)
        drive = ("2018_08_07", "2018_08_10")[n % 2]
        for kind, pixels in (("camera", image), ("label", in_colours(ids))):
            save(top / drive / kind / "front" / f"{drive}_{kind}_front_{n * 10:06d}.png", pixels)
    named = {f"#{r:02x}{g:02x}{b:02x}": name for name, (r, g, b) in COLOURS.items()}
    (top / "class_list.json").write_text(json.dumps(named))
    return UserFolders(top, top, NAMES, 24)


def longer_folders(top: Path) -> UserFolders:
    """As RELLIS-3D: ids and colours lie in folders that are called as that of the photographs, with more after it."""
    for n in range(20):
        image, ids = scene(n)
        for end, pixels in (("", image), ("_label_id", ids), ("_label_color", in_colours(ids))):
            save(top / f"drive{n % 4}" / f"camera{end}" / f"frame{n:06d}.png", pixels)
    return UserFolders(top, top, _ANONYMOUS, 20)


def maps_of_several_kinds(top: Path) -> UserFolders:
    """One tree of photographs, maps of classes, and maps of things, all of the same names."""
    for n in range(18):
        image, ids = scene(n)
        save(top / "images" / f"k{n * 7919 % 1000}x.jpg", image)
        save(top / "v1.2" / "labels" / f"k{n * 7919 % 1000}x.png", ids)
        save(top / "v1.2" / "instances" / f"k{n * 7919 % 1000}x.png", in_colours(ids % 2))
    return UserFolders(top, top, _ANONYMOUS, 18)


_LAYOUTS: tuple[Callable[[Path], UserFolders], ...] = (
    cityscapes_like,
    voc,
    cvat,
    roboflow,
    hugging_face,
    ultralytics,
    colours_with_file,
    palette_without_names,
    ids_with_gaps,
    one_drive,
    six_images,
)
LAYOUTS = (  # as parameters of a test: the three thousand small images take minutes
    *(pytest.param(layout, id=layout.__name__) for layout in _LAYOUTS),
    pytest.param(partial(many_small, count=300), id="many_small-300"),
    pytest.param(many_small, id="many_small-3000", marks=(pytest.mark.slow, pytest.mark.timeout(1800))),
)
FURTHER_LAYOUTS = (folders_of_splits, words_in_names, longer_folders, maps_of_several_kinds)  # by names alone
