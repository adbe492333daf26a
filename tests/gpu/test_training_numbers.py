"""Training on one GPU: the CPU's numbers, no waiting, bounded memory, errors that end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hmsa_core.config import RuntimeConfig, TrainConfig
from hmsa_core.data.transforms import normalise_batch
from hmsa_core.io.process import StopRequest
from hmsa_core.losses import cross_entropy, jaccard, rmi_loss
from hmsa_core.models import build
from hmsa_core.models.layers.blocks import resize
from hmsa_core.runtime.memory import is_out_of_memory
from hmsa_core.runtime.ranks import Ranks, start_ranks
from hmsa_core.training import run as train
from hmsa_core.training.data import PassBatch, Timeline, feeding, open_run_data
from hmsa_core.training.figures import Meters, StepClock
from hmsa_core.training.trainer import Trainer
from tests.support.jobs import REPO
from tests.support.training import Plan, context, log_of, train_spec, write_data

GPU = Ranks(0, 1, torch.device("cuda", 0))


def on_both(function: Any, x: Tensor, *given: Any, **options: Any) -> list[tuple[Tensor, Tensor]]:
    """Value and gradient on the CPU in float32 or better, then on the GPU in the dtype of `x`."""
    found = []
    for device, dtype in (("cpu", torch.promote_types(x.dtype, torch.float32)), ("cuda", x.dtype)):
        own = x.detach().to(device, dtype).requires_grad_()
        there = [one.to(device) if isinstance(one, Tensor) else one for one in given]
        value = function(own, *there, **options)
        torch.autograd.backward(value.float().square().sum())
        assert own.grad is not None
        found.append((value.detach().float().cpu(), own.grad.float().cpu()))
    return found


def scene(classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scores, and labels in blocks with ignored pixels and classes that do not occur."""
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes, (2, 8, 12), generator=generator)
    labels = labels.repeat_interleave(24, 1).repeat_interleave(16, 2)
    labels[:, :, :20] = 255
    return torch.randn(2, classes, 192, 192, generator=generator).mul(3).to(dtype), labels


def assert_close(pair: list[tuple[Tensor, Tensor]], most: float) -> None:
    for on_cpu, on_gpu in zip(*pair, strict=True):
        assert float((on_cpu - on_gpu).abs().max() / on_cpu.abs().max()) < most


@pytest.mark.parametrize("classes", [19, 65])
@pytest.mark.parametrize("rmi_ignore", ["released", "masked"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_rmi_is_the_cpus(classes: int, rmi_ignore: str, dtype: torch.dtype, most: float) -> None:
    logits, labels = scene(classes, dtype)
    assert_close(on_both(rmi_loss, logits, labels, rmi_ignore=rmi_ignore), most)


@pytest.mark.parametrize("loss", [cross_entropy, jaccard])
@pytest.mark.parametrize("classes", [19, 65])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_a_loss_of_pixels_is_the_cpus(
    loss: Callable[..., Tensor], classes: int, dtype: torch.dtype, most: float
) -> None:
    logits, labels = scene(classes, dtype)
    assert_close(on_both(loss, logits, labels), most)


@pytest.mark.parametrize("size", [(48, 80), (13, 21)])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_resizing_is_the_cpus(size: tuple[int, int], dtype: torch.dtype, most: float) -> None:
    maps = torch.randn(2, 5, 24, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_close(on_both(resize, maps, size), most)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_resizing_keeps_the_type(dtype: torch.dtype) -> None:
    maps = torch.randn(1, 4, 8, 8, device="cuda", dtype=dtype)
    with torch.autocast("cuda", dtype):
        assert F.interpolate(maps, size=(16, 16), mode="bilinear").dtype == torch.float32, "what torch does by itself"
        assert resize(maps, (16, 16)).dtype == dtype


def test_crops_are_normalised_to_the_bits_of_the_cpu() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 40, 64, 3), dtype=np.uint8)).pin_memory()
    on_gpu = normalise_batch(images, GPU.device)
    assert on_gpu.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(on_gpu.cpu(), normalise_batch(images, torch.device("cpu")))


# ---- The paper's network at full size


def full_size(crops: int, **runtime: Any) -> tuple[Trainer, PassBatch]:
    config = TrainConfig(
        batch_per_rank=crops, global_batch=crops, runtime=RuntimeConfig(device="cuda", precision="bf16", **runtime)
    )
    torch.manual_seed(0)
    model = build("hierarchical", **runtime and {"activation_checkpointing": True}).cuda()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    images, labels = (torch.zeros(crops, 1024, 2048, *more, dtype=torch.uint8).pin_memory() for more in ((3,), ()))
    images.random_(0, 255)
    labels[:, ::2] = 3
    batch = PassBatch(images, labels, ("noise",) * crops, np.zeros(21))
    return Trainer(config, model, GPU, timeline=Timeline(Plan(1000), crops), stop=StopRequest()), batch  # type: ignore[arg-type]


@pytest.mark.parametrize(("runtime", "most_gb"), [({}, 16.0), ({"activation_checkpointing": True}, 11.0)])
def test_a_step_of_w48_at_full_size_stays_below_its_memory(runtime: dict[str, Any], most_gb: float) -> None:
    trainer, batch = full_size(1, **runtime)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        trainer.run_step(iter([batch]))
    assert torch.cuda.max_memory_allocated() / 1e9 < most_gb


def test_the_hot_loop_makes_no_host_wait() -> None:
    trainer, batch = full_size(1)
    trainer.run_step(iter([batch]))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.run_step(iter([batch]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.settle()
    assert np.isfinite(list(trainer.meters.read("window")[0].values())).all()


def test_benchmarking_of_kernels_is_on_for_training_alone() -> None:
    trainer, _ = full_size(1)
    assert torch.backends.cudnn.benchmark
    trainer.model.eval()
    trainer.predict(torch.zeros(1, 3, 256, 256))
    assert torch.backends.cudnn.benchmark


def test_out_of_memory_names_a_crop_that_fits() -> None:
    trainer, batch = full_size(1)
    torch.cuda.empty_cache()  # what other tests left would be taken in place of new memory
    torch.cuda.set_per_process_memory_fraction(8e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(Exception, match=r"out of memory on cuda.* would fit"):
            trainer.run_step(iter([batch]))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_real_allocation_that_is_too_large_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(caught.value)


# ---- Figures, scaler, data, faults


def test_losses_are_read_late_and_none_is_lost() -> None:
    meters = Meters(GPU, ("images",))
    for step in range(5):
        meters.put(step, {"loss": torch.full((), float(step), device="cuda")}, np.array([1.0]), ("image",))
        meters.exchange(stop=False)
    meters.flush()
    meters.fold()
    assert meters.read("window") == ({"loss": 2.0}, {"images": 5})


def test_a_loss_that_cannot_be_computed_is_reported_as_such() -> None:
    meters = Meters(GPU, ("images",))
    meters.put(0, {"loss": torch.ones((), device="cuda"), "rmi": torch.ones((), device="cuda")}, np.ones(1), ("good",))
    meters.put(1, {"loss": torch.full((), torch.nan, device="cuda")}, np.ones(1), ("bad",))
    assert meters.flush().failed
    assert meters.failures == [(1, ("bad",))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def test_the_scaler_of_fp16_survives_an_overflow_and_a_resume(data: Path, tmp_path: Path) -> None:
    def spec(work: Path, epochs: int) -> Any:
        return train_spec(data, work, epochs=epochs, runtime__device="cuda", runtime__precision="fp16")

    real, scales = Trainer._update, []

    def update(self: Trainer) -> None:
        if self.step == 2:  # a gradient that overflows: the step is left out, and the scale is halved
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(torch.inf)  # type: ignore[union-attr]
        real(self)
        scales.append(self.scaler.get_scale())
        if self.step == 6 and len(scales) == 6:
            context_.stop.request()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_update", update)
        one = spec(tmp_path / "work", 3)
        context_ = context(one, ranks=GPU)
        with pytest.raises(Exception, match="stopped by a signal"):
            train.run(one, context_)
        train.run(one, context(one, ranks=GPU))
    assert scales[2] == scales[1] / 2
    assert scales[6] == scales[5], "the scale is part of the state"
    assert all(line["loss"] is not None for line in log_of(one.work))


def test_loaders_hand_over_pinned_bytes(data: Path, tmp_path: Path) -> None:
    spec = train_spec(data, tmp_path / "work", runtime__workers=1, runtime__device="cuda")
    found = open_run_data(spec, GPU)
    with feeding(found, Timeline(found.plan, 2), GPU, spec.config, 0, StepClock()) as feed:
        batch = next(feed)
    assert (batch.images.dtype, batch.images.is_pinned(), batch.labels.is_pinned()) == (torch.uint8, True, True)


_WAITING = """
import sys, pathlib, torch
from hmsa_core.runtime.watchdog import Watchdog
with Watchdog(2 / 60, pathlib.Path("none"), lambda error: error.exit_code) as watchdog:
    torch.cuda._sleep(1)
    watchdog.beat()
    torch.cuda._sleep(1 << 40)
    torch.cuda.synchronize()
"""


def test_a_rank_that_waits_for_its_gpu_for_ever_is_ended() -> None:
    command = [sys.executable, "-c", _WAITING]
    assert subprocess.run(command, cwd=REPO, timeout=120, check=False).returncode == 7


def test_a_process_that_sees_one_gpu_alone_uses_it() -> None:
    env = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    assert start_ranks(RuntimeConfig(device="cuda"), env).device == GPU.device
