"""Nothing that a result, a key or an order may depend on reads a clock: clocks jump, and restored files carry any time."""

from __future__ import annotations

import ast
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SOURCES = [path for package in ("hmsa_core", "pipeline") for path in sorted((REPO / package).rglob("*.py"))]
CLOCKS = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "strftime", "ctime"}
STAMPS = {"st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "st_atime", "getmtime", "getctime"}
MAY_READ = {
    "hmsa_core/runtime/progress.py": "lines of the log carry their time, for people",
    "pipeline/stages/runner.py": "whether files came while `prepare` ran, which then runs once more",
    "pipeline/report/since.py": "the page says when its night began, for people",
    "pipeline/review/questions.py": "when a person answered, for the minutes that answers took",
    "pipeline/night/reaper.py": "which nights were missed; what the one that runs makes does not depend on it",
    "pipeline/night/history.py": "figures of a night carry their time in MLflow, for people",
    "pipeline/doctor/dvc.py": "whether a process is younger than the lock that names its number; whether `--fix` removes it",
    "hmsa_core/io/remote.py": "which object of the cache goes first; one that goes too early is fetched again",
    "hmsa_core/io/records.py": "whether the page has read the newest file; its inode tells, whatever the time",
}


def _reads(path: Path) -> set[str]:
    """Wall clocks and time stamps of files that a module asks for (monotonic clocks measure durations)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value).rpartition(".")[2]
            if node.attr in STAMPS or (node.attr in CLOCKS and owner in {"time", "datetime", "date"}):
                found.add(f"{owner}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found |= {alias.name for alias in node.names} & CLOCKS
    return found


def test_no_clock_is_read_but_where_a_reason_is_given() -> None:
    assert {path.relative_to(REPO).as_posix() for path in SOURCES if _reads(path)} == set(MAY_READ)
