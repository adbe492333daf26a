"""Class colours that stay apart for any colour vision, picked one after the other, farthest first.

Distances are taken in OKLab (Ottosson 2020) of the colour as it is and as it looks with protanopia,
deuteranopia and tritanopia (simulation matrices of Machado, Oliveira and Fernandes 2009, severity 1.0).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["safe_colours", "smallest_distance"]

Colour = tuple[int, int, int]

_MACHADO = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
# What lies under an overlay is mostly grey road and dark scenery, and black reads as "nothing".
_AVOID: tuple[Colour, ...] = ((0, 0, 0), (110, 110, 110))


def _views(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """OKLab of sRGB colours (n, 3) in 0..255 as seen with each of four kinds of vision: (4, n, 3)."""
    srgb = colours / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.einsum("vij,nj->vni", _MACHADO, linear), 0.0, 1.0)
    return np.asarray(np.cbrt(seen @ _TO_LMS.T) @ _TO_LAB.T)


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smallest distance over the kinds of vision between views a (4, n, 3) and b (4, m, 3): (n, m)."""
    return np.asarray(np.linalg.norm(a[:, :, None] - b[:, None, :], axis=-1).min(axis=0))


def smallest_distance(colours: list[Colour]) -> float:
    """Distance in OKLab of the two colours that are easiest to mix up, with any of four kinds of vision."""
    views = _views(np.array(colours, np.float64))
    distances = _distances(views, views)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min())


@cache
def safe_colours(count: int) -> tuple[Colour, ...]:
    """`count` RGB colours; the first ones are the farthest apart, so frequent classes should come first."""
    steps = np.array([0, 51, 102, 153, 204, 255], np.float64)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    if count > len(grid) // 2:
        return tuple((int(17 * i) % 256, int(53 * i) % 256, int(97 * i) % 256) for i in range(count))
    views = _views(grid)
    nearest = _distances(views, _views(np.array(_AVOID, np.float64))).min(axis=1)
    chosen: list[int] = []
    for _ in range(count):
        best = int(np.argmax(nearest))
        chosen.append(best)
        nearest = np.minimum(nearest, _distances(views, views[:, [best]])[:, 0])
    return tuple((int(r), int(g), int(b)) for r, g, b in grid[chosen])
