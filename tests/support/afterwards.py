"""After the suite: no process of it is left, the working tree and the home folder are as they were."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["MARK", "check", "keep_out_of_home", "look"]

MARK = "HMSA_TEST_SESSION"  # every process of the suite inherits it
STRICT = "AUTOLABEL_CLEAN_TREE"  # set by `make test`; elsewhere somebody may be editing meanwhile
_ENDS_WITH_US = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_REPO = Path(__file__).resolve().parents[2]


def keep_out_of_home() -> None:
    """Point caches and settings of programs that tests start (DVC, Chromium, matplotlib) to the temporary folder."""
    base = Path(tempfile.gettempdir()) / f"hmsa-tests-{os.getuid()}"
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "DVC_SITE_CACHE_DIR"):
        folder = base / name.lower()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault(name, str(folder))


def look() -> tuple[str, ...]:
    """What must not change: the tree as git sees it, and what lies in the home folder."""
    status = subprocess.run(["git", "status", "--porcelain"], cwd=_REPO, capture_output=True, text=True, check=False)
    home = Path.home()
    names = [str(p) for folder in (home, home / ".config", home / ".cache") if folder.is_dir() for p in folder.iterdir()]
    return (*status.stdout.splitlines(), *sorted(names))


def check(before: tuple[str, ...], wait_s: float = 10.0) -> list[str]:
    """What is wrong now that all tests are done, a line each."""
    deadline = time.monotonic() + wait_s
    while (left := _processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    wrong = [f"process {pid} of a test is left: {command}" for pid, command in left.items()]
    if os.environ.get(STRICT):
        wrong += [f"a test left its mark outside of the temporary folder: {x}" for x in sorted(set(look()) ^ set(before))]
    return wrong


def _processes() -> dict[int, str]:
    """Living processes that carry this session's mark, without us and Python's own helpers of us."""
    mark, found = f"{MARK}={os.environ[MARK]}".encode(), {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError, IndexError):
            if mark not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            state, parent = (entry / "stat").read_text().rpartition(") ")[2].split()[:2]
            ours = int(parent) == os.getpid() and any(name in command for name in _ENDS_WITH_US)
            if state != "Z" and not ours:
                found[int(entry.name)] = command
    return found
