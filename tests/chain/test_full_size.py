"""The exact layouts of Cityscapes and Mapillary Vistas at full size: `prepare` and one step of each training."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa_core.io.atomic import read_json
from hmsa_core.runtime.progress import read_log
from tests.support.chain import run, set_params
from tests.unit.hmsa_core.data.conftest import CityTree, VistasTree

pytestmark = [pytest.mark.chain, pytest.mark.slow, pytest.mark.timeout(3600)]

# The paper's crops; a narrow trunk, one process, one step.
ONE_STEP = {
    "model.trunk": "hrnet_micro",
    "runtime.device": "cpu",
    "runtime.precision": "fp32",
    "runtime.ranks": 1,
    "runtime.threads": 2,
    "runtime.workers": 1,
    "epochs": 1,
    "epoch_samples": 1,
    "global_batch": 1,
}


@pytest.mark.parametrize(("convention", "release"), [("A", "v1"), ("B", "combined")])
def test_the_layouts_go_through_prepare_and_one_training_step(tmp_path: Path, convention: str, release: str) -> None:
    tree = CityTree(tmp_path / "cityscapes", convention, size=(1024, 2048))
    for city in ("aachen", "bochum", "darmstadt", "erfurt", "jena"):
        tree.pair("train", f"{city}_000000_000019")
    tree.pair("val", "frankfurt_000000_000294").pair("train_extra", "bad-honnef_000000_000000")
    vistas = VistasTree(tmp_path / "vistas", release).standard()
    ws = tmp_path / "ws"
    roots = ("--data", str(tree.root), "--pretrain-data", str(vistas.root))
    run(tmp_path, "autolabel", "init", str(ws), "--profile", "cityscapes", *roots)
    stages = ("teacher_pretrain", "teacher_train")
    changes = {f"{stage}.{key}": value for stage in stages for key, value in ONE_STEP.items()}
    set_params(ws, changes | {"teacher_train.validate_every": 0, "prepare.workers": 1})
    run(ws, "autolabel", "stage", "prepare")
    figures = read_json(ws / "metrics/prepare.json")
    assert figures["target"]["by_role"] == {"calibrate": 3, "learn": 2, "report": 1, "unlabelled": 1}
    assert figures["pretrain"]["by_role"]["learn"] == 2
    for stage, model in (("teacher-pretrain", "pretrain"), ("teacher-train", "teacher")):
        run(ws, "autolabel", "stage", stage)
        (log,) = (ws / "work" / stage).glob("*/log.jsonl")
        assert [line["step"] for line in read_log(log) if line["event"] == "train"] == [1]
        assert read_json(ws / f"models/{model}/model.json")["num_classes"] == {"pretrain": 65, "teacher": 19}[model]
