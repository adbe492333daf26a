"""Running a stage as a child: its status is understood, and stopping it leaves time to save."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hmsa_core.io.process import group_lives
from pipeline.nightly import runner
from pipeline.nightly.runner import ServerGoneError, StageFailedError, run_stage, stop_group

PLAIN = (sys.executable, "-m", "dvc")
pytestmark = pytest.mark.fault  # real processes and signals, and the time that they take


@pytest.fixture(autouse=True)
def _plain_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "DVC", PLAIN)


def _fake_dvc(tmp_path: Path, script: str) -> dict[str, str]:
    """An environment in which `python -m dvc` runs a script of ours."""
    (tmp_path / "dvc.py").write_text(script)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_the_stages_own_exit_status_and_error_line_are_told(tmp_path: Path) -> None:
    env = _fake_dvc(
        tmp_path,
        "print('Running stage'); print('error: shard 3 is torn'); "
        "print('ERROR: failed to reproduce: failed to run: autolabel stage x, exited with 4'); raise SystemExit(255)",
    )
    lines: list[str] = []
    with pytest.raises(StageFailedError, match="auto-infer failed with status 4: shard 3 is torn") as caught:
        run_stage("auto-infer", tmp_path, say=lines.append, env=env)
    assert not caught.value.is_worth_a_retry
    assert "Running stage" in lines


def test_a_killed_stage_is_worth_a_retry(tmp_path: Path) -> None:
    env = _fake_dvc(tmp_path, "print('ERROR: failed to run: autolabel stage x, exited with -9'); raise SystemExit(255)")
    with pytest.raises(StageFailedError, match="killed by signal 9") as caught:
        run_stage("auto-infer", tmp_path, say=lambda _: None, env=env)
    assert caught.value.is_worth_a_retry


def test_a_silent_server_stops_the_stage(tmp_path: Path) -> None:
    env = _fake_dvc(tmp_path, "import time; time.sleep(60)")
    start = time.monotonic()
    with pytest.raises(Exception, match="server is gone"):
        run_stage("auto-infer", tmp_path, say=lambda _: None, env=env, alive=lambda: False)
    assert time.monotonic() - start < 20


def test_a_process_that_keeps_the_pipe_does_not_keep_us(tmp_path: Path) -> None:
    keeps = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    mark = tmp_path / "pid"
    env = _fake_dvc(
        tmp_path,
        f"import subprocess, sys; command = [sys.executable, '-c', {keeps!r}, {str(mark)!r}]\n"
        "subprocess.Popen(command, start_new_session=True).wait()",
    )
    start = time.monotonic()
    try:
        with pytest.raises(ServerGoneError):
            run_stage("auto-infer", tmp_path, say=lambda _: None, env=env, alive=lambda: not mark.exists())
        assert time.monotonic() - start < 30
    finally:
        os.kill(int(mark.read_text()), signal.SIGKILL)


POLITE_CHILD = """
import ctypes, os, signal, sys, time
def stop(*_):
    time.sleep(1); open(sys.argv[1], "w").write("saved"); os._exit(143)
signal.signal(signal.SIGTERM, stop)
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
print("ready", flush=True); time.sleep(60)
"""


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
from pipeline.nightly import runner
from pipeline.nightly import runner
runner.DVC = (sys.executable, "-m", "dvc")
class Terminated(BaseException): pass
def stop(*_): raise Terminated
signal.signal(signal.SIGTERM, stop)
try:
    runner.run_stage("x", Path(sys.argv[1]), say=lambda _: open("ready", "w").close())
except Terminated as second:
    assert isinstance(second.__context__, Terminated), "it was heard of in the end"
    sys.exit(0 if Path("saved").exists() else 1)
"""


def test_a_second_signal_does_not_cut_the_time_to_save(tmp_path: Path) -> None:
    """Prefect's handler raises at each: at the one for the run, and at the one for the end of its worker."""
    stage = [sys.executable, "-c", POLITE_CHILD.replace("sleep(1)", "sleep(4)"), str(tmp_path / "saved")]
    env = _fake_dvc(tmp_path, f"import subprocess; subprocess.run({stage!r})")
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], os.environ.get("PYTHONPATH", "")])
    night = subprocess.Popen([sys.executable, "-c", NIGHT, str(tmp_path)], cwd=tmp_path, env=env)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for _ in range(2):
            night.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        assert night.wait(timeout=40) == 0
    finally:
        night.kill()
        night.wait()
