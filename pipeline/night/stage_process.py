"""Run one DVC stage as a child process: log its lines, notice its end, pass a stop on to its ranks.

Prefect does not report that its server is gone: a flow would compute for hours and then fail to report. So
`ServerWatch` watches the server. Without a server the stage saves its progress and stops, and the run ends.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hmsa_core.io.errors import HmsaError, LockedError, NoSpaceError
from hmsa_core.io.process import die_with_parent, end_group

# Exit statuses that a retry cannot repair: bad parameter, bad input, damaged file, leak, diverged
# training, full disk, locked, stopped on request.
PERMANENT = frozenset({2, 3, 4, 5, 6, 28, 75, 143})
DVC = (sys.executable, "-m", "pipeline.night.parameters")
_LOST = "ERROR: failed to transfer "
_EXITED = re.compile(r"exited with (-?\d+)")
_BUSY = re.compile(r"^\s*\(PID (\d+)\): (.*)")  # a line of DVC: the process that uses the stage's files
_STOP_GRACE_S = 25.0  # Prefect kills a cancelled run after 30
_ASK_EVERY_S = 2.0
_REFUSED = 3  # refused connections in a row after which the server counts as dead
_SILENT = 60  # other failures in a row (two minutes and more): a busy server or a network fault may recover


class StageFailedError(HmsaError):
    """A stage ended with an error; `status` is the exit status of the stage itself."""

    def __init__(self, stage: str, status: int, tail: list[str]) -> None:
        said, hint = ("".join([*_saying(tail, kind)][-1:]) for kind in ("error:", "hint:"))
        how = f"was killed by signal {-status}" if status < 0 else f"failed with status {status}"
        super().__init__(f"{stage} {how}: {said or ' | '.join(tail[-3:])}", hint=hint if said else "")
        self.stage, self.status, self.tail = stage, status, tail

    @property
    def is_worth_a_retry(self) -> bool:
        """Whether a retry of the stage may help (a lost worker, a killed process)."""
        return self.status not in PERMANENT


def _saying(tail: list[str], kind: str) -> Iterator[str]:
    """What lines of an error say, or of a hint how to fix it."""
    return (line.removeprefix(kind).strip() for line in tail if line.startswith(kind))


class ServerGoneError(HmsaError):
    """The orchestration server stopped answering; the stage was stopped with its progress saved."""


def run_stage(stage: str, workspace: Path, *, say: Callable[[str], None], alive: Callable[[], bool]) -> float:
    """Run `dvc repro --single-item STAGE`; return its seconds.

    Args:
        stage: name in dvc.yaml.
        workspace: folder of dvc.yaml.
        say: receives each line of output.
        alive: called every two seconds. False stops the stage (with a checkpoint).

    Raises:
        StageFailedError: the stage ended with an error, another process uses its files, or DVC could not put an
            output into its cache.
        ServerGoneError: `alive` returned False.
    """
    start = time.monotonic()
    child = subprocess.Popen(
        [*DVC, "repro", "--single-item", stage],
        cwd=workspace,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=partial(die_with_parent, signal.SIGTERM, parent=os.getpid()),
    )
    tail: deque[str] = deque(maxlen=30)
    lost = ""
    try:
        for line in _lines(child, alive, stage):
            tail.append(line)
            lost = lost or line.partition(_LOST)[2]
            say(line)
        status = child.wait()
    except BaseException:
        with _undisturbed():  # the end of the worker sends one more signal
            stop_group(child)
        raise
    if lost:  # DVC ends with status 0 although an output is lost
        message = f"error: DVC could not save what it made: {lost} (look at space and rights of `dvc cache dir`)"
        raise StageFailedError(stage, NoSpaceError.exit_code, [*tail, message])
    if status and (busy := [seen for line in tail if (seen := _BUSY.match(line))]):
        message = f"error: process {busy[0][1]} ({busy[0][2]}) uses the same files"
        raise StageFailedError(stage, LockedError.exit_code, [*tail, message, "hint: wait for its end, or stop it"])
    if status:
        found = [int(m.group(1)) for line in tail for m in _EXITED.finditer(line)]
        raise StageFailedError(stage, found[-1] if found else status, list(tail))
    return time.monotonic() - start


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold further stop signals back until the end of the block, which takes a limited time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda given, _: heard.append(given)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if heard:
            signal.raise_signal(heard[0])


def _lines(child: subprocess.Popen[str], alive: Callable[[], bool], stage: str) -> Iterator[str]:
    """Yield the lines of the child's output as they come; call `alive` every few seconds."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None  # noqa: S101 - Popen opened a pipe
        with child.stdout:  # closed in this thread: a close in another thread would wait
            for line in child.stdout:
                lines.put(line.rstrip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    ask_at = time.monotonic() + _ASK_EVERY_S
    while True:
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=1.0)
            if line is None:
                return
            if line:
                yield line
        if time.monotonic() > ask_at:
            ask_at = time.monotonic() + _ASK_EVERY_S
            if not alive():
                raise ServerGoneError(f"{stage}: the orchestration server is gone; stopped with its progress saved")


def stop_group(child: subprocess.Popen[str]) -> None:
    """Stop dvc and its child processes with time to save a checkpoint; a job that needs longer ends by itself.

    Only dvc gets the signal, and dvc ends at once. The end of dvc stops the stage, and the stage stops its
    ranks.
    """
    if child.poll() is None:
        child.terminate()
    end_group(child, time.monotonic() + _STOP_GRACE_S)
    child.wait()


class ServerWatch:
    """Watch the health page of the API; callers call `alive` every two seconds.

    Args:
        url: address of the API; empty = there is no server to watch.
        timeout_s: longest wait for one answer, in seconds.
    """

    def __init__(self, url: str | None, *, timeout_s: float = 2.0) -> None:
        self.url, self.timeout_s = url, timeout_s
        self._refused = self._silent = 0

    def alive(self) -> bool:
        """False once the server refused three times in a row, or failed in another way for two minutes."""
        if not self.url:
            return True
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=self.timeout_s):  # noqa: S310 - Prefect's own API
                self._refused = self._silent = 0
        except urllib.error.HTTPError as error:
            # A 4xx status comes from a live server; a gateway answers 5xx for a server that is gone.
            self._refused, self._silent = 0, 0 if error.code < 500 else self._silent + 1
        except OSError as error:  # URLError is one
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ConnectionRefusedError):
                self._refused += 1
            else:
                self._refused, self._silent = 0, self._silent + 1
        return self._refused < _REFUSED and self._silent < _SILENT
