"""A small store of generated street scenes, shared by tests that only read it; a copy for those that write."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.review.session import Session
from tests.support.asgi import AsgiClient, client_of
from tests.support.label_scenes import Scenes, make_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Six scenes of two cities in two shards; read only."""
    return make_scenes(tmp_path_factory.mktemp("scenes"), images_per_shard=3)


@pytest.fixture
def copied(scenes: Scenes, tmp_path: Path) -> Scenes:
    """A copy that the test may change."""
    source, target = scenes.store.parent, tmp_path / "set"
    shutil.copytree(source, target)
    return replace(scenes, store=target / "raw", images=target / "data", policy=target / "policy.json")


@pytest.fixture
def session(copied: Scenes) -> Session:
    """A session over the copy, with policy and pictures."""
    return Session(copied.store, policy=copied.policy, images=copied.images, reviewer="tester")


@pytest.fixture
def client(session: Session) -> Iterator[AsgiClient]:
    """A client of the whole guarded application, as a page on loopback sees it."""
    with client_of(session) as client:
        yield client
