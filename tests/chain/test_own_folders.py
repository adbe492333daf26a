"""Folders of one's own through the whole chain: `init`, then `dvc repro`, without an edit but for the budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch

from hmsa_core.data.index import Index
from hmsa_core.labels import LabelStore
from pipeline.plan.plan import make_plan
from pipeline.plan.reading import Folders
from pipeline.workspace.dvc_yaml import SETTINGS_STAGE
from pipeline.workspace.table import STAGES
from pipeline.workspace.workspace import SETTINGS
from pipeline.workspace.yaml_text import read_yaml
from tests.support.chain import REPO, dvc, run, set_params
from tests.support.forks import Forks, forks
from tests.support.own_folders import LAYOUTS, UserFolders, roboflow, save, scene

pytestmark = pytest.mark.chain
# The least: two epochs of a micro network, one scale, one process, and nothing that is timed.
BUDGET = {
    "runtime.ranks": 1,
    "runtime.threads": 1,
    "runtime.precision": "fp32",
    "train.model.trunk": "hrnet_micro",
    "train.runtime.channels_last": False,
    "prepare.workers": 1,
    "teacher_train.model.trunk_weights": "none",
    "teacher_train.epochs": 2,
    "teacher_train.validate_every": 1,
    "auto_infer.scales": [1.0],
    "auto_infer.flip": False,
    "pseudo_label.workers": 1,
    "student_train.epochs": 2,
    "student_train.pseudo.fine_only_epochs": 1,
    "evaluate.settings": [{"name": "single", "scales": [1.0], "flip": False}],
    "evaluate.draws": 200,
    "report.pictures": 1,
}


@pytest.fixture(scope="module")
def forking() -> Iterator[Forks]:
    """A process that runs commands in its forks."""
    with forks() as running:
        yield running


def check(ws: Path, folders: UserFolders) -> None:
    """All stages ran as the plan says: its roles, classes and recipe; what waited is labelled, and models are scored."""
    given = folders.flags[1] if folders.flags else None
    plan = make_plan(Folders(folders.images, folders.labels, folders.new), classes=given)
    assert read_yaml(ws / "dvc.lock").values["stages"].keys() == {SETTINGS_STAGE, *STAGES}
    planned = dict(zip((f.name for f in plan.roles.found), plan.roles.roles, strict=True))
    index = Index.load(ws / "data/index/target.parquet")
    assert {s.name: s.role for s in index.samples} == planned
    assert index.classes.classes == folders.classes
    store = LabelStore.open(ws / "labels/raw", strict=True)
    assert sorted(store.names()) == sorted(name for name, role in planned.items() if role == "unlabelled")
    assert store.classes.classes == folders.classes
    metrics = json.loads((ws / "evaluation/metrics.json").read_text())
    assert metrics["models"].keys() >= {"teacher", "student", "control"}
    assert tuple(metrics["classes"]) == folders.classes
    settings = read_yaml(ws / SETTINGS).values
    for choice in plan.choices:
        key = f"teacher_{choice.key}" if choice.key.startswith("train.") else choice.key
        assert choice.key in BUDGET or reduce(getitem, key.split("."), settings) == choice.value, key


# Whose reading differs most: palette images, colours with alpha, 16 bits with gaps, one drive of two values, six images.
# All others: `make test-slow`; tests/unit/pipeline/plan/test_plan.py reads, deals and plans each layout.
KEPT = ("voc", "colours_with_file", "ids_with_gaps", "one_drive", "six_images")


@pytest.mark.skipif(torch.cuda.is_available(), reason="forks cannot compute on a GPU that torch knows")
@pytest.mark.parametrize(
    "layout",
    [
        case if case.id in KEPT else pytest.param(*case.values, id=case.id, marks=(*case.marks, pytest.mark.slow))
        for case in LAYOUTS
        if case.id != "roboflow"  # which is the next test's
    ],
)
def test_a_folder_of_any_layout_runs_through_the_chain(
    layout: Callable[[Path], UserFolders], tmp_path: Path, forking: Forks
) -> None:
    folders, ws = layout(tmp_path / "data"), tmp_path / "ws"
    assert forking.autolabel("init", str(ws), *folders.arguments) == 0
    set_params(ws, BUDGET)
    assert forking.repro(ws) == 0
    check(ws, folders)


@pytest.mark.timeout(900)  # real processes: three minutes on a fast machine
def test_a_folder_runs_through_the_chain_and_its_teacher_labels_another_without_label_maps(tmp_path: Path) -> None:
    folders, ws = roboflow(tmp_path / "data"), tmp_path / "ws"
    run(REPO, "autolabel", "init", str(ws), *folders.arguments)
    set_params(ws, BUDGET)
    assert tuple(dvc(ws, "repro").ran) == STAGES
    check(ws, folders)
    for n in range(4):
        save(tmp_path / "more" / f"{n}.png", scene(500 + n)[0])
    labelled = tmp_path / "labelled"
    given = ("--images", str(tmp_path / "more"), "--teacher", str(ws / "models/teacher"))
    run(REPO, "autolabel", "init", str(labelled), *given)
    done = dvc(labelled, "repro")
    assert done.ran == ["prepare", "auto-infer"]
    assert "(stage 2 of 2)" in done.text
    store = LabelStore.open(labelled / "labels/raw")
    assert sorted(store.names()) == ["0", "1", "2", "3"]
    assert store.classes.classes == ("sky", "road", "car", "tree")
