"""Kernel locks: one owner, named in the message, free the moment it dies."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from hmsa_core.io.errors import ConfigError, LockedError, one_line
from hmsa_core.io.locks import FileLock, device_lock_path, probe_locks

HOLD = """
import sys, time
from hmsa_core.io.locks import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def _holder(path: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_the_second_owner_is_refused_at_once_and_told_who_holds_it(tmp_path: Path) -> None:
    child = _holder(tmp_path / "a.lock")
    try:
        start = time.monotonic()
        with pytest.raises(LockedError, match=f"process {child.pid}") as caught:
            FileLock(tmp_path / "a.lock", what="stage teacher-train").acquire()
        assert time.monotonic() - start < 1.0
        assert caught.value.exit_code == 75
        assert "stage teacher-train" in caught.value.message
    finally:
        child.kill()
        child.communicate()


def test_a_killed_owner_leaves_no_stale_lock_even_if_its_process_id_lives_on(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    child = _holder(path)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    # The file still names an owner; let it name a living process, as a reused process id would.
    path.write_text(json.dumps({"pid": os.getpid(), "command": "somebody else"}))
    with FileLock(path, wait_s=5):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_lock_handed_to_a_child_lives_as_long_as_the_child(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    lock = FileLock(path).acquire()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(lock.fd,))
    try:
        lock.release()
        assert not FileLock(path).is_free()
    finally:
        child.kill()
        child.wait()
    with FileLock(path, wait_s=5):
        pass


def test_waiting_gets_the_lock_when_its_owner_leaves(tmp_path: Path) -> None:
    child = _holder(tmp_path / "a.lock")
    with pytest.raises(LockedError):
        FileLock(tmp_path / "a.lock", wait_s=0.2).acquire()
    child.terminate()
    child.communicate()
    with FileLock(tmp_path / "a.lock", wait_s=5) as lock:
        assert not lock.is_free()
    assert lock.is_free()


def test_the_probe_accepts_working_locks_and_refuses_a_file_system_that_gives_one_lock_to_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_locks(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock-probe"]
    monkeypatch.setattr(fcntl, "flock", lambda _fd, _how: None)  # as on network file systems that only pretend
    with pytest.raises(ConfigError, match="file locks do not work") as caught:
        probe_locks(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert "local disk" in caught.value.hint
    lock = FileLock(tmp_path / "a.lock")  # every lock is tried when it is taken
    for _ in range(2):
        with pytest.raises(ConfigError, match="file locks do not work"):
            lock.acquire()
    with pytest.raises(RuntimeError, match="not held"):
        _ = lock.fd


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_file_that_is_removed_meanwhile_is_taken_anew_so_that_the_next_one_is_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    path, real = tmp_path / "work" / "a.lock", fcntl.flock

    def removed_once(fd: int, how: int) -> None:
        real(fd, how)
        monkeypatch.setattr(fcntl, "flock", real)
        shutil.rmtree(path.parent)
        if replaced:
            path.parent.mkdir()
            path.touch()

    monkeypatch.setattr(fcntl, "flock", removed_once)
    with FileLock(path), pytest.raises(LockedError):
        FileLock(path).acquire()


def test_each_device_has_its_own_lock_for_all_workspaces_of_a_user() -> None:
    path = device_lock_path("GPU-1a_b:0/34")
    assert path == Path(tempfile.gettempdir()) / f"hmsa-locks-{os.getuid()}" / "GPU-1a_b-0-34.lock"
    assert device_lock_path("cuda0") != device_lock_path("cuda1")


def test_the_holder_is_named_with_its_command_and_an_unreadable_name_is_another_process(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.write_text("what a longer name of an earlier owner left " * 20)
    with FileLock(path) as held:
        assert held.owner() == f"process {os.getpid()} ({one_line(' '.join(sys.argv))[:200]})"
        for torn in (b"", b'{"pid": 1', b"{}"):
            path.write_bytes(torn)
            with pytest.raises(LockedError, match=f"^{path} is in use by another process "):
                FileLock(path).acquire()


def test_a_lock_that_was_given_back_has_no_descriptor_and_can_be_taken_again(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "a.lock")
    assert lock.is_free()
    assert list(tmp_path.iterdir()) == [], "asking makes no file"
    for _ in range(2):
        with lock:
            assert os.get_inheritable(lock.fd) is False
        with pytest.raises(RuntimeError, match="not held"):
            _ = lock.fd
        lock.release()
