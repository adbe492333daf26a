"""The mutation run: what it names is there."""

from __future__ import annotations

from pathlib import Path

from tools import mutants

REPO = Path(__file__).resolve().parents[3]


def test_modules_and_tests_are_there() -> None:
    for name in (*mutants.MODULES, *mutants.TESTS):
        assert (REPO / name).is_file(), name
