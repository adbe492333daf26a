"""Precision in sampled crops: an error about a rare class is shown more often than it occurs."""

from __future__ import annotations

import numpy as np
import pytest

from hmsa_core.config import AugmentConfig, SamplingConfig, TrainConfig
from hmsa_core.data.sampled_precision import sampled_precision
from tests.support.training import sample

CLASSES = ("road", "rare")


def config(uniform: float, crop: int = 32, **more) -> TrainConfig:
    return TrainConfig(
        crop=(crop, crop),
        sampling=SamplingConfig(class_uniform=uniform, tile=32, max_repeats=64),
        augment=AugmentConfig(scale_min=1.0, scale_max=1.0, flip=0.0),
        **more,
    )


def images(count: int = 6):
    """All is road; the teacher also says "rare" in one corner of each image, where it is always wrong."""
    for i in range(count):
        kept, truth = np.zeros((128, 128), np.uint8), np.zeros((128, 128), np.uint8)
        kept[:16, :16] = 1
        truth[64:] = 255
        yield sample(f"image{i}", height=128, width=128), kept, truth


def test_drawing_by_class_shows_errors_about_a_rare_class_more_often() -> None:
    found = sampled_precision(images, CLASSES, config(1.0))
    rare = found["classes"]["rare"]
    assert found["plain_precision"] == pytest.approx(1 - 16 * 16 / (64 * 128))
    assert rare["plain_precision"] == rare["precision"] == 0.0
    assert found["precision"] < found["plain_precision"] - 0.02
    assert rare["share"] > 2 * rare["plain_share"]
    assert rare["crops"] == found["crops"] / 2 == 12


def test_whole_images_drawn_at_random_are_as_right_as_they_are() -> None:
    found = sampled_precision(images, CLASSES, config(0.0, crop=128))
    assert found["precision"] == found["plain_precision"]
    rare = found["classes"]["rare"]
    assert rare["share"] == rare["plain_share"]
    assert rare["crops"] == 0


def test_the_crops_are_a_function_of_the_seed_alone() -> None:
    assert sampled_precision(images, CLASSES, config(0.5)) == sampled_precision(images, CLASSES, config(0.5))
    assert sampled_precision(images, CLASSES, config(0.5)) != sampled_precision(images, CLASSES, config(0.5, seed=1))


def test_where_nothing_is_kept_or_there_is_no_image_there_is_no_precision() -> None:
    def ignored():
        for one, kept, truth in images(2):
            yield one, np.full_like(kept, 255), truth

    assert sampled_precision(ignored, CLASSES, config(0.5))["precision"] is None
    none = sampled_precision(lambda: iter(()), CLASSES, config(0.5))
    assert (none["crops"], none["precision"], none["classes"]["road"]["share"]) == (0, None, None)
