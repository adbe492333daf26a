"""One finished workspace of profile `tiny` for all tests of the chain; each test that changes it gets a copy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.chain import REPO, Whole, dvc, run


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A workspace after `init` and one `dvc repro`: look, do not touch."""
    was_idle = os.getloadavg()[0] < 0.7
    root = tmp_path_factory.mktemp("chain") / "ws"
    run(REPO, "autolabel", "init", str(root), "--profile", "tiny")
    return Whole(root, dvc(root, "repro"), was_idle)


@pytest.fixture
def workspace(whole: Whole, tmp_path: Path) -> Path:
    """A copy of the finished workspace to change."""
    return shutil.copytree(whole.root, tmp_path / "ws", symlinks=True)
