"""How predictions of several scales become one (Tao et al. 2020, section 3; Chen et al. 2016 for the baselines).

A `Level` is one scale on its own pixel grid. The functions take levels from the highest scale to the lowest
and return one tensor on the grid of scale 1.0; they are pure and work on any block of channels, so callers
can go through the classes in chunks and never hold all of them for every scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hmsa_core.models.layers import resize

__all__ = ["FUSIONS", "Level", "explicit_weights", "fuse_average", "fuse_explicit", "fuse_hierarchical", "fuse_max"]


class Level(NamedTuple):
    """One scale: class scores (or any other channels) and the weight that its attention head gives them."""

    scale: float
    values: Tensor  # B x C x Hs x Ws
    # hierarchical: sigmoid, B x 1 x Hs x Ws; explicit: B x 1 x H x W, sums to 1 over scales; None: not computed
    attention: Tensor | None = None


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def _attention(level: Level) -> Tensor:
    if level.attention is None:
        raise ValueError(f"scale {level.scale} is fused by attention but has none")
    return level.attention


def fuse_hierarchical(levels: Iterable[Level], size: tuple[int, int]) -> Tensor:
    """Chain adjacent scales from the highest down; the attention of the highest is not used.

    For s >= 1: `P = a_s L_s + (1 - a_s) D(P)`; for s < 1: `P = U(a_s L_s) + (1 - U(a_s)) P`: weighted first,
    upsampled then. Source: section 3.2 of the paper; the order of operations is that of the released code.
    """
    fused: Tensor | None = None
    for level in levels:
        if fused is None:
            fused = level.values
            continue
        weight = _attention(level)
        if level.scale >= 1.0:
            below = resize(fused, _size(level.values))
            fused = torch.addcmul(weight * level.values, 1 - weight, below)
        else:
            term = resize(weight * level.values, _size(fused))
            fused = torch.addcmul(term, 1 - resize(weight, _size(fused)), fused)
    if fused is None:
        raise ValueError("no level to fuse")
    return resize(fused, size)


def explicit_weights(scores: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
    """Softmax over scales of the attention scores, one map a scale on the output grid (Chen et al. 2016)."""
    return list(torch.softmax(torch.stack([resize(score, size) for score in scores]), dim=0))


def fuse_explicit(levels: Iterable[Level], size: tuple[int, int]) -> Tensor:
    """Add all scales, weighted by maps that already sum to one on the output grid (`explicit_weights`)."""
    fused: Tensor | None = None
    for level in levels:
        term = resize(level.values, size) * _attention(level)
        fused = term if fused is None else fused + term
    if fused is None:
        raise ValueError("no level to fuse")
    return fused


def fuse_average(levels: Iterable[Level], size: tuple[int, int]) -> Tensor:
    """Average the scores of all scales."""
    fused: Tensor | None = None
    count = 0
    for level in levels:
        term = resize(level.values, size)
        fused = term if fused is None else fused + term
        count += 1
    if fused is None:
        raise ValueError("no level to fuse")
    return fused / count


def fuse_max(levels: Iterable[Level], size: tuple[int, int]) -> Tensor:
    """Take the highest score of each class over all scales."""
    fused: Tensor | None = None
    for level in levels:
        term = resize(level.values, size)
        fused = term if fused is None else torch.maximum(fused, term)
    if fused is None:
        raise ValueError("no level to fuse")
    return fused


FUSIONS: dict[str, Callable[[Iterable[Level], tuple[int, int]], Tensor]] = {
    "hierarchical": fuse_hierarchical,
    "explicit": fuse_explicit,
    "average": fuse_average,
    "max": fuse_max,
    "single": fuse_average,  # of one scale
}
