"""Ranks and replicas: collectives, equal gradients by either way of averaging, memory layouts."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from hmsa_core.config import RuntimeConfig
from hmsa_core.io.errors import ConfigError
from hmsa_core.runtime.ranks import Ranks, _choose_device, norm_group, start_ranks
from hmsa_core.training.parallel import DdpReplicas, FlatReplicas, Replicas, replicate
from tests.support.jobs import errors_of, finish
from tests.support.ranks import on_ranks, run_ranks

pytestmark = pytest.mark.chain  # ranks are processes of their own

CPU = RuntimeConfig(device="cpu", precision="fp32")


def test_a_process_without_torchrun_is_alone_on_the_cpu() -> None:
    ranks = start_ranks(CPU, {})
    assert (ranks.rank, ranks.world, ranks.device.type, ranks.is_main) == (0, 1, "cpu", True)
    assert ranks.any(True)
    assert not ranks.any(False)
    assert ranks.gather("x") == ["x"]
    assert ranks.broadcast({"a": 1}) == {"a": 1}
    assert torch.equal(ranks.sum_(torch.ones(2)), torch.ones(2))
    ranks.barrier()
    ranks.stop()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        start_ranks(RuntimeConfig(device="cuda"), {})


def test_two_ranks_exchange_what_jobs_need(tmp_path: Path) -> None:
    def job(ranks: Ranks) -> None:
        rank = ranks.rank
        assert (rank in (0, 1), ranks.world, ranks.is_main) == (True, 2, rank == 0)
        assert ranks.any(rank == 1)
        assert not ranks.any(False)
        assert ranks.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
        assert ranks.broadcast(f"from {rank}") == "from 0"
        assert torch.equal(ranks.sum_(torch.full((3,), rank + 1.0)), torch.full((3,), 3.0))
        ranks.barrier()

    on_ranks(2, job)


def test_batch_norm_sees_the_ranks_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(ranks: Ranks) -> None:
        assert norm_group(ranks, "off") == (1, None)
        assert norm_group(ranks, "world") == (4, None)
        assert norm_group(ranks, "node") == (4, None), "one node is the world"
        monkeypatch.setattr(socket, "gethostname", lambda: f"node{ranks.rank // 2}")
        size, group = norm_group(ranks, "node")
        assert (size, dist.get_process_group_ranks(group)) == (2, [0, 1] if ranks.rank < 2 else [2, 3])
        monkeypatch.setattr(socket, "gethostname", lambda: f"node{ranks.rank // 3}")
        with pytest.raises(ConfigError, match="nodes have 1, 3 ranks"):
            norm_group(ranks, "node")

    on_ranks(4, job)


def test_a_task_that_sees_its_own_gpu_alone_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for visible, local_rank, expected in ((1, 0, 0), (1, 5, 0), (8, 5, 5)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda visible=visible: visible)
        assert _choose_device("cuda", local_rank) == torch.device("cuda", expected)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ConfigError, match="rank 5 of this node has no GPU: 4 are visible"):
        _choose_device("cuda", 5)


def network(layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, groups=2))
    return model.to(memory_format=layout)  # type: ignore[call-overload]


def crops(rank: int, step: int, index: int) -> torch.Tensor:
    return torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(100 * step + 10 * index + rank))


def train_three_steps(replicas: Replicas, model: nn.Module, batches: Iterator[list[torch.Tensor]]) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2, fused=True)
    for passes in batches:
        replicas.zero_grad(optimiser)
        for i, images in enumerate(passes):
            with replicas.passing(is_last=i == len(passes) - 1):
                torch.autograd.backward(replicas.forward(images).square().mean() / len(passes))
        replicas.reduce()
        optimiser.step()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_both_ways_of_averaging_give_the_weights_that_one_rank_computes(
    tmp_path: Path, layout: torch.memory_format
) -> None:
    def job(ranks: Ranks) -> None:
        rank = ranks.rank
        for name in ("flat", "ddp"):
            model = network(layout)
            with torch.no_grad():
                next(model.parameters()).add_(rank)  # rank 0's weights are what counts
            replicas = DdpReplicas(model, ranks) if name == "ddp" else replicate(model, ranks, compiled=False)
            assert isinstance(replicas, DdpReplicas if name == "ddp" else FlatReplicas)
            batches = ([crops(rank, step, i) for i in range(2)] for step in range(3))
            train_three_steps(replicas, model, batches)
            state = {key: t.contiguous() for key, t in model.state_dict().items()}
            save_file(state, tmp_path / f"{name}-{rank}.safetensors")

    on_ranks(2, job)
    flat, other, ddp = (load_file(tmp_path / f"{n}.safetensors") for n in ("flat-0", "flat-1", "ddp-0"))
    alone = network(layout)

    def all_crops() -> Iterator[list[torch.Tensor]]:
        # Batch norm sees each rank's crops on their own: four passes a step, in any order.
        for step in range(3):
            yield [crops(rank, step, i) for i in range(2) for rank in range(2)]

    train_three_steps(Replicas(alone), alone, all_crops())
    for key, tensor in alone.state_dict().items():
        assert torch.equal(flat[key], other[key]), f"{key} differs between ranks"
        if "running" in key or "num_batches" in key:
            continue
        assert torch.allclose(flat[key], tensor, rtol=1e-5, atol=1e-6), key
        assert torch.allclose(ddp[key], tensor, rtol=1e-5, atol=1e-6), key


@pytest.mark.parametrize("way", ["flat", "ddp"])
def test_running_statistics_are_the_mean_over_ranks(tmp_path: Path, way: str) -> None:
    def job(ranks: Ranks) -> None:
        model = network()
        replicas = FlatReplicas(model, model, ranks) if way == "flat" else DdpReplicas(model, ranks)
        train_three_steps(replicas, model, iter([[crops(ranks.rank, 0, 0)]]))
        save_file({"mean": model[1].running_mean.clone()}, tmp_path / f"{ranks.rank}.safetensors")  # type: ignore[union-attr,operator]

    on_ranks(2, job)
    means = []
    for rank in range(2):
        model = network()
        model(crops(rank, 0, 0))
        means.append(model[1].running_mean)  # type: ignore[index]
    expected = (means[0] + means[1]) / 2
    for rank in range(2):
        assert torch.allclose(load_file(tmp_path / f"{rank}.safetensors")["mean"], expected, atol=1e-7)


def test_a_head_that_no_loss_reaches_does_not_hold_up_the_ranks(tmp_path: Path) -> None:
    from hmsa_core.training.recipe import make_model
    from tests.support.training import train_spec

    model = {"model__kind": "single", "model__trunk": "hrnet_micro", "model__context": "none"}
    spec = train_spec(tmp_path, tmp_path / "work", loss__aux_weight=0.0, **model)
    weighed = train_spec(tmp_path, tmp_path / "work", **model)

    def job(ranks: Ranks) -> None:
        network, _ = make_model(spec, 4, ranks)
        replicas = DdpReplicas(network, ranks)
        for _ in range(2):  # the second pass would wait for gradients that the first one never brought
            torch.autograd.backward(replicas.forward(torch.randn(2, 3, 32, 32)).logits.square().mean())

    on_ranks(2, job)
    assert all(p.requires_grad for p in make_model(weighed, 4, start_ranks(CPU, {}))[0].parameters())


def test_a_gradient_that_left_the_message_is_noticed(tmp_path: Path) -> None:
    def target(rank: int) -> None:
        ranks = start_ranks(CPU)
        model = network()
        replicas = replicate(model, ranks, compiled=False)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        try:
            replicas.reduce()
        except RuntimeError as error:
            os._exit(77 if "no longer part of the message" in str(error) else 3)

    assert run_ranks(2, target) == [77, 77]


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_loss(tmp_path: Path) -> None:
    from tests.support.training import log_of, train_spec, write_data

    write_data(tmp_path)
    for name, compiled in (("plain", False), ("compiled", True)):
        spec = train_spec(tmp_path, tmp_path / name, epochs=1, model__kind="single", runtime__compile=compiled)
        assert finish(spec, timeout_s=600) == 0, errors_of(
            spec
        )  # as jobs run: setuptools minds what was imported before
    plain, fast = log_of(tmp_path / "plain"), log_of(tmp_path / "compiled")
    assert fast[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-3)
    assert (
        load_file(tmp_path / "plain/model/model.safetensors").keys()
        == load_file(tmp_path / "compiled/model/model.safetensors").keys()
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_runs_on_a_gpu_in_every_precision(tmp_path: Path, precision: str) -> None:
    from hmsa_core.training import run as train
    from tests.support.training import context, log_of, train_spec, write_data

    write_data(tmp_path)
    spec = train_spec(
        tmp_path,
        tmp_path / "work",
        runtime__device="cuda",
        runtime__precision=precision,
        runtime__channels_last=True,
        runtime__workers=1,
        optimiser__clip_norm=1.0,
    )
    train.run(spec, context(spec, ranks=Ranks(0, 1, torch.device("cuda", 0))))
    assert all(line["loss"] is not None for line in log_of(spec.work))


def test_compiling_and_recomputing_activations_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="expected compile or activation_checkpointing, found both"):
        RuntimeConfig(compile=True, activation_checkpointing=True)
