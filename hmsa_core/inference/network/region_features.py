"""What a frozen trunk sees in regions of an image: means over their pixels of its maps, ImageNet weights."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from hmsa_core.config import MEAN, STD
from hmsa_core.models import build

_TRUNK, _WEIGHTS = "timm:tf_efficientnet_lite0", "package:efficientnet-lite0"
_WIDTH = 640  # pixels; wider images are made smaller
_COARSEST = 3  # maps: strides 8, 16 and 32


class RegionFeatures:
    """The trunk with its weights.

    Raises:
        CheckpointError: the package with the weights is not installed.
    """

    def __init__(self) -> None:
        model = build("single", num_classes=2, trunk=_TRUNK, trunk_weights=_WEIGHTS)
        self._body = cast("Any", model.backbone).body.eval()

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8], regions: NDArray[np.intp]) -> NDArray[np.float32]:
        """Features of regions, (R, K).

        Args:
            image: uint8 HxWx3, RGB.
            regions: number of each pixel's region, 0 to R - 1, of any size (the image is read at the same places).
        """
        height, width = image.shape[:2]
        if width > _WIDTH:
            smaller = cv2.resize(image, (_WIDTH, round(height * _WIDTH / width)), interpolation=cv2.INTER_AREA)
            image = np.asarray(smaller, np.uint8)
        mean, std = (np.array(values, np.float32) for values in (MEAN, STD))
        pixels = (image.astype(np.float32) / 255 - mean) / std
        pixels = np.pad(pixels, ((0, -pixels.shape[0] % 32), (0, -pixels.shape[1] % 32), (0, 0)), mode="edge")
        maps = self._body(torch.from_numpy(pixels.transpose(2, 0, 1)[None]))[-_COARSEST:]
        scale = image.shape[0] / regions.shape[0], image.shape[1] / regions.shape[1]
        return np.concatenate([_means(one[0].numpy(), regions, scale, pixels.shape[0]) for one in maps], axis=1)


def _means(
    one: NDArray[np.float32], regions: NDArray[np.intp], scale: tuple[float, float], height: int
) -> NDArray[np.float32]:
    """Means of a map (K, h, w) over regions; each pixel takes the value of the place of the map in which it lies."""
    stride = height // one.shape[1]
    rows, columns = (
        ((np.arange(side) + 0.5) * s / stride).astype(np.intp) for side, s in zip(regions.shape, scale, strict=True)
    )
    place = (rows[:, None] * one.shape[2] + columns[None, :]).ravel()
    shape = (int(regions.max()) + 1, one.shape[1] * one.shape[2])
    counts = csr_array((np.ones(place.size, np.float32), (regions.ravel(), place)), shape=shape)
    totals = counts @ one.reshape(one.shape[0], -1).T
    return np.asarray(totals / np.bincount(regions.ravel())[:, None], np.float32)
