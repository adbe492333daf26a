"""Fusing by rows gives what fusing whole tensors gives, for any scales, sizes and kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa_core.config import Passes
from hmsa_core.inference.network.predictor import decide
from hmsa_core.models import rows as rows_module
from hmsa_core.models.fusion import Level, explicit_weights, fuse
from hmsa_core.models.layers.blocks import resize, scaled_size
from hmsa_core.models.passes import ScalePass
from hmsa_core.models.rows import whole

KINDS = ("hierarchical", "explicit", "average", "max")
SCALES = st.lists(st.sampled_from([0.25, 0.5, 0.7, 1.3, 1.5, 2.0, 3.0]), max_size=3, unique=True)
ARRAYS = (torch.from_numpy, np.asarray)


class Made:
    """Random scores and attention on each scale's grid."""

    def __init__(self, seed: int, kind: str, scales: list[float], size: tuple[int, int], classes: int) -> None:
        rng = np.random.default_rng(seed)
        self.kind, self.size = kind, size
        self.scales = sorted({*scales, 1.0}, reverse=True)
        self.sizes = [scaled_size(size, scale) for scale in self.scales]
        grids = [(-(-own[0] // 4), -(-own[1] // 4)) for own in self.sizes]
        draw = rng.random if kind == "hierarchical" else rng.standard_normal
        self.attention = [draw((1, *grid)).astype(np.float32) for grid in grids]
        self.logits = [rng.standard_normal((classes, *grid)).astype(np.float32) for grid in grids]

    def levels(self, resized):
        """Levels whose maps `resized` brings to a size."""
        if self.kind == "explicit":
            attention = explicit_weights([resized(one, None) for one in self.attention], self.size)
        else:
            attention = [resized(one, own) for one, own in zip(self.attention, self.sizes, strict=True)]
        values = [resized(one, own) for one, own in zip(self.logits, self.sizes, strict=True)]
        return [Level(*one) for one in zip(self.scales, values, attention, strict=True)]

    def rows(self, make):
        """The fusion by rows, on arrays that `make` makes."""
        levels = self.levels(lambda one, own: whole(make(one)).resized(own) if own else whole(make(one)))
        return fuse(self.kind, levels, self.size)

    def whole(self):
        """The fusion on full-size tensors, as training runs it: what the rows must equal."""
        tensor = torch.from_numpy
        return fuse(self.kind, self.levels(lambda one, own: resize(tensor(one)[None], own or one.shape[1:])), self.size)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(KINDS), SCALES, st.integers(5, 70), st.integers(5, 70), st.integers(1, 20), st.integers(0, 999))
def test_rows_equal_the_fusion_of_whole_maps(kind, scales, height, width, step, seed):
    made = Made(seed, kind, scales, (height, width), 3)
    expected = made.whole()[0].numpy()
    for make in ARRAYS:
        rows = made.rows(make)
        blocks = [np.asarray(rows(y, min(y + step, height))) for y in range(0, height, step)]
        # Coordinates are float32 in torch and double in OpenCV: scores differ by up to 1e-4 of their spread.
        np.testing.assert_allclose(np.concatenate(blocks, axis=1), expected, atol=5e-4)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), SCALES, st.integers(5, 60), st.integers(5, 60))
def test_a_pass_over_any_scales_fuses_the_outputs_of_the_network(kind, scales, height, width):
    """`ScalePass` runs each size once and enlarges and reduces in one step where it can."""
    made = Made(height, kind, scales, (height, width), 3)
    sizes = [scaled_size((height, width), scale, kind) for scale in made.scales]

    def run(images, _attention):
        generator = torch.Generator().manual_seed(images.shape[2] * 100 + images.shape[3])
        grid = (-(-images.shape[2] // 4), -(-images.shape[3] // 4))
        return torch.randn((1, 3, *grid), generator=generator), torch.rand((1, 1, *grid), generator=generator)

    outputs = [run(torch.empty(1, 3, *own), True) for own in sizes]
    made.sizes, made.logits = sizes, [logits[0].numpy() for logits, _ in outputs]
    made.attention = [attention[0].numpy() for _, attention in outputs]
    scores = ScalePass(torch.zeros(1, 3, height, width), kind, run).scores(Passes(made.scales, False))
    np.testing.assert_allclose(scores.full()[0].numpy(), made.whole()[0].numpy(), atol=5e-4)


@pytest.mark.parametrize("make", ARRAYS)
def test_a_decision_is_argmax_and_top_softmax_and_the_lower_class_wins_a_tie(make):
    scores = np.random.default_rng(0).standard_normal((19, 7, 33)).astype(np.float32) * 5
    scores[4, 0], scores[11, 0] = 30.0, 30.0
    label, confidence = map(np.asarray, decide(make(scores)))
    assert label.dtype == np.uint8
    assert confidence.dtype == np.float32
    np.testing.assert_array_equal(label, scores.argmax(0))
    assert (label[0] == 4).all()
    expected = torch.softmax(torch.from_numpy(scores), 0).amax(0).numpy()
    np.testing.assert_allclose(confidence, expected, rtol=2e-5)
    assert confidence.max() <= 1.0


@pytest.mark.parametrize("make", ARRAYS)
def test_a_score_that_is_not_a_number_is_no_class(make):
    scores = np.zeros((3, 1, 2), np.float32)
    scores[1, 0, 1] = np.nan
    label, confidence = map(np.asarray, decide(make(scores)))
    assert label[0, 1] == 255
    assert np.isnan(confidence[0, 1])


def test_a_map_of_the_same_size_is_not_copied():
    maps = np.ones((2, 4, 5), np.float32)
    assert whole(maps).resized((4, 5))(1, 3).base is maps


@pytest.mark.parametrize("size", [(64, 1), (1, 64), (1, 1), (2, 1)])
def test_pictures_one_pixel_wide_or_high_get_the_same_labels_from_numpy_and_torch(size):
    made = Made(3, "hierarchical", [], size, 5)
    label, confidence = decide(made.rows(np.asarray)(0, size[0]))
    expected, wanted = map(np.asarray, decide(made.rows(torch.from_numpy)(0, size[0])))
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
    assert rows_module._is_one_resize(source, middle, target) == alike
