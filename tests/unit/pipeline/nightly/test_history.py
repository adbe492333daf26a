"""What a night is told to be made with, on machines of all kinds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hmsa_core import __version__
from hmsa_core.io import atomic
from pipeline.nightly import history
from pipeline.workspace import Workspace
from tests.conftest import REPO


def test_a_night_on_a_machine_without_git_is_described_without_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(REPO / "params.yaml", tmp_path / "params.yaml")
    atomic.write_json(tmp_path / "models/current.json", {"teacher": "stage:teacher-train"})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert history.describe(Workspace(tmp_path), {})["code"] == __version__
