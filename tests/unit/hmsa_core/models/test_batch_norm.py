"""Batch norm over ranks: torch's own numbers with fewer messages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hmsa_core.models import MultiScaleModel, build
from hmsa_core.models.batch_norm import Norm, normalise, synchronise
from hmsa_core.runtime.ranks import Ranks
from hmsa_core.training.parallel import DdpReplicas
from tests.support.ranks import on_ranks
from tests.support.sync_norm import as_torch_does, give_cpus_kernels

pytestmark = pytest.mark.chain  # ranks are processes of their own


def images_of(rank: int, dtype: torch.dtype) -> list[Tensor]:
    """Two passes; the ranks' values have different means, so that own statistics would not do."""
    generator = torch.Generator().manual_seed(rank)
    return [
        (torch.randn(2, 3, 48, 64, generator=generator) * (1 + rank) + rank + index).to(dtype) for index in range(2)
    ]


def network(dtype: torch.dtype, **options: Any) -> MultiScaleModel:
    torch.manual_seed(3)
    return build("hierarchical", trunk="hrnet_micro", num_classes=5, dropout=0.0, **options).to(dtype).train()


def loss_of(output: Any) -> Tensor:
    return output.logits.square().mean() + output.aux_logits.sin().mean()


def on_ranks_with_kernels(job: Callable[[Ranks], None]) -> None:
    """Run the job on two ranks on the CPU, with the kernels of GPUs written out."""

    def with_kernels(ranks: Ranks) -> None:
        library = give_cpus_kernels()
        job(ranks)
        del library

    on_ranks(2, with_kernels)


def apart(one: Tensor, other: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    one, other = one.detach(), other.detach()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1.0))


def passes_of(replicas: Any, model: nn.Module, images: list[Tensor]) -> dict[str, Tensor]:
    """Two accumulated passes: outputs, gradients averaged over ranks, buffers."""
    found = {}
    for index, image in enumerate(images):
        with replicas.passing(is_last=index == len(images) - 1):
            output = replicas.forward(image)
            torch.autograd.backward(loss_of(output) / len(images))
        found[f"output {index}"] = output.logits.detach()
    found |= {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | dict(model.named_buffers())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_network_on_two_ranks_computes_what_torchs_own_does(checkpointing: bool) -> None:
    def job(ranks: Ranks) -> None:
        given = images_of(ranks.rank, torch.float64)
        plain, own = (network(torch.float64, activation_checkpointing=on) for on in (False, checkpointing))
        expected = passes_of(DdpReplicas(as_torch_does(plain), ranks), plain, given)
        found = passes_of(DdpReplicas(synchronise(own), ranks), own, given)
        assert found.keys() == expected.keys()
        assert len(found) > 100
        bad = {name: apart(found[name], expected[name]) for name in found if apart(found[name], expected[name]) > 1e-10}
        assert not bad, bad

    on_ranks_with_kernels(job)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_norms_that_share_a_message_compute_what_each_would_alone(dtype: torch.dtype, most: float) -> None:
    def job(ranks: Ranks) -> None:
        norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (4, 8, 1)).to(dtype).train()
        for p in norms.parameters():
            nn.init.normal_(p, 1.0)
        both = as_torch_does(copy.deepcopy(norms)), synchronise(norms)
        generator = torch.Generator().manual_seed(ranks.rank)
        shapes = [(2, 4, 6, 5), (2, 8, 3, 3), (1, 1, 2, 2), (2, 4, 3, 2)]  # the first norm is asked for twice
        given = [(torch.randn(s, generator=generator) * 3 + 100 + ranks.rank).to(dtype) for s in shapes]
        given[1] = given[1].to(memory_format=torch.channels_last)
        results = []
        for which, model in enumerate(both):
            inputs = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in given]
            parts = list(model)  # type: ignore[call-overload]
            asked = [Norm(module, x) for module, x in zip([*parts, parts[0]], inputs, strict=True)]
            out = normalise(asked) if which else [module(x) for module, x in asked]
            torch.autograd.backward([(y.sin() * (i + 1)).sum() for i, y in enumerate(out)])
            grads = [t.grad for t in [*inputs, *model.parameters()]]
            results.append([*out, *grads, *model.buffers()])
        for mine, theirs in zip(results[1], results[0], strict=True):
            assert apart(mine, theirs) < most

    on_ranks_with_kernels(job)


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

    on_ranks_with_kernels(job)
