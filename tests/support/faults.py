"""Make the n-th file operation fail, or end the process there, and say when a run got through.

After SQLite's malloc tests: n = 1, 2, ... until the operation succeeds, so that no point is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hmsa_core.io import atomic


class FaultyOps(atomic.FileOps):
    """File operations of which the n-th fails with `error` (an errno) or ends the process."""

    def __init__(self, fail_at: int, error: int | None, *, persistent: bool = False) -> None:
        self.fail_at, self.error, self.persistent = fail_at, error, persistent
        self.count = 0

    def _tick(self, path: object) -> None:
        self.count += 1
        if self.count == self.fail_at or (self.persistent and self.count > self.fail_at):
            if self.error is None:
                os._exit(99)
            raise OSError(self.error, os.strerror(self.error), str(path))

    def open_new(self, path: Path) -> IO[bytes]:
        self._tick(path)
        return super().open_new(path)

    def write(self, file: IO[bytes], data: bytes | memoryview) -> int:
        self._tick(file.name)
        return super().write(file, data)

    def fsync(self, file: IO[bytes]) -> None:
        self._tick(file.name)
        super().fsync(file)

    def rename(self, source: Path, target: Path) -> None:
        self._tick(target)
        super().rename(source, target)

    def exchange(self, one: Path, other: Path) -> None:
        self._tick(other)
        super().exchange(one, other)

    def link(self, source: Path, target: Path) -> None:
        self._tick(target)
        super().link(source, target)

    def unlink(self, path: Path) -> None:
        self._tick(path)
        super().unlink(path)

    def mkdir(self, path: Path) -> None:
        self._tick(path)
        super().mkdir(path)

    def fsync_dir(self, path: Path) -> None:
        self._tick(path)
        super().fsync_dir(path)


@contextmanager
def faulty(fail_at: int, error: int | None, *, persistent: bool = False) -> Iterator[FaultyOps]:
    """Replace the file operations of `hmsa_core.io.atomic` inside the block."""
    ops = FaultyOps(fail_at, error, persistent=persistent)
    real = atomic.ops
    atomic.ops = ops
    try:
        yield ops
    finally:
        atomic.ops = real


def every_fault(action: Callable[[], None], error: int, *, persistent: bool = False) -> Iterator[int]:
    """Run `action` with the 1st, 2nd, ... operation failing; yield n after each failed run.

    Stops after the first run that gets through (it ran `action` without any fault). The caller
    resets the disk and checks its state between the runs.
    """
    for n in range(1, 10_000):
        with faulty(n, error, persistent=persistent) as ops:
            try:
                action()
            except Exception:
                if ops.count < n:
                    raise
                failed = True
            else:
                failed = ops.count >= n
        if not failed:
            return
        yield n
    raise AssertionError("the action never got through")


def every_exit(action: Callable[[], None]) -> Iterator[int]:
    """The same with the process ending (os._exit in a fork) at the n-th operation."""
    for n in range(1, 10_000):
        pid = os.fork()
        if pid == 0:
            code = 98
            try:
                with faulty(n, None):
                    action()
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return
        assert code == 99, f"the action itself failed with {code} at operation {n}"
        yield n
    raise AssertionError("the action never got through")
