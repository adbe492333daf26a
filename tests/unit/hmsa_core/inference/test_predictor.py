"""Labels are those of the model's own prediction, settings share work, and tiles come in where memory ends."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa_core.config import Passes
from hmsa_core.inference.network.predictor import Predictor, Tiler, label_image, windows
from hmsa_core.io.errors import CheckpointError, ConfigError, HmsaError, InputError, TrainingError
from tests.support.inference import noise_image, sizes_run, small_model

SCALE_SETS = [(1.0,), (0.5, 1.0), (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 1.5)]


def normalised(image: np.ndarray) -> torch.Tensor:
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return ((torch.from_numpy(image).float() / 255 - mean) / std).permute(2, 0, 1)[None]


@pytest.mark.parametrize("kind", ["hierarchical", "explicit", "average", "max", "single"])
@pytest.mark.parametrize("scales", SCALE_SETS)
def test_scores_and_weights_equal_the_models_own_prediction(kind, scales):
    model, predictor = _pair(kind)
    for size, flip in (((64, 96), True), ((67, 45), False)):
        image = noise_image(1, *size)
        expected = model.predict(normalised(image), scales, flip)
        opened = predictor.open(image)
        scores = opened.scores(Passes(scales, flip))(0, size[0])[0]
        spread = float(expected.logits.std())
        np.testing.assert_allclose(scores, expected.logits[0].numpy(), atol=2e-4 * spread)
        label, confidence = opened.label(Passes(scales, flip))
        assert (label == expected.logits[0].argmax(0).numpy()).mean() > 0.999
        np.testing.assert_allclose(confidence, expected.probabilities[0].amax(0).numpy(), atol=1e-4)
        if kind != "max":
            assert expected.weights is not None
            for scale, weight in opened.weight_maps(Passes(scales, flip)).items():
                np.testing.assert_allclose(weight, expected.weights[scale][0, 0].numpy(), atol=1e-4)


_pairs: dict[str, tuple[torch.nn.Module, Predictor]] = {}


def _pair(kind):
    if kind not in _pairs:
        model = small_model(kind, classes=5)
        _pairs[kind] = (model, Predictor(model))
    return _pairs[kind]


def test_a_models_own_mean_and_std_are_used():
    model, image = small_model(), noise_image(4, 32, 48)
    assert len(np.unique(label_image(model, noise_image(0, 64, 96), (0.5, 1.0), False)[0])) >= 3, "labels vary"
    plain = label_image(model, image, (1.0,), False)[1]
    model.meta = {"inference": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    assert np.abs(label_image(model, image, (1.0,), False)[1] - plain).max() > 1e-3
    model.meta = {"inference": {"mean": [0.5], "std": [0.5, 0.5, 0.5]}}
    with pytest.raises(CheckpointError, match="three numbers each"):
        Predictor(model)


def test_settings_of_one_image_run_the_network_once_for_each_size_and_mirror_image():
    predictor = Predictor(small_model())
    sizes = sizes_run(predictor)
    opened = predictor.open(noise_image(5, 64, 96))
    opened.label(Passes((0.5, 1.0, 2.0), True))
    opened.label(Passes((0.5, 1.0), True))
    opened.label(Passes((0.5, 1.0, 2.0), False, "average"))
    opened.label(Passes((1.0,), True, "single"))
    opened.weight_maps(Passes((0.5, 1.0, 2.0), True))
    assert sorted(sizes) == sorted([(32, 48), (64, 96), (128, 192)] * 2)


def test_image_and_mirror_image_can_share_a_batch_and_are_run_apart_where_that_does_not_fit():
    image = noise_image(11, 64, 96)
    expected = Predictor(small_model()).open(image).label(Passes((0.5, 1.0), True))
    predictor, batches = Predictor(small_model()), []
    predictor.pairs = True
    inner, limit = predictor.run, [2]

    def run(images, attention):
        batches.append(len(images))
        if len(images) > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(images, attention)

    predictor.run = run
    for size in (2, 1):
        limit[0] = size
        found = predictor.open(image).label(Passes((0.5, 1.0), True))
        assert (found[0] == expected[0]).mean() > 0.999
        np.testing.assert_allclose(found[1], expected[1], atol=1e-4)
    assert batches == [2, 2, 2, 1, 1, 1, 1], "one failure is enough"
    predictor.open(image).label(Passes((0.5, 1.0), False))
    assert batches[-2:] == [1, 1]


def test_the_result_does_not_depend_on_how_many_rows_are_fused_at_once(monkeypatch):
    predictor, image = Predictor(small_model()), noise_image(6, 70, 90)
    whole = predictor.open(image).label(Passes((0.5, 1.0, 2.0), True))
    monkeypatch.setattr("hmsa_core.models.rows._BLOCK_BYTES", {"cpu": 1})
    by_row = predictor.open(image).label(Passes((0.5, 1.0, 2.0), True))
    np.testing.assert_array_equal(whole[0], by_row[0])
    np.testing.assert_allclose(whole[1], by_row[1], atol=1e-6)


def test_the_result_can_have_another_size():
    opened = Predictor(small_model()).open(noise_image(7, 40, 60))
    label, confidence = opened.label(Passes((0.5, 1.0), False), size=(75, 111))
    assert label.shape == confidence.shape == (75, 111)
    same = opened.label(Passes((0.5, 1.0), False))[0]
    nearest = label[np.arange(40) * 75 // 40][:, np.arange(60) * 111 // 60]
    assert (nearest == same).mean() > 0.9


def test_impossible_requests_are_refused_in_one_line():
    predictor = Predictor(small_model("average"))
    image = noise_image(8, 20, 20)
    with pytest.raises(ConfigError, match="a average model cannot be run as hierarchical"):
        predictor.open(image).label(Passes((1.0,), False, "hierarchical"))
    for scales in ((), (0.5, 2.0), (1.0, 99.0), (1.0, np.inf), (1.0, -1.0), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(ConfigError, match="scales must be different numbers above 0 and up to 8, one of them 1"):
            label_image(predictor, image, scales, False)
    with pytest.raises(InputError, match="an image must be uint8 HxWx3 RGB"):
        predictor.open(image.astype(np.float32))
    with pytest.raises(ConfigError, match="has no weights"):
        predictor.open(image).weight_maps(Passes((1.0,), False, "max"))


def test_weights_that_are_not_finite_never_become_labels():
    model = small_model()
    with torch.no_grad():
        model.ocr.cls_head.bias[1] = float("nan")
    with pytest.raises(HmsaError, match="NaN or infinite|changed the scores by nan"):
        label_image(model, noise_image(9, 32, 32), (1.0,), False)


# -------------------------------------------------------------------------------- tiles

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

    def run(self, images, attention):
        if images.shape[2] * images.shape[3] > self.limit:
            self.failures += 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return super().run(images, attention)


@pytest.fixture(scope="module")
def model():
    return small_model()


def test_out_of_memory_halves_the_tile_and_gives_what_that_tile_size_gives(model, caplog):
    image = noise_image(1, 320, 640)
    greedy = Greedy(model)
    greedy.limit = 320 * 400
    tiler = Tiler(greedy)
    with caplog.at_level(logging.WARNING):
        found = tiler.label(image, Passes(SCALES, False))
    assert "does not fit: tiles of 320 pixels now" in caplog.text
    fixed = Tiler(Predictor(model), whole_pixels=0, tile=320).label(image, Passes(SCALES, False))
    np.testing.assert_array_equal(found[0], fixed[0])
    np.testing.assert_array_equal(found[1], fixed[1])
    assert greedy.failures == 1
    tiler.label(noise_image(2, 320, 640), Passes(SCALES, False))
    assert greedy.failures == 1, "an image of the same size is tiled at once"


def test_tiles_agree_with_the_whole_image_nearly_everywhere_and_their_weights_sum_to_one(model):
    image = noise_image(3, 300, 300)
    tiler = Tiler(Predictor(model), whole_pixels=0, tile=256)
    whole, tiled = Tiler(Predictor(model)).label(image, Passes(SCALES, True)), tiler.label(image, Passes(SCALES, True))
    assert (whole[0] == tiled[0]).mean() > 0.7  # an untrained net gathers its regions from all it sees
    assert (whole[1] != tiled[1]).any(), "it must really be tiled"
    maps = tiler.weights(noise_image(4, 270, 300), Passes(SCALES, False))
    np.testing.assert_allclose(sum(maps.values()), 1.0, atol=1e-5)


def test_memory_for_nothing_at_all_ends_with_one_line_and_other_errors_are_not_taken_for_it(model):
    greedy = Greedy(model)
    greedy.limit = 0
    with pytest.raises(TrainingError, match="out of memory on cpu with tiles of") as caught:
        Tiler(greedy).label(noise_image(5, 300, 600), Passes(SCALES, False))
    assert caught.value.exit_code == 6
    predictor = Predictor(model)
    predictor.run = lambda images, attention: (_ for _ in ()).throw(RuntimeError("shapes"))
    with pytest.raises(RuntimeError, match="shapes"):
        Tiler(predictor).label(noise_image(6, 40, 40), Passes(SCALES, False))


def test_a_tiled_image_is_scored_at_another_size(model):
    image = noise_image(7, 300, 300)
    tiler = Tiler(Predictor(model), whole_pixels=0, tile=256)
    label, confidence = tiler.label(image, Passes(SCALES, False))
    smaller, surer = tiler.label(image, Passes(SCALES, False), size=(100, 100))
    np.testing.assert_array_equal(smaller, label[1::3, 1::3])  # the centre of each 3 x 3 pixels
    np.testing.assert_array_equal(surer, confidence[1::3, 1::3])
    assert tiler.label(image, Passes(SCALES, False), size=(450, 410))[0].shape == (450, 410)
