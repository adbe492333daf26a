"""One finished workspace of profile `tiny` for all tests of the chain; each test that changes it gets a copy."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from hmsa_core.io.locks import FileLock
from tests.support.chain import REPO, Whole, dvc, run, set_params
from tests.support.nightly import SLOWLY, down, up
from tests.support.ranks import free_port


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A workspace after `init` and one `dvc repro`, made once for all processes of a run: look, do not touch."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    root, record = shared / "chain" / "ws", shared / "chain" / "whole.pickle"
    with FileLock(shared / "chain.lock", what="the workspace of the tests", wait_s=500):
        if record.exists():
            return cast("Whole", pickle.loads(record.read_bytes()))
        shutil.rmtree(root, ignore_errors=True)  # of another process whose test failed here
        was_idle = os.getloadavg()[0] < 0.7
        run(REPO, "autolabel", "init", str(root), "--profile", "tiny")
        made = Whole(root, dvc(root, "repro"), was_idle)
        record.write_bytes(pickle.dumps(made))
        return made


@pytest.fixture
def workspace(whole: Whole, tmp_path: Path) -> Path:
    """A copy of the finished workspace to change."""
    return shutil.copytree(whole.root, tmp_path / "ws", symlinks=True)


@pytest.fixture
def orchestrated(workspace: Path) -> Iterator[Path]:
    """A copy of the finished workspace with its own server, worker and deployment."""
    with _services(workspace):
        yield workspace


@pytest.fixture(scope="module")
def served(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same for all tests of a file: each leaves its images and stages as they were, and a worker."""
    folder = shutil.copytree(whole.root, tmp_path_factory.mktemp("served") / "ws", symlinks=True)
    with _services(folder):
        yield folder


@contextmanager
def _services(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_WORKER_QUERY_SECONDS", "2")
        patch.delenv("PREFECT_API_URL", raising=False)
        try:
            up(folder, free_port())
            yield
        finally:
            down(folder)


@pytest.fixture(scope="session")
def undisturbed(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that a run with SLOWLY makes when nobody disturbs it."""
    twin = shutil.copytree(whole.root, tmp_path_factory.mktemp("undisturbed") / "ws", symlinks=True)
    set_params(twin, SLOWLY)
    dvc(twin, "repro", "auto-infer")
    return twin
