"""Reliability diagrams of confidences whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hmsa_core.io.errors import InputError
from hmsa_core.metrics import Reliability


def test_honest_confidences_have_no_calibration_error():
    rng = np.random.default_rng(0)
    confidence = rng.random((400, 500)).astype(np.float32)
    label = np.zeros(confidence.shape, np.uint8)
    pred = (rng.random(confidence.shape) > confidence).astype(np.uint8)
    result = Reliability(10).update(pred, confidence, label)
    assert result.ece() < 0.01
    np.testing.assert_allclose(result.diagram()["accuracy"], np.linspace(0.05, 0.95, 10), atol=0.02)


def test_overconfidence_shows_as_the_gap_and_ignored_pixels_do_not_count():
    pred = np.array([0, 0, 0, 0, 1, 1])
    label = np.array([0, 0, 0, 1, 1, 255])
    confidence = np.array([1.0, 1.0, 1.0, 1.0, 0.5, 0.1], np.float32)
    result = Reliability(10).update(pred, confidence, label)
    assert result.ece() == pytest.approx((4 - 3 + 0.5) / 5)
    diagram = result.diagram()
    assert diagram["pixels"].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 4]
    assert diagram["accuracy"][9] == 0.75
    assert np.isnan(diagram["accuracy"][0])
    assert diagram["edges"][[0, -1]].tolist() == [0.0, 1.0]


def test_images_counted_apart_merge_to_the_same_result():
    rng = np.random.default_rng(1)
    maps = [(rng.integers(0, 3, 50), rng.random(50), rng.integers(0, 3, 50)) for _ in range(4)]
    together, merged = Reliability(), Reliability()
    for one in maps:
        together.update(*one)
        merged.merge(Reliability().update(*one))
    assert merged.ece() == pytest.approx(together.ece())


def test_no_pixels_give_nan_and_wrong_input_is_refused():
    assert math.isnan(Reliability().ece())
    with pytest.raises(InputError, match="shapes differ"):
        Reliability().update(np.zeros(2), np.zeros(3), np.zeros(2))
