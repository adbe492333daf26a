"""Building blocks of all networks: resizing, convolution + batch norm + ReLU, initialisation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BN_MOMENTUM = 0.1  # as released; torch's default
LOW_PRECISION = (torch.bfloat16, torch.float16)


def resize(maps_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly (corners not aligned, no antialias); the same size returns the input itself."""
    if tuple(maps_BCHW.shape[-2:]) == tuple(size):
        return maps_BCHW
    if maps_BCHW.requires_grad and maps_BCHW.device.type == "cpu":
        resized: Tensor = _ResizeOnCpu.apply(maps_BCHW, size)
        return resized
    # Autocast on GPUs resizes in float32 and returns float32; sums with other maps would then mix types.
    return F.interpolate(maps_BCHW, size=size, mode="bilinear", align_corners=False).to(maps_BCHW.dtype)


class _ResizeOnCpu(torch.autograd.Function):
    """Bilinear resize of torch; the backward pass in channels-last memory takes a quarter of the time, same bits."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.shape = maps.shape
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]  # torch leaves it untyped
    def backward(ctx: Any, by_resized: Tensor) -> tuple[Tensor, None]:
        last = by_resized.contiguous(memory_format=torch.channels_last)
        by_maps = torch.ops.aten.upsample_bilinear2d_backward(last, last.shape[2:], ctx.shape, False, None, None)
        return by_maps.contiguous() if by_resized.is_contiguous() else by_maps, None


def scaled_size(size: tuple[int, int], scale: float, kind: str = "hierarchical") -> tuple[int, int]:
    """Pixel size (height, width) of an image at a scale, never 0.

    The released averaging baseline rounds sizes, its hierarchical inference floors them.
    """
    rounded = round if kind in ("average", "max") else math.floor
    return max(1, rounded(size[0] * scale)), max(1, rounded(size[1] * scale))


def promote(maps: Tensor) -> Tensor:
    """Take half precision scores to float32; fusing and losses add many of them."""
    return maps.float() if maps.dtype in LOW_PRECISION else maps


def conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Make a convolution padded so that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias)


def conv_bn(inputs: int, outputs: int, kernel: int, *, stride: int = 1, relu: bool = True) -> nn.Sequential:
    """Make convolution, batch norm and optional ReLU: indexes 0, 1, 2 in the state dict."""
    layers = [conv(inputs, outputs, kernel, stride=stride), nn.BatchNorm2d(outputs, momentum=BN_MOMENTUM)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


def batch_norm_relu(channels: int) -> nn.Sequential:
    """Make batch norm and ReLU as one unit: the released OCR code nests them, and with them the keys."""
    return nn.Sequential(nn.BatchNorm2d(channels, momentum=BN_MOMENTUM), nn.ReLU(inplace=True))


class LastNorm(nn.BatchNorm2d):
    """Batch norm at the end of a residual branch: it starts at zero."""


def init_weights(model: nn.Module) -> None:
    """Initialise for training from scratch: He et al. 2015 for convolutions, identity for batch norms.

    The last norm of each residual branch starts at zero, so that a block starts as the identity (Goyal et al. 2017,
    section 5.1). The released code draws trunk weights with a standard deviation of 0.001 since it always loads
    ImageNet weights next; from scratch that starts almost dead.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.0 if isinstance(module, LastNorm) else 1.0)
            nn.init.zeros_(module.bias)
