from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from hmsa_core.config import AugmentConfig
from hmsa_core.data import transforms
from hmsa_core.data.transforms import (
    CropRandom,
    JointAugment,
    colour_matrix,
    normalise_batch,
    pasted_pixels,
    place,
    resize_label,
    span,
    take_crop,
)

from .conftest import blocks, picture

REFERENCE = Path(__file__).resolve().parents[3] / "reference"
torch.set_num_threads(1)
PLAIN = AugmentConfig(scale_min=1.0, scale_max=1.0, flip=0.0, colour=0.0, blur=0.0)

sides = st.integers(3, 90)
sizes = st.tuples(sides, sides)


@pytest.mark.parametrize("row", json.loads((REFERENCE / "data_crops.json").read_text())["rows"], ids=str)
def test_released_crop_placement_is_reproduced(row):
    (height, width), crop = row["image_hw"], tuple(row["crop_hw"])
    label = (np.arange(height * width).reshape(height, width) % 200).astype(np.uint8)
    image = np.full((height, width, 3), 200, np.uint8)

    def start(length: int, side: int, centre: int | None) -> int:
        """As the released code places a crop, which may miss its centre by a pixel."""
        pad = (side - length) // 2 + 1 if side > length else 0
        room = length + 2 * pad - side
        low, high = (0, room) if centre is None else (centre - side, centre)
        return min(max(low + int(row["draw_fraction"] * (high - low)), 0), room) - pad

    x, y = row["centroid_xy"] or (None, None)
    corner = (0, 0) if crop == (height, width) else (start(height, crop[0], y), start(width, crop[1], x))
    pixels, ids = take_crop(image, label, (height, width), crop, corner)
    assert ids.shape == tuple(row["out_hw"])
    assert int((ids == 255).sum()) == row["ignore_pixels"]
    assert int((pixels.sum(2) == 0).sum()) == row["black_image_pixels"]
    assert int(ids.sum()) == row["mask_sum"]
    assert [int(ids[y, x]) for y in (0, -1) for x in (0, -1)] == row["mask_corners"]


@settings(max_examples=300, deadline=None)
@given(sizes, sizes, st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**62))
def test_a_crop_always_shows_the_centre_and_no_needless_padding(scaled, crop, fx, fy, seed):
    centre = int(fx * (scaled[1] - 1)), int(fy * (scaled[0] - 1))
    rng = CropRandom(seed)
    top, left = place(scaled, crop, centre, rng.randint)
    assert top <= centre[1] < top + crop[0]
    assert left <= centre[0] < left + crop[1]
    for start, length, size in ((top, scaled[0], crop[0]), (left, scaled[1], crop[1])):
        if length >= size:
            assert 0 <= start <= length - size
        else:  # centred
            assert abs((start + size - length) + start) <= 1


@settings(max_examples=300, deadline=None)
@given(sides, sides, sides, st.integers(-50, 50))
def test_spans_stay_inside_the_stored_image_and_the_crop(stored, scaled, crop, start):
    first, end, place, length = span(stored, scaled, crop, min(max(start, 1 - crop), scaled - 1))
    assert 0 <= first < end <= stored
    assert 0 <= place < place + length <= crop


@settings(max_examples=200, deadline=None)
@given(
    sizes,
    sizes,
    st.integers(0, 2**62),
    st.lists(st.sampled_from([0, 1, 2, 7, 18, 255]), min_size=1, max_size=4, unique=True),
    st.booleans(),
    st.sampled_from([None, 40, 150]),
)
def test_no_class_is_invented_and_ignored_pixels_stay_ignored(size, crop, seed, ids, centred, long_edge):
    label = blocks(seed % 1000, tuple(ids), size)
    # Each class has its own colour, so pixels and labels must stay together.
    augment = JointAugment(crop, AugmentConfig(colour=0.0, blur=0.0), None, long_edge)
    flat = np.repeat(label[..., None], 3, 2)
    centre = (size[1] // 2, size[0] // 3) if centred else None
    image, out = augment(flat, label, centre, CropRandom(seed))
    assert image.shape == (*crop, 3)
    assert out.shape == crop
    assert set(np.unique(out)) <= set(ids) | {255}
    if ids == [255]:
        assert (out == 255).all()


def test_image_and_label_stay_aligned_at_any_scale():
    """The centre of a bright square is found at the same place in image and label."""
    apart = []
    for seed in range(120):
        label = np.zeros((90, 120), np.uint8)
        rng = np.random.default_rng(seed)
        y, x = int(rng.integers(5, 60)), int(rng.integers(5, 90))
        label[y : y + 24, x : x + 24] = 1
        image = np.repeat(label[..., None] * 200, 3, 2)
        config = AugmentConfig(colour=0.0, blur=0.0)
        pixels, ids = JointAugment((100, 140), config)(image, label, (x + 12, y + 12), CropRandom(seed))
        inside = np.pad(ids == 1, 3)[3:-3, 3:-3]
        touches = inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any()
        if touches:
            continue
        weight = pixels[..., 0].astype(float)
        grid = np.indices(ids.shape)
        from_pixels = [(g * weight).sum() / weight.sum() for g in grid]
        from_ids = [g[inside].mean() for g in grid]
        apart.append(np.subtract(from_pixels, from_ids))
    assert len(apart) > 40
    assert np.abs(apart).max() < 0.6  # an edge of the label lies on whole pixels
    assert np.abs(np.mean(apart, 0)).max() < 0.1  # OpenCV's plain nearest would be off by half a pixel when shrinking


def test_without_changes_the_stored_pixels_come_out_untouched():
    image, label = picture(3, (40, 60)), blocks(3, size=(40, 60))
    out, ids = JointAugment((40, 60), PLAIN)(image, label, None, CropRandom(9))
    assert np.array_equal(out, image)
    assert np.array_equal(ids, label)
    part, part_ids = JointAugment((16, 20), PLAIN)(image, label, (30, 20), CropRandom(9))
    places = [(y, x) for y in range(25) for x in range(41) if np.array_equal(image[y : y + 16, x : x + 20], part)]
    assert len(places) == 1
    y, x = places[0]
    assert np.array_equal(label[y : y + 16, x : x + 20], part_ids)


def test_padding_is_black_and_ignored_whatever_colour_does():
    image, label = picture(3, (20, 30)), blocks(3, size=(20, 30), ids=(0, 1))
    config = AugmentConfig(scale_min=1.0, scale_max=1.0, colour=1.0, blur=1.0)
    for seed in range(20):
        out, ids = JointAugment((40, 50), config)(image, label, None, CropRandom(seed))
        assert (ids == 255).sum() == 40 * 50 - 20 * 30
        assert (out[ids == 255] == 0).all()


def test_flip_turns_image_and_label_together():
    image, label = picture(3, (40, 60)), blocks(3, size=(40, 60))
    always = AugmentConfig(scale_min=1.0, scale_max=1.0, flip=1.0, colour=0.0, blur=0.0)
    out, ids = JointAugment((50, 70), always)(image, label, None, CropRandom(9))
    plain, plain_ids = JointAugment((50, 70), PLAIN)(image, label, None, CropRandom(9))
    assert np.array_equal(out, plain[:, ::-1])
    assert np.array_equal(ids, plain_ids[:, ::-1])


def test_crops_depend_on_their_seed_alone():
    image, label = picture(3, (80, 120)), blocks(3, size=(80, 120))
    augment = JointAugment((48, 64), AugmentConfig())
    first = augment(image, label, (60, 40), CropRandom(1))
    np.random.seed(5)  # noqa: NPY002 - the global state must not matter
    second = augment(image, label, (60, 40), CropRandom(1))
    other = augment(image, label, (60, 40), CropRandom(2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])


def test_scales_cover_their_range():
    image = np.zeros((64, 64, 3), np.uint8)
    label = np.zeros((64, 64), np.uint8)
    augment = JointAugment((200, 200), AugmentConfig(colour=0, blur=0))
    sides = [int((augment(image, label, None, CropRandom(s))[1] == 0).any(0).sum()) for s in range(300)]
    assert 32 <= min(sides) < 36
    assert 124 < max(sides) <= 128
    assert abs(np.mean(sides) - 80) < 5
    _, ids = JointAugment((200, 200), PLAIN, None, 120)(image[:32], label[:32], None, CropRandom(0))
    assert [(ids == 0).any(axis).sum() for axis in (1, 0)] == [60, 120], "the long edge first"


@pytest.mark.parametrize(
    ("which", "reference"),
    [(0, F.adjust_brightness), (1, F.adjust_contrast), (2, F.adjust_saturation)],
    ids=["brightness", "contrast", "saturation"],
)
@pytest.mark.parametrize("factor", [0.75, 1.1])
def test_colour_changes_are_those_of_torchvision(which, reference, factor):
    image = (picture(8) * 0.6 + 40).astype(np.uint8)  # away from 0 and 255: both would clip there
    change = [0.0] * 4
    change[which] = factor - 1.0
    ours = cv2.transform(image, colour_matrix(image, [3, 0, 2, 1], change))
    theirs = reference(torch.from_numpy(image).permute(2, 0, 1), factor).permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 2


def test_hue_turns_colours_about_the_grey_axis():
    grey = np.full((4, 4, 3), 90, np.uint8)
    assert np.array_equal(cv2.transform(grey, colour_matrix(grey, [0, 1, 2, 3], [0, 0, 0, 0.7])), grey)
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 200
    third = cv2.transform(red, colour_matrix(red, [0, 1, 2, 3], [0, 0, 0, 2 / 3]))  # 2/3 / 2 = a third of the circle
    assert third[0, 0].tolist() == [0, 200, 0]


@pytest.mark.parametrize("kind", ["classmix", "cutmix"])
def test_mixing_pastes_half_of_the_classes_or_a_rectangle(kind):
    truth = blocks(2, (3, 4, 5, 6, 255))
    for seed in range(30):
        pasted = pasted_pixels(truth, kind, CropRandom(seed, 1))
        if kind == "classmix":
            classes = set(np.unique(truth[pasted]))
            assert len(classes) == 2  # half of four
            assert 255 not in classes
            assert np.array_equal(pasted, np.isin(truth, list(classes)))
        else:
            ys, xs = np.nonzero(pasted)
            area = (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
            assert area == pasted.sum(), "a rectangle"
            assert 0.05 < area / truth.size < 0.55
        assert np.array_equal(pasted, pasted_pixels(truth, kind, CropRandom(seed, 1)))
    assert not pasted_pixels(np.full((40, 60), 255, np.uint8), "classmix", CropRandom(0)).any(), "an ignored crop"


def test_labels_travel_with_who_gave_them_and_mostly_human_crops_keep_their_colours():
    image, label = picture(1), blocks(1, (0, 1, 255))
    augment = JointAugment((40, 50), AugmentConfig(colour=0.0, blur=0.0), 1.0)
    plain = JointAugment((40, 50), AugmentConfig(colour=0.0, blur=0.0))
    recoloured = []
    for seed, share in enumerate((0.0, 0.2, 0.8, 1.0)):
        human = (np.arange(label.shape[1]) < share * label.shape[1]).astype(np.uint8) * (label != 255)
        expected, ids = plain(image, label, None, CropRandom(seed))
        out, maps = augment(image, np.dstack([label, human]), None, CropRandom(seed))
        shown = plain(image, human.astype(np.uint8), None, CropRandom(seed))[1]
        assert np.array_equal(maps[..., 0], ids)
        assert np.array_equal(maps[..., 1], shown)
        mostly = 2 * (shown == 1).sum() > (ids != 255).sum()
        assert (not np.array_equal(out, expected)) == (not mostly)
        recoloured.append(not mostly)
    assert recoloured[0]
    assert not recoloured[-1]


def test_labels_are_resized_by_the_nearest_centre():
    label = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert resize_label(label, (2, 2)).tolist() == [[5, 7], [13, 15]]
    assert resize_label(label, (8, 8))[::2, ::2].tolist() == label.tolist()
    assert resize_label(label, (4, 4)) is label


def test_random_numbers_are_uniform_and_reach_both_ends():
    draws = [CropRandom(s).randint(3, 6) for s in range(400)]
    assert set(draws) == {3, 4, 5, 6}
    units = np.array([CropRandom(s).unit() for s in range(2000)])
    assert 0.0 <= units.min() < 0.01
    assert 0.99 < units.max() < 1.0
    assert abs(units.mean() - 0.5) < 0.02
    assert sorted(CropRandom(1).order(9)) == list(range(9))


def test_crops_travel_as_bytes_and_become_the_values_that_loaders_made() -> None:
    """The values before crops travelled as bytes: a table of (value / 255 - mean) / std in double, rounded once."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = torch.from_numpy(((images.numpy() / 255.0 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    on_cpu = normalise_batch(images, torch.device("cpu"))
    assert torch.equal(on_cpu, expected)
    assert on_cpu.is_contiguous()
    table = transforms._tables()
    looked_up = torch.from_numpy(table.T.copy()).gather(0, images.view(-1, 3).long()).view(images.shape)
    assert torch.equal(looked_up.permute(0, 3, 1, 2), expected), "the way of GPUs"
