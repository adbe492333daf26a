"""The segmentation model: a trunk and its heads, run at several scales and fused.

    images --resize s--> trunk --> neck --> context --> logits, aux logits   } on the trunk's grid (1/4):
                                                  `---> attention score      } `forward_scale`
    logits, attention --resize--> pixel grid of scale s --> `fusion` --> H x W

`build_fresh` makes a model of a `ModelConfig`; `as_kind` makes a model of another kind with the same weights.
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

from hmsa_core.config import MEAN, SCALES, STD, ModelConfig, Passes, check_scales
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.models.fusion import Level, explicit_weights, fuse
from hmsa_core.models.heads import Concatenation, OCRBlock, PixelHeads, attention_head, make_pooling
from hmsa_core.models.layers.batch_norm import Steps, run, run_all, steps_of
from hmsa_core.models.layers.blocks import init_weights, promote, resize, scaled_size
from hmsa_core.models.passes import ScalePass
from hmsa_core.models.trunks import Trunk, make_trunk


class ScaleOutput(NamedTuple):
    """Raw outputs of one scale on the trunk's grid, float32 or better."""

    logits: Tensor  # B x C x h x w
    aux_logits: Tensor  # B x C x h x w
    attention: Tensor | None  # B x 1 x h x w: hierarchical after the sigmoid, explicit before the softmax


class ModelOutput(NamedTuple):
    """Output of the training pass (`forward`)."""

    logits: Tensor  # B x C x H x W, fused
    aux_logits: Tensor  # B x C x H x W, auxiliary scores fused with the same weights
    scale_logits: dict[float, Tensor]  # scale -> B x C x Hs x Ws on the pixel grid of that scale
    attention: dict[float, Tensor]  # scale -> B x 1 x Hs x Ws; no key where it is not computed


@dataclass(frozen=True)
class Prediction:
    """Result of `predict`; all maps have the size of the images."""

    logits: Tensor  # N x C x H x W
    weights: dict[float, Tensor] | None  # scale -> N x 1 x H x W, sums to 1 at each pixel; None for kind "max"
    attention: dict[float, Tensor]  # scale -> N x 1 x H x W, raw; no key for the highest scale

    @property
    def probabilities(self) -> Tensor:
        """Softmax over classes, N x C x H x W (computed at each call: the model keeps no copy)."""
        return torch.softmax(self.logits, dim=1)


class MultiScaleModel(nn.Module):
    """Trunk + context block + heads under one of the fusion kinds; made by `hmsa_core.models.build`."""

    def __init__(
        self, config: ModelConfig, num_classes: int, backbone: nn.Module, ocr: nn.Module, scale_attn: nn.Module | None
    ) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.meta: dict[str, Any] = {}  # the checkpoint's JSON after `load`
        self.backbone = backbone
        self.neck = Concatenation()
        self.ocr = ocr  # the context block with its class heads
        if scale_attn is not None:
            self.scale_attn = scale_attn

    @property
    def kind(self) -> str:
        """Fusion kind: hierarchical, explicit, average, max or single."""
        return self.config.kind

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of RGB in [0, 1] that the checkpoint was trained with."""
        inference = self.meta.get("inference") or {}
        return inference.get("mean") or list(MEAN), inference.get("std") or list(STD)

    def forward_scale(self, images: Tensor, *, attention: bool = True) -> ScaleOutput:
        """Run trunk and heads on images that already have the scale's size; nothing is upsampled.

        `attention` = False skips the attention head (the attention of the highest scale is never used).
        """
        return run(self._scale_steps(images, attention))

    def _scale_steps(self, images: Tensor, attention: bool) -> Steps[ScaleOutput]:
        features = self.neck((yield from steps_of(self.backbone, images)))
        scores = yield from steps_of(self.ocr, features)
        weight: Tensor | None = None
        if attention and self.config.has_attention:
            weight = promote((yield from steps_of(self.scale_attn, scores.features)))
            if self.kind == "hierarchical":
                weight = torch.sigmoid(weight)
        return ScaleOutput(promote(scores.logits), promote(scores.aux_logits), weight)

    def forward(self, images: Tensor) -> ModelOutput:
        """Training pass on the training scales (B x 3 x H x W float, normalised); losses use the output."""
        self._check_images(images)
        size = (images.shape[-2], images.shape[-1])
        scales = self.config.training_scales
        runs_top = self.kind == "explicit" or self.config.top_attention == "released"
        sizes = [scaled_size(size, scale) for scale in scales]
        # From the lowest scale up, as released: batch norms see the scales in this order.
        outputs = run_all(
            self._scale_steps(resize(images, grid), runs_top or scale != scales[-1])
            for scale, grid in zip(scales, sizes, strict=True)
        )
        attention: list[Tensor | None] = [out.attention for out in outputs]
        if self.kind == "explicit":
            attention = [*explicit_weights(cast("list[Tensor]", attention), size)]
        else:
            attention = [a if a is None else resize(a, grid) for a, grid in zip(attention, sizes, strict=True)]
        grid_logits = [resize(out.logits, grid) for out, grid in zip(outputs, sizes, strict=True)]
        grid_aux = (resize(out.aux_logits, grid) for out, grid in zip(reversed(outputs), reversed(sizes), strict=True))
        descending, weights = scales[::-1], attention[::-1]
        return ModelOutput(
            logits=fuse(self.kind, map(Level, descending, reversed(grid_logits), weights), size),
            aux_logits=fuse(self.kind, map(Level, descending, grid_aux, weights), size),
            scale_logits=dict(zip(scales, grid_logits, strict=True)),
            attention={s: a for s, a in zip(scales, attention, strict=True) if a is not None},
        )

    def predict(self, images: Tensor, scales: Sequence[float] = SCALES, flip: bool = False) -> Prediction:
        """Fuse the predictions of any scales that contain 1.0, in evaluation mode and without gradient.

        Args:
            images: (N, 3, H, W) float, normalised.
            scales: different positive numbers, one of them 1.0, in any order. Kind "single" only runs 1.0
                and gives the others a weight of zero.
            flip: average logits (and weights) with the logits (and weights) of the mirrored images.

        Returns:
            Prediction. The scores of all scales are kept on the trunk's grid only and fused a few rows at a time, so
            memory does not grow with the number of scales.

        Raises:
            ConfigError: the scales are unusable. InputError: the images have another shape.
        """
        self._check_images(images)
        passes = Passes(check_scales(scales), flip)
        with evaluating(self), torch.no_grad():
            fused = ScalePass(images, self.kind, self._run)
            weights = None if self.kind == "max" else fused.weights(passes)
            return Prediction(
                logits=fused.scores(passes).full(),
                weights=weights and {s: w.expand(len(images), 1, *fused.size) for s, w in weights.items()},
                attention={scale: maps.full() for scale, maps in fused.attention(passes).items()},
            )

    def _run(self, images: Tensor, attention: bool) -> tuple[Tensor, Tensor | None]:
        out = self.forward_scale(images, attention=attention)
        return out.logits, out.attention

    def _check_images(self, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise InputError(f"images are a {type(images).__name__}: a model takes a tensor (N, 3, H, W)")
        if images.ndim != 4 or images.shape[1] != 3 or not images.numel() or not images.is_floating_point():
            raise InputError(
                f"images must be a float tensor (N, 3, H, W), got {images.dtype} {tuple(images.shape)}: "
                "normalise first and put the channels second"
            )
        first = next(self.parameters())
        if images.device != first.device:
            raise InputError(f"images are on {images.device}, the model on {first.device}: `images.to(...)` first")
        if images.dtype != first.dtype and not torch.is_autocast_enabled(first.device.type):
            raise InputError(f"images are {images.dtype}, the model {first.dtype}: `images.to(...)` first, or autocast")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode inside the block and restore each module's mode afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def build_fresh(config: ModelConfig, num_classes: int, *, activation_checkpointing: bool = False) -> MultiScaleModel:
    """Build a model with fresh weights (He initialisation, so that it also learns from scratch).

    Args:
        config: the network; its `trunk_weights` are not read here (`hmsa_core.models.build` does).
        num_classes: number of classes C.
        activation_checkpointing: less memory in training, a third more time; results stay bit-identical.

    Raises:
        ConfigError: the trunk is unknown or does not support a setting, or the number of classes is impossible.
    """
    model = _assemble(config, num_classes)
    if activation_checkpointing:
        if not hasattr(model.backbone, "checkpointing"):
            raise ConfigError(f"activation_checkpointing is not offered for the trunk {config.trunk}")
        model.backbone.checkpointing = True  # type: ignore[assignment]  # a flag, no module
    _initialise(model)
    return model


def build_empty(config: ModelConfig, num_classes: int) -> MultiScaleModel:
    """Build a model whose tensors have shapes but no memory yet; `fill` gives it both."""
    with torch.device("meta"):
        return _assemble(config, num_classes)


def fill(model: MultiScaleModel, state: Mapping[str, Tensor]) -> None:
    """Load a state dict, and compute tensors that no state dict holds: rotary positions of EVA and DINOv3 trunks."""
    model.load_state_dict(state, assign=True)
    lost = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if not lost:
        return
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        fresh = dict(_assemble(model.config, model.num_classes).named_buffers())
    for name in lost:
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner).register_buffer(leaf, fresh[name], persistent=False)


def as_kind(model: MultiScaleModel, kind: str) -> MultiScaleModel:
    """Return a model of another kind that *shares* the modules of `model` (ablations on one checkpoint).

    Raises:
        ConfigError: the kind needs an attention head and the model has none.
    """
    config = model.config.as_kind(kind)
    head = getattr(model, "scale_attn", None) if config.has_attention else None
    if config.has_attention and head is None:
        raise ConfigError(f"kind {kind!r} needs an attention head, a model of kind {model.kind!r} has none")
    other = MultiScaleModel(config, model.num_classes, model.backbone, model.ocr, head)
    other.train(model.training)
    other.meta = model.meta
    return other


def _assemble(config: ModelConfig, num_classes: int) -> MultiScaleModel:
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ConfigError(f"num_classes {num_classes!r}: give a whole number of at least 1")
    trunk = make_trunk(config.trunk, drop_path=config.drop_path)
    hidden = config.attention_channels or trunk.widths.attention_channels
    context = _context(config, num_classes, trunk, hidden)
    head = attention_head(context.out_channels, hidden) if config.has_attention else None
    return MultiScaleModel(config, num_classes, cast("nn.Module", trunk), context, head)


def _context(config: ModelConfig, classes: int, trunk: Trunk, hidden: int) -> OCRBlock | PixelHeads:
    channels, widths = sum(trunk.channels), trunk.widths
    kind, mid = config.context or widths.context, config.ocr_mid or widths.ocr_mid
    if kind == "ocr":
        return OCRBlock(config, channels, classes, mid=mid, key=config.ocr_key or widths.ocr_key, hidden=hidden)
    pooling = make_pooling(kind, channels, mid, min(trunk.strides)) if kind != "none" else None
    return PixelHeads(config, mid if pooling else channels, classes, hidden=hidden, pooling=pooling)


def _initialise(model: MultiScaleModel) -> None:
    init_weights(model)
    # Sigmoid losses start at the class prior instead of at one half for every class (a first loss of 4
    # instead of 13 with 19 classes); a softmax does not see a bias that all classes share.
    prior = -math.log(max(model.num_classes - 1, 1))
    for last in _classifiers(model):
        nn.init.normal_(last.weight, std=0.01)
        nn.init.constant_(last.bias, prior)  # type: ignore[arg-type]  # it has one
    if model.config.has_attention:
        # All scales start with equal weights.
        nn.init.normal_(model.scale_attn.conv2.weight, std=0.01)  # type: ignore[union-attr, arg-type]


def start_for_softmax(model: MultiScaleModel) -> None:
    """Draw the last convolutions of the class heads again, at the usual spread, for a softmax loss.

    From the small weights that sigmoid losses start with, AdamW's steps take too long to reach rare classes.
    """
    for last in _classifiers(model):
        nn.init.kaiming_normal_(last.weight, nonlinearity="linear")


def _classifiers(model: MultiScaleModel) -> list[nn.Conv2d]:
    """The last convolutions of the class head and of the auxiliary head, each with a bias."""
    heads: tuple[Any, ...] = (model.ocr.cls_head, model.ocr.aux_head)
    return [list(head.modules())[-1] for head in heads]
