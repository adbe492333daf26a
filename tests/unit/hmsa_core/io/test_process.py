"""The process chain: a child never outlives its parent; a stop is forwarded; a second one is final."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hmsa_core.io.process import group_lives
from tests.support.waiting import WAITS

pytestmark = pytest.mark.fault  # real processes and signals, and the time that they take

PARENT = """
import os, sys
from hmsa_core.io.process import StopRequest, run_child
command = [sys.executable, "-c", sys.argv[1], sys.argv[2]]
code = run_child(command, stop=StopRequest().install(), grace_s=float(sys.argv[3]))
sys.exit(code if code >= 0 else 100)
"""
SLEEPER = """
import os, sys, time
open(sys.argv[1], "w").write(str(os.getpid())); time.sleep(60)
"""
POLITE = """
import signal, sys, os, time
def stop(*_):
    open(sys.argv[1] + ".saved", "w").write("yes"); sys.exit(143)
signal.signal(signal.SIGTERM, stop)
open(sys.argv[1], "w").write(str(os.getpid()))
"""
POLITE += WAITS
SLOW_TO_SAVE = POLITE.replace('open(sys.argv[1] + ".saved"', 'time.sleep(1.5); open(sys.argv[1] + ".saved"')
STUBBORN = """
import signal, sys, os, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").write(str(os.getpid())); time.sleep(60)
"""
# Two signals of one blow: the second comes in at the n-th line of the first one's handler, n = 1.. until there is none.
TOGETHER = """
import signal, sys
from hmsa_core.io.process import StopRequest
first, second = (int(number) for number in sys.argv[1:])
def lines_of_the_first_handler(at):
    calls, count = [], 0
    stop = StopRequest().install()
    stop.on_stop(calls.append)
    signal.signal(signal.SIGHUP, lambda number, _: stop.request(number))
    def trace(*_):
        nonlocal count
        count += 1
        if count == at:
            signal.raise_signal(second)
        return trace
    sys.settrace(trace)
    signal.raise_signal(first)
    sys.settrace(None)
    assert stop.is_set() and len(calls) == 1, (at, calls)
    return count
at = 1
while lines_of_the_first_handler(at) >= at:
    at += 1
print("lines:", at - 1)
"""


# As dvc does: dies of the signal at once; the process below it hears of that and saves.
DIES_FIRST = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", "from hmsa_core.io.process import die_with_parent; die_with_parent()" + {SLOW_TO_SAVE!r}, sys.argv[1]])
"""


def _start(script: str, mark: Path, grace_s: float = 30.0) -> tuple[subprocess.Popen[bytes], int]:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, script, str(mark), str(grace_s)])
    deadline = time.monotonic() + 20
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline, "the child did not start"
        time.sleep(0.02)
    return parent, int(mark.read_text())


def _gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_the_child_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent, child = _start(SLEEPER, tmp_path / "pid")
    parent.kill()
    parent.wait()
    assert _gone(child)


@pytest.mark.parametrize(
    ("script", "grace_s", "ends_within_s", "status", "saves", "gone_within_s"),
    [
        (POLITE, 30.0, 10, 143, True, 5.0),
        (SLOW_TO_SAVE, 30.0, 20, 143, True, 5.0),
        (STUBBORN, 0.5, 10, 100, False, 5.0),
        (DIES_FIRST, 30.0, 20, 100, True, 0.5),
        (DIES_FIRST.replace("1.5", "60"), 0.5, 20, 100, False, 5.0),
    ],
    ids=[
        "the child may save its progress",
        "it has the whole grace time to save",
        "one that ignores the stop is killed after the grace time",
        "those below a child that dies first are waited for",
        "and are killed when the grace time is over",
    ],
)
def test_a_stop_is_forwarded_and_waited_for_as_long_as_the_grace_time(
    tmp_path: Path, script: str, grace_s: float, ends_within_s: float, status: int, saves: bool, gone_within_s: float
) -> None:
    parent, child = _start(script, tmp_path / "pid", grace_s)
    parent.send_signal(signal.SIGTERM)
    try:
        assert parent.wait(timeout=ends_within_s) == status
    finally:
        parent.kill()  # nothing happens to one that has ended
        parent.wait()
    assert (tmp_path / "pid.saved").exists() == saves
    assert _gone(child, within_s=gone_within_s)


OUTLIVES = """
import sys, os, time
from hmsa_core.io import process
process.StopRequest(repeats=False).install()
process.end_after_parent(float(sys.argv[1]))
print(os.getpid(), flush=True); time.sleep(60)
"""


def test_a_job_outlives_its_parent_by_its_grace_time_at_most() -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {OUTLIVES!r}, '1.0'])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert not _gone(child, within_s=3.0)
    process.kill()
    process.wait()
    process.stdout.close()
    assert _gone(child, within_s=20.0)


def test_a_second_signal_ends_the_parent_at_once(tmp_path: Path) -> None:
    parent, child = _start(STUBBORN, tmp_path / "pid", grace_s=30)
    parent.send_signal(signal.SIGTERM)
    time.sleep(3)  # later than one blow, on a busy machine too
    start = time.monotonic()
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=5) == 143
    assert time.monotonic() - start < 2
    assert _gone(child)


def test_a_job_takes_any_further_sigterm_for_the_first_one_passed_on() -> None:
    """A rank that computes handles them when it comes out of the library: seconds after they arrived."""
    code = (
        "import os, signal, sys, time; from hmsa_core.io import process; stop = process.StopRequest(repeats=False).install(); "
        "process._ONE_BLOW_S = 0.0; numbers = [int(n) for n in sys.argv[1:]]\n"
        "for n in numbers: signal.raise_signal(n); time.sleep(0.01)\n"
        "sys.exit(0 if stop.is_set() else 1)"
    )
    for numbers, status in (((15, 15, 15), 0), ((15, 15, 2), 143), ((2, 2), 143), ((2, 15), 0)):
        command = [sys.executable, "-c", code, *map(str, numbers)]
        assert subprocess.run(command, check=False).returncode == status, numbers


def test_the_same_signal_twice_in_a_moment_is_one_blow(tmp_path: Path) -> None:
    """A service manager hits every process of the chain, and each passes it on: a rank gets it several times."""
    parent, child = _start(SLOW_TO_SAVE, tmp_path / "pid")
    for _ in range(3):
        parent.send_signal(signal.SIGTERM)
        time.sleep(0.1)  # else the kernel makes one of them
    assert parent.wait(timeout=20) == 143
    assert (tmp_path / "pid.saved").exists()
    assert _gone(child)


@pytest.mark.parametrize("order", [(signal.SIGTERM, signal.SIGHUP), (signal.SIGHUP, signal.SIGTERM)])
def test_a_stop_and_the_parents_death_at_once_are_one_request(order: tuple[int, int]) -> None:
    """A killed group sends both: nobody waits for ever, the child is told once, and nothing ends without saving."""
    command = [sys.executable, "-c", TOGETHER, *(str(int(number)) for number in order)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 5, "the second signal came into the handler of the first"


def test_a_parent_that_is_gone_before_the_request_is_noticed() -> None:
    for number in (signal.SIGKILL, signal.SIGHUP):
        code = f"from hmsa_core.io.process import die_with_parent; die_with_parent({int(number)}, parent=1234567)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -number
    code = "from hmsa_core.io.process import die_with_parent; die_with_parent(15, parent=1234567)"
    for before in (
        "",
        "from hmsa_core.io.process import StopRequest; StopRequest().install(); ",
    ):  # a forked one inherits it
        assert subprocess.run([sys.executable, "-c", before + code], check=False).returncode == -signal.SIGTERM


def test_a_process_that_nobody_reaps_is_no_member_of_its_group() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"], process_group=0)
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    os.killpg(ended.pid, 0)
    assert not group_lives(ended.pid)
    ended.wait()
    living = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0)
    assert group_lives(living.pid)
    living.kill()
    living.wait()
    assert not group_lives(living.pid)
