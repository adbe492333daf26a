"""Quality near boundaries, which area-based IoU hardly measures (Cheng et al. 2021, arXiv 2103.16562)."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import InputError
from hmsa_core.taxonomy import IGNORE

_WIDTH = 0.005  # share of the image diagonal: boundary region of the authors' evaluation on Cityscapes (paper: 0.02)


def inner_boundary(
    mask: NDArray[np.bool_], distance: int, unknown: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Pixels of a mask at most `distance` pixels from its outside; the image's border is outside.

    `unknown` pixels are neither inside nor outside: the rim of an ignored region is no boundary.
    Source: Cheng et al. 2021, section 4: erosion by a 3x3 square, `distance` times.
    """
    solid = mask if unknown is None else mask | unknown
    # `distance` erosions by a 3x3 square are one erosion by the larger square (a separable minimum).
    side = 2 * distance + 1
    inside = cv2.erode(
        solid.view(np.uint8), np.ones((side, side), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    band: NDArray[np.bool_] = mask & (inside == 0)
    return band


def boundary_counts(pred: Any, label: Any, num_classes: int) -> NDArray[np.int64]:
    """Pixels in the intersection and in the union of each class's boundaries in one image, (2, C): boundary IoU.

    Integer (H, W) arrays; pixels of `label` 255 are left out of both.
    """
    pred, label = np.asarray(pred), np.asarray(label)
    if pred.shape != label.shape or label.ndim != 2:
        raise InputError(f"boundary IoU: expected two (H, W) maps, found {pred.shape} and {label.shape}")
    distance = max(1, round(_WIDTH * math.hypot(*label.shape)))
    valid = label != IGNORE
    present = np.union1d(np.unique(label[valid]), np.unique(pred[valid]))
    counts = np.zeros((2, num_classes), np.int64)
    for k in present[(present >= 0) & (present < num_classes)]:
        truth_band = inner_boundary((label == k) & valid, distance, ~valid)
        pred_band = inner_boundary((pred == k) & valid, distance, ~valid)
        counts[:, k] = np.count_nonzero(truth_band & pred_band), np.count_nonzero(truth_band | pred_band)
    return counts


def boundary_band(label: NDArray[np.uint8], radius_px: float) -> NDArray[np.bool_]:
    """Pixels within `radius_px` (Euclidean) of a place where two labelled classes meet.

    The rim of an ignored region is no boundary: the classes behind the rim are unknown.
    """
    edge = np.zeros(label.shape, bool)
    for ids, marks in ((label, edge), (label.T, edge.T)):  # neighbours in a column, then in a row
        here, there = ids[:-1], ids[1:]
        meet = (here != there) & (here != IGNORE) & (there != IGNORE)
        marks[:-1] |= meet
        marks[1:] |= meet
    if not edge.any():
        return edge
    distance = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance <= radius_px)
