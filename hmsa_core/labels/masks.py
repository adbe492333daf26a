"""Static camera masks: the hood and the rectification border are data of a camera, never constants in code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.atomic import write_bytes
from hmsa_core.io.errors import InputError
from hmsa_core.labels.store.format import png_bytes
from hmsa_core.taxonomy import IGNORE

__all__ = ["MaskCounter", "apply_mask", "read_mask", "write_mask"]

Mask = NDArray[np.bool_]


class MaskCounter:
    """Counts how often each pixel is void in one camera's fine labels; what nearly always is, is the camera's."""

    def __init__(self) -> None:
        self._void: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._images: dict[tuple[int, int], int] = {}

    def add(self, truth: NDArray[np.uint8]) -> None:
        """Count one fine label (uint8 HxW, 255 = void). Labels of another size are another camera."""
        size = (truth.shape[0], truth.shape[1])
        self._void.setdefault(size, np.zeros(size, np.int64))
        self._void[size] += truth == IGNORE
        self._images[size] = self._images.get(size, 0) + 1

    def masks(self, void_share: float, min_images: int) -> dict[tuple[int, int], Mask]:
        """Ignored pixels (True) by image size, for sizes with enough images and any such pixel."""
        found = {
            size: void > void_share * self._images[size]
            for size, void in self._void.items()
            if self._images[size] >= min_images
        }
        return {size: mask for size, mask in found.items() if mask.any()}

    @classmethod
    def of(cls, truths: Iterable[NDArray[np.uint8]]) -> MaskCounter:
        """Count many labels."""
        counter = cls()
        for truth in truths:
            counter.add(truth)
        return counter


def read_mask(path: str | Path) -> Mask:
    """Read a mask PNG: 8-bit grey, 0 = ignored, anything else = used; returns True where ignored."""
    where = Path(path)
    if not where.is_file():
        raise InputError(f"{where}: mask not found")
    image = cv2.imread(str(where), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 2 or image.dtype != np.uint8:
        raise InputError(f"{where}: a mask must be an 8-bit grey PNG (0 = ignored)")
    return np.asarray(image == 0)


def write_mask(path: str | Path, mask: Mask) -> str:
    """Write a mask as `read_mask` reads it; return the file's SHA-256."""
    return write_bytes(path, png_bytes(np.where(mask, 0, 255).astype(np.uint8)))


def apply_mask(label: NDArray[np.uint8], mask: Mask, where: str = "the mask") -> NDArray[np.uint8]:
    """The label with 255 where the mask is True; another size is an InputError, never a resize."""
    if mask.shape != label.shape:
        raise InputError(f"{where}: mask is {mask.shape}, the label {label.shape}", hint="one mask for each camera")
    return np.where(mask, np.uint8(IGNORE), label)
