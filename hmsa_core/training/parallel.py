"""One model on several ranks: gradients averaged once a step, batch norm statistics the same everywhere.

GPUs use DistributedDataParallel (overlaps NCCL with the backward pass) and SyncBatchNorm. CPUs use one flat
gradient buffer and one gloo message a step. DDP regroups its buckets after the first step, so a resumed run
would sum in another order than the uninterrupted one, and a resume has to be bit-identical.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hmsa_core.runtime.ranks import Ranks

# Statistics need no broadcast before each pass; torch 2.15 renamed the option for it.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)


class Replicas:
    """A model on one rank, and the interface of the others."""

    def __init__(self, model: nn.Module) -> None:
        self.forward: nn.Module = model  # call this for a training pass

    def passing(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Context of one forward and backward pass; `is_last`: the last pass of a step."""
        del is_last
        return nullcontext()

    def zero_grad(self, optimiser: torch.optim.Optimizer) -> None:
        """Reset the gradients of the last step."""
        optimiser.zero_grad(set_to_none=True)

    def reduce(self) -> None:
        """Average gradients and batch norm statistics over ranks, after the last pass of a step."""


class FlatReplicas(Replicas):
    """CPU ranks: gradients are views of one buffer, which is summed by one message per step.

    The same message carries running statistics of batch norm. Each rank collects them from its passes: the mean
    differs slightly from the statistics of fewer ranks.
    """

    def __init__(self, model: nn.Module, forward: nn.Module, ranks: Ranks) -> None:
        super().__init__(forward)
        self._world = ranks.world
        parameters = [p for p in model.parameters() if p.requires_grad]
        # float64 counters and integer counts are the same on all ranks anyway.
        self._statistics = [b for b in model.buffers() if b.dtype == torch.float32]
        sizes = [sum(t.numel() for t in tensors) for tensors in (parameters, self._statistics)]
        self._message = torch.zeros(sum(sizes))
        self._gradients, others = torch.split(self._message, sizes)
        self._views, self._sent = _views(self._gradients, parameters), _views(others, self._statistics)
        for parameter, view in zip(parameters, self._views, strict=True):
            parameter.grad = view
        self._parameters = parameters

    def zero_grad(self, optimiser: torch.optim.Optimizer) -> None:
        """Zero the buffer; the gradients stay views of it."""
        del optimiser
        self._gradients.zero_()

    def reduce(self) -> None:
        """Average gradients and statistics."""
        if any(p.grad is not view for p, view in zip(self._parameters, self._views, strict=True)):
            raise RuntimeError("a gradient was replaced: it is no longer part of the message to other ranks")
        for sent, statistic in zip(self._sent, self._statistics, strict=True):
            sent.copy_(statistic)
        dist.all_reduce(self._message)
        self._message.div_(self._world)
        for sent, statistic in zip(self._sent, self._statistics, strict=True):
            statistic.copy_(sent)


def _views(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Slices of `flat` with the shapes *and strides* of the tensors (fused optimisers walk memory)."""
    parts = torch.split(flat, [t.numel() for t in tensors])
    return [part.as_strided(t.shape, t.stride()) for part, t in zip(parts, tensors, strict=True)]


class DdpReplicas(Replicas):
    """GPU ranks: DistributedDataParallel; if SyncBatchNorm covers all ranks, statistics are equal already.

    A static graph is not used: it does not work with `no_sync`, which accumulation needs.
    """

    def __init__(self, forward: nn.Module, ranks: Ranks) -> None:
        options: dict[str, Any] = {"gradient_as_bucket_view": True, _SYNC_BUFFERS: False}
        device_ids = [ranks.device] if ranks.device.type == "cuda" else None
        self._ddp = DistributedDataParallel(forward, device_ids=device_ids, **options)
        super().__init__(self._ddp)
        self._world = ranks.world
        together = ranks.norm_ranks == ranks.world
        self._statistics = [] if together else [b for b in forward.buffers() if b.dtype == torch.float32]

    def passing(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Do not send gradients before the last pass."""
        return nullcontext() if is_last else self._ddp.no_sync()

    def reduce(self) -> None:
        """Average the statistics of ranks with separate batch norms; DDP has averaged the gradients."""
        if self._statistics:
            message = torch.cat([statistic.reshape(-1) for statistic in self._statistics])
            dist.all_reduce(message)
            means = torch.split(message.div_(self._world), [statistic.numel() for statistic in self._statistics])
            for statistic, mean in zip(self._statistics, means, strict=True):
                statistic.copy_(mean.view_as(statistic))


def replicate(model: nn.Module, ranks: Ranks, *, compiled: bool) -> Replicas:
    """Put a model on the ranks, with rank 0's weights; its batch norm is already synchronised if required."""
    forward: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]  # a module too
    if ranks.world == 1:
        return Replicas(forward)
    if ranks.device.type == "cuda":
        return DdpReplicas(forward, ranks)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor, src=0)
    return FlatReplicas(model, forward, ranks)
