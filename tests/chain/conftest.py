"""One finished workspace of profile `tiny` for all tests of the chain; each test that changes it gets a copy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.flow.overrides import apply
from tests.support.chain import REPO, Whole, dvc, run
from tests.support.nightly import SLOWLY, down, free_port, up


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


@pytest.fixture
def orchestrated(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the finished workspace with its own server, worker and deployment."""
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "2")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    try:
        up(workspace, free_port())
        yield workspace
    finally:
        down(workspace)


@pytest.fixture(scope="session")
def undisturbed(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that a run with SLOWLY makes when nobody disturbs it."""
    twin = shutil.copytree(whole.root, tmp_path_factory.mktemp("undisturbed") / "ws", symlinks=True)
    params = twin / "params.yaml"
    params.write_text(apply(params.read_text(), SLOWLY))
    dvc(twin, "repro", "--single-item", "auto-infer")
    return twin
