"""Faults planted into real processes: the n-th file operation that matches is held, fails, or ends the process.

A test that kills a job must hit it in the middle, on a machine of any speed. So it does not race: the job's
own processes stop at an operation that the test names (`Plan`), wherever in the chain dvc -> stage -> torchrun
-> ranks they run, and wait there for the blow. The plan travels in the environment; `site/sitecustomize.py`
installs it in every Python process below, before any other code runs.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hmsa_core.io import atomic
from tests.support.faults import HookedOps

_VARIABLE = "HMSA_TEST_PLAN"
_REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """What happens at which file operation.

    Attributes:
        marks: folder for `held-PID` (a process waits) and `release` (all go on).
        match: regular expression that the operation's path must contain.
        action: "hold" after the operation until a signal arrives or `release` appears, "exit" instead of it,
            or the name of an errno that it and from then on all operations of all processes fail with, whatever
            their path (but for `unlink`, which makes room), until `end`.
        operation: name of a method of `FileOps`; "" = any.
        at: the first matching operation of a process that it happens to, from 1.
    """

    marks: Path
    match: str
    action: str
    operation: str = ""
    at: int = 1

    def held(self) -> list[int]:
        """Processes that wait, living or killed since."""
        return [int(path.name.removeprefix("held-")) for path in self.marks.glob("held-*")]

    def wait(self, process: subprocess.Popen[bytes], count: int = 1, timeout_s: float = 900.0) -> None:
        """Wait until so many processes of a job stand at the planned operation."""
        deadline = time.monotonic() + timeout_s
        while len(self.held()) < count:
            assert process.poll() is None, f"ended with {process.returncode} before {count} processes were held"
            assert time.monotonic() < deadline, f"{len(self.held())} processes are held, not {count}"
            time.sleep(0.01)

    def end(self) -> None:
        """Let operations succeed again."""
        (self.marks / "broken").unlink()

    def release(self) -> None:
        """Let the waiting processes go on, and nobody wait any more."""
        (self.marks / "release").touch()


def planted(plan: Plan, env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process in which, and below which, the plan is at work."""
    plan.marks.mkdir(parents=True, exist_ok=True)
    described = json.dumps(asdict(plan) | {"marks": str(plan.marks)})
    return dict(env) | {_VARIABLE: described, "PYTHONPATH": f"{_REPO / 'tests/support/site'}:{_REPO}"}


def install() -> None:
    """Replace `hmsa_core.io.atomic.ops` as the environment says."""
    if _VARIABLE in os.environ:
        values = json.loads(os.environ[_VARIABLE])
        atomic.ops = _PlantedOps(Plan(**values | {"marks": Path(values["marks"])}))


class _PlantedOps(HookedOps):
    def __init__(self, plan: Plan) -> None:
        self._plan, self._count, self._lock = plan, 0, threading.Lock()

    def before(self, operation: str, path: object) -> bool:
        """Fail or end here if it is due; say whether to hold after the operation."""
        if operation == "mkdir" and Path(str(path)).is_dir():
            return False
        plan, broken = self._plan, self._plan.marks / "broken"
        is_due = self._count_if_it_matches(operation, path) == plan.at
        if plan.action == "exit" and is_due:
            os._exit(99)
        if plan.action in ("hold", "exit"):
            return is_due
        if is_due:
            broken.touch()
        if broken.exists():
            code = int(getattr(errno, plan.action))
            raise OSError(code, os.strerror(code), str(path))
        return False

    def _count_if_it_matches(self, operation: str, path: object) -> int:
        plan = self._plan
        if plan.operation not in ("", operation) or not re.search(plan.match, str(path)):
            return 0
        with self._lock:  # inference writes in a thread
            self._count += 1
            return self._count

    def after(self, due: bool) -> None:
        if not due:
            return
        with _Signals() as signals:
            # Only now may the test know: a signal that came before we listen would be waited for for ever.
            (self._plan.marks / f"held-{os.getpid()}").touch()
            while not signals.arrived() and not (self._plan.marks / "release").exists():
                time.sleep(0.01)

    def unlink(self, path: Path) -> None:
        atomic.FileOps.unlink(self, path)  # frees space: never a reason to hold or to fail on a full disk


class _Signals:
    """Whether a signal that Python handles came in: its handler runs, and the wait above must end."""

    def __enter__(self) -> _Signals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._before = signal.set_wakeup_fd(self._write)
        return self

    def arrived(self) -> bool:
        return bool(select.select([self._read], [], [], 0)[0])

    def __exit__(self, *_: object) -> None:
        if self._is_main:
            signal.set_wakeup_fd(self._before)
        os.close(self._read)
        os.close(self._write)
