"""The training loss: main + aux_weight x auxiliary + per_scale_weight x each single scale, with named parts."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hmsa_core.config import LossConfig
from hmsa_core.losses._pixels import LossParts

if TYPE_CHECKING:
    from hmsa_core.models import ModelOutput


def loss_of(name: str, logits: Tensor, labels: Tensor, options: LossConfig, ignore_index: int) -> LossParts:
    """Compute the loss of this name: function `loss` of the file `hmsa_core/losses/NAME.py`."""
    return cast("LossParts", import_module(f"hmsa_core.losses.{name}").loss(logits, labels, options, ignore_index))


def is_softmax(name: str) -> bool:
    """Whether the file of this loss sets `SOFTMAX = True`: its class heads start at the usual spread."""
    return getattr(import_module(f"hmsa_core.losses.{name}"), "SOFTMAX", False)


def training_loss(
    output: ModelOutput, labels: Tensor, options: LossConfig, *, ignore_index: int = 255, weight: Tensor | None = None
) -> LossParts:
    """Compute the loss of a model's training output: the paper's (section 4) or the released recipe, by `options`.

    The loss of a single scale is the main loss; if that is RMI, it is the released BCE, as in the released recipe.

    Args:
        output: fused scores and auxiliary scores, N x C x H x W; scores of each scale on the grid of that scale.
        labels: N x H x W, any integer dtype.
        options: names and weights of the losses.
        ignore_index: label that does not count.
        weight: of each pixel, float N x H x W; None = 1. It multiplies the gradient at the pixel's scores, so it
            works for any loss, also of regions. The value of the loss ignores weights.
    """

    def of(name: str, scores: Tensor) -> LossParts:
        weighed = scores if weight is None else cast("Tensor", _Weighed.apply(scores, weight))
        return loss_of(name, weighed, labels, options, ignore_index)

    main = of(options.main, output.logits)
    total, parts = main.total, {"main": main.total, **main.parts}
    if options.aux_weight:
        parts["aux"] = of(options.aux, output.aux_logits).total
        total = total + options.aux_weight * parts["aux"]
    if options.per_scale_weight:
        single = "released_bce" if options.main == "rmi" else options.main
        for scale, logits in output.scale_logits.items():
            whole = logits
            if logits.shape[-2:] != labels.shape[-2:]:
                whole = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            parts[f"scale_{scale:g}"] = part = of(single, whole).total
            total = total + options.per_scale_weight * part
    return LossParts(total, {name: part.detach() for name, part in parts.items()})


class _Weighed(torch.autograd.Function):
    """Return scores N x C x H x W unchanged; multiply their gradient by the weight of each pixel."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return scores.view_as(scores)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]  # torch leaves it untyped
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return gradient * weight.unsqueeze(1).to(gradient.dtype), None
