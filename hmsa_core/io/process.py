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
from pathlib import Path
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1
_ONE_BLOW_S = 1.0
JOB_GRACE_S = 30.0  # for a job to save its progress after a stop
CHAIN_GRACE_S = 40.0  # for dvc and the stage below it: a stage may have to kill its job, and ends after that


def die_with_parent(sig: int = signal.SIGTERM, *, parent: int | None = None) -> None:
    """Ask the kernel to send `sig` to this process when its parent dies (no-op outside Linux).

    Args:
        sig: signal to receive.
        parent: process id the parent had when this process was started; if it is already gone, exit now.
            None = whoever is the parent at this moment.
    """
    if not sys.platform.startswith("linux"):
        return
    expected = os.getppid() if parent is None else parent
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died between fork and prctl: then no signal will ever come.
    if os.getppid() != expected:
        if sig != signal.SIGKILL:
            signal.signal(sig, signal.SIG_DFL)  # a handler inherited by fork would set a flag that exec forgets
        os.kill(os.getpid(), sig)


def end_after_parent(grace_s: float) -> None:
    """End this process (143) when its parent has been gone for so many seconds, whatever it is doing then."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        time.sleep(grace_s)
        os._exit(143)

    threading.Thread(target=watch, name="end-after-parent", daemon=True).start()


def is_orphan() -> bool:
    """Whether whoever started this process must be gone: its parent lives in another session.

    The kernel gives orphans to init or to a service manager, which have sessions of their own. Where the first
    process of a container takes them in, the session can be the same, and nothing is noticed. A process that began
    a session of its own has a parent in another one from the start: that says nothing.
    """
    mine = os.getsid(0)
    try:
        return mine not in (os.getpid(), os.getsid(os.getppid()))
    except ProcessLookupError:  # it died between the two calls
        return True


class StopRequest:
    """A flag that SIGTERM and SIGINT set; a second of these signals ends the process at once with 143.

    A service manager or `scancel` hits every process of a chain, and each passes the SIGTERM on to the next one. So
    the same signal again within a second counts as the first one. Where a parent limits the time anyway
    (`repeats=False`), every further SIGTERM does: a rank may handle it much later than it arrived.

    Handlers of two signals that arrive together (dvc's death and the SIGTERM that it died of) run one inside the
    other, at any line of each. So the flags are locks that are taken without waiting, in one indivisible step each.
    With an `Event` the outer handler may hold its inner lock, and the inner handler would wait for ever.
    """

    def __init__(self, *, repeats: bool = True) -> None:
        self._repeats = repeats
        self._asked, self._signalled = threading.Lock(), threading.Lock()
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
        elif self._first is not None:  # else it came into the line above
            number, since = self._first
            is_same_blow = signum == number and time.monotonic() - since <= _ONE_BLOW_S
            if is_same_blow or (signum == signal.SIGTERM and not self._repeats):
                return
            for callback in self._last_words:
                callback()
            os._exit(143)

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Ask for a stop as a first signal would; asking again changes nothing."""
        if not self._asked.acquire(blocking=False):
            return
        for callback in self._callbacks:
            callback(signum)

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked.locked()

    def set(self) -> None:
        """Ask for a stop from inside the program."""
        self._asked.acquire(blocking=False)


def run_child(
    command: Sequence[str],
    *,
    stop: StopRequest,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    pass_fds: Iterable[int] = (),
    grace_s: float = JOB_GRACE_S,
) -> int:
    """Run a child that dies with us, forward a stop request to it, and return its exit status.

    The child leads a process group of its own: a signal to ours (Ctrl-C in a terminal) reaches it once, through us. A
    second signal would end it before its progress is saved. After a stop, the other processes of its group are
    waited for as well: dvc exits at once, but its stage still saves.

    After a stop the child has `grace_s` seconds to save its progress; then it is killed, with its group. It is killed
    too when a second signal ends us at once.
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
    is_told = threading.Lock()  # a child that gets two signals ends without saving

    def forward(_signum: int) -> None:
        if not is_told.acquire(blocking=False):
            return
        with contextlib.suppress(ProcessLookupError):
            child.terminate()

    stop.on_stop(forward)
    stop.on_end(child.kill)
    if stop.is_set():  # the request came while the child was being started
        forward(signal.SIGTERM)
    kill_at = math.inf
    while True:
        if stop.is_set():  # when it is first seen here: the whole grace time lies ahead then
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
    """Whether a process group has a member; a reaped leader's number belongs to its group while there is one.

    Processes that have ended and that nobody reaps (the first process of a container need not) do not count.
    """
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return not sys.platform.startswith("linux") or any(_group_of(p) == group for p in Path("/proc").iterdir())


def _group_of(process: Path) -> int:
    """Process group of a living process, given by its folder in /proc; 0 of others."""
    with contextlib.suppress(OSError):
        if process.name.isdigit():
            fields = (process / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            return 0 if fields[0] in "ZX" else int(fields[2])
    return 0


def end_group(child: subprocess.Popen[Any], deadline: float) -> None:
    """Wait until the group that a child leads is empty, or kill it at `deadline` (seconds of the monotonic clock)."""
    is_killed = False
    while child.poll() is None or group_lives(child.pid):
        if time.monotonic() >= deadline:
            if is_killed:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            is_killed, deadline = True, time.monotonic() + 5.0  # the kernel may be writing for them
        time.sleep(0.05)
