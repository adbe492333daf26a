"""Trunk and heads of one scale with the widest tensors made a strip of rows at a time.

HRNet's 720 concatenated channels, the 1024 channels in front of the OCR block's last convolution and the
hidden layers of the heads are by far the largest tensors of a forward pass, and none of them is needed
whole: the only step that looks at all positions (OCR's region gathering) reads a narrower map. Strips
overlap by the reach of the 3x3 convolutions, so scores are those of the model's own pass up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hmsa_core.inference.fast_rows import taps
from hmsa_core.models.hmsa import MultiScaleModel
from hmsa_core.models.hrnet import HRNet
from hmsa_core.models.ocr import OCRBlock, gather_regions

__all__ = ["run_scale"]

_STRIP_BYTES = {"cpu": 48 << 20, "cuda": 1 << 30}  # of the widest tensor of a strip
_REACH = 2  # rows: two 3x3 convolutions one after another (attention head, the paper's semantic head)


def run_scale(model: MultiScaleModel, images: Tensor, *, attention: bool) -> tuple[Tensor, Tensor | None]:
    """Scores B x C x h x w and attention B x 1 x h x w (after the sigmoid where the model has one), float32."""
    if not isinstance(model.ocr, OCRBlock):
        out = model.forward_scale(images, attention=attention)
        return out.logits.float(), None if out.attention is None else out.attention.float()
    parts = _trunk(model.backbone, images)
    size = (parts[0].shape[2], parts[0].shape[3])
    narrow, aux = _context_inputs(model, parts, size)
    del parts
    regions = gather_regions(narrow, aux)
    return _heads(model, narrow, regions, attention=attention)


def _trunk(trunk: nn.Module, images: Tensor) -> list[Tensor]:
    """Feature maps whose concatenation on the grid of the first one is the trunk's output."""
    if not isinstance(trunk, HRNet):
        return [trunk(images)]
    x = trunk.relu(trunk.bn1(trunk.conv1(images)))
    x = trunk.relu(trunk.bn2(trunk.conv2(x)))
    branches = [trunk.layer1(x)]
    del x
    for transition, stage in (
        (trunk.transition1, trunk.stage2),
        (trunk.transition2, trunk.stage3),
        (trunk.transition3, trunk.stage4),
    ):
        last = branches[-1]
        branches = [step(branches[i] if i < len(branches) else last) for i, step in enumerate(transition)]
        branches = stage(branches)
    return branches


def _strips(height: int, row_bytes: int, device: torch.device) -> Iterator[tuple[int, int]]:
    step = max(4 * _REACH, _STRIP_BYTES.get(device.type, 1 << 30) // row_bytes)
    for start in range(0, height, step):
        yield start, min(start + step, height)


def _context_inputs(model: MultiScaleModel, parts: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Narrow features (what OCR works on) and auxiliary scores, from strips of the concatenated features."""
    ocr, first, height = cast("OCRBlock", model.ocr), parts[0], size[0]
    row_bytes = sum(p.shape[1] for p in parts) * first.shape[0] * size[1] * first.element_size()
    # Made before the strips for the same reason as in `_heads`.
    narrow, aux = (_empty(first, count, size) for count in (ocr.out_channels, model.num_classes))
    for start, stop in _strips(height, row_bytes, first.device):
        low, high = max(0, start - 1), min(height, stop + 1)
        features = torch.cat([_rows(part, size, low, high) for part in parts], dim=1)
        inner = slice(start - low, stop - low)
        narrow[:, :, start:stop] = ocr.conv3x3_ocr(features)[:, :, inner]
        aux[:, :, start:stop] = ocr.aux_head(features[:, :, inner])
    return narrow, aux


def _heads(model: MultiScaleModel, narrow: Tensor, regions: Tensor, *, attention: bool) -> tuple[Tensor, Tensor | None]:
    ocr, (batch, _, height, width) = model.ocr, narrow.shape
    row_bytes = 2 * narrow.shape[0] * narrow.shape[1] * narrow.shape[3] * narrow.element_size()
    with_attention = attention and model.options.has_attention
    # Before the strips: small blocks that stay, made between large ones that go, would pin their pages.
    logits = torch.empty((batch, model.num_classes, height, width), device=narrow.device)
    weight = torch.empty((batch, 1, height, width), device=narrow.device) if with_attention else None
    for start, stop in _strips(height, row_bytes, narrow.device):
        low, high = max(0, start - _REACH), min(height, stop + _REACH)
        inner = slice(start - low, stop - low)
        features = ocr.ocr_distri_head(narrow[:, :, low:high], regions)  # type: ignore[operator]  # a module
        logits[:, :, start:stop] = ocr.cls_head(features)[:, :, inner]  # type: ignore[operator]
        if weight is not None:
            weight[:, :, start:stop] = model.scale_attn(features)[:, :, inner]
    if weight is not None and model.kind == "hierarchical":
        weight = torch.sigmoid(weight)
    return logits, weight


def _empty(like: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _rows(maps: Tensor, size: tuple[int, int], low: int, high: int) -> Tensor:
    """Rows low..high of the bilinear enlargement of B x K x h x w to `size` (corners not aligned)."""
    height, width = maps.shape[2], maps.shape[3]
    if (height, width) == size:
        return maps[:, :, low:high]
    factor, rest = divmod(size[0], height)
    if rest:
        return _lerp_rows(maps, size, low, high)
    # A source row more on both sides: then the window's edge is not taken for the image's.
    first, last = max(0, low // factor - 1), min(height, -(-high // factor) + 1)
    window = F.interpolate(
        maps[:, :, first:last], size=((last - first) * factor, size[1]), mode="bilinear", align_corners=False
    )
    return window[:, :, low - first * factor : high - first * factor]


def _lerp_rows(maps: Tensor, size: tuple[int, int], low: int, high: int) -> Tensor:
    """The same for heights without a common measure: rows are mixed first, then columns are resized."""
    upper, lower, weight = (torch.from_numpy(t[low:high]).to(maps.device) for t in taps(maps.shape[2], size[0]))
    mixed = torch.lerp(maps[:, :, upper], maps[:, :, lower], weight.to(maps.dtype)[:, None])
    return F.interpolate(mixed, size=(high - low, size[1]), mode="bilinear", align_corners=False)
