"""The mutation run: what it names is there, what it needs is locked, and its share counts what no test noticed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tools import mutants
from tools.lock import read_lock

REPO = Path(__file__).resolve().parents[3]


def test_modules_and_tests_are_there() -> None:
    for name in (*mutants.MODULES, *mutants.TESTS):
        assert (REPO / name).is_file(), name


def test_what_it_installs_is_locked_with_hashes_and_leaves_the_locked_environment_as_it_is() -> None:
    extra = read_lock(REPO / "tools" / "mutants.lock")
    assert "mutmut" in {entry.name for entry in extra}
    assert all(entry.hashes for entry in extra)
    assert not {entry.name for entry in extra} & {entry.name for entry in read_lock()}


def test_the_share_counts_what_no_test_noticed() -> None:
    verdicts = {
        "hmsa_core.io.atomic.x_digest__mutmut_1": "killed",
        "hmsa_core.io.atomic.x_digest__mutmut_2": "timeout",
        "hmsa_core.io.atomic.x\u01c1FileOps\u01c1open_new__mutmut_1": "survived",
        "hmsa_core.io.locks.x_f__mutmut_1": "no tests",
    }
    lines, share = mutants.report(verdicts)
    assert lines == ["hmsa_core.io.atomic: 2 of 3 caught (66.7%)", "hmsa_core.io.locks: 0 of 1 caught (0.0%)"]
    assert share == 0.5


def test_without_mutmut_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert mutants.main() == 3
    assert "make mutants" in capsys.readouterr().err
