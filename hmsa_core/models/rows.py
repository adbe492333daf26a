"""Maps that are computed a few rows at a time, so that no scale needs a map of the size of the image.

`Rows` computes rows y0..y1 of a (..., K, H, W) map from the trunk's small grid on request. A block of rows
stays in the processor's cache, and memory does not grow with the number of scales.

Arrays are numpy on a CPU, where OpenCV resizes many times as fast as torch, and torch elsewhere. Both give
the same numbers up to rounding. A resize runs over rows first, then over columns.
Legend: K channels, H x W pixels, h x w the trunk's grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Array = Any  # numpy.ndarray or torch.Tensor
Size = tuple[int, int]  # height, width in pixels
_BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}  # of fused scores at once: second-level cache, GPU memory


class Rows:
    """A map of `size`, given by the function that computes its rows y0..y1, in any number of channels.

    The operators `*`, `+` and `/` work row by row, with the results of the tensor operators on whole maps.
    """

    def __init__(self, size: Size, compute: Callable[[int, int], Array]) -> None:
        self.size = size
        self._compute = compute
        self._known: dict[Size, Rows] = {}

    def __call__(self, y0: int, y1: int) -> Array:
        """Return rows y0..y1, ... x K x (y1 - y0) x W."""
        return self._compute(y0, y1)

    def __mul__(self, other: Rows) -> Rows:
        return Rows(self.size, lambda y0, y1: self(y0, y1) * other(y0, y1))

    def __add__(self, other: Rows) -> Rows:
        return Rows(self.size, lambda y0, y1: self(y0, y1) + other(y0, y1))

    def __truediv__(self, number: float) -> Rows:
        return Rows(self.size, lambda y0, y1: self(y0, y1) / number)

    def blend(self, weight: Rows, rest: Rows) -> Rows:
        """This map + (1 - weight) * rest."""

        def compute(y0: int, y1: int) -> Array:
            term = self(y0, y1)
            total = (1 - weight(y0, y1)) * rest(y0, y1)
            total += term
            return total

        return Rows(self.size, compute)

    def maximum(self, other: Rows) -> Rows:
        """The larger of two maps at each place."""
        return Rows(self.size, lambda y0, y1: _maximum(self(y0, y1), other(y0, y1)))

    def remembered(self) -> Rows:
        """Return the same map with a cache of its last block, for a narrow map that several maps use."""
        kept: list[Any] = [None, None]

        def compute(y0: int, y1: int) -> Array:
            if kept[0] != (y0, y1):
                kept[:] = (y0, y1), self(y0, y1)
            return kept[1]

        return Rows(self.size, compute)

    def resized(self, size: Size) -> Rows:
        """The map resized bilinearly: corners not aligned, no antialias."""
        if size == self.size:
            return self
        if size in self._known:
            return self._known[size]
        upper, lower, t = taps(self.size[0], size[0])

        def compute(y0: int, y1: int) -> Array:
            if self.size[0] == size[0]:
                return _columns(self(y0, y1), size[1])
            first, last = int(upper[y0]), int(lower[y1 - 1])
            window = self(first, last + 1)
            if isinstance(window, Tensor) and (y0, y1, first, last) == (0, size[0], 0, self.size[0] - 1):
                return _resized(window, size)  # one GPU kernel
            if self.size[1] > size[1]:  # the cheaper direction first
                window = _columns(window, size[1])
            if isinstance(window, Tensor):
                above, below, share = taps_on(window.device, self.size[0], size[0], y0, y1)
                mixed = torch.lerp(
                    window[..., above - first, :], window[..., below - first, :], share.to(window.dtype)[:, None]
                )
            else:
                mixed = _mixed_rows(window, upper[y0:y1] - first, lower[y0:y1] - first, t[y0:y1])
            return _columns(mixed, size[1])

        return Rows(size, compute)

    def enlarged(self, size: Size, then: Size | None) -> Rows:
        """Return the map resized to `size`; a later resize to `then` becomes one step where the result is equal."""
        result = self.resized(size)
        if then and all(_is_one_resize(*sides) for sides in zip(self.size, size, then, strict=True)):
            result = Rows(size, result)
            result._known[then] = self.resized(then)
        return result

    def full(self) -> Tensor:
        """All rows as one tensor, computed block by block."""
        first = torch.as_tensor(self(0, 1))
        out = first.new_empty((*first.shape[:-2], *self.size))
        step = block_rows(first.numel() * first.element_size(), first.device.type)
        for y0 in range(0, self.size[0], step):
            y1 = min(y0 + step, self.size[0])
            out[..., y0:y1, :] = torch.as_tensor(self(y0, y1))
        return out


def whole(maps: Array) -> Rows:
    """Rows of an existing map (..., K, H, W)."""
    return Rows((int(maps.shape[-2]), int(maps.shape[-1])), lambda y0, y1: maps[..., y0:y1, :])


def constant(values: Sequence[float], size: Size, like: Array) -> Rows:
    """K maps, each of one value, as arrays of the kind of `like`."""
    if isinstance(like, Tensor):
        column = like.new_tensor(list(values))[:, None, None]
        return Rows(size, lambda y0, y1: column.expand(-1, y1 - y0, size[1]))
    narrow = np.asarray(values, like.dtype)[:, None, None]
    return Rows(size, lambda y0, y1: np.tile(narrow, (1, y1 - y0, size[1])))


def softmax(maps: Sequence[Rows]) -> list[Rows]:
    """Softmax over maps of one size: one map for each."""
    together = Rows(maps[0].size, lambda y0, y1: _softmax([one(y0, y1) for one in maps])).remembered()
    return [Rows(together.size, lambda y0, y1, i=i: together(y0, y1)[i]) for i in range(len(maps))]  # type: ignore[misc]


def block_rows(row_bytes: int, device: str) -> int:
    """Number of rows to compute at once: as many as fit the second-level cache, or a part of a GPU's memory."""
    return max(1, _BLOCK_BYTES.get(device, 256 << 20) // row_bytes)


@lru_cache(maxsize=256)
def taps(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Per output position: the two source positions and the weight of the second, as torch computes them."""
    scale = np.float32(source) / np.float32(target)
    position = scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    position = np.maximum(position, np.float32(0))
    upper = np.minimum(position.astype(np.intp), source - 1)
    return upper, np.minimum(upper + 1, source - 1), position - upper.astype(np.float32)


def taps_on(device: torch.device, source: int, target: int, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """`taps` of output positions low..high, computed on the device: a copy to a GPU would hold up the host."""
    position = torch.arange(low, high, device=device, dtype=torch.float32)
    position = position.add_(0.5).mul_(float(np.float32(source) / np.float32(target))).sub_(0.5).clamp_(min=0)
    upper = position.long().clamp_(max=source - 1)
    return upper, (upper + 1).clamp_(max=source - 1), position - upper


@lru_cache(maxsize=256)
def _is_one_resize(source: int, middle: int, target: int) -> bool:
    """Whether resizing source -> middle -> target is the same linear map as source -> target (one axis)."""
    upper, lower, t = taps(source, middle)
    first, second, share = taps(middle, target)
    direct = taps(source, target)
    # Weight of each source position in each target position: by two steps minus by one step.
    at = np.stack([upper[first], lower[first], upper[second], lower[second], direct[0], direct[1]])
    by_two = [(1 - share) * (1 - t[first]), (1 - share) * t[first], share * (1 - t[second]), share * t[second]]
    takes = np.stack([*by_two, direct[2] - 1, -direct[2]])
    excess = ((at[:, None] == at[None]) * takes[None]).sum(axis=1)
    return bool(np.abs(excess).max() < 1e-5)


def _mixed_rows(maps: Array, upper: NDArray[np.intp], lower: NDArray[np.intp], t: NDArray[np.float32]) -> Array:
    """Rows `upper` and `lower` of ... x K x r x w (numpy), mixed by t in [0, 1]."""
    low, high = maps[..., lower, :], maps[..., upper, :]
    low -= high
    low *= t[:, None]
    low += high
    return low


def _columns(maps: Array, width: int) -> Array:
    """Resize ... x K x r x w to ... x K x r x width, bilinear, corners not aligned."""
    *others, rows, narrow = maps.shape
    if narrow == width:
        return maps
    if isinstance(maps, Tensor):
        return _resized(maps, (rows, width))
    # All channels and rows in one image of unchanged height, so that rows are never mixed.
    picture = np.ascontiguousarray(maps).reshape(-1, narrow)
    return cv2.resize(picture, (width, len(picture)), interpolation=cv2.INTER_LINEAR).reshape(*others, rows, width)


def _resized(maps: Tensor, size: Size) -> Tensor:
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    resized = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return resized.reshape(*maps.shape[:-2], *size)


def _softmax(maps: list[Array]) -> Array:
    """Softmax over a list of equal maps, stacked."""
    if isinstance(maps[0], Tensor):
        return torch.softmax(torch.stack(maps), dim=0)
    stacked = np.stack(maps)
    stacked -= stacked.max(0)
    np.exp(stacked, out=stacked)
    stacked /= stacked.sum(0)
    return stacked


def _maximum(a: Array, b: Array) -> Array:
    return torch.maximum(a, b) if isinstance(a, Tensor) else np.maximum(a, b)
