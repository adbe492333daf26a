"""Fusing by rows gives what fusing whole maps gives, for any scales, sizes and kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa_core.inference import fast_rows
from hmsa_core.inference.fast_backends import NumpyBackend, TorchBackend
from hmsa_core.inference.fast_rows import Level, fuse, resized, weight_rows, whole
from hmsa_core.models import fusion
from hmsa_core.models.layers import resize, scaled_size

KINDS = ("hierarchical", "explicit", "average", "max")
SCALES = st.lists(st.sampled_from([0.25, 0.5, 0.7, 1.3, 1.5, 2.0, 3.0]), max_size=3, unique=True)
NUMPY, TORCH = NumpyBackend(), TorchBackend(torch.device("cpu"))


def random_levels(seed: int, kind: str, scales: list[float], size: tuple[int, int], classes: int) -> list[Level]:
    rng = np.random.default_rng(seed)
    levels = []
    for scale in sorted({*scales, 1.0}, reverse=True):
        own = scaled_size(size, scale)
        grid = (-(-own[0] // 4), -(-own[1] // 4))
        attention = rng.random((1, *grid)) if kind == "hierarchical" else rng.standard_normal((1, *grid))
        logits = rng.standard_normal((classes, *grid))
        levels.append(Level(scale, own, logits.astype(np.float32), attention.astype(np.float32)))
    return levels


def whole_fusion(kind: str, levels: list[Level], size: tuple[int, int]) -> np.ndarray:
    """`models.fusion` on full-size maps: what the rows must equal."""
    attention = [torch.from_numpy(one.attention)[None] for one in levels]
    if kind == "explicit":
        maps = fusion.explicit_weights(attention, size)
    else:
        maps = [resize(a, one.size) for a, one in zip(attention, levels, strict=True)]
    full = [
        fusion.Level(one.scale, resize(torch.from_numpy(one.logits)[None], one.size), a)
        for one, a in zip(levels, maps, strict=True)
    ]
    return fusion.FUSIONS[kind](full, size)[0].numpy()


def torch_levels(levels: list[Level]) -> list[Level]:
    return [Level(x.scale, x.size, torch.from_numpy(x.logits), torch.from_numpy(x.attention)) for x in levels]


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(KINDS), SCALES, st.integers(5, 70), st.integers(5, 70), st.integers(1, 20), st.integers(0, 999))
def test_rows_equal_the_fusion_of_whole_maps(kind, scales, height, width, step, seed):
    levels = random_levels(seed, kind, scales, (height, width), 3)
    expected = whole_fusion(kind, levels, (height, width))
    for ops, given_levels in ((NUMPY, levels), (TORCH, torch_levels(levels))):
        rows = fuse(kind, given_levels, (height, width), ops)
        blocks = [np.asarray(rows(y, min(y + step, height))) for y in range(0, height, step)]
        # Coordinates are float32 in torch and double in OpenCV: scores differ by up to 1e-4 of their spread.
        np.testing.assert_allclose(np.concatenate(blocks, axis=1), expected, atol=5e-4)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(("hierarchical", "explicit", "average")), SCALES, st.integers(4, 50), st.integers(4, 50))
def test_weights_of_all_scales_sum_to_one_at_every_pixel(kind, scales, height, width):
    levels = random_levels(height, kind, scales, (height, width), 2)
    for ops, given_levels in ((NUMPY, levels), (TORCH, torch_levels(levels))):
        maps = np.asarray(weight_rows(kind, given_levels, (height, width), ops)(0, height))
        assert maps.shape == (len(levels), height, width)
        np.testing.assert_allclose(maps.sum(0), 1.0, atol=1e-5)
        assert maps.min() > -1e-6


def test_weights_times_scores_are_the_fused_scores_where_fusing_is_linear_in_pixels():
    levels = random_levels(1, "explicit", [0.5, 2.0], (40, 60), 4)
    weights = weight_rows("explicit", levels, (40, 60), NUMPY)(0, 40)
    scores = [resize(resize(torch.from_numpy(one.logits)[None], one.size), (40, 60))[0].numpy() for one in levels]
    expected = sum(w * s for w, s in zip(weights, scores, strict=True))
    np.testing.assert_allclose(fuse("explicit", levels, (40, 60), NUMPY)(0, 40), expected, atol=1e-5)


@pytest.mark.parametrize("sizes", [(128, 512, 256), (90, 360, 180), (45, 180, 90)])
def test_enlarging_by_four_and_halving_is_one_resize(sizes):
    assert fast_rows._is_one_resize(*sizes)


@pytest.mark.parametrize("sizes", [(51, 202, 101), (23, 90, 45), (10, 40, 13)])
def test_other_sizes_are_resized_twice(sizes):
    assert not fast_rows._is_one_resize(*sizes)


@pytest.mark.parametrize("ops", [NUMPY, TORCH])
def test_a_decision_is_argmax_and_top_softmax_and_the_lower_class_wins_a_tie(ops):
    scores = np.random.default_rng(0).standard_normal((19, 7, 33)).astype(np.float32) * 5
    scores[4, 0], scores[11, 0] = 30.0, 30.0
    given_scores = torch.from_numpy(scores) if ops is TORCH else scores
    label, confidence = ops.decide(given_scores)
    assert label.dtype == np.uint8
    assert confidence.dtype == np.float32
    np.testing.assert_array_equal(label, scores.argmax(0))
    assert (label[0] == 4).all()
    expected = torch.softmax(torch.from_numpy(scores), 0).amax(0).numpy()
    np.testing.assert_allclose(confidence, expected, rtol=2e-5)
    assert confidence.max() <= 1.0


def test_a_score_that_is_not_a_number_is_no_class():
    for ops, make in ((NUMPY, np.asarray), (TORCH, torch.tensor)):
        scores = np.zeros((3, 1, 2), np.float32)
        scores[1, 0, 1] = np.nan
        label, confidence = ops.decide(make(scores))
        assert label[0, 1] == 255
        assert np.isnan(confidence[0, 1])


def test_a_map_of_the_same_size_is_not_copied():
    maps = np.ones((2, 4, 5), np.float32)
    rows = resized(whole(maps), (4, 5), (4, 5), NUMPY)
    assert rows(1, 3).base is maps


@pytest.mark.parametrize("size", [(64, 1), (1, 64), (1, 1), (2, 1)])
def test_pictures_one_pixel_wide_or_high_get_the_same_labels_from_both_backends(size):
    levels = random_levels(3, "hierarchical", [], size, 5)
    label, confidence = NUMPY.decide(fuse("hierarchical", levels, size, NUMPY)(0, size[0]))
    expected, wanted = TORCH.decide(fuse("hierarchical", torch_levels(levels), size, TORCH)(0, size[0]))
    assert label.shape == size
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_allclose(confidence, wanted, rtol=1e-4)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.sampled_from([0.5, 1, 2, 3, 4, 8]), st.sampled_from([0.5, 1, 1.1, 2]))
def test_two_resizes_are_called_one_where_they_move_every_source_position_alike(source, up, down):
    middle = max(1, round(source * up))
    target = max(1, round(middle / down))
    eye = torch.eye(source)[:, None, :, None]  # one map a source position

    def along(maps, size):
        return resize(maps, (size, 1))

    alike = torch.allclose(along(along(eye, middle), target), along(eye, target), atol=1e-5)
    assert fast_rows._is_one_resize(source, middle, target) == alike
