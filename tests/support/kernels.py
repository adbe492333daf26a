"""What a GPU would do, counted without one: kernels, bytes carried between host and device, waits of the host.

Operators run on fake tensors: they have shapes and a device, but no data. A kernel is counted for each operator that
computes or copies; views are free. A convolution with a bias counts two, since torch adds the bias by a kernel of its
own after cuDNN's. cuDNN's fused operators count one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import Library
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hmsa_core.inference import on_gpu, prepared

_aten = torch.ops.aten
_FREE = {_aten.empty.memory_format, _aten.empty_like.default, _aten.new_empty.default, _aten.empty_strided.default}
_FREE |= {_aten.detach.default, _aten._reshape_alias.default, _aten.lift_fresh.default}
_COPIES = {_aten._to_copy.default, _aten.copy_.default}


class Counted(TorchDispatchMode):
    """Counts inside of its block."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.uploaded = self.downloaded = 0  # bytes
        self.waits = 0  # transfers that hold up the host, and reads of a number

    @property
    def kernels(self) -> int:
        """Kernels launched on the device."""
        return sum(self.operators.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten":  # questions about a tensor
            return func(*args, **kwargs)
        if func is not _aten.upsample_bilinear2d.vec and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        ):
            with self:
                done = func.decompose(*args, **kwargs)
            if done is not NotImplemented:
                return done
        result = func(*args, **kwargs)
        self._note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        given = [one for one in args if isinstance(one, Tensor)]
        made = result if isinstance(result, Tensor) else next((r for r in result or () if isinstance(r, Tensor)), None)
        if func in _COPIES and made is not None and given[-1].device.type != made.device.type:
            self._carried(given[-1], made, bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2])))
        elif func is _aten._local_scalar_dense.default and given[0].is_cuda:
            self.waits += 1
        elif made is not None and made.is_cuda and not func.is_view and func not in _FREE:
            has_bias = func is _aten.convolution.default and args[2] is not None
            self.operators[func.name()] += 1 + has_bias

    def _carried(self, source: Tensor, target: Tensor, is_free: bool) -> None:
        size = source.numel() * source.element_size()
        self.uploaded += size * target.is_cuda
        self.downloaded += size * source.is_cuda
        self.waits += not is_free


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device "cuda" whose tensors have no data, for the prepared network; checks that read numbers are left out."""
    monkeypatch.setattr(prepared, "_check_same", lambda *_a, **_k: None)
    monkeypatch.setattr(on_gpu, "can_fuse", lambda *_: True)
    monkeypatch.setattr(prepared, "_fused", _fused)
    monkeypatch.setattr(nn.Module, "to", _to)
    monkeypatch.setattr(torch.cuda, "Event", Mock)
    with fused_operators(), FakeTensorMode(allow_non_fake_inputs=True):
        yield


def _fused(model: nn.Module, probe: Tensor, device: torch.device) -> nn.Module:
    model.to(device=device)
    on_gpu.fuse(model, probe)
    return model


def _to(model: nn.Module, **changes: Any) -> nn.Module:
    """`Module.to`, which cannot exchange fake parameters in place."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                fits = value.dim() == 4 or "memory_format" not in changes
                moved = value.detach().to(**changes) if fits else value.detach()
                module._parameters[name] = nn.Parameter(moved, requires_grad=False)
        for name, value in module._buffers.items():
            if value is not None and value.is_floating_point() and "memory_format" not in changes:
                module._buffers[name] = value.to(**changes)
    return model


@contextmanager
def fused_operators() -> Iterator[None]:
    """cuDNN's fused operators for fake tensors, and on the CPU as convolution, sum and ReLU."""
    library = Library("aten", "IMPL")

    def fused(x: Tensor, weight: Tensor, bias: Tensor, *geometry: Any) -> Tensor:
        stride, padding, dilation, groups = geometry
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    def relu(x: Tensor, weight: Tensor, bias: Tensor, *geometry: Any) -> Tensor:
        return fused(x, weight, bias, *geometry).relu()

    def add_relu(x: Tensor, weight: Tensor, z: Tensor, alpha: float, bias: Tensor, *geometry: Any) -> Tensor:
        return (fused(x, weight, bias, *geometry) + alpha * z).relu()

    for key in ("CPU", "Meta"):
        library.impl("cudnn_convolution_relu", relu, key)
        library.impl("cudnn_convolution_add_relu", add_relu, key)
    try:
        yield
    finally:
        library._destroy()
