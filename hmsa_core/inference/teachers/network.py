"""Networks of other tools: one image at several scales and mirrored, fused as the averaging baseline fuses ours.

A network gives scores on any grid; they are enlarged bilinearly to the image. Probabilities are taken by their
logarithm, so that scales are averaged as logits are: at one scale the softmax gives the same probabilities back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmsa_core.data.transforms import MEAN, STD
from hmsa_core.inference.predictor import Engine, ImagePass, normalised, normalising_table
from hmsa_core.inference.teachers.sources import Source
from hmsa_core.io.errors import CheckpointError, ConfigError, one_line
from hmsa_core.models.layers import resize
from hmsa_core.runtime.memory import is_out_of_memory

_LEAST = 1e-30  # a probability below is taken for it: no logarithm of zero
_ROUNDING = 1e-3  # of probabilities that half precision has been through


class Network(Engine):
    """A network of another tool, ready for inference.

    Args:
        source: where it comes from, and the table beside it.
        size: height, width that images are brought to first; None = their own.
        mean, std: of RGB values in [0, 1]; None = ImageNet's.
        output: logits or probabilities.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        output: str | None = None,
    ) -> None:
        self.kind, self.device, self.precision = "average", torch.device("cpu"), "fp32"
        self.source, self.size = source, size
        values = [np.array(given or usual, float) for given, usual in ((mean, MEAN), (std, STD))]
        if any(value.shape != (3,) for value in values) or not (values[1] > 0).all():
            raise ConfigError(f"{source}: mean and std must be three numbers each, std above 0")
        self._table = normalising_table(*values)
        self._gives_probabilities = (source.table.output or output) == "probabilities"
        self._is_checked = False

    def open(self, image: NDArray[np.uint8]) -> ImagePass:
        """Begin with one image, uint8 HxWx3 RGB."""
        size = (image.shape[0], image.shape[1])
        if self.size is not None and self.size != size:
            smaller = self.size[0] * self.size[1] < image.shape[0] * image.shape[1]
            how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            image = np.asarray(cv2.resize(image, self.size[::-1], interpolation=how), np.uint8)
        return ImagePass(self, normalised(image, self._table).to(self.device), size)

    def run(self, images: Tensor, _attention: bool) -> tuple[Tensor, Tensor | None]:
        """Scores of 1 x 3 x H x W normalised images, float32 on the network's own grid."""
        sides = self._rounded(images.shape[2]), self._rounded(images.shape[3])
        try:
            with torch.inference_mode():
                found = self.scores(resize(images, sides))
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise ConfigError(
                f"{self.source}: fails on an image of {sides[0]}x{sides[1]} pixels: {one_line(error)[:200]}",
                hint=f"say `size: [HEIGHT, WIDTH]` or `multiple: 32` in {self.source.table_path}, or use scale 1 alone",
            ) from error
        if found.ndim != 4 or found.shape[0] != 1:
            raise CheckpointError(
                f"{self.source}: its output has the shape {tuple(found.shape)}, expected 1 x classes x H x W of scores"
            )
        return self._logits(found.float()), None

    @abstractmethod
    def scores(self, images: Tensor) -> Tensor:
        """Run the network as it is; any of its own errors may be raised."""

    def _rounded(self, side: int) -> int:
        unit = self.source.table.multiple
        return max(unit, round(side / unit) * unit)

    def _logits(self, found: Tensor) -> Tensor:
        is_given = self._gives_probabilities
        if is_given or not self._is_checked:
            self._is_checked = True
            in_range = bool(found.min() >= -_ROUNDING and found.max() <= 1 + _ROUNDING)
            if is_given and not in_range:
                raise ConfigError(
                    f"{self.source}: gives {float(found.min()):.3g} to {float(found.max()):.3g}, no probabilities",
                    hint=f"say `output: logits` in {self.source.table_path}",
                )
            if not is_given and in_range and bool(((found.sum(1) - 1).abs() < 10 * _ROUNDING).all()):
                raise ConfigError(
                    f"{self.source}: its scores sum to 1 at each pixel, so they are probabilities and no logits",
                    hint=f"say `output: probabilities` in {self.source.table_path}",
                )
        return found.clamp(min=_LEAST).log() if is_given else found
