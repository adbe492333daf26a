"""Small data sets on disk, made of real PNG and JPEG files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.training import class_file

SIZE = (48, 96)  # height, width of most pictures here
SPLITS = ("train", "val", "test", "train_extra")
CITYSCAPES_IDS = (0, 1, 7, 8, 11, 17, 21, 23, 26, 33)


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth colourful image: no two seeds look alike, and JPEG changes it little."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), np.uint8)
    return np.array(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def blocks(seed: int, ids: tuple[int, ...] = CITYSCAPES_IDS, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A label map of 8x8 blocks."""
    rng = np.random.default_rng(seed)
    small = np.array(ids, np.uint8)[rng.integers(0, len(ids), (-(-size[0] // 8), -(-size[1] // 8)))]
    return np.kron(small, np.ones((8, 8), np.uint8))[: size[0], : size[1]]


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def encode(picture: np.ndarray | Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(out, form, **options)
    return out.getvalue()


def indexed(ids: np.ndarray, palette: Callable[[int], tuple[int, int, int]] | None = None) -> Image.Image:
    """A palette image with these indices."""
    image = Image.fromarray(ids).convert("P")
    image.putdata(list(ids.ravel()))
    if palette:
        image.putpalette([v for k in range(256) for v in palette(k)])
    return image


def put(folder: Path, data: bytes, suffix: str = ".png") -> Path:
    path = folder / f"file{suffix}"
    path.write_bytes(data)
    return path


def pair(root: Path, name: str, seed: int, ids: tuple[int, ...] = (0, 1)) -> None:
    """An image and its label map in plain folders."""
    save(root / "images" / f"{name}.png", picture(seed))
    save(root / "labels" / f"{name}.png", blocks(seed, ids))


class CityTree:
    """Writes Cityscapes files in root convention A or B."""

    def __init__(self, root: Path, convention: str = "A", size: tuple[int, int] = SIZE) -> None:
        self.root, self.size = root, size
        b = convention == "B"
        zips = {
            s: f"leftImg8bit_{'trainextra' if s == 'train_extra' else 'trainvaltest'}/" if b else "" for s in SPLITS
        }
        self.images = {s: root / f"{above}leftImg8bit" / s for s, above in zips.items()}
        self.fine = root / ("gtFine_trainvaltest/gtFine" if b else "gtFine")
        self.coarse = root / ("gtCoarse/gtCoarse" if b else "gtCoarse")
        self._seed = 0

    def image(self, split: str, stem: str, array: np.ndarray | None = None) -> Path:
        self._seed += 1
        array = picture(self._seed, self.size) if array is None else array
        return save(self.images[split] / stem.rsplit("_", 2)[0] / f"{stem}_leftImg8bit.png", array)

    def label(self, split: str, stem: str, array: np.ndarray | None = None, *, suffix: str = "labelIds") -> Path:
        folder, kind = (self.coarse, "gtCoarse") if split == "train_extra" else (self.fine, "gtFine")
        array = blocks(self._seed, size=self.size) if array is None else array
        return save(folder / split / stem.rsplit("_", 2)[0] / f"{stem}_{kind}_{suffix}.png", array)

    def coarse_of(self, split: str, stem: str) -> Path:
        array = blocks(self._seed, size=self.size)
        return save(self.coarse / split / stem.rsplit("_", 2)[0] / f"{stem}_gtCoarse_labelIds.png", array)

    def pair(self, split: str, stem: str) -> CityTree:
        self.image(split, stem)
        self.label(split, stem)
        return self

    def standard(self) -> CityTree:
        for i in range(4):
            self.pair("train", f"aachen_{i:06d}_000019").pair("train", f"ulm_{i:06d}_000019")
        for i in range(3):
            self.pair("val", f"frankfurt_000000_{i * 300:06d}")
        for i in range(2):
            self.image("test", f"berlin_{i:06d}_000019")
            self.label("test", f"berlin_{i:06d}_000019", np.full(self.size, 3, np.uint8))  # the release's dummies
            self.pair("train_extra", f"bad-honnef_{i:06d}_000019")
        return self


class VistasTree:
    """Writes Mapillary Vistas files: layout "v1" or "combined"."""

    KEYS = ("--NSVcUgfVhFd6uzkqHOOg", "0035fkbjWljhaftpVM37-g", "_1Gn_xkw7sa_i9GU4mkxxQ")

    def __init__(self, root: Path, layout: str = "v1") -> None:
        self.root, self.layout = root, layout
        names = {"v1": {"config.json": 66}, "combined": {"config_v1.2.json": 66, "config_v2.0.json": 124}}[layout]
        for name, count in names.items():
            labels = [
                {"name": f"object--thing-{i}", "readable": f"Thing {i}", "color": [i, 2 * i % 256, 3]}
                for i in range(count)
            ]
            root.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(json.dumps({"labels": labels, "version": 1.1, "mapping": "public"}))

    def folder(self, split: str, version: str) -> Path:
        return self.root / split / ("labels" if self.layout == "v1" else f"{version}/labels")

    def standard(self) -> VistasTree:
        for i, key in enumerate(self.KEYS):
            split = "validation" if i == 2 else "training"
            size = ((60, 80), (80, 60), (64, 64))[i]
            save(self.root / split / "images" / f"{key}.jpg", picture(50 + i, size), quality=90)
            for version, last in (("v1.2", 65), ("v2.0", 123)):
                image = indexed(blocks(i, (0, 13, 27, last), size), lambda k: (k, 255 - k, 7))
                path = self.folder(split, version) / f"{key}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                if self.layout == "combined" or version == "v1.2":
                    image.save(path)
        return self


@pytest.fixture
def cities(tmp_path: Path) -> Callable[..., CityTree]:
    return lambda convention="A", **k: CityTree(tmp_path / f"cityscapes{convention}", convention, **k)


@pytest.fixture
def vistas(tmp_path: Path) -> Callable[..., VistasTree]:
    return lambda layout="v1": VistasTree(tmp_path / f"vistas-{layout}", layout).standard()


@pytest.fixture
def camvid_tree(tmp_path: Path) -> Path:
    root = tmp_path / "camvid"
    subsets: dict[str, list[str]] = {"fine": [], "calibration": [], "selection": [], "unlabelled": [], "guard": []}
    for i in range(20):
        drive, stem = ("0001TP", f"0001TP_{6690 + 30 * i:06d}") if i < 8 else ("0006R0", f"0006R0_f{30 * i:05d}")
        subset = ("fine", "fine", "guard", "calibration", "selection")[i % 5] if drive == "0001TP" else "unlabelled"
        if i < 18:
            subsets[subset].append(stem)
        save(root / "train/images" / f"{stem}.jpg", picture(200 + i), quality=92)
        save(root / "train_coarse" / f"{stem}.png", blocks(i, (0, 1, 255)))
        if subset != "unlabelled" or i == 10:
            save(root / "train/labels" / f"{stem}.png", blocks(i, (0, 1, 2, 255)))
    save(root / "val/images/0016E5_07959.jpg", picture(400), quality=92)
    save(root / "val/labels/0016E5_07959.png", blocks(3, (0, 1, 2)))
    class_file(root, ("Sky", "Road", "Pole"), dataset="CamVid")
    splits = {"default": {"how": "blocks", **subsets}, "val_official": ["0016E5_07959"]}
    (root / "splits.json").write_text(json.dumps(splits))
    return root
