"""The nightly flow against a real server, worker and deployment on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmsa_core import atomic
from hmsa_core.labels import LabelStore
from pipeline.flow.overrides import apply
from pipeline.flow.services import Services
from tests.support.chain import Whole
from tests.support.nightly import (
    command,
    down,
    finish,
    free_port,
    held,
    pid_of,
    processes_of,
    ranks_of,
    receipts_of,
    run_processes_of,
    start,
    state,
    store_bytes,
    up,
    wait_for,
    worker_log,
)

pytestmark = [pytest.mark.chain, pytest.mark.timeout(2400)]


@pytest.fixture
def orchestrated(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the finished workspace with its own server, worker and deployment."""
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "2")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    up(workspace, free_port())
    yield workspace
    down(workspace)


def test_a_night_without_new_data_runs_no_stage_and_new_images_are_the_only_ones_inferred(orchestrated: Path) -> None:
    teacher = atomic.sha256_file(orchestrated / "models/teacher/model.safetensors")
    before = set(LabelStore.open(orchestrated / "labels/raw").names())
    shards = {n: digest for n, digest in store_bytes(orchestrated).items() if n.startswith("shard-")}
    assert finish(orchestrated, start(orchestrated, promote=False)) == "Completed"
    log = worker_log(orchestrated)
    for stage in ("prepare", "teacher-train", "auto-infer", "student-train", "evaluate"):
        assert f"{stage}: unchanged, nothing to do" in log
    page = (orchestrated / "work/nightly/morning.html").read_text()
    assert "nothing differs" in page or "first night" in page

    images = sorted((orchestrated / "data/demo/cityscapes/leftImg8bit/test").rglob("*_leftImg8bit.png"))[:5]
    for i, image in enumerate(images):
        target = orchestrated / f"data/demo/cityscapes/leftImg8bit/train_extra/augsburg/augsburg_{90 + i:06d}_000019_leftImg8bit.png"
        shutil.copy(image, target)
        # The picture is turned round: a copy of a known one would be quarantined.
        from PIL import Image

        Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(target)
    run = start(orchestrated, promote=False, stages=["prepare", "auto-infer"])
    assert finish(orchestrated, run) == "Completed"
    after = set(LabelStore.open(orchestrated / "labels/raw").names())
    assert len(after - before) == 5
    assert not before - after
    assert "5 new images" in worker_log(orchestrated)
    kept = [name for name in shards if shards[name] == store_bytes(orchestrated).get(name)]
    assert len(kept) == len(shards), "shards of images that were labelled before stay as they are"
    assert atomic.sha256_file(orchestrated / "models/teacher/model.safetensors") == teacher


def test_bad_parameters_are_refused_before_anything_starts(orchestrated: Path) -> None:
    params = (orchestrated / "params.yaml").read_bytes()
    assert finish(orchestrated, start(orchestrated, threshold=1.5)) == "Failed"
    assert finish(orchestrated, start(orchestrated, stages=["auto-infr"])) == "Failed"
    log = worker_log(orchestrated)
    assert "unknown stage 'auto-infr'" in log
    assert "pseudo_label.threshold" in log
    assert (orchestrated / "params.yaml").read_bytes() == params


# One image a shard and sixteen times the work of an image: there is something to kill on any machine.
SLOWLY = {"auto_infer.scales": [0.5, 1.0, 2.0, 4.0, 8.0], "auto_infer.images_per_shard": 1}


@pytest.fixture(scope="module")
def undisturbed(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that a run with SLOWLY makes when nobody disturbs it."""
    twin = shutil.copytree(whole.root, tmp_path_factory.mktemp("undisturbed") / "ws", symlinks=True)
    params = twin / "params.yaml"
    params.write_text(apply(params.read_text(), SLOWLY))
    command(sys.executable, "-m", "dvc", "repro", "--single-item", "auto-infer", cwd=twin)
    return twin


@pytest.mark.fault
def test_a_killed_worker_leaves_nothing_behind_and_the_next_night_makes_the_same_store(
    orchestrated: Path, undisturbed: Path
) -> None:
    params = (orchestrated / "params.yaml").read_bytes()
    run = start(orchestrated, params=SLOWLY, stages=["auto-infer"], promote=False)
    work = orchestrated / "work" / "auto-infer"
    known = receipts_of(work)
    wait_for("the first new shard", lambda: receipts_of(work) - known, 600, every_s=0.01)
    # The ranks stand still until the request to stop has reached them: what is left to do then is certain.
    ranks = ranks_of(orchestrated)
    assert ranks, "nobody infers"
    with held(ranks) as told:
        os.kill(pid_of(orchestrated, "worker"), signal.SIGKILL)
        wait_for("the ranks are told to stop", lambda: told(signal.SIGTERM), 120)
    wait_for("the run's processes end", lambda: not run_processes_of(orchestrated), 120)
    done = len(receipts_of(work) - known)
    assert 0 < done < len(LabelStore.open(undisturbed / "labels/raw").names()), "the kill came after the last shard"
    # The dying run may still have reached the server, or not: then the next start marks it.
    said = up(orchestrated, Services(orchestrated).port)
    assert state(orchestrated, run) == "Crashed", said
    again = start(orchestrated, params=SLOWLY, stages=["auto-infer"], promote=False)
    assert finish(orchestrated, again) == "Completed"
    assert store_bytes(orchestrated) == store_bytes(undisturbed)
    assert (orchestrated / "params.yaml").read_bytes() == params, "the killed run's parameters are undone"


def test_orchestrate_twice_and_with_a_taken_port(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        said = up(workspace, port, check=False)
        assert f"port {port} on 127.0.0.1 is taken" in said
    try:
        assert "server started" in up(workspace, port)
        assert "server runs already" in up(workspace, port)
    finally:
        command(sys.executable, "-m", "pipeline.flow.down", "--workspace", str(workspace), cwd=workspace)
    wait_for("all processes of the workspace end", lambda: not processes_of(workspace), 20)
    assert not (workspace / "prefect.toml").exists()
