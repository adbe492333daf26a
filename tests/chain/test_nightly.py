"""The nightly flow against a real server, worker and deployment on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmsa_core import atomic
from hmsa_core.labels import LabelStore
from pipeline.flow.services import Services
from tests.support.chain import Whole
from tests.support.nightly import command, processes_of, wait_for

pytestmark = [pytest.mark.chain, pytest.mark.timeout(900)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _up(folder: Path, port: int, *, check: bool = True) -> str:
    done = command(sys.executable, "-m", "pipeline.flow.up", "--workspace", str(folder), "--port", str(port),
                   cwd=folder, check=check)  # fmt: skip
    return done.stdout + done.stderr


@pytest.fixture
def orchestrated(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the finished workspace with its own server, worker and deployment."""
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "2")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    _up(workspace, _free_port())
    yield workspace
    command(sys.executable, "-m", "pipeline.flow.down", "--workspace", str(workspace), cwd=workspace)
    wait_for("all processes of the workspace end", lambda: not processes_of(workspace), 20)


def _start(folder: Path, **parameters: object) -> str:
    """Start a run as a user does (the workspace's prefect.toml points at its server); return its id."""
    given = [f"{name}={json.dumps(value)}" for name, value in parameters.items()]
    args = [part for text in given for part in ("-p", text)]
    done = command(sys.executable, "-m", "prefect", "deployment", "run", "auto-label/nightly", *args, cwd=folder)
    found = re.search(r"UUID: ([0-9a-f-]{36})", done.stdout)
    assert found, done.stdout
    return found.group(1)


def _state(folder: Path, run: str) -> str:
    import urllib.request

    with urllib.request.urlopen(f"{Services(folder).api_url}/flow_runs/{run}", timeout=5) as answer:
        return str(json.load(answer)["state"]["name"])


def _finish(folder: Path, run: str, timeout_s: float = 400) -> str:
    ended = ("Completed", "Failed", "Crashed", "Cancelled")
    wait_for(f"run {run} ends", lambda: _state(folder, run) in ended, timeout_s)
    return _state(folder, run)


def _worker_log(folder: Path) -> str:
    return (folder / ".orchestrate" / "worker.log").read_text()


def _pid_of(folder: Path, service: str) -> int:
    return int(json.loads((folder / ".orchestrate" / f"{service}.lock").read_text())["pid"])


def _store_bytes(folder: Path) -> dict[str, str]:
    return {p.name: atomic.sha256_file(p) for p in sorted((folder / "labels" / "raw").iterdir()) if p.is_file()}


def test_a_night_without_new_data_runs_no_stage_and_new_images_are_the_only_ones_inferred(orchestrated: Path) -> None:
    teacher = atomic.sha256_file(orchestrated / "models/teacher/model.safetensors")
    before = set(LabelStore.open(orchestrated / "labels/raw").names())
    shards = {n: digest for n, digest in _store_bytes(orchestrated).items() if n.startswith("shard-")}
    assert _finish(orchestrated, _start(orchestrated, promote=False)) == "Completed"
    log = _worker_log(orchestrated)
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
    run = _start(orchestrated, promote=False, stages=["prepare", "auto-infer"])
    assert _finish(orchestrated, run) == "Completed"
    after = set(LabelStore.open(orchestrated / "labels/raw").names())
    assert len(after - before) == 5
    assert not before - after
    assert "5 new images" in _worker_log(orchestrated)
    kept = [name for name in shards if shards[name] == _store_bytes(orchestrated).get(name)]
    assert len(kept) == len(shards), "shards of images that were labelled before stay as they are"
    assert atomic.sha256_file(orchestrated / "models/teacher/model.safetensors") == teacher


def test_bad_parameters_are_refused_before_anything_starts(orchestrated: Path) -> None:
    params = (orchestrated / "params.yaml").read_bytes()
    assert _finish(orchestrated, _start(orchestrated, threshold=1.5)) == "Failed"
    assert _finish(orchestrated, _start(orchestrated, stages=["auto-infr"])) == "Failed"
    log = _worker_log(orchestrated)
    assert "unknown stage 'auto-infr'" in log
    assert "pseudo_label.threshold" in log
    assert (orchestrated / "params.yaml").read_bytes() == params


@pytest.mark.fault
def test_a_killed_worker_leaves_nothing_behind_and_the_next_night_makes_the_same_store(
    orchestrated: Path, whole: Whole, tmp_path: Path
) -> None:
    changed = {"auto_infer.scales": [0.5, 1.0], "auto_infer.images_per_shard": 1}
    twin = tmp_path / "twin"
    shutil.copytree(whole.root, twin, symlinks=True)
    from pipeline.flow.overrides import apply

    text = apply((twin / "params.yaml").read_text(), changed)
    (twin / "params.yaml").write_text(text)
    command(sys.executable, "-m", "dvc", "repro", "--single-item", "auto-infer", cwd=twin)

    params = (orchestrated / "params.yaml").read_bytes()
    run = _start(orchestrated, params=changed, stages=["auto-infer"], promote=False)
    work = orchestrated / "work" / "auto-infer"
    known = set(work.rglob("shard-*.parquet"))
    wait_for("the first new shard", lambda: set(work.rglob("shard-*.parquet")) - known, 120)
    worker = _pid_of(orchestrated, "worker")
    os.kill(worker, signal.SIGKILL)
    server = _pid_of(orchestrated, "server")

    def left() -> dict[int, str]:
        # The server and its own children go on: only the run's processes must end.
        return {pid: line for pid, line in processes_of(orchestrated).items() if "prefect server" not in line
                and "uvicorn" not in line and pid != server}  # fmt: skip

    wait_for("the run's processes end", lambda: not left(), 30)
    assert len(set(work.rglob("shard-*.parquet")) - known) < 14, "the kill came after the last shard"
    said = _up(orchestrated, Services(orchestrated).port)
    assert "marked Crashed" in said, said
    assert _state(orchestrated, run) == "Crashed"
    assert _finish(orchestrated, _start(orchestrated, params=changed, stages=["auto-infer"], promote=False)) == "Completed"
    assert _store_bytes(orchestrated) == _store_bytes(twin)
    assert (orchestrated / "params.yaml").read_bytes() == params, "the killed run's parameters are undone"


def test_orchestrate_twice_and_with_a_taken_port(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        said = _up(workspace, port, check=False)
        assert f"port {port} on 127.0.0.1 is taken" in said
    try:
        assert "server started" in _up(workspace, port)
        assert "server runs already" in _up(workspace, port)
    finally:
        command(sys.executable, "-m", "pipeline.flow.down", "--workspace", str(workspace), cwd=workspace)
    wait_for("all processes of the workspace end", lambda: not processes_of(workspace), 20)
    assert not (workspace / "prefect.toml").exists()
