"""After the suite: no process of it is left; working tree, home and shared temporary folders are as they were."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

MARK = "HMSA_TEST_SESSION"  # every process of the suite inherits it
STRICT = "AUTOLABEL_CLEAN_TREE"  # set by `make test`, `test-full` and `test-slow`; elsewhere somebody may be editing meanwhile
_ENDS_WITH_US = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_REPO = Path(__file__).resolve().parents[2]
_HOME = ("", ".config", ".cache", ".local", ".local/bin", ".local/lib", ".local/share", ".local/state")
_SHARED = (Path("/var/tmp"), Path("/dev/shm"))  # others write there, too
# Caches that tools keep in the checkout, ignored by git; DVC's own folder holds the time of its first command.
_TOOLS = {"__pycache__", ".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache"}
_TOOLS |= {".venv", ".dvc", "build", "htmlcov"}
# Python's semaphores: its resource tracker removes them, unless it is killed with everybody else, as kill tests do.
_SEMAPHORE = "sem.mp-"


class Seen(NamedTuple):
    """What must not change, and what must not be added to."""

    fixed: frozenset[str] = frozenset()
    home: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()


def keep_out_of_home() -> None:
    """Point caches and settings of programs that tests start (DVC, Chromium, Prefect) to the temporary folder."""
    base = Path(tempfile.gettempdir()) / f"hmsa-tests-{os.getuid()}"
    xdg = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
    for name in (*xdg, "DVC_SITE_CACHE_DIR", "PREFECT_HOME"):
        folder = base / name.lower()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault(name, str(folder))


def look() -> Seen:
    """The tree as git sees it, ignored files, names in the home folder, and ours in folders that all users share."""
    if not os.environ.get(STRICT):
        return Seen()
    home = [p for name in _HOME for p in _entries(Path.home() / name)]
    shared = [p for folder in _SHARED for p in _entries(folder) if not p.name.startswith(_SEMAPHORE) and _is_ours(p)]
    status = _git("status", "--porcelain").splitlines()
    ignored = [
        x for x in _git("ls-files", "--others", "--ignored", "--exclude-standard").splitlines() if not _of_a_tool(x)
    ]
    return Seen(frozenset((*status, *ignored)), frozenset(map(str, home)), frozenset(map(str, shared)))


def check(before: Seen, wait_s: float = 10.0) -> list[str]:
    """What is wrong now that all tests are done, a line each."""
    deadline = time.monotonic() + wait_s
    while True:
        after, left = look(), _processes()
        added = _unused(after.shared - before.shared)
        if not (left or added) or time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    wrong = [f"process {pid} of a test is left: {command}" for pid, command in left.items()]
    changed = (after.fixed ^ before.fixed) | (after.home - before.home) | added
    return wrong + [f"a test left its mark outside of the temporary folder: {x}" for x in sorted(changed)]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_REPO, capture_output=True, text=True, check=False).stdout


def _of_a_tool(path: str) -> bool:
    parts = path.split("/")
    return any(part in _TOOLS or part.endswith(".egg-info") for part in parts) or parts[-1].startswith(".coverage")


def _entries(folder: Path) -> list[Path]:
    with suppress(OSError):
        return list(folder.iterdir())
    return []


def _is_ours(path: Path) -> bool:
    with suppress(OSError):
        return path.lstat().st_uid == os.getuid()
    return False


def _unused(paths: frozenset[str]) -> set[str]:
    """Those that no living process has open, mapped or as its folder: of ours none lives, so those are somebody else's."""
    used: list[str] = []
    for process in Path("/proc").glob("[0-9]*") if paths else ():
        with suppress(OSError):
            used.append(str((process / "cwd").readlink()))
            used += [line.split(maxsplit=5)[-1] for line in (process / "maps").read_text().splitlines()]
        for descriptor in _entries(process / "fd"):
            with suppress(OSError):
                used.append(str(descriptor.readlink()))
    return {p for p in paths if not any(x == p or x.startswith(f"{p}/") for x in used)}


def _processes() -> dict[int, str]:
    """Living processes that carry this session's mark, without us and Python's own helpers of us."""
    found = {}
    for process in psutil.process_iter(["environ", "cmdline", "ppid", "status"]):
        reported, command = process.info, " ".join(process.info["cmdline"] or [])
        if process.pid == os.getpid() or (reported["environ"] or {}).get(MARK) != os.environ[MARK]:
            continue
        ours = reported["ppid"] == os.getpid() and any(name in command for name in _ENDS_WITH_US)
        if reported["status"] != psutil.STATUS_ZOMBIE and not ours:
            found[process.pid] = command
    return found
