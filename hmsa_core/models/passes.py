"""Inference over scales: images are run once at each requested size, and the outputs are fused by rows.

`model.predict`, labelling and evaluation all go through `ScalePass`; they differ in the function that runs the network
at one scale. Several settings (scales, flip, fusion kind) of the same images share equal passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from hmsa_core.config import Passes
from hmsa_core.io.errors import ConfigError
from hmsa_core.models.fusion import Level, explicit_weights, fuse
from hmsa_core.models.layers.blocks import resize, scaled_size
from hmsa_core.models.rows import Array, Rows, Size, constant, whole

# (images at a scale's size, whether attention is wanted) -> scores B x C x h x w and attention B x 1 x h x w or None
RunScale = Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]


class _Output(NamedTuple):
    logits: Array  # N x C x h x w, mirrored back
    attention: Array | None  # N x 1 x h x w


class ScalePass:
    """One batch of images (N x 3 x H x W float, normalised) with raw outputs for each requested (size, mirrored).

    `kind` is the model's fusion; `size` is the size of the result, if it differs from the size of the images.
    """

    def __init__(self, images: Tensor, kind: str, run: RunScale, *, size: Size | None = None) -> None:
        self._images, self._kind, self._run_scale = images, kind, run
        self._given: Size = (images.shape[-2], images.shape[-1])
        self.size = size or self._given
        self._outputs: dict[tuple[Size, bool], _Output] = {}

    def scores(self, passes: Passes) -> Rows:
        """Fused class scores, N x C x H x W.

        Raises:
            ConfigError: the kind needs an attention head, and the model has none.
        """
        kind = resolve_kind(passes.kind, self._kind)
        return _mean([fuse(kind, levels, self.size) for levels in self._levels(kind, passes)])

    def weights(self, passes: Passes) -> dict[float, Tensor]:
        """Weight of each scale at each pixel, (N x) 1 x H x W, summing to 1; 0 for scales that are not run.

        Raises:
            ConfigError: as `scores`, or kind "max", which has no weights.
        """
        kind = resolve_kind(passes.kind, self._kind)
        if kind == "max":
            raise ConfigError("the maximum over scales has no weights")
        runs = []
        for levels in self._levels(kind, passes):
            like, count = next(iter(self._outputs.values())).logits, len(levels)
            indicators = [
                level._replace(values=constant([float(i == j) for j in range(count)], level.values.size, like))
                for i, level in enumerate(levels)
            ]
            runs.append(fuse(kind, indicators, self.size))
        maps = _mean(runs).full()
        found = {level.scale: maps[..., i : i + 1, :, :] for i, level in enumerate(levels)}
        unused = maps.new_zeros((1, *self.size))
        return {scale: found.get(scale, unused) for scale in sorted(passes.scales)}

    def attention(self, passes: Passes) -> dict[float, Rows]:
        """Attention of each scale, N x 1 x H x W; the highest scale of a hierarchical model has none."""
        runs = self._levels(resolve_kind(passes.kind, self._kind), passes)
        maps = [{one.scale: one.attention.resized(self.size) for one in run if one.attention} for run in runs]
        return {scale: _mean([run[scale] for run in maps]) for scale in sorted(maps[0])}

    def _levels(self, kind: str, passes: Passes) -> list[list[Level[Rows]]]:
        """Levels from the highest scale down, of the images and of their mirror images."""
        used = [1.0] if kind == "single" else sorted(passes.scales, reverse=True)
        return [self._run_levels(kind, used, mirrored, passes.flip) for mirrored in passes.mirrors]

    def _run_levels(self, kind: str, scales: list[float], mirrored: bool, flip: bool) -> list[Level[Rows]]:
        sizes = [scaled_size(self.size, scale, kind) for scale in scales]
        needs = [kind == "explicit" or (kind == "hierarchical" and i > 0) for i in range(len(scales))]
        given = [scaled_size(self._given, scale, kind) for scale in scales]
        outputs = [self._output(size, mirrored, attention, flip) for size, attention in zip(given, needs, strict=True)]
        attention = self._attention(kind, outputs, sizes, needs)
        # Enlarging the highest scale and reducing it to the next is often one resize: half of the work.
        then = sizes[1] if kind != "explicit" and len(scales) > 1 and scales[1] >= 1.0 else None
        return [
            Level(scale, whole(out.logits).enlarged(size, then if i == 0 else None), weight)
            for i, (scale, size, out, weight) in enumerate(zip(scales, sizes, outputs, attention, strict=True))
        ]

    def _attention(
        self, kind: str, outputs: list[_Output], sizes: list[Size], needs: list[bool]
    ) -> list[Rows | None] | list[Rows]:
        """The attention of each level on the grid where the fusion uses it."""
        if kind == "explicit":
            return explicit_weights([whole(out.attention) for out in outputs], self.size)
        return [
            whole(out.attention).resized(size).remembered() if wanted else None
            for out, size, wanted in zip(outputs, sizes, needs, strict=True)
        ]

    def _output(self, size: Size, mirrored: bool, attention: bool, flip: bool) -> _Output:
        """The raw output of one size; `flip` = True: the caller will request the other mirror image, too."""
        known = self._outputs.get((size, mirrored))
        if known is None or (attention and known.attention is None):
            self._compute(size, mirrored, attention, flip)
            known = self._outputs[size, mirrored]
        return known

    def _compute(self, size: Size, mirrored: bool, attention: bool, _flip: bool) -> None:
        self._run(size, (mirrored,), attention)

    def _run(self, size: Size, mirrors: tuple[bool, ...], attention: bool) -> None:
        images = self._resized(size)
        batch = torch.cat([images.flip(3) if mirrored else images for mirrored in mirrors])
        logits, weight = self._run_scale(batch, attention)
        count = len(images)
        for i, mirrored in enumerate(mirrors):
            part = slice(i * count, (i + 1) * count)
            self._outputs[size, mirrored] = _Output(
                _native(logits[part], mirrored), None if weight is None else _native(weight[part], mirrored)
            )

    def _resized(self, size: Size) -> Tensor:
        images = self._images
        if size == self._given or images.device.type != "cpu" or images.dtype not in (torch.float32, torch.float64):
            return resize(images, size)
        pixels = (np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images)  # cheap if channels last
        resized = [cv2.resize(one, size[::-1], interpolation=cv2.INTER_LINEAR) for one in pixels]
        return torch.stack([torch.from_numpy(one).permute(2, 0, 1) for one in resized])


def resolve_kind(kind: str, model_kind: str) -> str:
    """Return the fusion kind; "model" = the model's kind. ConfigError: the kind needs a head that the model lacks."""
    kind = model_kind if kind == "model" else kind
    if kind in ("hierarchical", "explicit") and kind != model_kind:
        raise ConfigError(f"a {model_kind} model cannot be run as {kind}: it has no such attention head")
    return kind


def _native(maps: Tensor, mirrored: bool) -> Array:
    maps = (maps.flip(3) if mirrored else maps).contiguous()
    return maps.numpy() if maps.device.type == "cpu" else maps


def _mean(runs: list[Rows]) -> Rows:
    return runs[0] if len(runs) == 1 else (runs[0] + runs[1]) / 2
