"""`student_train.stores`: auto-labels of other workspaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa_core.io.errors import ConfigError
from pipeline.night.parameters import parameters_of_night
from pipeline.stages.student_train import pseudo_data
from pipeline.workspace.new_workspace import InitRequest, init_workspace
from pipeline.workspace.workspace import Workspace
from tests.support.chain import set_params
from tests.support.training import write_data, write_store


def workspace(root: Path, teacher: str) -> Workspace:
    """A workspace with nothing but final labels."""
    init_workspace(InitRequest(root, "tiny", make_data=False))
    write_data(root.with_name(f"{root.name}-data"), prefix="extra", images=2)
    write_store(root.with_name(f"{root.name}-data"), root / "labels/final", teacher=teacher)
    return Workspace(root)


def stores(root: Path, *given: dict[str, object]) -> Workspace:
    set_params(root, {"student_train.stores": list(given)})
    return Workspace(root)


def test_stores_of_other_workspaces_come_with_their_index_images_and_weight(tmp_path: Path, no_tools: None) -> None:
    own, other = workspace(tmp_path / "own", "a" * 64), workspace(tmp_path / "other", "a" * 64)
    ws = stores(own.root, {"store": "../other/labels/final", "weight": 2.5})
    first, second = pseudo_data(ws)
    assert (first.store, first.root, first.weight) == (ws.path("labels/final"), None, 1.0)
    assert (second.store.resolve(), second.weight) == (other.path("labels/final"), 2.5)
    assert second.index == other.path("data/index/unlabelled.parquet")
    assert second.centroids.resolve() == other.path("labels/final/centroids.parquet")
    assert second.root == other.roots["target"]
    set_params(other.root, {"data.target.root": "/data/month-09"})
    with parameters_of_night(own.root, {}):
        assert pseudo_data(ws)[1].root == Path("/data/month-09"), "a night's parameters are of its own workspace alone"


def test_labels_of_another_teacher_and_stores_outside_of_workspaces_are_refused(tmp_path: Path, no_tools: None) -> None:
    own = workspace(tmp_path / "own", "a" * 64)
    workspace(tmp_path / "other", "b" * 64)
    with pytest.raises(ConfigError, match=r"student_train.stores: .*other/labels/final: labelled by bbbb"):
        pseudo_data(stores(own.root, {"store": "../other/labels/final"}))
    with pytest.raises(ConfigError, match=r"student_train.stores: .*not in a workspace"):
        pseudo_data(stores(own.root, {"store": "../none"}))
