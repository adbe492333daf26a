"""Multiply-accumulates of training and inference, counted by torch on tensors without memory.

    python -m research.ablation.macs REQUEST.json ANSWER.json

Convolutions and matrix products are counted, as the paper counts them; resizing, norms and the loss are not. A
backward pass is taken as two forward passes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hmsa_core.config import ModelConfig, Scales, Section, Size
from hmsa_core.io.atomic import write_json
from hmsa_core.models.layers.blocks import scaled_size
from hmsa_core.models.model import MultiScaleModel, build_empty

_BACKWARD = 3  # forward and backward together, in forward passes


class InferenceCost(Section):
    """One way to run a model, as an evaluation setting has it."""

    name: str
    scales: Scales
    flip: bool
    mode: str  # "model", "single", "average" or "max"
    size: Size  # pixels, height x width of an image


class MacsRequest(Section):
    """A model, its training crop, and the settings that it is run with."""

    model: ModelConfig
    num_classes: int
    crop: Size  # pixels, height x width
    inference: tuple[InferenceCost, ...] = ()


def count(request: MacsRequest) -> dict[str, Any]:
    """{"train_per_crop": forward and backward, "inference": {setting: one image}}, in multiply-accumulates."""
    model, classes = request.model, request.num_classes
    return {
        "train_per_crop": _BACKWARD * training_macs(model, classes, request.crop),
        "inference": {
            one.name: inference_macs(model, classes, one.mode, one.scales, one.size, flip=one.flip)
            for one in request.inference
        },
    }


def training_macs(model: ModelConfig, classes: int, crop: tuple[int, int]) -> int:
    """Forward pass of one training crop (height, width) over the model's training scales."""
    scales = model.training_scales
    released = model.has_attention and model.top_attention == "released"
    return sum(
        _scale_macs(model, classes, scaled_size(crop, s), attention=released or _uses_attention(model.kind, s, scales))
        for s in scales
    )


def inference_macs(
    model: ModelConfig, classes: int, mode: str, scales: Sequence[float], size: tuple[int, int], *, flip: bool
) -> int:
    """One image (height, width) under an evaluation setting; the mirror image costs as much again."""
    kind = model.kind if mode == "model" else mode
    used = (1.0,) if kind == "single" else tuple(scales)
    once = sum(
        _scale_macs(model, classes, scaled_size(size, s, kind), attention=_uses_attention(kind, s, used)) for s in used
    )
    return once * (2 if flip else 1)


def _uses_attention(kind: str, scale: float, scales: Sequence[float]) -> bool:
    return kind == "explicit" or (kind == "hierarchical" and scale != max(scales))


@cache
def _scale_macs(model: ModelConfig, classes: int, size: tuple[int, int], *, attention: bool) -> int:
    images = torch.empty(1, 3, *size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _bare(model, classes).forward_scale(images, attention=attention)
    return int(counter.get_total_flops()) // 2


@cache
def _bare(config: ModelConfig, classes: int) -> MultiScaleModel:
    """The model without norms and activations: they are not counted, but take the counter most of its time."""
    model = build_empty(config, classes).eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d | nn.ReLU):
                setattr(parent, name, nn.Identity())
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Read the request, write the answer."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m research.ablation.macs REQUEST.json ANSWER.json\n")
        return 2
    request, answer = (Path(a) for a in arguments)
    write_json(answer, count(MacsRequest.model_validate_json(request.read_bytes())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
