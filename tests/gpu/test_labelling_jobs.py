"""Labelling jobs on a GPU: several processes, a process that is lost, a GPU without enough memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hmsa_core import models
from hmsa_core.config import Passes, RuntimeConfig
from hmsa_core.inference.folder import infer_job
from hmsa_core.inference.network.predictor import Predictor, Tiler
from hmsa_core.inference.teachers.teacher import NetworkTeacher
from hmsa_core.io.atomic import read_json
from hmsa_core.io.process import StopRequest
from hmsa_core.labels import LabelStore
from hmsa_core.runtime.ranks import JobContext, Ranks
from tests.support.inference import infer_spec, noise_image, save_model, small_model
from tests.support.ranks import free_port
from tests.support.training import CLASSES, folder_bytes, write_data

GPU = RuntimeConfig(device="cuda", precision="bf16", threads=1)
SCALES = (0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, images=16, size=(128, 192))
    save_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("finished")
    label(data, work, Ranks(0, 1, torch.device("cuda", 0)))
    return work


def label(data: Path, work: Path, ranks: Ranks, **changes) -> dict[str, Any]:
    spec = infer_spec(data, work, data / "model", runtime=GPU, **changes)
    return infer_job.run(spec, JobContext.of(work, ranks, GPU, StopRequest()))


def one_of_two(rank: int, data: Path, work: Path, port: int, lost: int) -> None:
    """One of two processes that share a GPU; `lost` kills itself before its second image."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    if rank == lost:
        begun, inner = [], NetworkTeacher.begin

        def begin(self, name, image):
            begun.append(name)
            if len(begun) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(self, name, image)

        NetworkTeacher.begin = begin
    label(data, work, Ranks(rank, 2, torch.device("cuda", 0)))
    dist.destroy_process_group()


def two(data: Path, work: Path, lost: int = -1) -> None:
    torch.multiprocessing.spawn(one_of_two, (data, work, free_port(), lost), nprocs=2)


def store_bytes(work: Path) -> dict[str, bytes]:
    return folder_bytes(work / "store", (".lock",))


def test_two_processes_write_the_bytes_of_one(data, finished, tmp_path):
    two(data, tmp_path)
    assert store_bytes(tmp_path) == store_bytes(finished)


def test_what_a_killed_process_left_is_labelled_to_the_same_bytes(data, finished, tmp_path):
    with pytest.raises(torch.multiprocessing.ProcessExitedException):
        two(data, tmp_path, lost=1)
    label(data, tmp_path, Ranks(0, 1, torch.device("cuda", 0)))
    assert store_bytes(tmp_path) == store_bytes(finished)


def test_precision_and_device_are_in_the_lineage(finished):
    lineage = LabelStore.open(finished / "store", strict=True).lineage
    assert lineage["precision"] == "bf16"
    assert lineage["parameters"]["device"] == "cuda"


def test_a_job_with_the_papers_model_spends_its_time_in_it(tmp_path):
    write_data(tmp_path, images=16, size=(1024, 2048))
    save_model(tmp_path / "model", models.build("hierarchical", trunk="hrnet_w48", num_classes=len(CLASSES)))
    given = {"scales": SCALES, "images_per_shard": 16}
    summary = label(tmp_path, tmp_path / "work", Ranks(0, 1, torch.device("cuda", 0)), **given)
    assert summary["model_share"] > 0.7


def test_labelling_takes_nothing_of_dev_shm(data, tmp_path):
    before = os.statvfs("/dev/shm").f_bavail
    label(data, tmp_path, Ranks(0, 1, torch.device("cuda", 0)))
    assert os.statvfs("/dev/shm").f_bavail >= before - 256


@pytest.fixture
def little_memory():
    """Leaves this process so many bytes more than it holds."""
    total = torch.cuda.get_device_properties(0).total_memory

    def leave(size: float) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + size) / total)

    yield leave
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_an_image_that_does_not_fit_is_tiled_and_the_side_is_reported(little_memory):
    tiler, image = Tiler(Predictor(small_model(), "cuda", "fp32")), noise_image(1, 1024, 2048)
    little_memory(0.35e9)
    label_map, _ = tiler.label(image, Passes(SCALES, True))
    assert label_map.shape == (1024, 2048)
    assert tiler.forced(image) is not None
    assert tiler.forced(noise_image(1, 64, 64)) in (None, 64)


def test_lack_of_memory_gives_captured_passes_back(little_memory):
    tiler, small = Tiler(Predictor(small_model(), "cuda", "fp32")), noise_image(1, 512, 1024)
    for _ in range(3):
        tiler.label(small.copy(), Passes(SCALES, True))
    assert tiler.predictor._pass._captured
    little_memory(0.2e9)
    tiler.label(noise_image(2, 1024, 2048), Passes(SCALES, True))
    assert not tiler.predictor._pass._captured
    tiler.label(small.copy(), Passes(SCALES, True))


def test_tiles_that_lack_of_memory_forced_are_in_receipt_and_summary(tmp_path, little_memory):
    write_data(tmp_path, images=3, size=(1024, 2048))
    save_model(tmp_path / "model")
    little_memory(0.4e9)
    summary = label(tmp_path, tmp_path / "work", Ranks(0, 1, torch.device("cuda", 0)), scales=SCALES)
    assert set(summary.tiled) == {"toy_000", "toy_001", "toy_002"}
    receipts = [read_json(path)["notes"]["tiled"] for path in (tmp_path / "work/store/receipts").glob("*.json")]
    assert {name: side for one in receipts for name, side in one.items()} == summary.tiled
