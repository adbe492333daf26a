"""The look at what the suite leaves behind would see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import afterwards


def test_a_process_that_a_test_leaves_is_named_until_it_is_gone() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    try:
        left = afterwards.check(afterwards.look(), wait_s=0.0)
        assert any(f"process {child.pid} of a test is left" in line for line in left)
    finally:
        child.kill()
        child.communicate()
    assert not any(f"process {child.pid} " in line for line in afterwards.check(afterwards.look(), wait_s=0.0))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository that stands for this one; processes of other tests are left out of it."""
    monkeypatch.setenv(afterwards.STRICT, "1")
    monkeypatch.setenv(afterwards.MARK, "nobody")
    monkeypatch.setattr(afterwards, "_REPO", tmp_path)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("/work/\n__pycache__/\n.coverage*\n")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "before").touch()
    return tmp_path


def test_a_new_file_that_git_ignores_is_named_and_caches_of_tools_are_not(checkout: Path) -> None:
    before = afterwards.look()
    (checkout / "work" / "__pycache__").mkdir()
    (checkout / "work" / "__pycache__" / "x.pyc").touch()
    (checkout / ".coverage.host.1").touch()
    assert afterwards.check(before, wait_s=0.0) == []
    (checkout / "work" / "left-behind").touch()
    assert any("work/left-behind" in line for line in afterwards.check(before, wait_s=0.0))
