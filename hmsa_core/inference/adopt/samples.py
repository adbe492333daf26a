"""Scores of a network at drawn pixels of some images, at each scale and mirrored: what all choices are made from.

Scores are kept at a grid of pixels only (at most `PIXELS` in all), so that any set of scales, any class map and any
combination can be tried without another run of the network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmsa_core.config import Passes
from hmsa_core.io.errors import InputError
from hmsa_core.taxonomy import IGNORE

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
PIXELS = 150_000  # in all images together
_SMALLEST_LOG = math.log(1e-6)
_LOG_ROUNDING = 0.01  # of such a logarithm as float16


class View(NamedTuple):
    """One run of a network: at a scale, mirrored or not."""

    scale: float
    mirrored: bool = False


def views_of(passes: Passes) -> list[View]:
    """The runs that are averaged."""
    return [View(scale, mirrored) for scale in passes.scales for mirrored in passes.mirrors]


@dataclass(frozen=True)
class Picture:
    """One image: its name, its file, its pixels (uint8 HxWx3 RGB), true labels (uint8, any size) or None, its block."""

    name: str
    file: Path
    image: Callable[[], UInt8]
    truth: Callable[[], UInt8] | None
    block: str


@dataclass
class Pixels:
    """The drawn pixels of all images: truth (255 = unknown) and number of the block, each (n,)."""

    truth: UInt8
    block: NDArray[np.int32]
    blocks: tuple[str, ...]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether each pixel has a truth."""
        return np.asarray(self.truth != IGNORE)

    @property
    def is_labelled(self) -> bool:
        """Whether any pixel has a truth."""
        return bool(self.known.any())


@dataclass
class Views:
    """Log-probabilities of one network at the drawn pixels, (n, T) float16 for each view, and seconds an image."""

    scores: dict[View, NDArray[np.float16]] = field(default_factory=dict)
    seconds: dict[View, float] = field(default_factory=dict)

    def probabilities(self, views: Sequence[View]) -> Float32:
        """Softmax of the mean over views, (n, T) float32: as scales and mirror images are averaged in a run.

        One view alone is as it was given: finished scores may sum to less than 1.
        """
        total = self.scores[views[0]].astype(np.float32)
        if len(views) == 1:
            return np.where(total > _SMALLEST_LOG + _LOG_ROUNDING, np.exp(total), np.float32(0))
        for view in views[1:]:
            total += self.scores[view]
        total /= np.float32(len(views))
        total -= total.max(1, keepdims=True)
        np.exp(total, out=total)
        return np.asarray(total / total.sum(1, keepdims=True), np.float32)

    def time(self, views: Sequence[View]) -> float:
        """Seconds an image of these views."""
        return sum(self.seconds[view] for view in views)


def grid(shape: tuple[int, int], pixels: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of about `pixels` places of an image, evenly spread."""
    step = max(1, math.ceil(math.sqrt(shape[0] * shape[1] / max(1, pixels))))
    ys, xs = (np.arange(min(step // 2, side - 1), side, step) for side in shape)
    return np.repeat(ys, len(xs)), np.tile(xs, len(ys))


def draw(pictures: Sequence[Picture]) -> Pixels:
    """The drawn pixels of the images."""
    names = tuple(sorted({one.block for one in pictures}))
    truths, blocks = [], []
    for one in pictures:
        height, width = one.image().shape[:2]
        rows, columns = grid((height, width), PIXELS // len(pictures))
        label = one.truth() if one.truth else np.full((1, 1), IGNORE, np.uint8)
        truths.append(label[rows * label.shape[0] // height, columns * label.shape[1] // width])
        blocks.append(np.full(len(rows), names.index(one.block), np.int32))
    return Pixels(np.concatenate(truths), np.concatenate(blocks), names)


def run(
    pictures: Sequence[Picture], views: Sequence[View], predict: Callable[[Picture, UInt8, View], Float32]
) -> Views:
    """Run a network over the images.

    Args:
        pictures: the images.
        views: scales and mirror images.
        predict: probabilities of an image at a view, T x H x W float32, mirrored back where the view is mirrored.
    """
    found: dict[View, list[NDArray[np.float16]]] = {view: [] for view in views}
    seconds = dict.fromkeys(views, 0.0)
    for one in pictures:
        image = one.image()
        rows, columns = grid((image.shape[0], image.shape[1]), PIXELS // len(pictures))
        for view in views:
            begun = time.perf_counter()
            scores = predict(one, image, view)
            seconds[view] += time.perf_counter() - begun
            if found[view] and found[view][-1].shape[1] != len(scores):
                raise InputError(f"{one.name}: {len(scores)} classes, images before it {found[view][-1].shape[1]}")
            logs = np.log(np.maximum(scores[:, rows, columns].T, 1e-6))
            found[view].append(np.maximum(logs, _SMALLEST_LOG).astype(np.float16))
    return Views(
        {view: np.concatenate(parts) for view, parts in found.items()},
        {view: spent / len(pictures) for view, spent in seconds.items()},
    )
