"""The few array operations of row-wise fusion, on numpy + OpenCV (CPU) and on torch (GPU).

OpenCV resizes and exponentiates many times as fast as torch does on a CPU; both backends give the same
numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

__all__ = ["Array", "Backend", "NumpyBackend", "TorchBackend"]

Array = Any  # numpy.ndarray or torch.Tensor, by backend


class Backend(Protocol):
    """The few operations that differ between numpy and torch."""

    def lerp_rows(self, maps: Array, upper: NDArray[np.intp], lower: NDArray[np.intp], t: Any) -> Array:
        """Rows `upper` and `lower` of K x r x w, mixed by t in [0, 1]."""

    def columns(self, maps: Array, width: int) -> Array:
        """Resize K x r x w to K x r x width, bilinear, corners not aligned."""

    def softmax(self, maps: list[Array]) -> list[Array]:
        """Softmax over a list of equal maps."""

    def maximum(self, a: Array, b: Array) -> Array:
        """Larger of two maps, elementwise."""

    def constant(self, values: Sequence[float], rows: int, width: int) -> Array:
        """K x rows x width maps, each of one value."""

    def decide(self, logits: Array) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Best class and its softmax probability of C x r x W scores; the lower class wins a tie."""


class NumpyBackend:
    """Float32 numpy arrays and OpenCV."""

    def lerp_rows(
        self, maps: NDArray[np.float32], upper: NDArray[np.intp], lower: NDArray[np.intp], t: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Rows `upper` and `lower` of K x r x w, mixed by t in [0, 1]."""
        low = maps[:, lower]
        high = maps[:, upper]
        low -= high
        low *= t[:, None]
        low += high
        return low

    def columns(self, maps: NDArray[np.float32], width: int) -> NDArray[np.float32]:
        """Resize K x r x w to K x r x width, bilinear, corners not aligned."""
        channels, rows, narrow = maps.shape
        if narrow == width:
            return maps
        # All channels and rows in one picture: its height stays, so no two rows are ever mixed.
        flat = np.ascontiguousarray(maps).reshape(channels * rows, narrow)
        wide = cv2.resize(flat, (width, channels * rows), interpolation=cv2.INTER_LINEAR)
        return np.asarray(wide, np.float32).reshape(channels, rows, width)

    def softmax(self, maps: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Softmax over a list of equal maps."""
        stacked = np.stack(maps)
        stacked -= stacked.max(0)
        np.exp(stacked, out=stacked)
        stacked /= stacked.sum(0)
        return list(stacked)

    def maximum(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
        """Larger of two maps, elementwise."""
        return np.maximum(a, b)

    def constant(self, values: Sequence[float], rows: int, width: int) -> NDArray[np.float32]:
        """K x rows x width maps, each of one value."""
        maps = np.asarray(values, np.float32)[:, None, None]
        return np.broadcast_to(maps, (len(values), rows, width))

    def decide(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Best class and its softmax probability of C x r x W scores; the lower class wins a tie."""
        classes = logits.shape[0]
        best = logits.max(0)
        # Bytes instead of argmax's 64-bit indices: 12 times as fast. A NaN wins nowhere: label 255.
        is_best = (logits == best).view(np.uint8)
        is_best *= np.arange(classes, 0, -1, dtype=np.uint8)[:, None, None]
        rank = is_best.max(0)
        label = np.where(rank == 0, np.uint8(255), np.uint8(classes) - rank)
        logits = np.ascontiguousarray(logits - best)  # else reshape copies, and exp's result is lost
        cv2.exp(logits.reshape(classes, -1), dst=logits.reshape(classes, -1))
        return label, np.reciprocal(logits.sum(0))


class TorchBackend:
    """Float32 torch tensors on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def lerp_rows(
        self, maps: torch.Tensor, upper: NDArray[np.intp], lower: NDArray[np.intp], t: NDArray[np.float32]
    ) -> torch.Tensor:
        """Rows `upper` and `lower` of K x r x w, mixed by t in [0, 1]."""
        first, second = (torch.from_numpy(i).to(self.device) for i in (upper, lower))
        weight = torch.from_numpy(t).to(self.device)
        return torch.lerp(maps[:, first], maps[:, second], weight[:, None])

    def columns(self, maps: torch.Tensor, width: int) -> torch.Tensor:
        """Resize K x r x w to K x r x width, bilinear, corners not aligned."""
        if maps.shape[-1] == width:
            return maps
        size = (maps.shape[-2], width)
        return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]

    def softmax(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Softmax over a list of equal maps."""
        return list(torch.softmax(torch.stack(maps), dim=0))

    def maximum(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Larger of two maps, elementwise."""
        return torch.maximum(a, b)

    def constant(self, values: Sequence[float], rows: int, width: int) -> torch.Tensor:
        """K x rows x width maps, each of one value."""
        maps = torch.tensor(values, dtype=torch.float32, device=self.device)
        return maps[:, None, None].expand(-1, rows, width)

    def decide(self, logits: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Best class and its softmax probability of C x r x W scores; the lower class wins a tie."""
        best, label = logits.max(dim=0)
        probability = (logits - best).exp_().sum(dim=0).reciprocal_()
        label_u8 = torch.where(best.isnan(), 255, label).to(torch.uint8)
        return label_u8.cpu().numpy(), probability.cpu().numpy()
