"""Runs of one stage under `dvc repro` that a test stops at a planned operation and then hits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hmsa_core.runtime.progress import read_log
from tests.support.chain import environment
from tests.support.planted import Plan, planted
from tests.support.processes import processes_of

GONE_WITHIN_S = 120.0  # a second on an idle machine; a busy one is no failure


@contextmanager
def running(workspace: Path, stage: str, plan: Plan) -> Iterator[subprocess.Popen[bytes]]:
    """`dvc repro` of one stage without its earlier progress, in a session of its own, with a plan at work."""
    shutil.rmtree(workspace / "work" / stage)
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "--force", stage]
    with (workspace.parent / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            command, cwd=workspace, env=planted(plan, environment()), stdout=said, stderr=said, start_new_session=True
        )
    try:
        yield process
    finally:
        for pid in [process.pid, *processes_of(workspace)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def kill_all(workspace: Path) -> None:
    """SIGKILL every process that works in the workspace; none sees another one die."""
    hit_all(workspace, signal.SIGSTOP, signal.SIGKILL)


def hit_all(workspace: Path, *numbers: int) -> None:
    """Send signals to every process that works in the workspace, as a service manager does."""
    everyone = processes_of(workspace)
    for number in numbers:
        for pid in everyone:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def steps(workspace: Path, stage: str, event: str = "train") -> list[int]:
    """Steps in the log's lines of one kind."""
    logs = (workspace / "work" / stage).glob("*/log.jsonl")
    return [line["step"] for log in logs for line in read_log(log) if line["event"] == event]


def stage_pid(workspace: Path, stage: str) -> int:
    """Process that runs a stage: it has written itself into the stage's lock."""
    return int(json.loads((workspace / "work" / "locks" / f"{stage}.lock").read_text())["pid"])
