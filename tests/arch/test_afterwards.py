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


@pytest.mark.parametrize("folder", [".", ".config", ".cache", ".local/share", ".local/state"])
def test_a_new_name_in_the_home_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(afterwards.STRICT, "1")
    (tmp_path / folder).mkdir(exist_ok=True, parents=True)
    before = afterwards.look()
    (tmp_path / folder / "left-behind").touch()
    assert any("left-behind" in line for line in afterwards.check(before, wait_s=0.0))


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


def test_a_new_name_in_a_shared_folder_is_named_when_nobody_else_is_at_work_with_it(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path_factory.mktemp("shared")
    monkeypatch.setattr(afterwards, "_SHARED", (shared,))
    before = afterwards.look()
    (shared / "sem.mp-abc").touch()
    assert afterwards.check(before, wait_s=0.0) == []
    (shared / "dvc").mkdir()
    with (shared / "dvc" / "state").open("w"):
        assert afterwards.check(before, wait_s=0.0) == [], "somebody works there"
    assert any(f"{shared}/dvc" in line for line in afterwards.check(before, wait_s=0.0))
    (shared / "dvc" / "state").unlink()
    (shared / "dvc").rmdir()
    known = afterwards.look()
    assert afterwards.check(known._replace(shared=known.shared | {f"{shared}/gone"}), wait_s=0.0) == []


def test_both_targets_of_tests_look_closely() -> None:
    lines = (afterwards._REPO / "Makefile").read_text().splitlines()
    exported = [line.split(":")[0].split() for line in lines if f": export {afterwards.STRICT} := 1" in line]
    assert {"test", "test-slow"} <= {target for targets in exported for target in targets}
