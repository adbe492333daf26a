"""A folder of one's own through the whole chain: `init`, then `dvc repro`, without an edit but for the budget."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hmsa_core.data.index import Index
from hmsa_core.labels import LabelStore
from pipeline.workspace.table import STAGES
from tests.support.chain import REPO, dvc, run
from tests.support.own_folders import roboflow, save, scene

pytestmark = pytest.mark.chain


def _small(ws: Path) -> None:
    """The least budget: two epochs of a micro network."""
    text = (ws / "params.yaml").read_text()
    for key, value in (("epochs", "2"), ("fine_only_epochs", "1"), ("validate_every", "1"), ("ranks", "1")):
        text = re.sub(rf"^( +{key}:) \d+", rf"\1 {value}", text, flags=re.MULTILINE)
    text = text.replace('"timm:tf_efficientnet_lite0"', "hrnet_micro").replace('"package:efficientnet-lite0"', "none")
    (ws / "params.yaml").write_text(text)


def test_a_folder_runs_through_the_chain_and_its_teacher_labels_another_without_label_maps(tmp_path: Path) -> None:
    own, ws = roboflow(tmp_path / "data"), tmp_path / "ws"
    run(REPO, "autolabel", "init", str(ws), *own.arguments)
    _small(ws)
    assert tuple(dvc(ws, "repro").ran) == STAGES
    roles = {s.role for s in Index.load(ws / "data/index/target.parquet").samples}
    assert roles == {"learn", "calibrate", "report", "unlabelled"}
    assert len(LabelStore.open(ws / "labels/raw").names())
    assert json.loads((ws / "evaluation/metrics.json").read_text())
    for n in range(4):
        save(tmp_path / "more" / f"{n}.png", scene(500 + n)[0])
    labelled = tmp_path / "labelled"
    given = ("--images", str(tmp_path / "more"), "--teacher", str(ws / "models/teacher"))
    run(REPO, "autolabel", "init", str(labelled), *given)
    assert dvc(labelled, "repro").ran == ["prepare", "auto-infer"]
    store = LabelStore.open(labelled / "labels/raw")
    assert sorted(store.names()) == ["0", "1", "2", "3"]
    assert store.classes.classes == ("sky", "road", "car", "tree")
