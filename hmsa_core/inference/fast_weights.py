"""Rewrite a trained network for inference: batch norms folded into convolutions, convolutions packed for the CPU.

Which batch norm follows which convolution is found by watching one small image pass through, so any trunk
will do. The rewritten network is compared with the original on that image; if it differed by more than
rounding it would not be used.
"""

from __future__ import annotations

import copy
import ctypes
import sys
from typing import Any

import torch
from torch import Tensor, nn

from hmsa_core.io.errors import HmsaError
from hmsa_core.models.hmsa import MultiScaleModel

__all__ = ["PackedConv", "cpu_has_bf16", "effective_precision", "optimise"]

_PROBE = 128  # pixels; large enough that the trunk's coarsest grid has more than one position
_TOLERANCE = 1e-3  # relative to the largest score; folding moves scores by about 1e-6


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware; elsewhere bf16 is emulated and slower than fp32."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def effective_precision(asked: str, device: torch.device) -> str:
    """Precision that is used: bf16 falls back to fp32 on a CPU that gains nothing by it (goes into lineage)."""
    if asked == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        return "fp32"
    return asked


def optimise(
    model: MultiScaleModel, device: torch.device, precision: str, *, in_place: bool = False
) -> MultiScaleModel:
    """Return a copy for inference on `device`; the given model stays as it is, unless `in_place`.

    Args:
        model: in evaluation mode, float32.
        device: where the copy computes; its convolutions are packed on CPUs with oneDNN.
        precision: "fp32", "bf16" or "fp16": the type of weights and activations.

    Raises:
        HmsaError: the rewritten network does not compute what the original does.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.no_grad():
        fast = (model if in_place else copy.deepcopy(model)).eval()
        probe = torch.randn(1, 3, _PROBE, _PROBE, generator=torch.Generator().manual_seed(0))
        probe = probe.to(next(fast.parameters()).device)
        before = fast.forward_scale(probe)
        _fold(fast, probe)
        after = fast.forward_scale(probe)
        _check_same(before.logits, after.logits)
        # bf16 weights are made from folded fp32 ones: scaling a rounded weight would round twice.
        fast.to(device=device, dtype=dtype)
        fast.to(memory_format=torch.channels_last)
        if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            _pack(fast)
    for parameter in fast.parameters():
        parameter.requires_grad_(False)
    _return_free_memory()
    return fast


def _return_free_memory() -> None:
    """Give the pages of replaced weights back to the system: glibc keeps what lies between living blocks."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def _check_same(before: Tensor, after: Tensor) -> None:
    scale = float(before.abs().max())
    difference = float((before - after).abs().max())
    if not difference <= _TOLERANCE * max(scale, 1e-6):
        raise HmsaError(
            f"folding batch norms changed the scores by {difference:.3g} (largest score {scale:.3g})",
            hint="a batch norm with (nearly) zero variance, or weights that are not finite?",
        )


def _fold(model: nn.Module, probe: Tensor) -> None:
    """Fold every batch norm whose input is the fresh output of one convolution into that convolution."""
    source: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def remember(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        # The tensor is kept alive beside its id, so that the id cannot be given to another one.
        source[id(output)] = (module, output)  # type: ignore[assignment]  # hooked on Conv2d only

    def match(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found = source.pop(id(inputs[0]), None)
        if found is not None:
            pairs.append((found[0], module))  # type: ignore[arg-type]  # hooked on BatchNorm2d only

    handles = [m.register_forward_hook(remember) for m in model.modules() if isinstance(m, nn.Conv2d)]
    handles += [m.register_forward_pre_hook(match) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.forward_scale(probe)  # type: ignore[operator]  # a MultiScaleModel
    for handle in handles:
        handle.remove()
    names = {module: name for name, module in model.named_modules()}
    for convolution, norm in pairs:
        _absorb(convolution, norm)
        _replace(model, names[norm], nn.Identity())


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


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


class PackedConv(nn.Module):
    """A convolution whose weights lie in oneDNN's blocked order: nothing is rearranged at each call."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.geometry = (
            _pair(convolution.padding),
            _pair(convolution.stride),
            _pair(convolution.dilation),
            convolution.groups,
        )
        weight = torch.ops.mkldnn._reorder_convolution_weight(convolution.weight.detach(), *self.geometry)
        # A plain attribute: packed tensors cannot be copied, moved or saved like others.
        self.weight = weight
        self.bias = None if convolution.bias is None else convolution.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve B x K x H x W."""
        padding, stride, dilation, groups = self.geometry
        return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]  # untyped operator
            x, self.weight, self.bias, padding, stride, dilation, groups, "none", [], ""
        )


def _pair(value: Any) -> list[int]:
    return [int(v) for v in value]


def _pack(model: nn.Module) -> None:
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            _replace(model, name, PackedConv(module))
