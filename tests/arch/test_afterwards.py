"""The look at what the suite leaves behind would see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import afterwards


def test_a_process_that_a_test_leaves_is_named_until_it_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    try:
        assert any(f"process {child.pid} of a test is left" in line for line in afterwards.check((), wait_s=0.0))
    finally:
        child.kill()
        child.communicate()
    assert not any(f"process {child.pid} " in line for line in afterwards.check((), wait_s=0.0))


@pytest.mark.parametrize("folder", [".", ".config", ".cache"])
def test_a_new_name_in_the_home_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(afterwards.STRICT, "1")
    (tmp_path / folder).mkdir(exist_ok=True)
    before = afterwards.look()
    (tmp_path / folder / "left-behind").touch()
    assert any("left-behind" in line for line in afterwards.check(before, wait_s=0.0))
