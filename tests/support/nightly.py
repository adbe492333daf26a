"""Helpers of tests that look at processes from outside."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.chain import environment

__all__ = ["command", "processes_of", "wait_for"]


def command(*args: str, cwd: Path, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a program as a user would; its output is in the failure message."""
    done = subprocess.run(
        list(args), cwd=cwd, env=environment(), capture_output=True, text=True, check=False, timeout=timeout
    )
    if check:
        assert done.returncode == 0, f"{' '.join(args)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def processes_of(folder: Path) -> dict[int, str]:
    """Living processes that work in or on a folder: pid -> command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            where = (entry / "cwd").readlink()
            state = (entry / "stat").read_text().rsplit(") ", 1)[1][0]
        except (OSError, UnicodeDecodeError):
            continue
        if state != "Z" and (str(folder) in line or where.is_relative_to(folder)):
            found[int(entry.name)] = line
    return found


def wait_for(what: str, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait until a condition holds; fail with its name."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.1)
