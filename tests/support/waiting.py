"""How long a program waited of its own accord: not the time in which it computed or stood in line for a processor.

Seconds of the clock tell this only on an idle machine, seconds of a processor not at all: a program that sleeps uses none.
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.chain import environment


def wait_for(what: str, condition: Callable[[], object], timeout_s: float = 120.0, *, every_s: float = 0.05) -> float:
    """Wait until a condition holds and give the seconds that it took; fail with its name."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < timeout_s, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(every_s)
    return time.monotonic() - begin


def crowd() -> float:
    """How many times as long as on an idle machine something may take: how many stand in line for each processor."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclass(frozen=True)
class Left:
    """A command that came to its end: what it said, and where its time went."""

    status: int
    text: str
    cpu_seconds: float
    waited_seconds: float  # 0 where the kernel does not count the time in line for a processor


def leave(folder: Path, *command: str) -> Left:
    """Run a command that is expected to leave soon; what it waited is its main thread's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile() as said:
        begin = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=said, stderr=said)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and the kernel still knows its times
        seconds = time.monotonic() - begin
        schedule = Path(f"/proc/{process.pid}/schedstat")
        on_cpu, in_line = map(int, schedule.read_text().split()[:2]) if schedule.exists() else (int(seconds * 1e9), 0)
        status = process.wait()
        said.seek(0)
        text = said.read().decode()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Left(status, text, cpu, seconds - (on_cpu + in_line) / 1e9)
