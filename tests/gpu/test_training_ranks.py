"""Training on two GPUs: one result whatever the ranks, batch norm as torch's, and what happens when a rank is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hmsa_core.config import LossConfig
from hmsa_core.io.atomic import read_json
from hmsa_core.losses import training_loss
from hmsa_core.models import MultiScaleModel, build
from hmsa_core.models.layers.batch_norm import SyncedBatchNorm, synchronise
from hmsa_core.runtime.ranks import Ranks
from hmsa_core.spec import TrainSpec, save_spec
from hmsa_core.training.parallel import DdpReplicas
from tests.support.gpu_ranks import on_gpus
from tests.support.jobs import REPO, agent, errors_of, finish, last_logged_step, started
from tests.support.training import log_of, student_spec, train_spec, write_data, write_student_data

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs CUDA")

TWO = agent("--standalone", "--nproc-per-node", "2")
CROPS, CLASSES, SIZE = 8, 7, (96, 128)


def network(**options: Any) -> MultiScaleModel:
    torch.manual_seed(3)
    return build("hierarchical", trunk="hrnet_micro", num_classes=CLASSES, dropout=0.0, **options).double().train()


def crops() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(CROPS, 3, *SIZE, generator=generator, dtype=torch.float64)
    return images + torch.arange(CROPS).view(-1, 1, 1, 1), torch.randint(
        0, CLASSES, (CROPS, *SIZE), generator=generator
    )


def loss_of(model: nn.Module, images: Tensor, labels: Tensor, weight: float) -> Tensor:
    loss = training_loss(model(images), labels, LossConfig())
    return loss.total * weight


def step_of(model: nn.Module, replicas: Any, passes: list[tuple[Tensor, Tensor]], weight: float) -> dict[str, Tensor]:
    losses = []
    for index, (images, labels) in enumerate(passes):
        with replicas.passing(is_last=index == len(passes) - 1):
            loss = loss_of(replicas.forward, images, labels, weight) / len(passes)
            torch.autograd.backward(loss)
        losses.append(loss.detach())
    found = {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | dict(model.named_buffers()) | {"loss": torch.stack(losses).sum()}


def train_two(ranks: Ranks, folder: Path, *, weight: float, checkpointing: bool, compiled: bool = False) -> None:
    """Two ranks of two passes of two crops."""
    own = synchronise(network(activation_checkpointing=checkpointing), ranks.norm_group).to(ranks.device)
    replicas = DdpReplicas(torch.compile(own) if compiled else own, ranks)  # type: ignore[arg-type]
    images, labels = (t.to(ranks.device) for t in crops())
    chosen = [slice(4 * i + 2 * ranks.rank, 4 * i + 2 * ranks.rank + 2) for i in range(2)]
    found = step_of(own, replicas, [(images[c], labels[c]) for c in chosen], weight)
    found["loss"] = ranks.sum_(found["loss"].cpu()) / ranks.world
    if ranks.is_main:
        save_file({name: t.cpu().contiguous() for name, t in found.items()}, folder / "found.safetensors")


class Alone:
    """One rank, whose batch norm sees the crops of both."""

    def __init__(self, model: nn.Module) -> None:
        self.forward = model

    def passing(self, *, is_last: bool) -> Any:
        return torch.enable_grad()


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_ranks_with_accumulation_do_what_one_rank_with_the_same_batch_does(
    tmp_path: Path, weight: float, checkpointing: bool
) -> None:
    assert on_gpus(2, train_two, tmp_path, weight=weight, checkpointing=checkpointing) == 0
    model = network().cuda()
    images, labels = (t.cuda() for t in crops())
    expected = step_of(model, Alone(model), [(images[i : i + 4], labels[i : i + 4]) for i in (0, 4)], weight)
    found = load_file(tmp_path / "found.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name].double(), tensor.cpu().double(), rtol=1e-6, atol=1e-8), name


def test_a_compiled_model_on_two_ranks_trains_to_the_same_loss(tmp_path: Path) -> None:
    for name, compiled in (("plain", False), ("compiled", True)):
        given = {"weight": 1.0, "checkpointing": False, "compiled": compiled}
        assert on_gpus(2, train_two, tmp_path / name, timeout_s=900, **given) == 0
    plain, fast = (load_file(tmp_path / name / "found.safetensors")["loss"] for name in ("plain", "compiled"))
    assert float(fast) == pytest.approx(float(plain), rel=1e-6)


def norms_like_torchs(ranks: Ranks, folder: Path, *, dtype: str, most: float) -> None:
    kind, torch_model = getattr(torch, dtype), nn.BatchNorm2d(16)
    own = synchronise(nn.Sequential(nn.BatchNorm2d(16)), ranks.norm_group).to(ranks.device).train()
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(torch_model).to(ranks.device).train()
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        for model in (own, theirs):
            generator = torch.Generator().manual_seed(ranks.rank)
            x = (torch.randn(2, 16, 24, 40, generator=generator) * 3 + ranks.rank).to(ranks.device, kind)
            x = x.to(memory_format=layout).requires_grad_()
            model.zero_grad()
            y = model(x)
            torch.autograd.backward(y.float().sin().sum())
            results.append([y, x.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    for mine, torchs in (results[:2], results[2:]):
        for a, b in zip(mine, torchs, strict=True):
            apart = (a.detach().double() - b.detach().double()).abs().max() / b.detach().double().abs().max().clamp(
                min=1
            )
            assert float(apart) < most


@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-10), ("float32", 1e-5), ("bfloat16", 1e-2)])
def test_batch_norm_over_two_ranks_is_torchs(tmp_path: Path, dtype: str, most: float) -> None:
    assert on_gpus(2, norms_like_torchs, tmp_path, dtype=dtype, most=most) == 0


def says_its_group(ranks: Ranks, folder: Path, *, expected: int) -> None:
    assert ranks.norm_ranks == expected
    model = nn.Sequential(nn.BatchNorm2d(3))
    if expected > 1:
        synchronise(model, ranks.norm_group)
    assert isinstance(model[0], SyncedBatchNorm) == (expected > 1)


@pytest.mark.parametrize(("wanted", "expected"), [("world", 2), ("node", 2), ("off", 1)])
def test_the_group_of_batch_norm_is_the_one_asked_for(tmp_path: Path, wanted: str, expected: int) -> None:
    assert on_gpus(2, says_its_group, tmp_path, sync_norm=wanted, expected=expected) == 0


def waits_without_hurry(ranks: Ranks, folder: Path) -> None:
    """The hot loop on two ranks: any wait of the host raises."""
    model = DdpReplicas(synchronise(network(), ranks.norm_group).to(ranks.device), ranks)
    images, labels = (t.to(ranks.device) for t in crops())
    for sync in ("default", "error"):
        torch.cuda.set_sync_debug_mode(sync)
        torch.autograd.backward(loss_of(model.forward, images[:2], labels[:2], 1.0))
    torch.cuda.set_sync_debug_mode("default")


def test_a_pass_on_two_ranks_makes_no_host_wait(tmp_path: Path) -> None:
    assert on_gpus(2, waits_without_hurry, tmp_path) == 0


# ---- Jobs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, images=16)
    return folder


def on_two(data: Path, work: Path, **changes: Any) -> Any:
    gpu = {"runtime__device": "cuda", "runtime__ranks": 2, "runtime__precision": "bf16", "global_batch": 4}
    return train_spec(data, work, **{**gpu, **changes})


def test_a_student_trains_on_two_ranks_with_a_weight_for_human_pixels(tmp_path: Path) -> None:
    folder = write_student_data(tmp_path)
    spec = student_spec(
        folder,
        tmp_path / "work",
        global_batch=4,
        pseudo__human_weight=2.0,
        runtime__device="cuda",
        runtime__ranks=2,
        runtime__precision="bf16",
        runtime__channels_last=True,
        runtime__workers=1,
    )
    assert finish(spec, *TWO, timeout_s=300) == 0, errors_of(spec)
    assert all(line["loss"] is not None for line in log_of(spec.work) if line["event"] == "train")


_WITHOUT_MEMORY = """
import os, sys, torch
from hmsa_core import job
if os.environ["RANK"] == "1":
    torch.cuda.set_per_process_memory_fraction(0.004, int(os.environ["LOCAL_RANK"]))
sys.argv[0] = "job"
job._run_and_leave()
"""


def test_out_of_memory_on_one_of_two_ranks_ends_both_within_a_minute(data: Path, tmp_path: Path) -> None:
    # Rank 1 runs out of memory in its first pass, while rank 0 waits for it in NCCL.
    spec = on_two(data, tmp_path / "work", crop=[512, 512], model__trunk="hrnet_w18")
    save_spec(tmp_path / "spec.json", spec)
    (tmp_path / "job.py").write_text(_WITHOUT_MEMORY)
    start = time.monotonic()
    command = [sys.executable, *TWO, str(tmp_path / "job.py"), str(tmp_path / "spec.json")]
    env = os.environ | {"PYTHONPATH": str(REPO), "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
    assert subprocess.run(command, env=env, timeout=180, check=False).returncode == 6
    assert "out of memory on cuda:1" in read_json(spec.work / "error.json")["message"]
    assert time.monotonic() - start < 120, "start-up and a minute"


def _wait_for_step_10(spec: TrainSpec, process: subprocess.Popen[bytes]) -> None:
    while last_logged_step(spec.work) < 10:
        time.sleep(0.1)
        assert process.poll() is None, errors_of(spec)


@pytest.mark.parametrize(("sync_norm", "ranks"), [("world", 2), ("off", 1)])
def test_a_stop_of_two_ranks_saves_and_goes_on_also_with_one_rank_where_norms_are_not_synchronised(
    data: Path, tmp_path: Path, sync_norm: str, ranks: int
) -> None:
    changes = {"epochs": 60, "runtime__sync_norm": sync_norm}
    spec = on_two(data, tmp_path / "work", **changes)
    with started(spec, *TWO) as process:
        _wait_for_step_10(spec, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    again = on_two(data, spec.work, **changes, runtime__ranks=ranks)
    assert finish(again, *(TWO if ranks == 2 else ()), timeout_s=300) == 0, errors_of(again)


def test_the_loss_of_one_rank_ends_the_other_and_the_training_can_go_on(data: Path, tmp_path: Path) -> None:
    spec = on_two(data, tmp_path / "work", epochs=60)
    with started(spec, *TWO) as process:
        _wait_for_step_10(spec, process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert process.wait(150) == 137
    assert finish(spec, *TWO, timeout_s=300) == 0


def test_another_number_of_synchronised_ranks_is_refused(data: Path, tmp_path: Path) -> None:
    spec = on_two(data, tmp_path / "work", epochs=2)
    assert finish(spec, *TWO, timeout_s=300) == 0, errors_of(spec)
    (spec.work / "model" / "model.json").unlink()
    assert finish(on_two(data, spec.work, epochs=2, runtime__ranks=1), timeout_s=300) == 2
