"""Kernel locks (flock): the kernel frees them when their holder dies, so there is no stale lock.

Process ids are written into the lock file for people to read. No decision rests on them, because a process id can be
reused and an orphan can outlive its parent.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from hmsa_core.io.errors import ConfigError, LockedError, one_line


class FileLock:
    """An exclusive advisory lock on a file next to the folder or file that the lock guards.

    Args:
        path: lock file, created when missing. It is never deleted. A deletion would race with the next owner.
        what: name of the guarded thing, for the message.
        wait_s: how long to wait for another holder before giving up.

    Raises:
        LockedError: another process holds the lock; the message names the owner.
        ConfigError: the file system gives the same lock to two processes at once.
    """

    def __init__(self, path: str | os.PathLike[str], *, what: str = "", wait_s: float = 0.0) -> None:
        self.path = Path(path)
        self.what = what or str(self.path)
        self.wait_s = wait_s
        self._fd: int | None = None

    @property
    def fd(self) -> int:
        """File descriptor of the held lock: pass it to a child that must keep the lock alive."""
        if self._fd is None:
            raise RuntimeError("lock is not held")
        return self._fd

    def acquire(self) -> FileLock:
        """Take the lock or raise LockedError; check that a second open cannot take the lock."""
        deadline = time.monotonic() + self.wait_s
        while (fd := self._take(deadline)) is None:
            pass
        self._fd = fd
        owner = {"pid": os.getpid(), "command": one_line(" ".join(sys.argv))[:200]}
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(owner).encode(), 0)
        return self

    def _take(self, deadline: float) -> int | None:
        """Return an open file that holds the lock; None when the lock file was removed in the meantime."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)  # umask limits the mode
        try:
            self._wait(fd, deadline)
            if self._has_its_name(fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def _wait(self, fd: int, deadline: float) -> None:
        while True:
            try:
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LockedError(
                        f"{self.what} is in use by {self.owner()} (lock file {self.path})",
                        hint="wait for it to end, or stop it; the lock frees itself when its holder is gone",
                    ) from None
                time.sleep(0.05)

    def _has_its_name(self, fd: int) -> bool:
        """Whether the path still names the file of `fd`, and a second open cannot lock the file. Takes microseconds."""
        try:
            second = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if not os.path.sameopenfile(fd, second):
                return False
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(second)
        raise ConfigError(
            f"{self.path.parent}: file locks do not work on this file system", hint="put the folder on a local disk"
        )

    def owner(self) -> str:
        """Return the text that the owner wrote into the lock file, for a message."""
        try:
            owner = json.loads(self.path.read_text() or "{}")
        except (OSError, json.JSONDecodeError):
            owner = {}
        if not owner:
            return "another process"
        return f"process {owner.get('pid')} ({owner.get('command')})"

    def is_free(self) -> bool:
        """Whether no process holds the lock now."""
        if not self.path.exists():
            return True
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    def release(self) -> None:
        """Release the lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> FileLock:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def device_lock_path(device: str) -> Path:
    """Lock file of one accelerator; all workspaces and programs on the machine use the same file."""
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in device)
    return Path(tempfile.gettempdir()) / f"hmsa-locks-{os.getuid()}" / f"{safe}.lock"


def probe_locks(folder: Path) -> None:
    """Raise ConfigError for a file system on which a second open can take a lock that is already held."""
    with FileLock(folder / ".lock-probe", what="lock probe", wait_s=5.0):
        pass
