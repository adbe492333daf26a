"""Boundary IoU and boundary bands against plain implementations of their definitions."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from hmsa_core.io.errors import InputError
from hmsa_core.metrics import boundary_band, boundary_counts, confusion_counts
from hmsa_core.metrics.boundary import inner_boundary
from hmsa_core.metrics.confusion import ratio


def blobs(seed, shape=(240, 320), classes=3):
    rng = np.random.default_rng(seed)
    field = rng.standard_normal((classes, *shape)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(f, (0, 0), 5) for f in field]).argmax(0).astype(np.uint8)


def boundary_iou(pred, label, classes):
    return ratio(*boundary_counts(pred, label, classes))


def repeated_erosion(mask, distance):
    padded = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
    return mask & (eroded[1:-1, 1:-1] == 0)


def test_boundary_iou_is_the_iou_of_the_inner_boundaries():
    label, pred = blobs(2), blobs(2)
    pred[:, 160:] = blobs(3)[:, 160:]
    found = boundary_iou(pred, label, 3)
    for k in range(3):
        truth, guess = repeated_erosion(label == k, 2), repeated_erosion(pred == k, 2)  # 0.005 x 400 pixels
        assert found[k] == pytest.approx((truth & guess).sum() / (truth | guess).sum())
        np.testing.assert_array_equal(inner_boundary(label == k, 5), repeated_erosion(label == k, 5))


def test_boundary_iou_sees_a_shift_that_area_hardly_sees():
    label = np.zeros((100, 100), np.uint8)
    label[20:80, 20:80] = 1
    pred = np.roll(label, 2, axis=1)
    boundary = boundary_iou(pred, label, 2)[1]
    counts = confusion_counts(pred, label, 2)
    area = counts[1, 1] / (counts[1].sum() + counts[:, 1].sum() - counts[1, 1])
    assert area > 0.93
    assert boundary < 0.6
    assert boundary_iou(label, label, 2).tolist() == [1.0, 1.0]


def test_the_rim_of_an_ignored_region_is_no_boundary():
    label = np.zeros((40, 40), np.uint8)
    label[10:30, 10:30] = 255
    band = inner_boundary(label == 0, 3, label == 255)
    assert band[:3].all()
    assert not band[7:33, 7:33].any()
    assert not boundary_band(label, 5.0).any()
    assert np.isnan(boundary_iou(np.zeros_like(label), label, 2)[1])


def test_the_band_holds_the_pixels_within_the_radius_of_two_meeting_classes():
    label = np.zeros((30, 40), np.uint8)
    label[:, 20:] = 1
    columns = np.flatnonzero(boundary_band(label, 3.0)[0])
    assert columns.tolist() == list(range(16, 24))
    assert not boundary_band(np.zeros((5, 5), np.uint8), 3.0).any()


def test_wrong_shapes_are_refused():
    with pytest.raises(InputError, match=r"expected two \(H, W\) maps"):
        boundary_counts(np.zeros((2, 3)), np.zeros((3, 2)), 2)
