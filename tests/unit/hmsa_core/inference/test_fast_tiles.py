"""Tiles cover an image once; running out of memory halves them and changes nothing else."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa_core.inference.predictor import Predictor
from hmsa_core.inference.predictor import Tiler, windows
from hmsa_core.io.errors import TrainingError
from tests.support.inference import noise_image, small_model

SCALES = (0.5, 1.0)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([256, 512, 992, 1024]))
def test_every_pixel_is_kept_once_from_a_tile_that_sees_around_it(height, width, tile):
    covered = np.zeros((height, width), np.uint8)
    for window in windows((height, width), tile):
        covered[window.kept] += 1
        for seen, kept, inner, length in zip(window.seen, window.kept, window.inner, (height, width), strict=True):
            assert seen.start % 32 == 0
            assert seen.stop - seen.start <= tile
            assert 0 <= seen.start <= kept.start < kept.stop <= seen.stop <= length
            assert kept.start - seen.start >= 32 or seen.start == 0
            assert seen.stop - kept.stop >= 32 or seen.stop == length
            assert (inner.start, inner.stop) == (kept.start - seen.start, kept.stop - seen.start)
    assert (covered == 1).all()


class Greedy(Predictor):
    """Runs out of memory on images with more than `limit` pixels."""

    limit = 10**9
    failures = 0

    def run(self, images, *, attention):
        if images.shape[2] * images.shape[3] > self.limit:
            self.failures += 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return super().run(images, attention=attention)


@pytest.fixture(scope="module")
def model():
    return small_model()


def test_out_of_memory_halves_the_tile_and_gives_what_that_tile_size_gives(model, caplog):
    image = noise_image(1, 320, 640)
    greedy = Greedy(model)
    greedy.limit = 320 * 400
    tiler = Tiler(greedy)
    with caplog.at_level(logging.WARNING):
        found = tiler.label(image, SCALES, False)
    assert "does not fit: tiles of 320 pixels now" in caplog.text
    fixed = Tiler(Predictor(model), whole_pixels=0, tile=320).label(image, SCALES, False)
    np.testing.assert_array_equal(found[0], fixed[0])
    np.testing.assert_array_equal(found[1], fixed[1])
    assert greedy.failures == 1
    tiler.label(noise_image(2, 320, 640), SCALES, False)
    assert greedy.failures == 1, "an image of the same size is tiled at once"


def test_tiles_agree_with_the_whole_image_nearly_everywhere(model):
    image = noise_image(3, 300, 300)
    whole = Tiler(Predictor(model)).label(image, SCALES, True)
    tiled = Tiler(Predictor(model), whole_pixels=0, tile=256).label(image, SCALES, True)
    assert (whole[0] == tiled[0]).mean() > 0.7  # an untrained net gathers its regions from all it sees
    assert (whole[1] != tiled[1]).any(), "it must really be tiled"


def test_weights_of_a_tiled_image_sum_to_one(model):
    image = noise_image(4, 270, 300)
    tiler = Tiler(Predictor(model), whole_pixels=0, tile=256)
    maps = tiler.weights(image, SCALES, False)
    np.testing.assert_allclose(sum(maps.values()), 1.0, atol=1e-5)


def test_memory_for_nothing_at_all_ends_with_one_line(model):
    greedy = Greedy(model)
    greedy.limit = 0
    with pytest.raises(TrainingError, match="out of memory on cpu with tiles of") as caught:
        Tiler(greedy).label(noise_image(5, 300, 600), SCALES, False)
    assert caught.value.exit_code == 6


def test_other_errors_are_not_taken_for_lack_of_memory(model):
    predictor = Predictor(model)
    predictor.run = lambda images, *, attention: (_ for _ in ()).throw(RuntimeError("shapes"))
    with pytest.raises(RuntimeError, match="shapes"):
        Tiler(predictor).label(noise_image(6, 40, 40), SCALES, False)


def test_a_tiled_image_is_scored_at_another_size(model):
    image = noise_image(7, 300, 300)
    tiler = Tiler(Predictor(model), whole_pixels=0, tile=256)
    label, confidence = tiler.label(image, SCALES, False)
    smaller, surer = tiler.label(image, SCALES, False, size=(100, 100))
    np.testing.assert_array_equal(smaller, label[1::3, 1::3])  # the centre of each 3 x 3 pixels
    np.testing.assert_array_equal(surer, confidence[1::3, 1::3])
    assert tiler.label(image, SCALES, False, size=(450, 410))[0].shape == (450, 410)
