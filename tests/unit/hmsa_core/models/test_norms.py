"""Batch norm over ranks computes what one process computes from the joined batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hmsa_core.models import build
from hmsa_core.models.norms import SyncNorm, run, steps, synchronise, together
from hmsa_core.runtime.ranks import Ranks
from tests.support.ranks import on_ranks

pytestmark = pytest.mark.chain  # ranks are processes of their own

EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}


class Pair(nn.Module):
    """Two branches of other widths and sizes, side by side, then one norm that is met twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU())
        self.twice = nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        both = run(together([steps(self.twice, images), steps(self.twice, 2 * images + 1)]))
        left, right = run(together(map(steps, (self.left, self.right), both)))
        return torch.cat([left.flatten(1), right.flatten(1)], 1)


def pair(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return Pair().to(dtype)


def hierarchical(checkpointing: bool) -> Callable[[torch.dtype], nn.Module]:
    def make(dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(0)
        model = build("hierarchical", trunk="hrnet_micro", num_classes=3, dropout=0.0)
        model.backbone.checkpointing = checkpointing  # type: ignore[union-attr,assignment]
        with torch.no_grad():
            for module in model.modules():  # residual branches start at zero: nothing would go through them
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 1.5)
        return model.to(dtype)

    return make


MAKES: dict[str, Callable[[torch.dtype], nn.Module]] = {
    "branches": pair,
    "whole model": hierarchical(False),
    "checkpointing": hierarchical(True),
}


def crops(dtype: torch.dtype, index: int) -> torch.Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(index), dtype=torch.float64).to(dtype)


def learn(model: nn.Module, parts: slice, dtype: torch.dtype, factor: float) -> dict[str, torch.Tensor]:
    """Two accumulated passes of squared errors; outputs, gradients and statistics."""
    found: dict[str, torch.Tensor] = {}
    model.train()
    for index in range(2):
        outcome: Any = model(crops(dtype, index)[parts])
        outputs = outcome if isinstance(outcome, torch.Tensor) else torch.cat([outcome.logits, outcome.aux_logits], 1)
        target = torch.linspace(-1, 1, outputs.numel() // len(outputs), dtype=outputs.dtype).view(outputs.shape[1:])
        torch.autograd.backward((outputs - target).square().mean() * factor)
        found[f"output {index}"] = outputs.detach()
    found |= {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | {n: b.clone() for n, b in model.named_buffers()}


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("name", MAKES)
def test_two_ranks_compute_outputs_gradients_and_statistics_of_the_joined_batch(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    def job(ranks: Ranks) -> None:
        model = MAKES[name](dtype)
        synchronise(model, None)
        found = learn(model, slice(2 * ranks.rank, 2 * ranks.rank + 2), dtype, 0.5)
        for key in found:
            if key.startswith("gradient"):
                ranks.sum_(found[key])
        save_file({k: t.contiguous() for k, t in found.items()}, tmp_path / f"{ranks.rank}.safetensors")

    on_ranks(2, job)
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    expected = learn(MAKES[name](dtype), slice(None), dtype, 1.0)
    assert expected.keys() == ranks[0].keys()
    scale = max(float(t.abs().max()) for k, t in expected.items() if k.startswith("gradient"))
    for key, tensor in expected.items():
        got = torch.cat([r[key] for r in ranks]) if key.startswith("output") else ranks[0][key]
        size = scale if key.startswith("gradient") else max(1.0, float(tensor.abs().max()))
        assert float((got - tensor).abs().max()) <= EXACT[dtype] * size, key


def test_a_synchronised_model_keeps_its_state_dict_and_evaluates_as_before() -> None:
    model = hierarchical(False)(torch.float32).eval()
    images, names = torch.randn(1, 3, 64, 64), list(model.state_dict())
    before = model.forward_scale(images).logits  # type: ignore[operator]
    synchronise(model, None)
    assert list(model.state_dict()) == names
    assert any(isinstance(m, SyncNorm) for m in model.modules())
    assert torch.equal(model.forward_scale(images).logits, before)  # type: ignore[operator]


class _Counted:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        for name in ("all_gather_into_tensor", "all_reduce"):
            monkeypatch.setattr(f"torch.distributed.{name}", self._count)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda group=None: 8)

    def _count(self, *args: object, **named: object) -> None:
        self.calls += 1


def test_a_pass_of_w48_sends_one_message_for_each_depth_of_the_network_and_direction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """318 norms, met 634 times a pass. Each depth needs the one before it: 106 messages a direction are the least."""
    with torch.device("meta"):
        model = build("hierarchical", trunk="hrnet_w48", num_classes=19, head="paper").train()
        images = torch.empty(1, 3, 1024, 2048)
    synchronise(model, None)
    counted = _Counted(monkeypatch)
    output = model(images)
    assert counted.calls == 106
    torch.autograd.backward(output.logits.sum() + output.aux_logits.sum())
    assert counted.calls == 212
