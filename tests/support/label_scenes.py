"""Label stores that look like the real thing: generated street scenes, labelled by a simulated teacher.

The teacher is the truth with shifted outlines, mixed-up neighbours (rider/person, wall/fence, truck/bus) and a
confidence that is low where it errs, but not always. So histograms, curves and pictures have the shape that a
trained network gives them, without training one.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from examples.streets.annotate import cityscapes_polygons, draw_cityscapes
from examples.streets.coarse import coarse_polygons
from examples.streets.rng import Rng
from examples.streets.scene import city_picture
from hmsa_core.labels import ConfidenceCode, LabelStoreWriter, ThresholdPolicy
from hmsa_core.labels.store.format import binding, full_lineage
from hmsa_core.labels.thresholds.policy import WITHHELD, ClassPolicy
from hmsa_core.taxonomy import ClassTable, cityscapes
from pipeline.cli.main import main
from pipeline.review.questions import review_of, said_of
from pipeline.review.view import StoreView

LINEAGE = {"teacher": "9f3c" * 16, "scales": [0.5, 1.0, 2.0], "flip": True, "precision": "fp32"}
_MIXED = {"rider": "person", "wall": "building", "fence": "vegetation", "truck": "bus", "motorcycle": "bicycle"}
_MIXED |= {"terrain": "vegetation", "traffic sign": "building", "pole": "building", "sidewalk": "road"}

UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Scenes:
    """Where everything lies, and what the teacher should have said."""

    store: Path
    images: Path
    policy: Path
    names: tuple[str, ...]
    truth: dict[str, UInt8]

    @property
    def maps(self) -> Path:
        """Folder of the true label maps NAME.png, trainIds."""
        return self.images.parent / "truth"

    def copied_to(self, folder: Path) -> Scenes:
        """The same with a copy of the store, FOLDER/raw, that a test may change."""
        return replace(self, store=Path(shutil.copytree(self.store, folder / "raw")))


def _smooth(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> NDArray[np.float32]:
    """Smooth noise with mean 0 and standard deviation 1."""
    small = max(1, int(sigma / 2))
    noise = rng.standard_normal((shape[0] // small + 2, shape[1] // small + 2)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigma / small)
    field = cv2.resize(noise, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), np.float32)


def _fill_void(truth: UInt8) -> UInt8:
    """A network names every pixel: void takes the class of the nearest labelled pixel."""
    _, nearest = cv2.distanceTransformWithLabels(
        (truth == 255).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    flat = np.zeros(nearest.max() + 1, np.uint8)
    known = truth != 255
    flat[nearest[known]] = truth[known]
    return flat[nearest]


def imitate_teacher(truth: UInt8, seed: int) -> tuple[UInt8, NDArray[np.float32]]:
    """Label and confidence of a teacher that is good but not perfect."""
    rng, table = np.random.default_rng(seed), cityscapes()
    h, w = truth.shape
    amount = h / 170
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
    filled = _fill_void(truth)
    xs, ys = xs + amount * _smooth(rng, truth.shape, h / 24), ys + amount * _smooth(rng, truth.shape, h / 24)
    label = cv2.remap(filled, xs, ys, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    for name, other in _MIXED.items():
        doubtful = (label == table.index(name)) & (_smooth(rng, truth.shape, h / 10) > 0.9)
        label[doubtful] = table.index(other)
    edges = cv2.morphologyEx(label, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    distance = cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, 5)
    share = np.bincount(label.reshape(-1), minlength=256)[label] / label.size
    sure = 1.2 + 1.5 * np.log1p(distance / amount) + 0.35 * np.log(share / 0.01)
    sure += 0.9 * _smooth(rng, truth.shape, h / 16) + 0.25 * rng.standard_normal(truth.shape)
    wrong = (label != filled) | (truth == 255)
    sure -= wrong * (2.3 + 0.8 * _smooth(rng, truth.shape, h / 12))
    confidence = 1 / (1 + np.exp(-np.clip(sure, -1.5, 13)))
    return label, np.maximum(confidence, 1.2 / table.num_classes).astype(np.float32)


def _policy(table: ClassTable, right: NDArray[np.int64], all_: NDArray[np.int64], path: Path) -> None:
    """A policy from counts (C, 256): target 0.97, too little evidence is withheld."""
    entries, probabilities = [], np.zeros((table.num_classes, 256))
    for c, name in enumerate(table.classes):
        smooth = np.convolve(right[c], np.ones(9), "same") / np.maximum(np.convolve(all_[c], np.ones(9), "same"), 1)
        probabilities[c] = np.maximum.accumulate(np.clip(smooth, 0.02, 0.9995))
        kept, good = all_[c][::-1].cumsum()[::-1], right[c][::-1].cumsum()[::-1]
        enough = np.flatnonzero((good >= 0.97 * kept) & (kept > 60))
        if not len(enough):
            entries.append(ClassPolicy(name, WITHHELD, "withheld", {"blocks": 0}))
            continue
        status = "measured" if kept[0] > 60_000 else "estimate" if kept[0] > 9_000 else "pooled"
        entries.append(ClassPolicy(name, int(enough[0]), status, {"blocks": 24}))
    made = {"table": probabilities, "binding": binding(full_lineage(LINEAGE))}
    ThresholdPolicy(table, tuple(entries), **made, settings={"target": 0.97, "floor": 0.8}).save(path)


def corrected(view: StoreView, name: str) -> UInt8:
    """What people said of an image's pixels: trainIds, UNTOUCHED where they said nothing."""
    return said_of(review_of(view), view, name)


def make_scenes(
    folder: Path,
    *,
    cities: tuple[str, ...] = ("aachen", "bremen"),
    frames: int = 3,
    size: tuple[int, int] = (256, 128),
    teacher_seed: int = 0,
    images_per_shard: int = 4,
) -> Scenes:
    """Write pictures, true and coarse labels, a raw store and a policy below `folder`; `size` is (width, height)."""
    table, code, seed = cityscapes(), ConfidenceCode(), 11
    images = folder / "data"
    (folder / "truth").mkdir(parents=True)
    right, all_ = np.zeros((table.num_classes, 256), np.int64), np.zeros((table.num_classes, 256), np.int64)
    truths: dict[str, UInt8] = {}
    with LabelStoreWriter(folder / "raw", LINEAGE, images_per_shard) as writer:
        for number, (city, frame) in enumerate((c, f) for c in cities for f in range(frames)):
            name = f"{city}_000000_{frame * 10:06d}"
            picture = city_picture(seed, "train_extra", city, frame // 3, frame, size, 1)
            ids, instances = draw_cityscapes(picture.size, cityscapes_polygons(picture.objects))
            truth = np.asarray(table.id_to_train[ids], np.uint8)
            label, confidence = imitate_teacher(truth, 1000 * teacher_seed + number)
            image_path = f"leftImg8bit/{city}/{name}.jpg"
            (images / image_path).parent.mkdir(parents=True, exist_ok=True)
            bgr = np.ascontiguousarray(picture.rgb[..., ::-1].astype(np.uint8))
            cv2.imwrite(str(images / image_path), bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])
            polygons = coarse_polygons(ids, instances, Rng(seed, "coarse", city, frame))
            coarse_ids, _ = draw_cityscapes(picture.size, polygons)
            human = np.asarray(table.id_to_train[coarse_ids], np.uint8)
            coarse_path = f"gtCoarse/{name}_labelIds.png"
            (images / coarse_path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(images / coarse_path), coarse_ids)
            cv2.imwrite(str(folder / "truth" / f"{name}.png"), truth)
            writer.add(name, label, confidence, city=city, image_path=image_path, coarse_path=coarse_path, coarse=human)
            truths[name] = truth
            joined = label.astype(np.int64) * 256 + code.encode(confidence)
            known = truth != 255
            all_ += np.bincount(joined[known], minlength=256 * 19).reshape(19, 256)
            right += np.bincount(joined[known & (label == truth)], minlength=256 * 19).reshape(19, 256)
    _policy(table, right, all_, folder / "policy.json")
    return Scenes(folder / "raw", images, folder / "policy.json", tuple(truths), truths)


def inspected(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """`autolabel inspect ... --json` as an object; it has nothing else to say."""
    capsys.readouterr()
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    wrote = capsys.readouterr()
    assert wrote.err == ""
    found: dict[str, Any] = json.loads(wrote.out)
    return found
