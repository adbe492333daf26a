"""The nightly flow against a real server, worker and deployment on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from hmsa_core.io import atomic
from hmsa_core.labels import LabelStore
from pipeline.night.prefect_services import Services
from pipeline.night.reaper import BEGINS_S, nightly_lock
from pipeline.workspace.table import STAGES
from tests.support.chain import REPO, Whole, add_images, environment
from tests.support.nightly import (
    SLOWLY,
    api,
    artifacts_of,
    command,
    down,
    finish,
    pid_of,
    run_of,
    run_processes_of,
    start,
    state,
    store_bytes,
    strike_held,
    task_runs,
    up,
    worker_log,
)
from tests.support.processes import processes_of, receipts_of
from tests.support.ranks import free_port
from tests.support.waiting import wait_for
from tests.support.web import answering

pytestmark = [pytest.mark.chain, pytest.mark.timeout(900)]


@pytest.mark.once
def test_a_night_without_new_data_runs_no_stage_and_new_images_are_the_only_ones_inferred(
    orchestrated: Path, whole: Whole
) -> None:
    teacher = atomic.sha256_file(orchestrated / "models/teacher/model.safetensors")
    before = set(LabelStore.open(orchestrated / "labels/raw").names())
    shards = {n: digest for n, digest in store_bytes(orchestrated).items() if n.startswith("shard-")}
    begin = time.monotonic()
    night = ("prefect", "deployment", "run", "auto-label/nightly", "-p", "promote=false", "--watch")
    watched = command(sys.executable, "-m", *night, cwd=orchestrated)
    seconds = time.monotonic() - begin
    assert "Completed" in watched.stdout + watched.stderr
    if whole.was_idle and os.getloadavg()[0] < 1.5:
        assert seconds <= 25, "a night without new data"
    run = run_of(watched.stdout)
    assert state(orchestrated, run) == "Completed"
    assert set(task_runs(orchestrated, run)) == {"check-machine", "discover", *STAGES, "gate", "publish"}
    log = worker_log(orchestrated)
    for stage in ("prepare", "teacher-train", "auto-infer", "student-train", "evaluate"):
        assert f"{stage}: unchanged, nothing to do" in log
    assert "first night" in (orchestrated / "work/nightly/morning.html").read_text()
    _check_artifacts(orchestrated, artifacts_of(orchestrated, run))

    new = add_images(orchestrated, 5)
    run = start(orchestrated, promote=False, stages=["prepare", "auto-infer"])
    assert finish(orchestrated, run) == "Completed", worker_log(orchestrated)[-6000:]
    assert {row["stage"] for row in artifacts_of(orchestrated, run)["auto-label-cost"]} == {"prepare", "auto-infer"}
    after = set(LabelStore.open(orchestrated / "labels/raw").names())
    assert (after - before, before - after) == (set(new), set())
    assert "5 new images" in worker_log(orchestrated)
    kept = [name for name in shards if shards[name] == store_bytes(orchestrated).get(name)]
    assert len(kept) == len(shards), "shards of images that were labelled before stay as they are"
    assert atomic.sha256_file(orchestrated / "models/teacher/model.safetensors") == teacher


def _check_artifacts(folder: Path, found: dict[str, Any]) -> None:
    """Prefect's artifacts hold the numbers of the metric files, and nothing else."""
    metrics = (f"metrics/{stage}.json" for stage in ("pseudo-label", "evaluate", "calibrate"))
    names = (*metrics, "evaluation/metrics.json", "labels/final/statistics.json")
    read = {name: atomic.read_json(folder / name) for name in names}
    funnel = {row["step"]: row["in all"] for row in found["auto-label-funnel"]}
    assert funnel["labelled by the teacher"] == atomic.read_json(folder / "metrics/auto-infer.json")["images"]
    assert funnel["pixels with a training label, %"] == round(
        100 * read["labels/final/statistics.json"]["labelled_share"], 2
    )
    calibrated = read["metrics/calibrate.json"]
    for row in found["auto-label-trust"]:
        coverage = read["metrics/pseudo-label.json"]["classes"][row["class"]]["coverage"]
        assert row["coverage"] == f"{100 * coverage:.1f}"
        threshold = calibrated["thresholds"][row["class"]]
        assert row["threshold"] == "–" if threshold is None else float(row["threshold"]) == threshold
        assert row["status"] == calibrated["status"][row["class"]]
    for row in found["auto-label-verdict"]:
        judged = read["evaluation/metrics.json"]["models"]
        iou = (judged[name]["settings"]["multi"]["classes"][row["name"]] for name in ("student", "teacher"))
        assert [row["candidate"], row["incumbent"]] == [value for value, _, _ in iou]
    gain = 100 * read["metrics/evaluate.json"]["gain"]["student - teacher"]
    assert f"student {gain:+.2f} points against teacher" in found["auto-label-morning"]
    assert "auto-label-cost" not in found, "a night in which no stage ran cost nothing"


def _notify(folder: Path, address: str) -> None:
    """The documented way: a block, its id in the example, `prefect automation create`."""
    make = (
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock as B; "
        f"print(B(name='ops', url={address!r}, json_data={{'text': '{{{{subject}}}}: {{{{body}}}}'}}).save('ops'))"
    )
    block = command(sys.executable, "-c", make, cwd=folder).stdout.split()[-1]
    example = (REPO / "pipeline/workspace/templates/notify.yaml").read_text()
    (folder / "notify.yaml").write_text(example.replace("00000000-0000-0000-0000-000000000000", block))
    command(sys.executable, "-m", "prefect", "automation", "create", "--from-file", "notify.yaml", cwd=folder)


def test_the_next_nights_are_planned_for_two_in_the_morning(served: Path) -> None:
    def planned() -> list[dict[str, Any]]:
        found = api(served, "flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
        return [run for run in found if run["auto_scheduled"]]

    wait_for("the server plans the next nights", planned, 60)
    times = sorted(datetime.fromisoformat(run["expected_start_time"]) for run in planned())
    assert {time.astimezone(ZoneInfo("Europe/London")).hour for time in times} == {2}
    assert times[0] - datetime.now(UTC) <= timedelta(days=1, hours=1), "an hour more where the clocks change"


def test_bad_parameters_are_refused_before_anything_starts_and_somebody_is_reported(served: Path) -> None:
    params = (served / "params.yaml").read_bytes()
    with answering(200) as (address, received):
        _notify(served, f"{address}/hook")
        run = start(served, threshold=1.5)
        assert finish(served, run) == "Failed"
        message = api(served, f"flow_runs/{run}")["state"]["message"]
        assert "pseudo_label.threshold" in message
        assert set(task_runs(served, run)) == {"publish"}, "nothing had started"
        assert "pseudo_label.threshold" in (served / "work/nightly/morning.html").read_text()
        assert finish(served, start(served, stages=["auto-infr"])) == "Failed"
        assert "unknown stage 'auto-infr'" in worker_log(served)
        assert (served / "params.yaml").read_bytes() == params
        wait_for("both notifications", lambda: len(received) > 1, 120)
    assert any("pseudo_label.threshold" in text for text in received)
    assert all("Failed" in text and f"{Services(served).port}/runs/flow-run/" in text for text in received)


@pytest.mark.fault
def test_a_killed_worker_leaves_nothing_behind_and_the_next_night_makes_the_same_store(
    orchestrated: Path, undisturbed: Path
) -> None:
    params = (orchestrated / "params.yaml").read_bytes()
    run = start(orchestrated, params=SLOWLY, stages=["auto-infer"], promote=False)
    work = orchestrated / "work" / "auto-infer"
    known = receipts_of(work)
    wait_for("the first new shard", lambda: receipts_of(work) - known, 600, every_s=0.01)
    strike_held(orchestrated, lambda: os.kill(pid_of(orchestrated, "worker"), signal.SIGKILL))
    wait_for("the run's processes end", lambda: not run_processes_of(orchestrated), 120)
    done = len(receipts_of(work) - known)
    assert 0 < done < len(LabelStore.open(undisturbed / "labels/raw").names()), "the kill came after the last shard"
    # The dying run may still have reached the server, or not: then the next start marks it.
    said = up(orchestrated, Services(orchestrated).port)
    assert state(orchestrated, run) == "Crashed", said
    again = start(orchestrated, params=SLOWLY, stages=["auto-infer"], promote=False)
    assert finish(orchestrated, again) == "Completed", worker_log(orchestrated)[-6000:]
    assert store_bytes(orchestrated) == store_bytes(undisturbed)
    assert (orchestrated / "params.yaml").read_bytes() == params, "a run never writes it"


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
        command(sys.executable, "-m", "pipeline.cli.services", "down", "--workspace", str(workspace), cwd=workspace)
    wait_for("all processes of the workspace end", lambda: not processes_of(workspace), 20)
    assert not (workspace / "prefect.toml").exists()


@pytest.mark.slow
def test_a_second_workspace_uses_the_server_that_is_there_and_says_what_it_takes_over(
    served: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(whole.root, tmp_path / "other", symlinks=True)
    server = pid_of(served, "server")
    monkeypatch.setenv("PREFECT_API_URL", Services(served).api_url)
    said = up(other, free_port())
    assert "using the server at" in said
    assert f"it was for {served} and is for {other} now" in said
    down(other)
    assert Services(served).healthy()
    assert pid_of(served, "server") == server
    monkeypatch.delenv("PREFECT_API_URL")
    assert f"it was for {other} and is for {served} now" in up(served, Services(served).port)


REAP = "from pathlib import Path; from pipeline.night.reaper import reap; print(reap(Path.cwd(), pending=True))"


def test_a_run_that_has_begun_but_has_no_lock_yet_is_not_taken_for_dead(served: Path) -> None:
    Services(served).stop("worker")
    run = start(served, threshold=1.5)
    api(served, f"flow_runs/{run}/set_state", state={"type": "RUNNING"}, force=True)
    reaper = [sys.executable, "-c", REAP]
    with subprocess.Popen(reaper, cwd=served, env=environment(), stdout=subprocess.PIPE, text=True) as looking:
        time.sleep(BEGINS_S / 2)
        assert looking.poll() is None, "it looks again"
        with nightly_lock(served):
            assert looking.communicate(timeout=60)[0] == "[]\n"
    assert looking.returncode == 0
    assert state(served, run) == "Running"
    up(served, Services(served).port)


def test_runs_that_a_full_kill_left_behind_are_settled_at_the_next_start(served: Path) -> None:
    services = Services(served)
    services.stop("worker")
    left = {}
    for kind in ("PENDING", "RUNNING", "CANCELLING"):
        run = start(served, threshold=1.5)  # when it is scheduled again it ends at once: the threshold is refused
        api(served, f"flow_runs/{run}/set_state", state={"type": kind}, force=True)
        left[kind] = run
    with nightly_lock(served):
        said = command(sys.executable, "-c", REAP, cwd=served).stdout
    assert said == "[]\n", "while a run may live nothing is touched"
    assert state(served, left["RUNNING"]) == "Running"
    said = up(served, services.port)
    assert "was left behind as Running: marked Crashed" in said
    assert "was left behind as Pending: scheduled again" in said
    assert state(served, left["RUNNING"]) == "Crashed"
    assert state(served, left["CANCELLING"]) == "Cancelled"
    assert finish(served, left["PENDING"]) == "Failed", "it had its turn"
    assert "pseudo_label.threshold" in api(served, f"flow_runs/{left['PENDING']}")["state"]["message"]
