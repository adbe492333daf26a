"""Kill the chain dvc -> stage -> torchrun -> ranks at any link: nothing survives, nothing is lost, same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hmsa_core.engine.logs import read_log
from tests.support.chain import dvc, environment, lock_file

pytestmark = [pytest.mark.chain, pytest.mark.fault]

GONE_WITHIN_S = 15.0


def _processes_of(workspace: Path) -> dict[int, str]:
    """Living processes that work in or on the workspace, ours excluded."""
    found = {}
    for proc in Path("/proc").iterdir():
        if not proc.name.isdigit() or int(proc.name) == os.getpid():
            continue
        with suppress(OSError):
            command = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (proc / "stat").read_text().rpartition(") ")[2][0]
            inside = (proc / "cwd").resolve() == workspace.resolve()
            if state != "Z" and (inside or str(workspace) in command):
                found[int(proc.name)] = command
    return found


@contextmanager
def _running(workspace: Path, stage: str) -> Iterator[subprocess.Popen[bytes]]:
    """`dvc repro` of one stage without its earlier progress, in a session of its own."""
    shutil.rmtree(workspace / "work" / stage)
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "--force", stage]
    with (workspace.parent / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            command, cwd=workspace, env=environment(), stdout=said, stderr=said, start_new_session=True
        )
    try:
        yield process
    finally:
        for pid in [process.pid, *_processes_of(workspace)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _wait(what: Callable[[], bool], process: subprocess.Popen[bytes], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert process.poll() is None, (Path(process.args[0]), "ended before it was killed")  # type: ignore[index]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _steps(workspace: Path, stage: str) -> list[int]:
    logs = (workspace / "work" / stage).glob("*/log.jsonl")
    return [line["step"] for log in logs for line in read_log(log) if line["event"] == "train"]


def _stage_pid(workspace: Path, stage: str) -> int:
    lock = workspace / "work" / "locks" / f"{stage}.lock"
    return int(json.loads(lock.read_text())["pid"])


def _assert_all_gone(workspace: Path) -> None:
    deadline = time.monotonic() + GONE_WITHIN_S
    while left := _processes_of(workspace):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


HITS: dict[str, Callable[[int, int], None]] = {
    "SIGTERM to dvc": lambda dvc_pid, _: os.kill(dvc_pid, signal.SIGTERM),
    "SIGKILL to dvc": lambda dvc_pid, _: os.kill(dvc_pid, signal.SIGKILL),
    "SIGKILL to the stage": lambda _, stage_pid: os.kill(stage_pid, signal.SIGKILL),
    "SIGTERM to the group": lambda dvc_pid, _: os.killpg(dvc_pid, signal.SIGTERM),
    "SIGINT to the group": lambda dvc_pid, _: os.killpg(dvc_pid, signal.SIGINT),
    "SIGKILL to the group": lambda dvc_pid, _: os.killpg(dvc_pid, signal.SIGKILL),
}


@pytest.mark.parametrize("hit", HITS)
def test_a_training_that_is_hit_anywhere_leaves_nobody_and_goes_on_to_the_same_bytes(workspace: Path, hit: str) -> None:
    stage = "teacher-train"
    lock, last = lock_file(workspace), max(_steps(workspace, stage))
    with _running(workspace, stage) as process:
        # The first state of profile tiny is saved at step 20: even a SIGKILL has something to go on from. A line
        # in the log would not do, the state follows it.
        _wait(lambda: any((workspace / "work" / stage).glob("*/state/step-*/state.json")), process)
        HITS[hit](process.pid, _stage_pid(workspace, stage))
        process.wait(timeout=GONE_WITHIN_S)
        _assert_all_gone(workspace)
    done = max(_steps(workspace, stage))
    assert done < last, "the blow came after the last step: it proves nothing"
    assert dvc(workspace, "repro", "--single-item", "--force", stage).ran == [stage]
    starts = [line["step"] for log in (workspace / "work" / stage).glob("*/log.jsonl") for line in read_log(log)
              if line["event"] == "start"]  # fmt: skip
    assert len(starts) == 2, starts
    assert starts[1] >= (20 if "KILL" in hit else done), "work was done twice"
    assert lock_file(workspace) == lock


@pytest.mark.parametrize("stage", ["calibrate", "auto-infer", "pseudo-label"])
def test_a_labelling_stage_that_is_killed_keeps_its_finished_shards(workspace: Path, stage: str) -> None:
    lock = lock_file(workspace)
    work = workspace / "work" / stage

    def receipts() -> list[Path]:
        return sorted(work.glob("*/store/receipts/shard-*.json"))

    total = len(receipts())
    with _running(workspace, stage) as process:
        _wait(lambda: len(receipts()) >= 1, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _assert_all_gone(workspace)
    kept = {p: p.stat().st_mtime_ns for p in receipts()}
    assert 1 <= len(kept) < total, "the blow came after the last shard: it proves nothing"
    assert dvc(workspace, "repro", "--single-item", "--force", stage).ran == [stage]
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "finished shards were made again"
    assert lock_file(workspace) == lock


def test_a_second_repro_of_a_running_stage_changes_nothing_and_names_the_first(workspace: Path) -> None:
    stage = "teacher-train"
    with _running(workspace, stage) as process:
        _wait(lambda: bool(_steps(workspace, stage)), process)
        first = _stage_pid(workspace, stage)
        second = subprocess.run(
            ["autolabel", "stage", stage], cwd=workspace, env=environment(), capture_output=True, text=True, check=False
        )
        assert second.returncode == 75
        assert f"process {first}" in second.stderr
        assert process.wait(timeout=120) == 0
