"""A real Prefect server, worker and deployment of a workspace, used as a user does, and its processes from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hmsa_core.io import atomic
from pipeline.night.prefect_services import Services
from tests.support.chain import environment
from tests.support.processes import processes_of
from tests.support.waiting import wait_for

# One image a shard and sixteen times the work of an image: there is something to kill on any machine.
SLOWLY = {"auto_infer.scales": [0.5, 1.0, 2.0, 4.0, 8.0], "auto_infer.images_per_shard": 1}
_WORKER_LOG = ".orchestrate/worker.log"
ENDED = ("Completed", "Failed", "Crashed", "Cancelled")


def command(*args: str, cwd: Path, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a program as a user would; its output, and the worker's where there is one, is in the failure message."""
    done = subprocess.run(
        list(args), cwd=cwd, env=environment(), capture_output=True, text=True, check=False, timeout=timeout
    )
    if check and done.returncode:
        worker = worker_log(cwd)[-6000:] if (cwd / _WORKER_LOG).exists() else ""
        pytest.fail(f"{' '.join(args)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}\n{worker}")
    return done


# -- the services ---------------------------------------------------------------------------------


def _services(folder: Path, *arguments: str, check: bool = True) -> str:
    """What `pipeline.cli.services` said of a workspace."""
    program = (sys.executable, "-m", "pipeline.cli.services")
    done = command(*program, *arguments, "--workspace", str(folder), cwd=folder, check=check)
    return done.stdout + done.stderr


def up(folder: Path, port: int, *, check: bool = True) -> str:
    """What `make orchestrate WORKSPACE=folder PORT=port` calls; return what it said."""
    return _services(folder, "up", "--port", str(port), check=check)


def down(folder: Path) -> None:
    """What `make orchestrate-stop` calls; afterwards nothing of the workspace lives."""
    _services(folder, "down")
    wait_for("all processes of the workspace end", lambda: not processes_of(folder), 60)


def pid_of(folder: Path, service: str) -> int:
    """Process id of the workspace's `server` or `worker`."""
    return int(json.loads((folder / ".orchestrate" / f"{service}.lock").read_text())["pid"])


def worker_log(folder: Path) -> str:
    """What the worker and its flow runs printed."""
    return (folder / _WORKER_LOG).read_text()


# -- runs -----------------------------------------------------------------------------------------


def start(folder: Path, **parameters: object) -> str:
    """Start a run as a user does (the workspace's prefect.toml points at its server); return its id."""
    given = [f"{name}={json.dumps(value)}" for name, value in parameters.items()]
    args = [part for text in given for part in ("-p", text)]
    done = command(sys.executable, "-m", "prefect", "deployment", "run", "auto-label/nightly", *args, cwd=folder)
    return run_of(done.stdout)


def run_of(said: str) -> str:
    """Id of the run that `prefect deployment run` has started."""
    found = re.search(r"UUID: ([0-9a-f-]{36})", said)
    assert found, said
    return found.group(1)


def api(folder: Path, path: str, **body: Any) -> Any:
    """Ask the workspace's server: GET, or POST when a body is given."""
    request = urllib.request.Request(
        f"{Services(folder).api_url}/{path}",
        data=json.dumps(body).encode() if body else None,
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def state(folder: Path, run: str) -> str:
    """Name of a run's state."""
    return str(api(folder, f"flow_runs/{run}")["state"]["name"])


def finish(folder: Path, run: str, timeout_s: float = 1200) -> str:
    """Wait for a run's end; return its last state."""
    wait_for(f"run {run} ends", lambda: state(folder, run) in ENDED, timeout_s)
    return state(folder, run)


def task_runs(folder: Path, run: str) -> dict[str, dict[str, Any]]:
    """Task runs of a run by name; as the API gives them (state_name, run_count, ...)."""
    found = api(folder, "task_runs/filter", flow_runs={"id": {"any_": [run]}})
    return {str(task["name"]): task for task in found}


def artifacts_of(folder: Path, run: str) -> dict[str, Any]:
    """Content of a run's artifacts by key: rows of a table, text of a Markdown one."""
    found = api(folder, "artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    return {a["key"]: json.loads(a["data"]) if a["type"] == "table" else str(a["data"]) for a in found}


# -- processes ------------------------------------------------------------------------------------


def run_processes_of(folder: Path) -> dict[int, str]:
    """Those that a run started: neither the server, nor the worker, nor children of the server."""
    services = {pid_of(folder, name) for name in ("server", "worker")}
    return {
        pid: line
        for pid, line in processes_of(folder).items()
        if pid not in services and "prefect server" not in line and "uvicorn" not in line
    }


def ranks_of(folder: Path) -> list[int]:
    """Processes that compute for a stage: the ranks of its job, without torchrun's agent."""
    lines = processes_of(folder).items()
    return [pid for pid, line in lines if "hmsa_core.job" in line and "runtime.agent" not in line]


@contextmanager
def held(pids: list[int]) -> Iterator[Callable[[int], bool]]:
    """Stop processes inside the block, so that nothing depends on how fast they are.

    Yields a function that says whether a signal waits for all of them (or they are gone): a stopped process
    gets nothing but SIGKILL. When the block ends they go on.
    """
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield lambda number: all(_has_signal(pid, number) for pid in pids)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def strike_held(folder: Path, strike: Callable[[], object]) -> float:
    """Hit a night while its ranks stand still, until the request to stop has reached them; the time of the blow.

    What is left to do then is certain.
    """
    ranks = ranks_of(folder)
    assert ranks, "nobody infers"
    with held(ranks) as received:
        strike()
        struck = time.monotonic()
        wait_for("the ranks are told to stop", lambda: received(signal.SIGTERM))
    return struck


def _has_signal(pid: int, number: int) -> bool:
    try:
        lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    except OSError:
        return True
    waiting = {
        key: int(value, 16)
        for key, _, value in (line.partition(":\t") for line in lines)
        if key in ("SigPnd", "ShdPnd")
    }
    return any(mask & 1 << number - 1 for mask in waiting.values())


# -- stores ---------------------------------------------------------------------------------------


def store_bytes(folder: Path) -> dict[str, str]:
    """Digest of each file of the workspace's raw store."""
    store = folder / "labels" / "raw"
    return {str(p.relative_to(store)): atomic.sha256_file(p) for p in sorted(store.rglob("*")) if p.is_file()}
