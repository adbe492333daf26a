"""Class scores of all scales, resized, weighted and fused a few rows at a time.

A map of the size of the image is never made: a `Rows` function computes rows y0..y1 of a (K, H, W) map
when asked, from the trunk's small grids. Blocks stay in the processor's cache, and memory does not grow with
the number of scales. Operations and their order are those of `hmsa_core.models.fusion`, with two
differences in rounding only: a resize runs rows first and columns then, and an enlargement followed by a
reduction is one resize where the two are the same linear map (`_is_one_resize`).

Arrays are numpy on the CPU and torch on a GPU (`fast_backends`).
Legend: K channels (C classes, or 1), H x W pixels, h x w the trunk's grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hmsa_core.inference.fast_backends import Array, Backend

__all__ = ["Level", "Rows", "fuse", "resized", "taps", "weight_rows", "whole"]

Size = tuple[int, int]
Rows = Callable[[int, int], Array]  # (y0, y1) -> K x (y1 - y0) x W


@dataclass(frozen=True)
class Level:
    """One scale: its scores and attention on the trunk's grid, and its own pixel size."""

    scale: float
    size: Size
    logits: Array  # C x h x w
    attention: Array | None  # 1 x h x w: sigmoid (hierarchical) or raw score (explicit)


@lru_cache(maxsize=256)
def taps(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Per output position: the two source positions and the weight of the second, as torch computes them."""
    scale = np.float32(source) / np.float32(target)
    position = scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    position = np.maximum(position, np.float32(0))
    upper = np.minimum(position.astype(np.intp), source - 1)
    return upper, np.minimum(upper + 1, source - 1), position - upper.astype(np.float32)


@lru_cache(maxsize=256)
def _is_one_resize(source: int, middle: int, target: int) -> bool:
    """Whether resizing source -> middle -> target is the same linear map as source -> target (one axis)."""
    upper, lower, t = taps(source, middle)
    first, second, share = taps(middle, target)
    direct = taps(source, target)
    # What each target position takes from which source position: by two steps, less what it takes by one.
    at = np.stack([upper[first], lower[first], upper[second], lower[second], direct[0], direct[1]])
    by_first, by_second = (1 - share), share
    takes = np.stack(
        [
            by_first * (1 - t[first]),
            by_first * t[first],
            by_second * (1 - t[second]),
            by_second * t[second],
            direct[2] - 1,
            -direct[2],
        ]
    )
    excess = ((at[:, None] == at[None]) * takes[None]).sum(axis=1)
    return bool(np.abs(excess).max() < 1e-5)


def whole(maps: Array) -> Rows:
    """Rows of a map that is there."""
    return lambda y0, y1: maps[:, y0:y1]


def resized(rows: Rows, source: Size, target: Size, ops: Backend) -> Rows:
    """Bilinear resize (corners not aligned, no antialias) of a map given by its rows."""
    if source == target:
        return rows
    upper, lower, t = taps(source[0], target[0])

    def compute(y0: int, y1: int) -> Array:
        if source[0] == target[0]:
            return ops.columns(rows(y0, y1), target[1])
        first, last = int(upper[y0]), int(lower[y1 - 1])
        window = rows(first, last + 1)
        if source[1] > target[1]:  # the cheaper direction first
            window = ops.columns(window, target[1])
        mixed = ops.lerp_rows(window, upper[y0:y1] - first, lower[y0:y1] - first, t[y0:y1])
        return ops.columns(mixed, target[1])

    return compute


def _grid(maps: Array) -> Size:
    return int(maps.shape[-2]), int(maps.shape[-1])


def fuse(kind: str, levels: Sequence[Level], size: Size, ops: Backend) -> Rows:
    """Fused scores C x H x W of levels from the highest scale to the lowest, as `models.fusion` defines them."""
    values = [resized(whole(one.logits), _grid(one.logits), one.size, ops) for one in levels]
    shortcut = None
    if len(levels) > 1 and levels[1].scale >= 1.0:
        top, below = levels[0], levels[1].size
        grid = _grid(top.logits)
        if all(_is_one_resize(g, m, t) for g, m, t in zip(grid, top.size, below, strict=True)):
            shortcut = resized(whole(top.logits), grid, below, ops)
    return _FUSIONS[kind](levels, values, size, ops, shortcut)


def weight_rows(kind: str, levels: Sequence[Level], size: Size, ops: Backend) -> Rows:
    """Weight of each scale at each pixel, S x H x W: the fusion applied to indicators of the scales."""
    count = len(levels)

    def indicator(i: int, width: int) -> Rows:
        values = [float(i == j) for j in range(count)]
        return lambda y0, y1: ops.constant(values, y1 - y0, width)

    values = [indicator(i, one.size[1]) for i, one in enumerate(levels)]
    return _FUSIONS[kind](levels, values, size, ops, None)


def _hierarchical(
    levels: Sequence[Level], values: Sequence[Rows], size: Size, ops: Backend, shortcut: Rows | None
) -> Rows:
    """`P = a L + (1 - a) D(P)` for scales >= 1, `P = U(a L) + (1 - U(a)) P` below; from the top down."""
    fused, at = values[0], levels[0].size
    for i, level in enumerate(levels[1:], start=1):
        attention = resized(whole(level.attention), _grid(level.attention), level.size, ops)
        if level.scale >= 1.0:
            below = shortcut if i == 1 and shortcut is not None else resized(fused, at, level.size, ops)
            fused, at = _mixed(attention, values[i], below), level.size
        else:
            term = resized(_product(attention, values[i]), level.size, at, ops)
            fused = _added(term, resized(attention, level.size, at, ops), fused)
    return resized(fused, at, size, ops)


def _mixed(weight: Rows, values: Rows, rest: Rows) -> Rows:
    def compute(y0: int, y1: int) -> Array:
        a = weight(y0, y1)
        return a * values(y0, y1) + (1 - a) * rest(y0, y1)

    return compute


def _product(weight: Rows, values: Rows) -> Rows:
    return lambda y0, y1: weight(y0, y1) * values(y0, y1)


def _added(term: Rows, weight: Rows, rest: Rows) -> Rows:
    return lambda y0, y1: term(y0, y1) + (1 - weight(y0, y1)) * rest(y0, y1)


def _explicit(
    levels: Sequence[Level], values: Sequence[Rows], size: Size, ops: Backend, _shortcut: Rows | None
) -> Rows:
    scores = [resized(whole(one.attention), _grid(one.attention), size, ops) for one in levels]
    maps = [resized(rows, one.size, size, ops) for rows, one in zip(values, levels, strict=True)]

    def compute(y0: int, y1: int) -> Array:
        weights = ops.softmax([score(y0, y1) for score in scores])
        total = maps[0](y0, y1) * weights[0]
        for rows, weight in zip(maps[1:], weights[1:], strict=True):
            total = total + rows(y0, y1) * weight
        return total

    return compute


def _average(levels: Sequence[Level], values: Sequence[Rows], size: Size, ops: Backend, shortcut: Rows | None) -> Rows:
    maps = _at_size(levels, values, size, ops, shortcut)

    def compute(y0: int, y1: int) -> Array:
        total = maps[0](y0, y1)
        for rows in maps[1:]:
            total = total + rows(y0, y1)
        return total / len(maps)

    return compute


def _max(levels: Sequence[Level], values: Sequence[Rows], size: Size, ops: Backend, shortcut: Rows | None) -> Rows:
    maps = _at_size(levels, values, size, ops, shortcut)

    def compute(y0: int, y1: int) -> Array:
        best = maps[0](y0, y1)
        for rows in maps[1:]:
            best = ops.maximum(best, rows(y0, y1))
        return best

    return compute


def _at_size(
    levels: Sequence[Level], values: Sequence[Rows], size: Size, ops: Backend, shortcut: Rows | None
) -> list[Rows]:
    maps = [resized(rows, one.size, size, ops) for rows, one in zip(values, levels, strict=True)]
    if shortcut is not None and levels[1].size == size:
        maps[0] = shortcut
    return maps


_FUSIONS: dict[str, Callable[..., Rows]] = {
    "hierarchical": _hierarchical,
    "explicit": _explicit,
    "average": _average,
    "max": _max,
    "single": _average,
}
