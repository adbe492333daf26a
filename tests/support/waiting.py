"""How long a program waited of its own accord: not the time in which it computed or stood in line for a processor.

Seconds of the clock tell this only on an idle machine, seconds of a processor not at all: a program that sleeps uses none.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.chain import environment

# Last line of a script that handles signals: one that came just before a single long sleep would wait for its end.
WAITS = "while True: time.sleep(0.1)\n"


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
    """A command that came to its end: what it said, which modules it had loaded, how long it had waited."""

    status: int
    text: str
    loaded: frozenset[str]
    waited_seconds: float  # 0 where the kernel does not count the time in line for a processor


def leave(folder: Path, *command: str) -> Left:
    """Run a Python command that is expected to leave soon; what it waited is its main thread's."""
    with tempfile.TemporaryFile() as said:
        begin = time.monotonic()
        variables = environment() | {"PYTHONPROFILEIMPORTTIME": "1"}
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=said, stderr=said)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and the kernel still knows its times
        seconds = time.monotonic() - begin
        schedule = Path(f"/proc/{process.pid}/schedstat")
        on_cpu, in_line = map(int, schedule.read_text().split()[:2]) if schedule.exists() else (int(seconds * 1e9), 0)
        status = process.wait()
        said.seek(0)
        lines = said.read().decode().splitlines()
    imports = [line for line in lines if line.startswith("import time:")]
    loaded = frozenset(line.rsplit("|", 1)[1].strip() for line in imports)
    assert "pipeline.cli.main" in loaded, "the modules are not told: that torch is not among them says nothing"
    text = "\n".join(line for line in lines if not line.startswith("import time:"))
    return Left(status, text, loaded, seconds - (on_cpu + in_line) / 1e9)


def assert_left_at_once(tries: list[Left]) -> None:
    """Status 75, no second of waiting, and nothing loaded that takes longer than the refusal (torch: seconds)."""
    assert [done.status for done in tries] == [75] * len(tries), tries
    assert min(done.waited_seconds for done in tries) < 0.5, tries
    for done in tries:
        assert "torch" not in done.loaded
