"""What a training pass asks of a GPU, counted on meta tensors: host synchronisations, messages, kernels, bytes up.

A meta tensor has a shape and no memory, so a pass of a network of any size is counted on a machine without a GPU. What
is on device `meta` counts as on the GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# The host waits until the device has computed a value, or the length of a result.
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}
_FREE = {"view", "_unsafe_view", "expand", "slice", "select", "split", "unbind", "transpose", "permute", "as_strided",
         "t", "unsqueeze", "squeeze", "detach", "alias", "unfold", "diagonal", "empty", "empty_like", "new_empty",
         "empty_strided", "new_empty_strided", "split_with_sizes", "lift_fresh", "_reshape_alias", "chunk"}  # fmt: skip


class Counting(TorchDispatchMode):
    """Counts what is dispatched below; answers what has no fake kernel itself."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()
        self.kernels = 0
        self.bytes_up = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        space, name = func._schema.name.split("::")
        if space == "c10d":
            return self._message(name, args)
        if name in _WAITS and _on_gpu(args[0]):
            self.waits[name] += 1
            return _ANSWERS[name](args[0])
        answer = _ANSWERS.get(name)
        out = answer(*args) if answer and _on_gpu(args[0]) else func(*args, **kwargs)
        self._count(name, args, kwargs, out)
        return out

    def _message(self, name: str, args: Any) -> Any:
        self.messages[name] += 1
        work = torch._C._distributed_c10d.FakeWork()
        tensors = args[0]
        return (tensors, work.boxed() if hasattr(work, "boxed") else work)

    def _count(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        outs = [t for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, Tensor)]
        given = [t for t in args if isinstance(t, Tensor)]
        if any(_on_gpu(t) for t in [*outs, *given]) and name not in _FREE:
            self.kernels += 1
        if name in ("index", "index_put_", "_index_put_impl_") and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1] if _on_gpu(args[0])
        ):
            self.waits[f"{name} by a mask"] += 1
        if name in ("_to_copy", "copy_"):
            self._copied(name, args, kwargs, outs[0])

    def _copied(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        source = args[1] if name == "copy_" else args[0]
        if _on_gpu(source) == _on_gpu(out):
            return
        if _on_gpu(out):
            self.bytes_up += source.numel() * source.element_size()
        is_free = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if not is_free:
            self.waits["copy between host and device"] += 1


def _on_gpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "meta"


def _channels(x: Tensor, count: int) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(count))


# What meta tensors cannot answer: values, and kernels of torch's SyncBatchNorm.
_ANSWERS: dict[str, Any] = {
    "_local_scalar_dense": lambda _: 1.0,
    "nonzero": lambda x: x.new_empty((1, x.ndim), dtype=torch.long),
    "masked_select": lambda x: x.new_empty(1),
    "equal": lambda _: True,
    "is_nonzero": lambda _: True,
    "batch_norm_stats": lambda x, *_: _channels(x, 2),
    "batch_norm_elemt": lambda x, *_: torch.empty_like(x),
    "batch_norm_backward_reduce": lambda _, x, *__: _channels(x, 4),
    "batch_norm_backward_elemt": lambda _, x, *__: torch.empty_like(x),
    "batch_norm_gather_stats_with_counts": lambda x, *_: _channels(x, 2),
}


def _no_autocast(*_: Any, **__: Any) -> Any:
    """Autocast does not know meta tensors; it changes types, and neither waits nor messages."""
    return nullcontext()


@contextmanager
def ranks_that_are_not_there(ranks: int) -> Iterator[None]:
    """This process is rank 0 of so many."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    autocast, torch.autocast = torch.autocast, _no_autocast  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]
        dist.destroy_process_group()
