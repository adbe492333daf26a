"""A trained network prepared for inference: `prepare` rewrites it, `run_scale` runs it in little memory.

Which batch norm follows which convolution is found by watching one small image pass through, so any trunk will do. The
rewritten network is compared with the original on that image, and refused where it differs by more than rounding.

`run_scale` makes the widest tensors (HRNet's 720 concatenated channels, the OCR block's 1024, the heads' hidden
layers) a strip of rows at a time: the only step that looks at all positions, OCR's region gathering, reads a narrower
map. Strips overlap by the reach of the 3x3 convolutions, so scores are those of the model's own pass up to rounding.
"""

from __future__ import annotations

import copy
import ctypes
import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hmsa_core.inference.network import on_gpu
from hmsa_core.io.errors import HmsaError
from hmsa_core.models.heads import OCRBlock, gather_regions
from hmsa_core.models.layers.blocks import resize
from hmsa_core.models.model import MultiScaleModel
from hmsa_core.models.rows import taps_on

_LOG = logging.getLogger(__name__)
_PROBE = 128  # pixels; large enough that the trunk's coarsest grid has more than one position
_TOLERANCE = 1e-3  # relative to the largest score; folding moves scores by about 1e-6
_TF32_TOLERANCE = 2e-2  # the same, where a GPU multiplies with 10 bits; a ReLU at a wrong place moves far more
_STRIP_BYTES = {"cpu": 48 << 20}  # of the widest tensor of a strip; 1 GiB on a GPU
_REACH = 2  # rows: two 3x3 convolutions one after another (attention head, the paper's semantic head)


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware; elsewhere bf16 is emulated and slower than fp32."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    # oneDNN may be kept from what the processor has (ONEDNN_MAX_CPU_ISA).
    return bool(known.get("avx512_bf16") or known.get("amx_bf16")) and _can_pack(torch.bfloat16)


def fast_precision() -> str:
    """Half precision that this GPU multiplies in hardware; torch emulates bf16 on older ones."""
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def effective_precision(requested: str, device: torch.device) -> str:
    """Precision that is used (goes into lineage): auto is half precision, bf16 on a CPU without it is fp32."""
    if requested == "auto":
        requested = fast_precision() if device.type == "cuda" else "bf16"
    if requested == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        return "fp32"
    return requested


def prepare(
    model: MultiScaleModel, device: torch.device, dtype: torch.dtype, *, in_place: bool = False
) -> MultiScaleModel:
    """Return a copy for inference on `device`; the given model stays as it is, unless `in_place`.

    Args:
        model: in evaluation mode, float32.
        device: where the copy computes; its convolutions are packed on CPUs whose oneDNN computes in `dtype`.
        dtype: the type of weights and activations.

    Raises:
        HmsaError: the rewritten network does not compute what the original does.
    """
    with torch.no_grad():
        fast = (model if in_place else copy.deepcopy(model)).eval()
        probe = torch.randn(1, 3, _PROBE, _PROBE, generator=torch.Generator().manual_seed(0))
        probe = probe.to(next(fast.parameters()).device)
        before = fast.forward_scale(probe)
        _fold(fast, probe)
        after = fast.forward_scale(probe)
        _check_same(before.logits, after.logits)
        if device.type == "cuda" and on_gpu.can_fuse(device, dtype):
            fast = _fused(fast, probe.to(device), device)
        # bf16 weights are made from folded fp32 ones: scaling a rounded weight would round twice.
        fast.to(device=device, dtype=dtype)
        fast.to(memory_format=torch.channels_last)
        if device.type == "cpu" and _can_pack(dtype):
            _pack(fast)
    for parameter in fast.parameters():
        parameter.requires_grad_(False)
    _return_free_memory()
    return fast


def _fused(model: MultiScaleModel, probe: Tensor, device: torch.device) -> MultiScaleModel:
    """The network with fused convolutions, in float32 and checked; the network itself where the check fails."""
    model.to(device=device)
    model.to(memory_format=torch.channels_last)
    fused = copy.deepcopy(model)
    on_gpu.fuse(fused, probe)
    try:
        _check_same(model.forward_scale(probe).logits, fused.forward_scale(probe).logits, tolerance=_TF32_TOLERANCE)
    except HmsaError as error:
        _LOG.warning("convolutions stay apart from bias and ReLU: %s", error.message)
        return model
    return fused


def _return_free_memory() -> None:
    """Give the pages of replaced weights back to the system: glibc keeps what lies between living blocks."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def _check_same(before: Tensor, after: Tensor, *, tolerance: float = _TOLERANCE) -> None:
    scale = float(before.abs().max())
    difference = float((before - after).abs().max())
    if not difference <= tolerance * max(scale, 1e-6):
        raise HmsaError(
            f"folding batch norms changed the scores by {difference:.3g} (largest score {scale:.3g})",
            hint="a batch norm with (nearly) zero variance, or weights that are not finite?",
        )


def _fold(model: nn.Module, probe: Tensor) -> None:
    """Fold every batch norm whose input is the fresh output of one convolution into that convolution."""
    names = {module: name for name, module in model.named_modules()}
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    calls = on_gpu.fresh_inputs(model, probe, convolutions, nn.BatchNorm2d)
    for convolution, norm in {one: norm for norm, one in reversed(calls) if one is not None}.items():
        _absorb(convolution, norm)  # type: ignore[arg-type]  # hooked on BatchNorm2d only
        # Some norms of timm apply the activation as well.
        model.set_submodule(names[norm], getattr(norm, "act", None) or nn.Identity())


def _absorb(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise HmsaError("a batch norm without running statistics cannot be used for inference")
    # In float64: the folded weight is rounded once.
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = torch.zeros_like(scale) if convolution.bias is None else convolution.bias.double()
    shift = norm.bias.double() + (bias - norm.running_mean.double()) * scale
    weight = convolution.weight.double() * scale.reshape(-1, 1, 1, 1)
    convolution.weight = nn.Parameter(weight.to(convolution.weight.dtype), requires_grad=False)
    convolution.bias = nn.Parameter(shift.to(convolution.weight.dtype), requires_grad=False)


def _can_pack(dtype: torch.dtype) -> bool:
    """Whether this processor's oneDNN convolves in `dtype`; elsewhere torch's own convolution does, more slowly."""
    ops = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(ops, "_convolution_pointwise"):  # type: ignore[no-untyped-call]
        return False
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return dtype not in supported or bool(getattr(ops, supported[dtype])())


class PackedConv(nn.Module):
    """A convolution whose weights lie in oneDNN's blocked order: nothing is rearranged at each call."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        c: Any = convolution
        self.geometry = (list(c.padding), list(c.stride), list(c.dilation), c.groups)
        # A plain attribute: packed tensors cannot be copied, moved or saved like others.
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(c.weight.detach(), *self.geometry)
        self.bias = None if convolution.bias is None else convolution.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve B x K x H x W."""
        padding, stride, dilation, groups = self.geometry
        return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]  # untyped operator
            x, self.weight, self.bias, padding, stride, dilation, groups, "none", [], ""
        )


def _pack(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        # Not a class derived from it: timm's convolutions with TensorFlow's padding pad by themselves.
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            model.set_submodule(name, PackedConv(module))


def run_scale(model: MultiScaleModel, images: Tensor, attention: bool) -> tuple[Tensor, Tensor | None]:
    """Scores B x C x h x w and attention B x 1 x h x w (after the sigmoid where the model has one), float32."""
    if not isinstance(model.ocr, OCRBlock):
        out = model.forward_scale(images, attention=attention)
        return out.logits.float(), None if out.attention is None else out.attention.float()
    maps = model.backbone(images)
    narrow, aux = _context_inputs(model.ocr, maps, model.num_classes)
    del maps
    return _heads(model, narrow, gather_regions(narrow, aux), attention=attention)


def _strips(height: int, row_bytes: int, device: torch.device) -> Iterator[tuple[int, int]]:
    step = max(4 * _REACH, _STRIP_BYTES.get(device.type, 1 << 30) // row_bytes)
    for start in range(0, height, step):
        yield start, min(start + step, height)


def _context_inputs(ocr: OCRBlock, maps: list[Tensor], classes: int) -> tuple[Tensor, Tensor]:
    """Narrow features (what OCR works on) and auxiliary scores, from strips of the neck's concatenated features."""
    first = maps[0]
    size = (first.shape[2], first.shape[3])
    row_bytes = sum(one.shape[1] for one in maps) * first.shape[0] * size[1] * first.element_size()
    # Made before the strips for the same reason as in `_heads`.
    narrow, aux = (_empty(first, count, size) for count in (ocr.out_channels, classes))
    for start, stop in _strips(size[0], row_bytes, first.device):
        low, high = max(0, start - 1), min(size[0], stop + 1)
        features = torch.cat([_rows(one, size, low, high) for one in maps], dim=1)
        inner = slice(start - low, stop - low)
        narrow[:, :, start:stop] = ocr.conv3x3_ocr(features)[:, :, inner]
        aux[:, :, start:stop] = ocr.aux_head(features[:, :, inner])
    return narrow, aux


def _heads(model: MultiScaleModel, narrow: Tensor, regions: Tensor, *, attention: bool) -> tuple[Tensor, Tensor | None]:
    ocr, (batch, _, height, width) = model.ocr, narrow.shape
    row_bytes = 2 * narrow.shape[0] * narrow.shape[1] * narrow.shape[3] * narrow.element_size()
    with_attention = attention and model.config.has_attention
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
    if maps.device.type != "cpu" and (low, high) == (0, size[0]):
        return resize(maps, size)
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
    upper, lower, weight = taps_on(maps.device, maps.shape[2], size[0], low, high)
    mixed = torch.lerp(maps[:, :, upper], maps[:, :, lower], weight.to(maps.dtype)[:, None])
    return F.interpolate(mixed, size=(high - low, size[1]), mode="bilinear", align_corners=False)
