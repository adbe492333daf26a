"""Nothing that a result, a key or an order depends on reads a clock: clocks jump, and restored files carry any time."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
# The library, and what of the pipeline makes or names results.
SOURCES = [
    *sorted((REPO / "hmsa_core").rglob("*.py")), *sorted((REPO / "pipeline/stages").rglob("*.py")),
    *(REPO / "pipeline" / name for name in ("keys.py", "launcher.py", "registry.py", "gate.py", "leaks.py", "params.py")),
]  # fmt: skip
CLOCKS = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "strftime", "ctime"}
STAMPS = {"st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "st_atime", "getmtime", "getctime"}
MAY_READ = {"hmsa_core/engine/logs.py": "lines of the log carry their time, for people"}


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


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(REPO).as_posix())
def test_no_clock_is_read(path: Path) -> None:
    if path.relative_to(REPO).as_posix() not in MAY_READ:
        assert _reads(path) == set()


def test_the_exceptions_are_still_needed() -> None:
    assert all(_reads(REPO / name) for name in MAY_READ)
