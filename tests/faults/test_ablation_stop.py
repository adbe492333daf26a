"""A stop while an ablation's own children run reaches them, and they are waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hmsa_core.io.errors import InterruptedRunError
from tests.support.waiting import WAITS

pytestmark = pytest.mark.fault

ABLATION = """
import sys
from pathlib import Path
from types import SimpleNamespace
from hmsa_core.io.errors import InterruptedRunError
from research.ablation.prepare import run_stages
from pipeline.cli.stage import prepare_process
from pipeline.workspace.workspace import Workspace
ws = Workspace(Path(sys.argv[1]))
ws.__dict__["params"] = SimpleNamespace(profile="of its own")
prepare_process(ws)
try:
    run_stages(ws, SimpleNamespace(name="scales", needs="teacher-train"))
except InterruptedRunError as stopped:
    sys.exit(stopped.exit_code)
"""
# `python -m dvc`: dies of a signal at once; the stage below hears of it and saves.
DVC = """
import subprocess, sys
subprocess.run([sys.executable, "stage.py"])
"""
STAGE = """
import os, signal, time
from hmsa_core.io.process import die_with_parent
def stop(*_):
    time.sleep(1); open("saved", "w").close(); os._exit(143)
signal.signal(signal.SIGTERM, stop)
die_with_parent()
open("ready", "w").close()
"""
STAGE += WAITS


def test_a_stop_reaches_the_stages_and_comes_back_when_they_have_saved(tmp_path: Path) -> None:
    (tmp_path / "dvc.py").write_text(DVC)
    (tmp_path / "stage.py").write_text(STAGE)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    ablation = subprocess.Popen([sys.executable, "-c", ABLATION, str(tmp_path)], env=env)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        assert ablation.poll() is None
        time.sleep(0.02)
    ablation.send_signal(signal.SIGTERM)
    assert ablation.wait(timeout=30) == InterruptedRunError.exit_code
    assert (tmp_path / "saved").exists()
