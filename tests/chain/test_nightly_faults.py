"""The nightly flow when somebody dies: nothing survives, nothing is blocked, the same bytes come out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from hmsa_core.labels import LabelStore
from pipeline.night.prefect_services import Services
from tests.support.chain import environment
from tests.support.nightly import (
    SLOWLY,
    api,
    command,
    finish,
    pid_of,
    ranks_of,
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
from tests.support.waiting import crowd, wait_for

pytestmark = [pytest.mark.chain, pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(3600)]

NIGHT: dict[str, object] = {"params": SLOWLY, "stages": ["auto-infer"], "promote": False}


def _kill_flow(folder: Path, _run: str) -> None:
    (engine,) = [pid for pid, line in run_processes_of(folder).items() if "prefect.engine" in line]
    os.kill(engine, signal.SIGKILL)


def _kill_everything(folder: Path, _run: str) -> None:
    for pid in processes_of(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _cancel(folder: Path, run: str) -> None:
    command(sys.executable, "-m", "prefect", "flow-run", "cancel", run, cwd=folder)


GONE_WITHIN_S = 15.0
HITS: dict[str, Callable[[Path, str], None]] = {
    "kill -9 of the flow": _kill_flow,
    "kill -9 of the server": lambda folder, _run: os.killpg(pid_of(folder, "server"), signal.SIGKILL),
    "kill -9 of everything": _kill_everything,
    "cancel by command line": _cancel,
}


@pytest.mark.parametrize("hit", HITS)
def test_a_night_that_is_hit_in_auto_infer_leaves_nobody_and_the_next_one_makes_the_same_store(
    orchestrated: Path, undisturbed: Path, hit: str
) -> None:
    params = (orchestrated / "params.yaml").read_bytes()
    work = orchestrated / "work" / "auto-infer"
    known = receipts_of(work)
    run = start(orchestrated, **NIGHT)
    waiting = start(orchestrated, **NIGHT)  # the worker takes one at a time: this one waits for its turn
    wait_for("the first new shard", lambda: receipts_of(work) - known, 600, every_s=0.01)
    victims = set(run_processes_of(orchestrated))  # the waiting run may start as soon as this one has ended
    struck = strike_held(orchestrated, lambda: HITS[hit](orchestrated, run))
    wait_for("the run's processes end", lambda: not victims & set(processes_of(orchestrated)), 120)
    seconds = time.monotonic() - struck
    # Fifteen seconds are a promise for a machine that has time; this one may be shared.
    assert seconds < GONE_WITHIN_S * crowd(), seconds
    done = len(receipts_of(work) - known)
    assert 0 < done < len(LabelStore.open(undisturbed / "labels/raw").names()), "the hit came after the last shard"

    said = up(orchestrated, Services(orchestrated).port)
    assert finish(orchestrated, waiting) == "Completed", said
    # Without its server a run may still be able to tell a new one why it failed.
    assert state(orchestrated, run) in (("Cancelled",) if hit.startswith("cancel") else ("Crashed", "Failed")), said
    assert store_bytes(orchestrated) == store_bytes(undisturbed)
    assert finish(orchestrated, start(orchestrated, **NIGHT)) == "Completed"
    assert store_bytes(orchestrated) == store_bytes(undisturbed), "a night with nothing to do changes nothing"
    assert (orchestrated / "params.yaml").read_bytes() == params, "a run never writes it"


def _answers(folder: Path) -> bool:
    try:
        return bool(api(folder, "health"))
    except OSError:
        return False


def test_a_night_whose_flow_died_is_crashed_at_once_and_one_whose_server_is_silent_for_a_minute_completes(
    orchestrated: Path, undisturbed: Path
) -> None:
    work = orchestrated / "work" / "auto-infer"
    known = receipts_of(work)
    run = start(orchestrated, **NIGHT)
    wait_for("the first new shard", lambda: receipts_of(work) - known, 600, every_s=0.01)
    _kill_flow(orchestrated, run)
    wait_for("the run is marked", lambda: state(orchestrated, run) == "Crashed", 90)  # three heartbeats of 30 s

    known = receipts_of(work)
    run = start(orchestrated, **NIGHT)
    wait_for("the next new shard", lambda: receipts_of(work) - known, 600, every_s=0.01)
    server = pid_of(orchestrated, "server")
    os.killpg(server, signal.SIGSTOP)  # what a cut cable looks like: connections neither fail nor answer
    try:
        time.sleep(60)
    finally:
        os.killpg(server, signal.SIGCONT)
    wait_for("the server answers again", lambda: _answers(orchestrated), 60)
    assert finish(orchestrated, run) == "Completed"
    assert {task["run_count"] for task in task_runs(orchestrated, run).values()} == {1}, "nothing ran twice"
    assert store_bytes(orchestrated) == store_bytes(undisturbed)


def test_ctrl_c_in_a_terminal_ends_flow_stage_and_ranks(orchestrated: Path, undisturbed: Path) -> None:
    call = f"from pipeline.night.flow import auto_label; auto_label(params={SLOWLY!r}, stages=['auto-infer'], promote=False)"
    work = orchestrated / "work" / "auto-infer"
    known = receipts_of(work)
    with (orchestrated.parent / "said.txt").open("wb") as said:
        flow = subprocess.Popen(
            [sys.executable, "-c", call],
            cwd=orchestrated,
            env=environment(),
            stdout=said,
            stderr=said,
            # As in a terminal, whoever started the tests: a shell's background jobs ignore SIGINT, and so do their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        wait_for("the first new shard", lambda: receipts_of(work) - known or flow.poll() is not None, 600, every_s=0.01)
        assert ranks_of(orchestrated), (orchestrated.parent / "said.txt").read_text()
        struck = strike_held(orchestrated, lambda: flow.send_signal(signal.SIGINT))
        wait_for("the run's processes end", lambda: flow.poll() is not None and not ranks_of(orchestrated), 120)
    finally:
        flow.kill()
        flow.wait()
    assert time.monotonic() - struck < GONE_WITHIN_S * crowd()
    assert flow.returncode != 0
    assert not run_processes_of(orchestrated)
    assert finish(orchestrated, start(orchestrated, **NIGHT)) == "Completed"
    assert store_bytes(orchestrated) == store_bytes(undisturbed)


def _stage_pid(folder: Path) -> int | None:
    found = [pid for pid, line in processes_of(folder).items() if "autolabel stage auto-infer" in line]
    return found[0] if found else None


def _kill_stage(folder: Path, known: set[Path]) -> set[Path]:
    """SIGKILL to the stage when it has made a new shard; return all shards that are there then."""
    work = folder / "work" / "auto-infer"
    wait_for("a new shard", lambda: receipts_of(work) - known and ranks_of(folder), 600, every_s=0.01)
    pid = _stage_pid(folder)
    assert pid is not None
    strike_held(folder, lambda: os.kill(pid, signal.SIGKILL))
    wait_for("the stage and its ranks end", lambda: not ranks_of(folder) or _stage_pid(folder) not in (None, pid), 60)
    return receipts_of(work)


def test_a_stage_that_is_killed_fails_as_its_own_task_and_alone_is_tried_again(
    orchestrated: Path, undisturbed: Path
) -> None:
    stages = ["prepare", "auto-infer"]
    known = receipts_of(orchestrated / "work" / "auto-infer")
    run = start(orchestrated, params=SLOWLY, stages=stages, promote=False)
    _kill_stage(orchestrated, known)
    assert finish(orchestrated, run) == "Completed"
    tasks = task_runs(orchestrated, run)
    assert tasks["auto-infer"]["run_count"] == 2
    others = {name: task["run_count"] for name, task in tasks.items() if name != "auto-infer"}
    assert others == dict.fromkeys(("check-machine", "discover", "prepare", "publish"), 1)
    assert "auto-infer was killed by signal 9" in worker_log(orchestrated)
    assert store_bytes(orchestrated) == store_bytes(undisturbed)


def test_a_stage_that_is_killed_each_time_is_the_one_failed_task_and_the_run_says_so(orchestrated: Path) -> None:
    stages = ["prepare", "auto-infer", "pseudo-label"]
    known = receipts_of(orchestrated / "work" / "auto-infer")
    run = start(orchestrated, params=SLOWLY, stages=stages, promote=False)
    _kill_stage(orchestrated, _kill_stage(orchestrated, known))
    assert finish(orchestrated, run) == "Failed"
    states = {name: task["state_name"] for name, task in task_runs(orchestrated, run).items()}
    assert states.pop("auto-infer") == "Failed"
    assert "pseudo-label" not in states, "nothing runs on what is missing"
    assert set(states.values()) == {"Completed"}
    message = api(orchestrated, f"flow_runs/{run}")["state"]["message"]
    assert "auto-infer was killed by signal 9" in message
    logs = api(orchestrated, "logs/filter", logs={"flow_run_id": {"any_": [run]}})
    assert any("auto-infer was killed by signal 9" in line["message"] for line in logs)
    assert not [line for line in logs if "Traceback" in line["message"]]
