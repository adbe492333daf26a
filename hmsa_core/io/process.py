"""Parents, children and signals: a job never outlives the command that started it.

The chain is dvc -> `autolabel stage` -> torchrun -> ranks. Each asks the kernel for a signal when
its parent dies (Linux prctl), because neither dvc nor torchrun passes on a SIGKILL. The request is
tied to the parent's *thread*: children are started from the main thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any

from hmsa_core.io.errors import InterruptedRunError

_PR_SET_PDEATHSIG = 1
_ONE_BLOW_S = 1.0
JOB_GRACE_S = 30.0  # time for a job to save its progress after a stop
CHAIN_GRACE_S = 40.0  # time for dvc and its stage: a stage may have to kill its job first


def die_with_parent(sig: int = signal.SIGTERM, *, parent: int | None = None) -> None:
    """Ask the kernel to send `sig` to this process when its parent dies (no-op outside Linux).

    Args:
        sig: signal to receive.
        parent: process id of the parent when this process was started; if that parent is gone, exit now.
            None = the present parent.
    """
    if not sys.platform.startswith("linux"):
        return
    expected = os.getppid() if parent is None else parent
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # If the parent died between fork and prctl, the kernel sends no signal.
    if os.getppid() != expected:
        if sig != signal.SIGKILL:
            signal.signal(sig, signal.SIG_DFL)  # a handler inherited by fork would set a flag that exec forgets
        os.kill(os.getpid(), sig)


def leave_signals_to_parent() -> None:
    """Set up a worker: the parent handles stop signals, which the whole group gets; the end of the parent ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)


def end_after_parent(grace_s: float) -> None:
    """End this process (143) when its parent has been gone for so many seconds, even in the middle of work."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        time.sleep(grace_s)
        os._exit(143)

    threading.Thread(target=watch, name="end-after-parent", daemon=True).start()


def is_orphan() -> bool:
    """Whether the starter of this process must be gone: its parent lives in another session.

    The kernel gives orphans to init or to a service manager, which run in other sessions. The first process of a
    container can have the same session; such an orphan is not detected. A process that started a new session has
    a parent in another session from the start; for such a process the answer is False.
    """
    mine = os.getsid(0)
    try:
        return mine not in (os.getpid(), os.getsid(os.getppid()))
    except ProcessLookupError:  # the parent died between the two calls
        return True


class StopRequest:
    """A flag that SIGTERM and SIGINT set; a second of these signals ends the process at once with 143.

    A service manager or `scancel` signals every process of a chain, and each passes the SIGTERM on to the next one. So
    the same signal within a second counts as a repetition of the first one. With `repeats=False` the parent limits the
    time, and every further SIGTERM counts as a repetition: a rank may handle a signal long after the signal arrived.

    When two signals arrive together (dvc's death and the SIGTERM that killed dvc), one handler can interrupt the other
    at any line. So the flags are locks that are taken without waiting, in one atomic step each. With an `Event`, the
    interrupted handler may hold the event's lock, and the inner handler would wait for ever.
    """

    def __init__(self, *, repeats: bool = True) -> None:
        self._repeats = repeats
        self._requested, self._signalled = threading.Lock(), threading.Lock()
        self._first: tuple[int, float] | None = None  # signal, seconds of the monotonic clock
        self._callbacks: list[Callable[[int], None]] = []
        self._last_words: list[Callable[[], None]] = []

    def install(self) -> StopRequest:
        """Install the handlers (main thread only)."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)
        return self

    def on_stop(self, callback: Callable[[int], None]) -> None:
        """Call `callback(signum)` when the first signal arrives."""
        self._callbacks.append(callback)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call `callback()` when a second signal ends the process."""
        self._last_words.append(callback)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self._signalled.acquire(blocking=False):
            self._first = signum, time.monotonic()
            self.request(signum)
        elif self._first is not None:  # None: this signal interrupted the line above
            number, since = self._first
            is_same_blow = signum == number and time.monotonic() - since <= _ONE_BLOW_S
            if is_same_blow or (signum == signal.SIGTERM and not self._repeats):
                return
            for callback in self._last_words:
                callback()
            os._exit(143)

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Request a stop like a first signal; a second request changes nothing."""
        if not self._requested.acquire(blocking=False):
            return
        for callback in self._callbacks:
            callback(signum)

    def is_set(self) -> bool:
        """Whether a stop was requested."""
        return self._requested.locked()

    def check(self) -> None:
        """Raise InterruptedRunError if a stop was requested."""
        if self.is_set():
            raise InterruptedRunError("stopped by a signal; progress is saved", hint="run the same command again")


def run_child(
    command: Sequence[str],
    *,
    stop: StopRequest,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    pass_fds: Iterable[int] = (),
    grace_s: float = JOB_GRACE_S,
) -> int:
    """Run a child that dies with this process, forward a stop request to it, and return its exit status.

    The child leads a new process group. So a signal to this process's group (Ctrl-C in a terminal) reaches the child
    once, through this process; a second signal would end the child before its progress is saved. After a stop, the
    other processes of the child's group are waited for as well: dvc exits at once, but its stage still saves.

    After a stop the child has `grace_s` seconds to save its progress; then its group is killed. The
    group is killed too when a second signal ends this process at once.
    """
    me = os.getpid()
    child = subprocess.Popen(
        list(command),
        env=env,
        cwd=cwd,
        pass_fds=tuple(pass_fds),
        preexec_fn=lambda: die_with_parent(signal.SIGTERM, parent=me),
        process_group=0,
    )
    is_sent = threading.Lock()  # a child that gets two signals ends without saving

    def forward(_signum: int) -> None:
        if not is_sent.acquire(blocking=False):
            return
        with contextlib.suppress(ProcessLookupError):
            child.terminate()

    stop.on_stop(forward)
    stop.on_end(child.kill)
    if stop.is_set():  # the request came while the child was being started
        forward(signal.SIGTERM)
    kill_at = math.inf
    while True:
        if stop.is_set():  # the grace time starts when this loop first sees the stop
            kill_at = min(kill_at, time.monotonic() + grace_s)
        try:
            status = child.wait(timeout=min(0.5, kill_at - time.monotonic()))
            break
        except subprocess.TimeoutExpired:
            if time.monotonic() >= kill_at:
                child.kill()
                status = child.wait()
                break
    if stop.is_set():
        end_group(child, min(kill_at, time.monotonic() + grace_s))
    return status


def group_lives(group: int) -> bool:
    """Whether a process group has a living member; the number of a reaped leader stays reserved for such a group.

    Zombies do not count: the first process of a container need not reap them.
    """
    import psutil

    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it has ended meanwhile
            if os.getpgid(process.pid) == group and process.status() not in ("zombie", "dead"):
                return True
    return False


def end_group(child: subprocess.Popen[Any], deadline: float) -> None:
    """Wait until the group that a child leads is empty, or kill it at `deadline` (seconds of the monotonic clock)."""
    is_killed = False
    while child.poll() is None or group_lives(child.pid):
        if time.monotonic() >= deadline:
            if is_killed:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            is_killed, deadline = True, time.monotonic() + 5.0  # the kernel may still be writing for these processes
        time.sleep(0.05)
