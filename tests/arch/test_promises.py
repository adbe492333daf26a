"""The README's promises name tests that are there and hold something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SECTION = (REPO / "README.md").read_text().partition("## Promises")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (?!promise \||---)(.+?) \| (.+?) \|$", SECTION, re.MULTILINE)


def test_there_are_promises() -> None:
    assert len(ROWS) >= 10


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:50])
def test_each_promise_names_tests_that_exist(row: tuple[str, str]) -> None:
    paths = [REPO / name for name in re.findall(r"`(tests/[^`]+)`", row[1])]
    assert paths
    for path in paths:
        files = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
        assert any(re.search(r"^(async )?def test_", file.read_text(), re.MULTILINE) for file in files), path
