"""What a pass asks of a GPU, counted without one: kernels, bytes up and down, waits of the host, messages to other ranks.

Operators run on tensors with a shape and a device but no data: meta tensors for training, fake ones for labelling. A
kernel is counted for each operator that computes or copies; views are free. A convolution with a bias counts two, since
torch adds the bias by a kernel of its own after cuDNN's. cuDNN's fused operators count one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import Library
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hmsa_core.inference.network import on_gpu, optimised

_aten = torch.ops.aten
_FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "_reshape_alias"}
_FREE |= {"lift_fresh"}


class Counting(TorchDispatchMode):
    """Counts inside of its block; answers what has no kernel for such tensors itself."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()  # the host waits for a value, the length of a result or a transfer
        self.messages: Counter[str] = Counter()
        self.uploaded = self.downloaded = 0  # bytes

    @property
    def kernels(self) -> int:
        """Kernels launched on the device."""
        return sum(self.operators.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if func.namespace == "c10d":
            self.messages[name] += 1
            work = torch._C._distributed_c10d.FakeWork()
            return args[0], work.boxed() if hasattr(work, "boxed") else work
        if func.namespace != "aten":  # questions about a tensor
            return func(*args, **kwargs)
        if func is not _aten.upsample_bilinear2d.vec and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        ):
            with self:
                done = func.decompose(*args, **kwargs)
            if done is not NotImplemented:
                return done
        if name in _WAITS and _on_gpu(args[0]):
            self.waits[name] += 1
            return _WAITS[name](args[0])
        answer = _ANSWERS.get(name)
        result = answer(*args) if answer and _on_gpu(args[0]) else func(*args, **kwargs)
        self._note(func, name, args, kwargs, result)
        return result

    def _note(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        made = result if isinstance(result, Tensor) else next((r for r in result or () if isinstance(r, Tensor)), None)
        if name in ("index", "index_put_", "_index_put_impl_") and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1] if _on_gpu(args[0])
        ):
            self.waits[f"{name} by a mask"] += 1
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            if _on_gpu(source) != _on_gpu(made):
                is_free = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
                self._carried(source, made, bool(is_free))
                return
        if _on_gpu(made) and not func.is_view and name not in _FREE:
            has_bias = name == "convolution" and args[2] is not None
            self.operators[name] += 1 + has_bias

    def _carried(self, source: Tensor, target: Any, is_free: bool) -> None:
        size = source.numel() * source.element_size()
        self.uploaded += size * _on_gpu(target)
        self.downloaded += size * _on_gpu(source)
        if not is_free:
            self.waits["copy between host and device"] += 1


def _on_gpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type in ("meta", "cuda")


def _channels(x: Tensor, count: int) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(count))


# What tensors without data cannot answer: values, and kernels of torch's SyncBatchNorm.
_WAITS: dict[str, Any] = {
    "_local_scalar_dense": lambda _: 1.0,
    "nonzero": lambda x: x.new_empty((1, x.ndim), dtype=torch.long),
    "masked_select": lambda x: x.new_empty(1),
    "equal": lambda _: True,
    "is_nonzero": lambda _: True,
}
_ANSWERS: dict[str, Any] = {
    "batch_norm_stats": lambda x, *_: _channels(x, 2),
    "batch_norm_elemt": lambda x, *_: torch.empty_like(x),
    "batch_norm_backward_reduce": lambda _, x, *__: _channels(x, 4),
    "batch_norm_backward_elemt": lambda _, x, *__: torch.empty_like(x),
}


@contextmanager
def ranks_that_are_not_there(ranks: int) -> Iterator[None]:
    """This process is rank 0 of so many."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    with pytest.MonkeyPatch.context() as patch:
        # Autocast does not know meta tensors; it changes types, and neither waits nor messages.
        patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
        yield
    dist.destroy_process_group()


@contextmanager
def fake_gpu() -> Iterator[pytest.MonkeyPatch]:
    """A device "cuda" whose tensors have no data, for the prepared network; checks that read numbers are left out."""
    with pytest.MonkeyPatch.context() as patch, fused_operators(), FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(optimised, "_check_same", lambda *_a, **_k: None)
        patch.setattr(on_gpu, "can_fuse", lambda *_: True)
        patch.setattr(optimised, "_fused", _fused)
        patch.setattr(nn.Module, "to", _to)
        patch.setattr(torch.cuda, "Event", Mock)
        yield patch


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

    def relu(x: Tensor, weight: Tensor, bias: Tensor, *geometry: Any) -> Tensor:
        return F.conv2d(x, weight, bias, *geometry).relu()

    def add_relu(x: Tensor, weight: Tensor, z: Tensor, alpha: float, bias: Tensor, *geometry: Any) -> Tensor:
        return (F.conv2d(x, weight, bias, *geometry) + alpha * z).relu()

    for key in ("CPU", "Meta"):
        library.impl("cudnn_convolution_relu", relu, key)
        library.impl("cudnn_convolution_add_relu", add_relu, key)
    try:
        yield
    finally:
        library._destroy()
