"""Images too large for memory are labelled in overlapping tiles; everything else is labelled whole.

A tile sees less context than the whole image (OCR gathers its regions from what it sees), so labels near
tile borders can differ. Whether an image is tiled depends on its size alone; only when a GPU (or this
machine) runs out of memory is the tile halved, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.transforms import resize_label
from hmsa_core.inference.fast import ImagePass, Predictor
from hmsa_core.io.errors import TrainingError
from hmsa_core.runtime.memory import is_out_of_memory, release_memory

__all__ = ["TILE", "WHOLE_PIXELS", "Tiler", "Window", "windows"]

_LOG = logging.getLogger(__name__)
WHOLE_PIXELS = 1 << 22  # larger images are tiled; Cityscapes has 2.1, Mapillary at long edge 2177 about 3.6 million
TILE = 2048  # pixels; side of the tiles of such images
_SMALLEST = 256
_GRID = 32  # pixels; the trunk's coarsest grid: tiles start on it, so that they see what the whole would see


class Window(NamedTuple):
    """One tile: what the model sees, and the part of it that is kept."""

    seen: tuple[slice, slice]
    kept: tuple[slice, slice]

    @property
    def inner(self) -> tuple[slice, slice]:
        """The kept part in coordinates of the tile."""
        (seen_y, seen_x), (kept_y, kept_x) = self
        return (
            slice(kept_y.start - seen_y.start, kept_y.stop - seen_y.start),
            slice(kept_x.start - seen_x.start, kept_x.stop - seen_x.start),
        )


def windows(size: tuple[int, int], tile: int) -> Iterator[Window]:
    """Tiles of at most `tile` pixels a side that overlap by a quarter and keep each pixel exactly once."""
    rows, columns = (_spans(length, tile) for length in size)
    for seen_y, kept_y in rows:
        for seen_x, kept_x in columns:
            yield Window((seen_y, seen_x), (kept_y, kept_x))


def _spans(length: int, tile: int) -> list[tuple[slice, slice]]:
    """(seen, kept) along one axis."""
    if length <= tile:
        return [(slice(0, length), slice(0, length))]
    margin = tile // 8 // _GRID * _GRID
    starts = [*range(0, length - tile, tile - 2 * margin), _floor(length - tile + _GRID - 1)]
    spans = []
    for i, start in enumerate(starts):
        stop = min(start + tile, length)
        first = 0 if i == 0 else start + margin
        last = length if i == len(starts) - 1 else starts[i + 1] + margin
        spans.append((slice(start, stop), slice(first, last)))
    return spans


def _floor(pixels: int) -> int:
    return pixels // _GRID * _GRID


class Tiler:
    """Labels images whole or in tiles, and remembers which sizes did not fit."""

    def __init__(self, predictor: Predictor, *, whole_pixels: int = WHOLE_PIXELS, tile: int = TILE) -> None:
        self.predictor = predictor
        self._whole_pixels, self._tile = whole_pixels, tile
        self._fits: dict[tuple[int, int], int] = {}  # image size -> tile side that did fit after a failure
        self._last: tuple[NDArray[np.uint8], ImagePass] | None = None

    def label(
        self,
        image: NDArray[np.uint8],
        scales: Sequence[float],
        flip: bool,
        *,
        kind: str = "model",
        size: tuple[int, int] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Label and confidence of an image (see `ImagePass.label`), tiled where it must be.

        The same array again, with other settings, shares what the model has computed for it already. At another
        `size` than the image's, a whole image's fused scores are resized; of a tiled one the finished maps are
        (label by the nearest pixel, confidence bilinearly), since tiles do not end on that size's pixels.

        Raises:
            TrainingError: not even tiles of 256 pixels fit into memory (exit status 6).
        """
        shape = (image.shape[0], image.shape[1])
        tile = self._side(shape)
        while True:
            try:
                return self._label_at(image, scales, flip, kind, size, tile)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                smaller = _floor(min(tile, max(shape)) // 2)
            # Outside of the handler: its traceback would keep the failed pass's tensors alive.
            self._last = None
            release_memory(self.predictor.device)
            if smaller < _SMALLEST:
                raise TrainingError(
                    f"out of memory on {self.predictor.device} with tiles of {tile} pixels",
                    hint="use fewer or smaller scales, precision bf16, or a machine with more memory",
                )
            _LOG.warning("an image of %dx%d does not fit: tiles of %d pixels now", *shape, smaller)
            self._fits[shape] = tile = smaller

    def weights(
        self, image: NDArray[np.uint8], scales: Sequence[float], flip: bool, *, kind: str = "model"
    ) -> dict[float, NDArray[np.float32]]:
        """Weight of each scale at each pixel of an image that `label` has been called for before."""
        shape = (image.shape[0], image.shape[1])
        tile = self._side(shape)
        if max(shape) <= tile:
            return self._open(image).weights(scales, flip, kind=kind)
        maps = {scale: np.empty(shape, np.float32) for scale in sorted(scales)}
        for window in windows(shape, tile):
            part = self._open(np.ascontiguousarray(image[window.seen])).weights(scales, flip, kind=kind)
            for scale, values in part.items():
                maps[scale][window.kept] = values[window.inner]
        return maps

    def _side(self, shape: tuple[int, int]) -> int:
        whole = shape[0] * shape[1] <= self._whole_pixels
        return self._fits.get(shape, max(shape) if whole else self._tile)

    def _open(self, image: NDArray[np.uint8]) -> ImagePass:
        if self._last is None or self._last[0] is not image:
            self._last = (image, self.predictor.open(image))
        return self._last[1]

    def _label_at(
        self,
        image: NDArray[np.uint8],
        scales: Sequence[float],
        flip: bool,
        kind: str,
        size: tuple[int, int] | None,
        tile: int,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        shape = (image.shape[0], image.shape[1])
        if max(shape) <= tile:
            return self._open(image).label(scales, flip, kind=kind, size=size)
        label, confidence = np.empty(shape, np.uint8), np.empty(shape, np.float32)
        for window in windows(shape, tile):
            part = self._open(np.ascontiguousarray(image[window.seen])).label(scales, flip, kind=kind)
            label[window.kept], confidence[window.kept] = (maps[window.inner] for maps in part)
        if size is None or size == shape:
            return label, confidence
        return resize_label(label, size), np.asarray(cv2.resize(confidence, size[::-1]), np.float32)
