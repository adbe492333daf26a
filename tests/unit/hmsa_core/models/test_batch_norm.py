"""Batch norm over ranks is the batch norm of one process that has the crops of all: outputs, gradients, statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as TorchFunction

from hmsa_core.models import MultiScaleModel, build
from hmsa_core.models.layers.batch_norm import Norm, normalise, synchronise
from hmsa_core.runtime.ranks import Ranks
from hmsa_core.training.parallel import DdpReplicas, Replicas
from tests.support.ranks import on_ranks

pytestmark = pytest.mark.chain  # ranks are processes of their own
DOUBLE = torch.float64


def column(channels: Tensor) -> Tensor:
    return channels.view(1, -1, 1, 1)


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    return (x - column(mean)) * column(invstd * weight) + column(bias)


def batch_norm_backward_reduce(by_y: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, *_: Any) -> tuple[Tensor, ...]:
    total, centred = by_y.sum((0, 2, 3)), (by_y * (x - column(mean))).sum((0, 2, 3))
    return total, centred, centred * invstd, total.clone()


def batch_norm_backward_elemt(by_y: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, *given: Tensor) -> Tensor:
    weight, total, centred, counts = given
    along = (x - column(mean)) * column(invstd.square() * centred / counts.sum())
    return (by_y - column(total / counts.sum()) - along) * column(invstd * weight)


def batch_norm_gather_stats_with_counts(
    x: Tensor,
    mean_RC: Tensor,
    invstd_RC: Tensor,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
    counts_R: Tensor,
) -> tuple[Tensor, Tensor]:
    share, total = (counts_R / counts_R.sum()).view(-1, 1), float(counts_R.sum())
    found = (share * mean_RC).sum(0)
    spread = (share * (invstd_RC.pow(-2) - eps + (mean_RC - found).square())).sum(0)
    mean.mul_(1 - momentum).add_(found, alpha=momentum)
    variance.mul_(1 - momentum).add_(spread, alpha=momentum * total / (total - 1))
    return found, (spread + eps).rsqrt()


KERNELS = (
    batch_norm_stats,
    batch_norm_elemt,
    batch_norm_backward_reduce,
    batch_norm_backward_elemt,
    batch_norm_gather_stats_with_counts,
)


class TorchSynced(nn.BatchNorm2d):
    """torch.nn.SyncBatchNorm without its refusal of CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        given = (self.weight, self.bias, self.running_mean, self.running_var, self.eps, self.momentum)
        out: Tensor = TorchFunction.apply(x, *given, dist.group.WORLD, dist.get_world_size())
        return out


def as_torch_does(model: MultiScaleModel) -> MultiScaleModel:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = TorchSynced
    return model


def on_two_ranks(job: Callable[[Ranks], None]) -> None:
    """Run the job on two ranks on the CPU, with the kernels that only GPUs have written out."""

    def with_kernels(ranks: Ranks) -> None:
        library = torch.library.Library("aten", "IMPL", "CPU")
        for kernel in KERNELS:
            library.impl(kernel.__name__, kernel)
        job(ranks)
        del library

    on_ranks(2, with_kernels)


def images_of(rank: int) -> list[Tensor]:
    """Two passes; the ranks' values have different means, so that own statistics would not do."""
    generator = torch.Generator().manual_seed(rank)
    return [
        torch.randn(2, 3, 48, 64, generator=generator, dtype=DOUBLE) * (1 + rank) + rank + index for index in range(2)
    ]


def network(**options: Any) -> MultiScaleModel:
    torch.manual_seed(3)
    return build("hierarchical", trunk="hrnet_micro", num_classes=5, dropout=0.0, **options).to(DOUBLE).train()


def passes_of(replicas: Replicas, model: nn.Module, images: list[Tensor]) -> dict[str, Tensor]:
    """Two accumulated passes: outputs, gradients averaged over ranks, buffers."""
    found = {}
    for index, image in enumerate(images):
        with replicas.passing(is_last=index == len(images) - 1):
            output = replicas.forward(image)
            loss = output.logits.square().mean() + output.aux_logits.sin().mean()
            torch.autograd.backward(loss / len(images))
        found[f"output {index}"] = output.logits.detach()
    found |= {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | dict(model.named_buffers())


def apart(one: Tensor, other: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    one, other = one.detach(), other.detach()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_network_on_two_ranks_computes_what_torchs_own_and_one_process_with_all_crops_do(checkpointing: bool) -> None:
    def job(ranks: Ranks) -> None:
        own, plain, torchs = network(activation_checkpointing=checkpointing), network(), as_torch_does(network())
        found = passes_of(DdpReplicas(synchronise(own), ranks), own, images_of(ranks.rank))
        by_torch = passes_of(DdpReplicas(torchs, ranks), torchs, images_of(ranks.rank))
        together = [torch.cat(both) for both in zip(images_of(0), images_of(1), strict=True)]
        expected = passes_of(Replicas(plain), plain, together)
        for index in range(2):
            expected[f"output {index}"] = expected[f"output {index}"][2 * ranks.rank :][:2]
        assert len(found) > 100
        for other in (by_torch, expected):
            assert found.keys() == other.keys()
            bad = {name: apart(found[name], other[name]) for name in found if apart(found[name], other[name]) > 1e-10}
            assert not bad, bad

    on_two_ranks(job)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_norms_that_share_a_message_compute_what_each_would_alone(dtype: torch.dtype, most: float) -> None:
    shapes = [(2, 4, 6, 5), (2, 8, 3, 3), (1, 1, 2, 2), (2, 4, 3, 2)]  # the first norm is asked for twice

    def outcome(norms: nn.ModuleList, inputs: list[Tensor], norm: Callable[[list[Norm]], list[Tensor]]) -> list[Any]:
        inputs = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
        out = norm([Norm(module, x) for module, x in zip([*norms, norms[0]], inputs, strict=True)])
        torch.autograd.backward([(y.sin() * (i + 1)).sum() for i, y in enumerate(out)])
        return [out, [x.grad for x in inputs], [p.grad for p in norms.parameters()], [*norms.buffers()]]

    def job(ranks: Ranks) -> None:
        generator = torch.Generator().manual_seed(0)
        alone, shared = (nn.ModuleList(nn.BatchNorm2d(n) for n in (4, 8, 1)).to(dtype).train() for _ in range(2))
        for p in alone.parameters():
            nn.init.normal_(p, 1.0, generator=generator)
        shared.load_state_dict(alone.state_dict())
        given = [
            [(torch.randn(s, generator=generator) * 3 + 100 + rank).to(dtype) for s in shapes] for rank in range(2)
        ]
        given[ranks.rank][1] = given[ranks.rank][1].to(memory_format=torch.channels_last)
        found = outcome(synchronise(shared), given[ranks.rank], normalise)  # type: ignore[arg-type]
        for share in found[2]:  # of the parameters' gradients
            dist.all_reduce(share)
        together = [torch.cat(both) for both in zip(*given, strict=True)]
        expected = outcome(alone, together, lambda calls: [one.module(one.x) for one in calls])
        for maps in expected[:2]:
            maps[:] = [one.chunk(2)[ranks.rank] for one in maps]
        for own, others in zip(found, expected, strict=True):
            for mine, theirs in zip(own, others, strict=True):
                assert apart(mine, theirs) < most

    on_two_ranks(job)


def test_a_norm_with_drop_and_activation_keeps_them() -> None:
    from timm.layers import BatchNormAct2d

    def job(ranks: Ranks) -> None:
        norm = BatchNormAct2d(3)
        names = list(nn.Sequential(norm).state_dict())
        model = synchronise(nn.Sequential(norm)).train()
        x = torch.randn(2, 3, 4, 4)
        assert list(model.state_dict()) == names
        assert float(model(x).detach().min()) == 0.0
        assert float(model.eval()(x).detach().min()) == 0.0

    on_two_ranks(job)
