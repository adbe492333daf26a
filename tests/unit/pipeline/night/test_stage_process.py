"""A stage as a child: its status is understood, stopping it leaves time to save, and a dead server is noticed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hmsa_core.io.process import group_lives
from pipeline.night import stage_process
from pipeline.night.stage_process import ServerGoneError, ServerWatch, StageFailedError, run_stage, stop_group
from tests.support.waiting import WAITS, wait_for
from tests.support.web import answering

PLAIN = (sys.executable, "-m", "dvc")
pytestmark = pytest.mark.fault  # real processes and signals, and the time that they take


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a stage with a script of ours in the place of dvc."""
    monkeypatch.setattr(stage_process, "DVC", PLAIN)

    def run(script: str, alive: Callable[[], bool] = lambda: True, say: Callable[[str], None] = lambda _: None) -> None:
        (tmp_path / "dvc.py").write_text(script)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        run_stage("auto-infer", tmp_path, say=say, alive=alive)

    return run


@pytest.mark.parametrize(
    ("status", "message", "again"), [(4, "failed with status 4", False), (-9, "was killed by signal 9", True)]
)
def test_the_stages_own_exit_status_and_error_line_are_reported_and_a_killed_one_is_worth_a_retry(
    run, status: int, message: str, again: bool
) -> None:
    script = "print('Running stage'); print('error: shard 3 is torn'); print('hint: read it anew'); "
    script += f"print('ERROR: failed to run: autolabel stage x, exited with {status}'); raise SystemExit(255)"
    lines: list[str] = []
    with pytest.raises(StageFailedError, match=f"auto-infer {message}: shard 3 is torn") as caught:
        run(script, say=lines.append)
    assert caught.value.is_worth_a_retry is again
    assert caught.value.hint == "read it anew"
    assert "Running stage" in lines


def test_another_dvc_at_work_is_named_and_the_stage_is_not_tried_again(run) -> None:
    said = (
        "ERROR: failed to reproduce 'prepare': '/w/data' is busy, it is being blocked by:\n  (PID 71): /bin/dvc repro\n"
    )
    said += "If there are no processes with such PIDs, you can manually remove '/w/.dvc/tmp/rwlock' and try again."
    with pytest.raises(StageFailedError, match=r"status 75: process 71 \(/bin/dvc repro\) uses the same") as caught:
        run(f"print({said!r}); raise SystemExit(255)")
    assert not caught.value.is_worth_a_retry


def test_outputs_that_dvc_could_not_save_are_a_failed_stage_though_dvc_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_process, "DVC", PLAIN)
    (tmp_path / "dvc.yaml").write_text("stages: {s: {cmd: mkdir out && echo hello > out/a, outs: [out]}}\n")
    subprocess.run([*PLAIN, "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    (tmp_path / ".dvc/cache/files/md5").mkdir(parents=True)
    (tmp_path / ".dvc/cache/files/md5/b1").symlink_to("/sys")  # nobody, not even root, can put a file there
    with pytest.raises(StageFailedError, match=r"^s failed with status 28: DVC could not save .*'b1946ac9") as caught:
        run_stage("s", tmp_path, say=lambda _: None, alive=lambda: True)
    assert not caught.value.is_worth_a_retry
    assert (tmp_path / "dvc.lock").exists(), "dvc took it for done"


def test_a_server_that_is_gone_stops_the_stage_though_a_process_keeps_the_pipe(tmp_path: Path, run) -> None:
    keeps = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    mark = tmp_path / "pid"
    script = f"import subprocess, sys; command = [sys.executable, '-c', {keeps!r}, {str(mark)!r}]\n"
    script += "subprocess.Popen(command, start_new_session=True).wait()"
    start = time.monotonic()
    try:
        with pytest.raises(ServerGoneError, match="server is gone"):
            run(script, alive=lambda: not mark.exists())
        assert time.monotonic() - start < 30
    finally:
        os.kill(int(mark.read_text()), signal.SIGKILL)


POLITE_CHILD = """
import ctypes, os, signal, sys, time
def stop(*_):
    time.sleep(1); open(sys.argv[1], "w").write("saved"); os._exit(143)
signal.signal(signal.SIGTERM, stop)
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
print("ready", flush=True)
"""
POLITE_CHILD += WAITS


def test_stopping_lets_the_stage_below_dvc_save_its_progress(tmp_path: Path) -> None:
    mark = tmp_path / "saved"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {POLITE_CHILD!r}, {str(mark)!r}])"
    child = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    stop_group(child)
    assert mark.read_text() == "saved"
    assert not group_lives(child.pid)
    child.stdout.close()


NIGHT = """
import signal, sys
from pathlib import Path
from pipeline.night import stage_process
stage_process.DVC = (sys.executable, "-m", "dvc")
class Terminated(BaseException): pass
def stop(*_): raise Terminated
signal.signal(signal.SIGTERM, stop)
try:
    stage_process.run_stage("x", Path(sys.argv[1]), say=lambda _: open("ready", "w").close(), alive=lambda: True)
except Terminated as second:
    assert isinstance(second.__context__, Terminated), "it was heard of in the end"
    sys.exit(0 if Path("saved").exists() else 1)
"""


def test_a_second_signal_does_not_cut_the_time_to_save(tmp_path: Path) -> None:
    """Prefect's handler raises at each: at the one for the run, and at the one for the end of its worker."""
    stage = [sys.executable, "-c", POLITE_CHILD.replace("sleep(1)", "sleep(4)"), str(tmp_path / "saved")]
    (tmp_path / "dvc.py").write_text(f"import subprocess; subprocess.run({stage!r})")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    night = subprocess.Popen([sys.executable, "-c", NIGHT, str(tmp_path)], cwd=tmp_path, env=env)
    try:
        wait_for("the stage", (tmp_path / "ready").exists, every_s=0.02)
        for _ in range(2):
            night.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        assert night.wait(timeout=40) == 0
    finally:
        night.kill()
        night.wait()


def test_a_dead_server_is_noticed_at_the_third_question_and_not_before() -> None:
    with answering(200) as (address, _):
        watch = ServerWatch(address)
        assert watch.alive()
    assert [watch.alive() for _ in range(3)] == [True, True, False]
    assert ServerWatch(None).alive(), "there is none to watch"


def test_a_server_that_accepts_but_does_not_answer_is_waited_for() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen(100)
        watch = ServerWatch(f"http://127.0.0.1:{busy.getsockname()[1]}", timeout_s=0.01)
        assert [watch.alive() for _ in range(60)] == [True] * 59 + [False], "but not for ever"


def test_an_answer_that_refuses_is_an_answer_and_a_gateways_is_none() -> None:
    with answering(*[401] * 70, 502) as (address, _):
        watch = ServerWatch(address)
        assert all(watch.alive() for _ in range(70))
        assert not all(watch.alive() for _ in range(70))
