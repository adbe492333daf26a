import numpy as np
import pytest

from examples.streets import default_spec, generate
from examples.streets.baseline import colour_position_baseline
from examples.streets.kinds import cityscapes

RNG = np.random.default_rng(0)


def blocks(count):
    """Pictures whose colour tells the class: red 0, blue 1, in random places."""
    images, labels = [], []
    for _ in range(count):
        label = RNG.integers(0, 2, (8, 16)).repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8)
        colours = np.array([[200, 30, 30], [30, 30, 200]])[label] + RNG.integers(-10, 10, (*label.shape, 3))
        images.append(colours.astype(np.uint8))
        labels.append(label)
    return images, labels


def test_classes_that_differ_in_colour_are_told_apart():
    images, labels = blocks(6)
    result = colour_position_baseline(images[:4], labels[:4], images[4:], labels[4:], 2)
    assert result > 0.99


def test_classes_that_differ_in_position_only_are_told_apart():
    label = np.zeros((32, 64), dtype=np.uint8)
    label[16:] = 1
    images = [RNG.integers(0, 255, (32, 64, 3)).astype(np.uint8) for _ in range(6)]
    result = colour_position_baseline(images[:4], [label] * 4, images[4:], [label] * 2, 2)
    assert result > 0.9


def test_classes_that_differ_in_shape_only_are_not():
    images = [RNG.integers(0, 255, (32, 64, 3)).astype(np.uint8) for _ in range(8)]
    labels = [RNG.integers(0, 2, (32, 64)).astype(np.uint8) for _ in range(8)]
    assert colour_position_baseline(images[:6], labels[:6], images[6:], labels[6:], 2) < 0.45


def test_ignored_pixels_count_neither_in_fitting_nor_in_scoring():
    images, labels = blocks(4)
    spoilt = [label.copy() for label in labels]
    for image, label in zip(images, spoilt, strict=True):
        label[:8] = 255
        image[:8] = 0
    result = colour_position_baseline(images[:2], spoilt[:2], images[2:], spoilt[2:], 2)
    assert result > 0.99


def test_a_class_that_is_absent_has_no_score():
    images, labels = blocks(4)
    result = colour_position_baseline(images[:2], labels[:2], images[2:], labels[2:], 5)
    assert result > 0.99


@pytest.mark.slow
def test_the_demo_cannot_be_solved_by_colour_and_position(tmp_path):
    import cv2

    spec = default_spec("demo")
    generate(spec, tmp_path / "demo", workers=2)
    root = tmp_path / "demo" / "cityscapes"
    lut = np.full(256, 255, dtype=np.uint8)
    for entry in cityscapes().entries:
        if 0 <= entry.train_id < 19:
            lut[entry.id] = entry.train_id

    def read(split):
        files = sorted((root / "leftImg8bit" / split).glob("*/*.png"))
        labels = [
            lut[
                cv2.imread(
                    str(f).replace("leftImg8bit/", "gtFine/").replace("leftImg8bit.png", "gtFine_labelIds.png"), -1
                )
            ]
            for f in files
        ]
        return [cv2.imread(str(f))[..., ::-1] for f in files], labels

    train, test = read("train"), read("test")
    for wanted, (_, labels) in ((12, train), (20, test)):
        present = [sum(int((label == k).sum() >= 20) for label in labels) for k in range(19)]
        assert min(present) >= wanted, present
    assert colour_position_baseline(*train, *test, 19) < 0.30
