"""Jobs as real processes: alone or under torchrun, watched through their log, killed by signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hmsa_core.runtime.progress import read_log
from hmsa_core.spec import JobSpec, save_spec
from tests.support.planted import Plan, planted

JOB = ["-m", "hmsa_core.job"]
REPO = Path(__file__).resolve().parents[2]


def agent(*arguments: str) -> list[str]:
    return ["-m", "hmsa_core.runtime.agent", "--local-addr", "127.0.0.1", "--max-restarts", "0", *arguments]


@contextmanager
def started(
    spec: JobSpec, *before: str, name: str = "spec.json", plan: Plan | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `python BEFORE... -m hmsa_core.job SPEC` in its own session; kill what is left afterwards."""
    path = Path(spec.work) / name
    save_spec(path, spec)
    env = os.environ | {
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPO),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    env = planted(plan, env) if plan else env
    with (Path(spec.work) / f"{name}.stderr").open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, *before, *JOB, str(path)], env=env, stderr=stderr, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finish(spec: JobSpec, *before: str, timeout_s: float = 120.0) -> int:
    """Run to the end and return the exit status."""
    with started(spec, *before) as process:
        return process.wait(timeout_s)


def errors_of(spec: JobSpec) -> str:
    return (Path(spec.work) / "spec.json.stderr").read_text()


def last_logged_step(work: Path) -> int:
    """Newest step in the log, 0 before the first."""
    log = work / "log.jsonl"
    steps = [int(line["step"]) for line in read_log(log) if line["event"] == "train"] if log.exists() else []
    return max(steps, default=0)
