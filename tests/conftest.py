"""Shared fixtures: one thread per test process, seeds, no stray environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure: nothing here tests time. The same examples at every run, so that a red run is
# the change's doing.
settings.register_profile("project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_reference() -> Path | None:
    """The full set of reference numbers, where it lies beside the checkout."""
    folder = REPO.parent / "shared" / "reference"
    return folder if folder.is_dir() else None
