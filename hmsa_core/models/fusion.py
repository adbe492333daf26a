"""Fusion of the predictions of several scales (Tao et al. 2020, section 3; Chen et al. 2016 for the baselines).

The functions below are the only fusion. They work on whole tensors (the training pass, with gradients) and on `Rows`,
which are computed a few rows at a time (`predict`, labelling, evaluation). Nothing in them depends on the number of
channels, so the same fusion of indicator maps of the scales gives the weight of each scale at each pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import add
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from hmsa_core.models import rows
from hmsa_core.models.layers import blocks as layers
from hmsa_core.models.rows import Rows, Size

M = TypeVar("M", Tensor, Rows)


class Level(NamedTuple, Generic[M]):
    """One scale on its pixel grid: class scores (or any other channels) and their weight."""

    scale: float
    values: M  # ... x C x Hs x Ws
    # hierarchical: sigmoid, ... x 1 x Hs x Ws; explicit: ... x 1 x H x W, sums to 1 over scales; other kinds: unused
    attention: Any = None


def fuse(kind: str, levels: Iterable[Level[M]], size: Size) -> M:
    """Fuse levels, given from the highest scale to the lowest, into one map of `size`."""
    fused: M = _FUSIONS[kind](levels, size)
    return fused


def _hierarchical(levels: Iterable[Level[M]], size: Size) -> M:
    """Chain adjacent scales from the highest down; the attention of the highest is not used.

    For s >= 1: `P = a L + (1 - a) D(P)`; for s < 1: `P = U(a L) + (1 - U(a)) P`: weighting comes before enlarging.
    Source: section 3.2 of the paper; the order of operations is that of the released code.
    """
    levels = iter(levels)
    fused = next(levels).values
    for level in levels:
        weight, weighted = level.attention, level.attention * level.values
        if level.scale >= 1.0:
            fused = _blend(weighted, weight, resize(fused, _size(weighted)))
        else:
            weighted = resize(weighted, _size(fused))
            fused = _blend(weighted, resize(weight, _size(fused)), fused)
    return resize(fused, size)


def _explicit(levels: Iterable[Level[M]], size: Size) -> M:
    """Add all scales, weighted by maps that already sum to one on the output grid (`explicit_weights`)."""
    fused: M = reduce(add, (resize(level.values, size) * level.attention for level in levels))
    return fused


def _average(levels: Iterable[Level[M]], size: Size) -> M:
    """Average the scores of all scales."""
    maps = [resize(level.values, size) for level in levels]
    return reduce(add, maps) / len(maps)


def _max(levels: Iterable[Level[M]], size: Size) -> M:
    """Take the highest score of each class over all scales."""
    highest: M = reduce(lambda a, b: a.maximum(b), (resize(level.values, size) for level in levels))
    return highest


_FUSIONS: dict[str, Callable[[Iterable[Any], Size], Any]] = {
    "hierarchical": _hierarchical,
    "explicit": _explicit,
    "average": _average,
    "max": _max,
    "single": _average,  # of one scale
}


def explicit_weights(scores: Sequence[M], size: Size) -> list[M]:
    """Softmax over scales of the attention scores, one map per scale on the output grid (Chen et al. 2016)."""
    maps = [resize(score, size) for score in scores]
    if isinstance(maps[0], Rows):
        return rows.softmax(maps)
    return list(torch.softmax(torch.stack(maps), dim=0))


def resize(maps: M, size: Size) -> M:
    """Resize bilinearly (corners not aligned, no antialias); the same size returns the input itself."""
    return maps.resized(size) if isinstance(maps, Rows) else layers.resize(maps, size)


def _size(maps: M) -> Size:
    return maps.size if isinstance(maps, Rows) else (maps.shape[-2], maps.shape[-1])


def _blend(term: M, weight: M, rest: M) -> M:
    """`term + (1 - weight) * rest`."""
    return term.blend(weight, rest) if isinstance(term, Rows) else torch.addcmul(term, 1 - weight, rest)
