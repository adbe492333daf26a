"""Histograms of label maps: how many pixels of which class, with which code, under which human class."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Histogram", "count", "cumulative", "present_values"]


class Histogram(NamedTuple):
    """Sparse counts sorted by class, human class and code; only pixels > 0 are listed."""

    class_id: NDArray[np.uint8]
    human: NDArray[np.uint8]
    code: NDArray[np.uint8]
    pixels: NDArray[np.uint32]


def present_values(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The values that occur, in order (ten times faster than np.bincount or np.unique on uint8)."""
    bins = cv2.calcHist([np.ascontiguousarray(ids)], [0], None, [256], [0, 256])
    return np.flatnonzero(bins.reshape(-1)).astype(np.uint8)


def _dense(ids: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Present values, and a 256-entry table value -> its position among them."""
    present = present_values(ids)
    table = np.zeros(256, np.int32)
    table[present] = np.arange(len(present))
    return present, table


def count(label: NDArray[np.uint8], code: NDArray[np.uint8], human: NDArray[np.uint8] | None = None) -> Histogram:
    """Count the pixels of one image; without a human label all pixels count as human 255."""
    classes, class_at = _dense(label)
    key = np.asarray(cv2.LUT(np.ascontiguousarray(label), class_at), np.int32)
    humans = np.full(1, 255, np.uint8)
    if human is not None:
        humans, human_at = _dense(human)
        key *= len(humans)
        key += np.asarray(cv2.LUT(np.ascontiguousarray(human), human_at), np.int32)
    key <<= 8
    key |= code
    bins = np.bincount(key.reshape(-1))
    hit = np.flatnonzero(bins)
    pair = hit >> 8
    return Histogram(
        classes[pair // len(humans)],
        humans[pair % len(humans)],
        (hit & 255).astype(np.uint8),
        bins[hit].astype(np.uint32),
    )


def cumulative(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Pixels with at least each code: reversed cumulative sum over the last axis."""
    return np.cumsum(counts[..., ::-1], axis=-1, dtype=np.int64)[..., ::-1]
