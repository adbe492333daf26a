"""The segmentation model: one trunk and its heads, run at several scales and fused.

    images --resize s--> trunk --> OCR --> logits, aux logits   } on the trunk's grid (1/4):
                                   `----> attention score       } `forward_scale`
    logits, attention --resize--> own pixel grid of s --> `fusion` --> H x W

Legend: B images, C classes, H x W pixels of the images, h x w the trunk's grid at one scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.models.fusion import FUSIONS, Level, explicit_weights
from hmsa_core.models.layers import promote, resize, scaled_size
from hmsa_core.models.options import ModelOptions

__all__ = ["ModelOutput", "MultiScaleModel", "Prediction", "ScaleOutput"]

_CHUNK_BYTES = 16 << 20  # class scores of the largest scale that are alive at once while fusing


class ScaleOutput(NamedTuple):
    """Raw outputs of one scale on the trunk's grid, float32 or better."""

    logits: Tensor  # B x C x h x w
    aux_logits: Tensor  # B x C x h x w
    attention: Tensor | None  # B x 1 x h x w: hierarchical after the sigmoid, explicit before the softmax


class ModelOutput(NamedTuple):
    """What training needs (`forward`)."""

    logits: Tensor  # B x C x H x W, fused
    aux_logits: Tensor  # B x C x H x W, auxiliary scores fused with the same weights
    scale_logits: dict[float, Tensor]  # scale -> B x C x Hs x Ws on that scale's own pixel grid
    attention: dict[float, Tensor]  # scale -> B x 1 x Hs x Ws; no key where it is not computed


@dataclass(frozen=True)
class Prediction:
    """What `predict` returns; all maps have the size of the images."""

    logits: Tensor  # N x C x H x W
    weights: dict[float, Tensor] | None  # scale -> N x 1 x H x W, sums to 1 at each pixel; None for kind "max"
    attention: dict[float, Tensor]  # scale -> N x 1 x H x W, raw; no key for the highest scale

    @property
    def probabilities(self) -> Tensor:
        """Softmax over classes, N x C x H x W (computed at each call, so that it is only held where wanted)."""
        return torch.softmax(self.logits, dim=1)


@dataclass(frozen=True)
class _Pass:
    """One run over all scales, highest first: grid scores and attention on the grid where it is used."""

    scales: tuple[float, ...]
    sizes: tuple[tuple[int, int], ...]
    logits: tuple[Tensor, ...]
    attention: tuple[Tensor | None, ...]

    def levels(self, classes: slice) -> Iterator[Level]:
        for scale, size, logits, attention in zip(self.scales, self.sizes, self.logits, self.attention, strict=True):
            yield Level(scale, resize(logits[:, classes], size), attention)


class MultiScaleModel(nn.Module):
    """Trunk + context block + heads under one of the fusion kinds; made by `hmsa_core.models.build`."""

    def __init__(
        self, options: ModelOptions, backbone: nn.Module, ocr: nn.Module, scale_attn: nn.Module | None
    ) -> None:
        super().__init__()
        self.options = options
        self.meta: dict[str, Any] = {}  # the checkpoint's JSON after `load`
        self.backbone = backbone
        self.ocr = ocr
        if scale_attn is not None:
            self.scale_attn = scale_attn

    @property
    def kind(self) -> str:
        """Fusion kind: hierarchical, explicit, average, max or single."""
        return self.options.kind

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.options.num_classes

    @property
    def train_scales(self) -> tuple[float, ...]:
        """Scales of the training forward pass, ascending."""
        return self.options.training_scales

    def forward_scale(self, images: Tensor, *, attention: bool = True) -> ScaleOutput:
        """Run trunk and heads on images that already have the scale's size; nothing is upsampled.

        `attention` = False leaves the attention head out (the highest scale's is never used).
        """
        scores = self.ocr(self.backbone(images))
        weight: Tensor | None = None
        if attention and self.options.has_attention:
            weight = promote(self.scale_attn(scores.features))
            if self.kind == "hierarchical":
                weight = torch.sigmoid(weight)
        return ScaleOutput(promote(scores.logits), promote(scores.aux_logits), weight)

    def forward(self, images: Tensor) -> ModelOutput:
        """Training pass on `train_scales` (B x 3 x H x W float, normalised); the loss is made from the output."""
        self._check_images(images)
        size = (images.shape[-2], images.shape[-1])
        scales = self.train_scales
        sizes = [scaled_size(size, scale) for scale in scales]
        # From the lowest scale up, as released: batch norms see the scales in this order.
        outputs = [
            self.forward_scale(resize(images, own), attention=self._runs_attention(scale, scales))
            for scale, own in zip(scales, sizes, strict=True)
        ]
        attention = self._attention_maps([out.attention for out in outputs], sizes, size)
        own_logits = [resize(out.logits, own) for out, own in zip(outputs, sizes, strict=True)]
        own_aux = (resize(out.aux_logits, own) for out, own in zip(reversed(outputs), reversed(sizes), strict=True))
        fuse = FUSIONS[self.kind]
        descending, weights = scales[::-1], attention[::-1]
        return ModelOutput(
            logits=fuse(map(Level, descending, reversed(own_logits), weights), size),
            aux_logits=fuse(map(Level, descending, own_aux, weights), size),
            scale_logits=dict(zip(scales, own_logits, strict=True)),
            attention={s: a for s, a in zip(scales, attention, strict=True) if a is not None},
        )

    def predict(self, images: Tensor, scales: Sequence[float] = (0.5, 1.0, 2.0), flip: bool = False) -> Prediction:
        """Fuse the predictions of any scales that contain 1.0, in evaluation mode and without gradient.

        Args:
            images: (N, 3, H, W) float, normalised.
            scales: different positive numbers, one of them 1.0, in any order; kind "single" only runs 1.0
                and gives the others a weight of zero.
            flip: average logits (and weights) with those of the mirrored images.

        Returns:
            Prediction. Class scores of all scales are kept on the trunk's grid only and fused a few
            classes at a time, so memory does not grow with the number of scales.

        Raises:
            ConfigError: the scales are unusable. InputError: the images have another shape.
        """
        self._check_images(images)
        asked = _check_scales(scales)
        with evaluating(self), torch.no_grad():
            passes = [self._run(images, asked)]
            if flip:
                passes.append(self._run(images.flip(3), asked))
            size = (images.shape[-2], images.shape[-1])
            weights = [self._effective_weights(one, asked, size) for one in passes]
            return Prediction(
                logits=self._fused_logits(passes, size),
                weights=_unflip_maps(weights),
                attention=_unflip_maps([self._raw_attention(one, size) for one in passes]) or {},
            )

    def _run(self, images: Tensor, asked: tuple[float, ...]) -> _Pass:
        scales = (1.0,) if self.kind == "single" else asked
        size = (images.shape[-2], images.shape[-1])
        # The released averaging baseline rounds sizes, its hierarchical inference floors them.
        rounding = "round" if self.kind in ("average", "max") else "floor"
        sizes = tuple(scaled_size(size, scale, rounding=rounding) for scale in scales)
        outputs = [
            self.forward_scale(resize(images, own), attention=self._runs_attention(scale, scales))
            for scale, own in zip(scales, sizes, strict=True)
        ]
        attention = self._attention_maps([out.attention for out in outputs], sizes, size)
        return _Pass(scales, sizes, tuple(out.logits.contiguous() for out in outputs), tuple(attention))

    def _check_images(self, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise InputError(f"images are a {type(images).__name__}: a model takes a tensor (N, 3, H, W)")
        if images.ndim != 4 or images.shape[1] != 3 or not images.numel() or not images.is_floating_point():
            raise InputError(
                f"images must be a float tensor (N, 3, H, W), got {images.dtype} {tuple(images.shape)}: "
                "normalise first and put the channels second"
            )
        own = next(self.parameters())
        if images.device != own.device:
            raise InputError(f"images are on {images.device}, the model on {own.device}: `images.to(...)` first")
        if images.dtype != own.dtype and not torch.is_autocast_enabled(own.device.type):
            raise InputError(f"images are {images.dtype}, the model {own.dtype}: `images.to(...)` first, or autocast")

    def _runs_attention(self, scale: float, scales: Sequence[float]) -> bool:
        if self.kind == "explicit" or self.options.top_attention == "released":
            return True
        return scale != max(scales)

    def _attention_maps(
        self, attention: list[Tensor | None], sizes: Sequence[tuple[int, int]], size: tuple[int, int]
    ) -> list[Tensor | None]:
        """Bring each scale's attention to the grid on which the fusion uses it."""
        if self.kind == "explicit":
            return list(explicit_weights([cast("Tensor", one) for one in attention], size))
        return [None if one is None else resize(one, own) for one, own in zip(attention, sizes, strict=True)]

    def _fused_logits(self, passes: list[_Pass], size: tuple[int, int]) -> Tensor:
        first = passes[0].logits[0]
        out = first.new_empty((first.shape[0], self.num_classes, *size))
        largest = max(height * width for height, width in passes[0].sizes)
        step = max(1, _CHUNK_BYTES // (first.shape[0] * largest * first.element_size()))
        fuse = FUSIONS[self.kind]
        for start in range(0, self.num_classes, step):
            classes = slice(start, start + step)
            fused = fuse(passes[0].levels(classes), size)
            if len(passes) == 2:
                fused = (fused + fuse(passes[1].levels(classes), size).flip(3)) / 2
            out[:, classes] = fused
        return out

    def _effective_weights(
        self, one: _Pass, asked: tuple[float, ...], size: tuple[int, int]
    ) -> dict[float, Tensor] | None:
        """Weight of each scale at each pixel: the fusion itself, applied to indicators of the scales."""
        if self.kind == "max":
            return None
        count = len(one.scales)
        like = one.logits[0]
        indicators = torch.eye(count, dtype=like.dtype, device=like.device).expand(like.shape[0], count, count)
        levels = (
            Level(scale, indicators[:, i, :, None, None].expand(-1, -1, *own), attention)
            for i, (scale, own, attention) in enumerate(zip(one.scales, one.sizes, one.attention, strict=True))
        )
        fused = FUSIONS[self.kind](levels, size)
        maps = {scale: fused[:, i : i + 1] for i, scale in enumerate(one.scales)}
        unused = fused.new_zeros(()).expand(like.shape[0], 1, *size)
        return {scale: maps.get(scale, unused) for scale in sorted(asked)}

    def _raw_attention(self, one: _Pass, size: tuple[int, int]) -> dict[float, Tensor]:
        top = max(one.scales)
        return {
            scale: resize(attention, size)
            for scale, attention in sorted(zip(one.scales, one.attention, strict=True), key=lambda pair: pair[0])
            if attention is not None and (scale != top or self.kind == "explicit")
        }


def _unflip_maps(passes: Sequence[Mapping[float, Tensor] | None]) -> dict[float, Tensor] | None:
    """Average one-channel maps of the run and of its mirror image."""
    first = passes[0]
    if first is None:
        return None
    second = passes[1] if len(passes) == 2 else None
    if second is None:
        return dict(first)
    return {scale: (first[scale] + second[scale].flip(3)) / 2 for scale in first}


def _check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    asked = tuple(sorted((float(scale) for scale in scales), reverse=True))
    if 1.0 not in asked or len(set(asked)) != len(asked) or not all(0 < scale < math.inf for scale in asked):
        raise ConfigError(f"scales {list(scales)} are not usable: give different positive numbers, one of them 1.0")
    return asked


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode inside the block and back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
