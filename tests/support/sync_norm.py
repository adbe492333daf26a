"""torch's SyncBatchNorm on CPUs: its own autograd function, with kernels that only GPUs have written out in torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as TorchFunction


def column(channels: Tensor) -> Tensor:
    return channels.view(1, -1, 1, 1)


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x: Tensor,
    mean_RC: Tensor,
    invstd_RC: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts_R: Tensor,
) -> tuple[Tensor, Tensor]:
    share = (counts_R / counts_R.sum()).view(-1, 1)
    mean = (share * mean_RC).sum(0)
    variance = (share * (invstd_RC.pow(-2) - eps + (mean_RC - mean).square())).sum(0)
    total = float(counts_R.sum())
    if running_mean is not None and running_var is not None:
        running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
        running_var.mul_(1 - momentum).add_(variance, alpha=momentum * total / (total - 1))
    return mean, (variance + eps).rsqrt()


def batch_norm_elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    return (x - column(mean)) * column(invstd * weight) + column(bias)


def batch_norm_backward_reduce(
    by_y: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    inputs: bool,
    weights: bool,
    bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total, centred = by_y.sum((0, 2, 3)), (by_y * (x - column(mean))).sum((0, 2, 3))
    return total, centred, centred * invstd, total.clone()


def batch_norm_backward_elemt(
    by_y: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    total: Tensor,
    centred: Tensor,
    counts: Tensor,
) -> Tensor:
    n = int(counts.sum())
    along = (x - column(mean)) * column(invstd.square() * centred / n)
    return (by_y - column(total / n) - along) * column(invstd * weight)


KERNELS: tuple[Any, ...] = (
    batch_norm_stats,
    batch_norm_gather_stats_with_counts,
    batch_norm_elemt,
    batch_norm_backward_reduce,
    batch_norm_backward_elemt,
)


def give_cpus_kernels() -> torch.library.Library:
    """Until the returned library is gone (call it in a process of its own)."""
    library = torch.library.Library("aten", "IMPL", "CPU")
    for kernel in KERNELS:
        library.impl(kernel.__name__, kernel)
    return library


class TorchSynced(nn.BatchNorm2d):
    """torch.nn.SyncBatchNorm without its refusal of CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        given = (self.weight, self.bias, self.running_mean, self.running_var, self.eps, self.momentum)
        out: Tensor = TorchFunction.apply(x, *given, dist.group.WORLD, dist.get_world_size())
        return out


def as_torch_does(model: nn.Module) -> nn.Module:
    """Let every batch norm compute what torch's SyncBatchNorm computes."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = TorchSynced
    return model
