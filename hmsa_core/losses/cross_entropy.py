"""Softmax cross-entropy, finite for every label map, without full-size intermediates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hmsa_core.config import LossConfig
from hmsa_core.losses._pixels import LossParts, add_at_label, at_label, blank, blocks, buffers, make_target, work_dtype

SOFTMAX = True


def cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Softmax cross-entropy, mean over valid pixels; 0 with zero gradient where no pixel is valid.

    Args:
        logits: N x C x H x W, float; half precision is computed in float32.
        labels: N x H x W, any integer dtype.
        ignore_index: label that does not count (nor does any outside 0..C-1).
    """
    target = make_target(logits, labels, ignore_index)
    with torch.autocast(logits.device.type, enabled=False):
        loss: Tensor = _CrossEntropy.apply(logits.contiguous(), target)
    return loss


def loss(logits: Tensor, labels: Tensor, options: LossConfig, ignore_index: int) -> LossParts:
    """`cross_entropy` as a training loss."""
    del options
    return LossParts(cross_entropy(logits, labels, ignore_index=ignore_index))


class _CrossEntropy(torch.autograd.Function):
    """Keep one number per pixel (log of the softmax denominator); the backward pass recomputes the softmax."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        dtype = work_dtype(logits)
        highest = logits.amax(dim=1, keepdim=True).to(dtype)
        total = torch.zeros_like(highest)
        (buffer,) = buffers(logits, 1)
        for images, classes in blocks(logits):
            part = logits[images, classes]
            x = buffer[: part.shape[0], : part.shape[1]]
            total[images] += torch.sub(part, highest[images], out=x).exp_().sum(dim=1, keepdim=True)
        denominator = highest + total.log_()
        ignored = target == logits.shape[1]
        count = (~ignored).sum(dtype=torch.float64).clamp(min=1.0)
        nll = (denominator - at_label(logits, target)).masked_fill_(ignored.unsqueeze(1), 0.0)
        ctx.save_for_backward(logits, target, ignored, denominator, count)
        return (nll.sum(dtype=torch.float64) / count).to(dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]  # torch leaves it untyped
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None]:
        logits, target, ignored, denominator, count = ctx.saved_tensors
        scale = (by_loss.double() / count).to(denominator.dtype)
        shift = blank(ignored, denominator.dtype) - denominator
        gradient = torch.empty_like(logits, dtype=denominator.dtype)
        for images, classes in blocks(logits):
            torch.add(logits[images, classes], shift[images], out=gradient[images, classes]).exp_().mul_(scale)
        add_at_label(gradient, target, -scale)
        return gradient.to(logits.dtype), None
