"""Make the n-th file operation fail, or end the process there, and say when a run got through.

After SQLite's malloc tests: n = 1, 2, ... until the operation succeeds, so that no point is left out.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from hmsa_core.io import atomic


class HookedOps(atomic.FileOps):
    """File operations that tell the path they are about: `before` each, and `after` it what `before` said."""

    def before(self, operation: str, path: object) -> bool:
        return False

    def after(self, due: bool) -> None:
        pass


def _hooked(operation: str) -> Callable[..., Any]:
    def hooked(self: HookedOps, *arguments: Any) -> Any:
        of_open_file = operation in ("write", "fsync")
        due = self.before(operation, arguments[0].name if of_open_file else arguments[-1])
        result = getattr(atomic.FileOps, operation)(self, *arguments)  # what a test has put there counts too
        self.after(due)
        return result

    return hooked


for _name in ("open_new", "write", "fsync", "rename", "exchange", "link", "unlink", "mkdir", "fsync_dir"):
    setattr(HookedOps, _name, _hooked(_name))


class FaultyOps(HookedOps):
    """File operations of which the n-th fails with `error` (an errno) or ends the process."""

    def __init__(self, fail_at: int, error: int | None, *, persistent: bool = False) -> None:
        self.fail_at, self.error, self.persistent = fail_at, error, persistent
        self.count = 0

    def before(self, operation: str, path: object) -> bool:
        self.count += 1
        if self.count == self.fail_at or (self.persistent and self.count > self.fail_at):
            if self.error is None:
                os._exit(99)
            raise OSError(self.error, os.strerror(self.error), str(path))
        return False


@contextmanager
def faulty(fail_at: int, error: int | None, *, persistent: bool = False) -> Iterator[FaultyOps]:
    """Replace the file operations of `hmsa_core.io.atomic` inside the block."""
    with patch.object(atomic, "ops", FaultyOps(fail_at, error, persistent=persistent)) as ops:
        yield ops


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


def fork() -> int:
    """As os.fork, without OpenCV's threads: a predictor of an earlier test may have left some, which a fork waits for."""
    import cv2  # here: planted faults import this file into every process of a chain

    cv2.setNumThreads(1)
    return os.fork()


def forked(work: Callable[[], int | None]) -> int:
    """Process id of a fork that does this work and ends with the status that it returns (None: 0; an exception: 3)."""
    pid = fork()
    if pid:
        return pid
    code = 3
    try:
        code = work() or 0
    except BaseException:  # noqa: BLE001 - a fork of the test process must end here, whatever happened
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def exit_at(action: Callable[[], object], n: int) -> int:
    """Exit status of a fork that does it and ends at the n-th operation: 99, or 0 where it got through."""

    def work() -> None:
        with faulty(n, None):
            action()

    return os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])


def every_exit(action: Callable[[], None]) -> Iterator[int]:
    """As `every_fault`, with the process ending (os._exit in a fork) at the n-th operation."""
    for n in range(1, 10_000):
        code = exit_at(action, n)
        if code == 0:
            return
        assert code == 99, f"the action itself failed with {code} at operation {n}"
        yield n
    raise AssertionError("the action never got through")
