"""Multi-scale inference of one image: the trunk runs once a scale and mirror image, the rest is rows.

    Predictor(model, device, precision)      the network rewritten for inference
      .open(image) -> ImagePass              caches the raw outputs of each (size, mirrored) it is asked for
        .label(kind, scales, flip)           label and confidence, fused a few rows at a time
        .weights(kind, scales, flip)         weight of each scale at each pixel

Several settings (scales, flip, fusion kind) of one image share what they have in common.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hmsa_core.data.transforms import MEAN, STD
from hmsa_core.inference.fast_backends import Array, Backend, NumpyBackend, TorchBackend
from hmsa_core.inference.fast_heads import run_scale
from hmsa_core.inference.fast_rows import Level, Rows, Size, fuse, resized, weight_rows
from hmsa_core.inference.fast_weights import effective_precision, optimise
from hmsa_core.io.errors import CheckpointError, ConfigError, HmsaError, InputError
from hmsa_core.models.checkpoint import check_class_count
from hmsa_core.models.hmsa import MultiScaleModel
from hmsa_core.runtime.memory import is_out_of_memory, release_memory

__all__ = ["ImagePass", "Predictor"]

_BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}  # of fused scores at once: second-level cache, GPU memory
_HAS_ATTENTION = ("hierarchical", "explicit")


@dataclass(frozen=True)
class _Output:
    logits: Array  # C x h x w float32, mirrored back
    attention: Array | None  # 1 x h x w


class Predictor:
    """A model made ready for inference on one device.

    Args:
        model: a model of `hmsa_core.models`; not changed, unless `in_place`.
        device: where it computes.
        precision: "fp32", "bf16" (fp32 on a CPU without bf16 units: see `.precision`) or "fp16".
        in_place: rewrite the model itself, which cannot be trained or saved afterwards: no second copy of
            the weights in memory.
    """

    def __init__(
        self,
        model: MultiScaleModel,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        *,
        in_place: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.precision = effective_precision(precision, self.device)
        self.kind, self.num_classes, self.meta = model.kind, model.num_classes, model.meta
        check_class_count(self.num_classes)
        inference = model.meta.get("inference") or {}
        mean, std = (np.array(inference.get(k) or v, float) for k, v in (("mean", MEAN), ("std", STD)))
        if mean.shape != (3,) or std.shape != (3,) or not (std > 0).all():
            raise CheckpointError("the checkpoint's mean and std must be three numbers each, std above 0")
        # 256 values a channel: (value / 255 - mean) / std, as in training.
        self.table = ((np.arange(256)[:, None] / 255 - mean) / std).astype(np.float32)[:, None]
        self._model = optimise(model, self.device, self.precision, in_place=in_place)
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        self.pairs = self.device.type == "cuda"  # image and mirror image in one batch: better use of a GPU
        self.ops: Backend = NumpyBackend() if self.device.type == "cpu" else TorchBackend(self.device)

    def open(self, image: NDArray[np.uint8]) -> ImagePass:
        """Begin with one image, uint8 HxWx3 RGB."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(f"an image must be uint8 HxWx3 RGB, found {image.dtype} {image.shape}")
        return ImagePass(self, image)

    def check_kind(self, kind: str) -> str:
        """Name of the fusion to use; "model" is the model's own. Attention cannot be had without its head."""
        kind = self.kind if kind == "model" else kind
        if kind in _HAS_ATTENTION and kind != self.kind:
            raise ConfigError(f"a {self.kind} model cannot be run as {kind}: it has no such attention head")
        return kind

    def run(self, images: Tensor, *, attention: bool) -> tuple[Tensor, Tensor | None]:
        """Raw scores and attention (float32, on the trunk's grid) of B x 3 x H x W normalised images."""
        with torch.inference_mode():
            images = images.to(self._dtype, memory_format=torch.channels_last)
            logits, weight = run_scale(self._model, images, attention=attention)
            return logits.float().contiguous(), None if weight is None else weight.float().contiguous()


class ImagePass:
    """One image: normalised once, run once for each size and mirror image that a setting needs."""

    def __init__(self, predictor: Predictor, image: NDArray[np.uint8]) -> None:
        self._predictor = predictor
        self.size: Size = (image.shape[0], image.shape[1])
        self._pixels = np.asarray(cv2.LUT(np.ascontiguousarray(image), predictor.table), np.float32)
        self._outputs: dict[tuple[Size, bool], _Output] = {}

    def label(
        self, scales: Sequence[float], flip: bool, *, kind: str = "model", size: Size | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Best class (uint8 HxW) and its probability (float32 HxW, softmax after all fusing).

        Args:
            scales: different positive numbers, one of them 1.0.
            flip: average the scores with those of the mirror image.
            kind: how scales are fused: "model", or "single", "average", "max" with the same weights.
            size: size of the result; the fused scores are resized (default: the image's).
        """
        ops = self._predictor.ops
        fused = self.scores(scales, flip, kind=kind)
        height, width = size or self.size
        fused = resized(fused, self.size, (height, width), ops)
        label, confidence = np.empty((height, width), np.uint8), np.empty((height, width), np.float32)
        per_row = self._predictor.num_classes * max(width, self.size[1]) * 4
        step = max(1, _BLOCK_BYTES.get(self._predictor.device.type, 256 << 20) // per_row)
        with torch.inference_mode():
            for y in range(0, height, step):
                block = slice(y, min(y + step, height))
                label[block], confidence[block] = ops.decide(fused(block.start, block.stop))
        if not np.isfinite(confidence).all():
            raise HmsaError("the model's scores are not finite", hint="check the checkpoint, or use precision fp32")
        return label, confidence

    def scores(self, scales: Sequence[float], flip: bool, *, kind: str = "model") -> Rows:
        """Fused class scores as rows of a C x H x W map."""
        kind = self._predictor.check_kind(kind)
        runs = [
            fuse(kind, self._levels(kind, scales, mirrored, flip), self.size, self._predictor.ops)
            for mirrored in self._mirrors(flip)
        ]
        return _mean(runs)

    def weights(self, scales: Sequence[float], flip: bool, *, kind: str = "model") -> dict[float, NDArray[np.float32]]:
        """Weight of each scale at each pixel (float32 HxW); they sum to 1. "max" has none."""
        kind = self._predictor.check_kind(kind)
        if kind == "max":
            raise ConfigError("the maximum over scales has no weights")
        runs = []
        for mirrored in self._mirrors(flip):
            levels = self._levels(kind, scales, mirrored, flip)
            runs.append(weight_rows(kind, levels, self.size, self._predictor.ops))
        maps = _mean(runs)(0, self.size[0])
        found = {one.scale: _to_numpy(maps[i]) for i, one in enumerate(levels)}
        zero = np.zeros(self.size, np.float32)
        return {scale: found.get(scale, zero) for scale in sorted(scales)}

    def _mirrors(self, flip: bool) -> tuple[bool, ...]:
        return (False, True) if flip else (False,)

    def _levels(self, kind: str, scales: Sequence[float], mirrored: bool, flip: bool) -> list[Level]:
        used = [1.0] if kind == "single" else sorted(_checked(scales), reverse=True)
        levels = []
        for i, scale in enumerate(used):
            size = _scaled(self.size, scale, kind)
            needs = kind == "explicit" or (kind == "hierarchical" and i > 0)
            out = self._output(size, mirrored, needs, flip)
            levels.append(Level(scale, size, out.logits, out.attention if needs else None))
        return levels

    def _output(self, size: Size, mirrored: bool, attention: bool, flip: bool) -> _Output:
        known = self._outputs.get((size, mirrored))
        if known is None or (attention and known.attention is None):
            both = flip and self._predictor.pairs and self._run_pair(size, attention)
            if not both:
                self._run(size, (mirrored,), attention)
            known = self._outputs[size, mirrored]
        return known

    def _run_pair(self, size: Size, attention: bool) -> bool:
        """Run the image and its mirror image in one batch; False (from now on) where that does not fit."""
        try:
            self._run(size, (False, True), attention)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._predictor.pairs = False
        else:
            return True
        release_memory(self._predictor.device)
        return False

    def _run(self, size: Size, mirrors: tuple[bool, ...], attention: bool) -> None:
        image = self._input(size)
        images = torch.cat([image.flip(3) if mirrored else image for mirrored in mirrors])
        logits, weight = self._predictor.run(images, attention=attention)
        for i, mirrored in enumerate(mirrors):
            self._outputs[size, mirrored] = _Output(
                self._native(logits[i], mirrored), None if weight is None else self._native(weight[i], mirrored)
            )

    def _input(self, size: Size) -> Tensor:
        device = self._predictor.device
        if device.type == "cpu":
            pixels = self._pixels
            if size != self.size:
                pixels = np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
            return torch.from_numpy(pixels).permute(2, 0, 1)[None]
        images = torch.from_numpy(self._pixels).to(device).permute(2, 0, 1)[None]
        return images if size == self.size else F.interpolate(images, size=size, mode="bilinear", align_corners=False)

    def _native(self, maps: Tensor, mirrored: bool) -> Array:
        maps = maps.flip(2) if mirrored else maps
        return maps.numpy() if self._predictor.device.type == "cpu" else maps


def _mean(runs: list[Rows]) -> Rows:
    if len(runs) == 1:
        return runs[0]

    def compute(y0: int, y1: int) -> Array:
        return (runs[0](y0, y1) + runs[1](y0, y1)) * 0.5

    return compute


def _to_numpy(maps: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(maps.cpu().numpy() if isinstance(maps, Tensor) else maps)


def _checked(scales: Sequence[float]) -> list[float]:
    values = [float(scale) for scale in scales]
    if 1.0 not in values or len(set(values)) != len(values) or min(values) <= 0:
        raise ConfigError(f"scales {list(scales)} are not usable: give different positive numbers, one of them 1.0")
    return values


def _scaled(size: Size, scale: float, kind: str) -> Size:
    # The released averaging baseline rounds sizes, its hierarchical inference floors them.
    rounded = round if kind in ("average", "max") else math.floor
    return max(1, rounded(size[0] * scale)), max(1, rounded(size[1] * scale))
