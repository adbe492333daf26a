"""Histograms of label maps: how many pixels of which class, with which code, under which human class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Histogram", "count", "cumulative"]


class Histogram(NamedTuple):
    """Sparse counts sorted by class, human class and code; only pixels > 0 are listed."""

    class_id: NDArray[np.uint8]
    human: NDArray[np.uint8]
    code: NDArray[np.uint8]
    pixels: NDArray[np.uint32]


def _dense(ids: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Present values, and a 256-entry table value -> its position among them."""
    present = np.flatnonzero(np.bincount(ids.reshape(-1), minlength=256)).astype(np.uint8)
    table = np.zeros(256, np.int32)
    table[present] = np.arange(len(present))
    return present, table


def count(
    label: NDArray[np.uint8], code: NDArray[np.uint8], human: NDArray[np.uint8] | None = None
) -> Histogram:
    """Count the pixels of one image; without a human label all pixels count as human 255."""
    classes, class_at = _dense(label)
    key = class_at[label]
    humans = np.full(1, 255, np.uint8)
    if human is not None:
        humans, human_at = _dense(human)
        key *= len(humans)
        key += human_at[human]
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
