"""Models by name: `build` makes one from a kind, a trunk and options; `as_kind` shares one's weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from hmsa_core.io.errors import ConfigError
from hmsa_core.models.attention import AttentionHead
from hmsa_core.models.hmsa import MultiScaleModel
from hmsa_core.models.hrnet import HRNet, hrnet_spec
from hmsa_core.models.layers import init_weights
from hmsa_core.models.ocr import OCRBlock, PixelHeads
from hmsa_core.models.options import ModelOptions, make_options
from hmsa_core.models.trunks import Trunk, make_trunk, trunk_defaults

__all__ = ["as_kind", "build"]


def build(kind: str, *, trunk: str = "hrnet_w48", num_classes: int = 19, **options: Any) -> MultiScaleModel:
    """Build a model with fresh weights (He initialisation, so that it also learns from scratch).

    Args:
        kind: "hierarchical" | "explicit" | "average" | "max" | "single". The last three have no attention
            head and one and the same state dict.
        trunk: hrnet_w18 | w32 | w48 | w64 (any hrnet_w<N>), hrnet_tiny, hrnet_micro, deeplabv3_resnet50 | 101.
        num_classes: number of classes C.
        options: fields of `ModelOptions`.

    Raises:
        ConfigError: an unknown kind, trunk or option, or an impossible value.
    """
    chosen = make_options(kind, trunk, num_classes, options)
    model = _assemble(chosen)
    _initialise(model)
    return model


def build_empty(options: ModelOptions) -> MultiScaleModel:
    """Build a model whose tensors have shapes but no memory yet; `load_state_dict(assign=True)` fills it."""
    with torch.device("meta"):
        return _assemble(options)


def as_kind(model: MultiScaleModel, kind: str) -> MultiScaleModel:
    """Return a model of another kind that *shares* this one's modules (ablations on one checkpoint).

    Raises:
        ConfigError: the kind needs an attention head and the model has none.
    """
    options = model.options.as_kind(kind)
    head = getattr(model, "scale_attn", None) if options.has_attention else None
    if options.has_attention and head is None:
        raise ConfigError(f"kind {kind!r} needs an attention head, a model of kind {model.kind!r} has none")
    other = MultiScaleModel(options, model.backbone, model.ocr, head)
    other.train(model.training)
    other.meta = model.meta
    return other


def _assemble(options: ModelOptions) -> MultiScaleModel:
    defaults = trunk_defaults(options.trunk)
    if options.activation_checkpointing and hrnet_spec(options.trunk) is None:
        raise ConfigError(f"activation_checkpointing is offered for HRNet trunks, not for {options.trunk}")
    backbone = make_trunk(options.trunk)
    if isinstance(backbone, HRNet):
        backbone.checkpointing = options.activation_checkpointing
    hidden = options.attention_channels or defaults.attention_channels
    ocr = _context(options, backbone, hidden)
    head = AttentionHead(ocr.out_channels, hidden) if options.has_attention else None
    return MultiScaleModel(options, backbone, ocr, head)


def _context(options: ModelOptions, backbone: Trunk | nn.Module, hidden: int) -> OCRBlock | PixelHeads:
    defaults = trunk_defaults(options.trunk)
    channels = int(backbone.out_channels)  # type: ignore[arg-type]  # a trunk's, see Trunk
    if (options.context or defaults.context) == "none":
        return PixelHeads(
            channels, options.num_classes, head=options.head, head_channels=hidden, dropout=options.dropout
        )
    return OCRBlock(
        channels,
        options.num_classes,
        mid=options.ocr_mid or defaults.ocr_mid,
        key=options.ocr_key or defaults.ocr_key,
        head=options.head,
        head_channels=hidden,
        dropout=options.dropout,
    )


def _initialise(model: MultiScaleModel) -> None:
    init_weights(model)
    # Sigmoid losses start at the class prior instead of at one half for every class (a first loss of 4
    # instead of 13 with 19 classes); a softmax does not see a bias that all classes share.
    prior = -math.log(max(model.num_classes - 1, 1))
    for head in (model.ocr.cls_head, model.ocr.aux_head):
        reset_classifier(head, prior)  # type: ignore[arg-type]  # nn.Module attributes are untyped
    if model.options.has_attention:
        # All scales start with equal say.
        nn.init.normal_(model.scale_attn.conv2.weight, std=0.01)  # type: ignore[union-attr, arg-type]


def reset_classifier(head: nn.Module, prior: float) -> None:
    """Draw the last convolution of a head small, with all class scores at `prior`."""
    last = head if isinstance(head, nn.Conv2d) else list(head.modules())[-1]
    if not isinstance(last, nn.Conv2d) or last.bias is None:
        raise TypeError(f"the last layer of a class head is a convolution with bias, not {last}")
    nn.init.normal_(last.weight, std=0.01)
    nn.init.constant_(last.bias, prior)
