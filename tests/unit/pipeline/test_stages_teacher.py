"""A network of another tool labels in a workspace: thresholds, labels, student, verdict and report follow it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hmsa_core import models
from hmsa_core.data.index import Index
from hmsa_core.inference.teachers.sources import digest_of
from hmsa_core.io.atomic import read_json, write_json
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels import LabelStore, ThresholdPolicy
from hmsa_core.lineage import Lineage, learned
from pipeline.jobs import support
from pipeline.night.gatekeeper import apply_verdict
from pipeline.report.advice import advise
from pipeline.stages import (
    auto_infer,
    calibrate,
    evaluate,
    prepare,
    pseudo_label,
    report,
    student_train,
    teacher_pretrain,
    teacher_train,
)
from pipeline.workspace.new_workspace import InitRequest, init_workspace
from pipeline.workspace.workspace import Workspace
from tests.support.inference import run_job_here, small_model
from tests.support.photographs import edited, photographs, work_over
from tests.support.teachers import nearest_colour, table


@pytest.fixture
def ws(tmp_path: Path, no_tools: None, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace over photographs whose jobs run in this process, with a teacher of its own and a foreign one."""
    data = photographs(tmp_path / "mine", "abcdef", "gh", "new", 5, (128, 64))
    monkeypatch.setattr(support, "run_job", run_job_here)
    changes = {
        "data.target.block": "image",
        "auto_infer.teacher": "onnx:teachers/net.onnx",
        "auto_infer.scales": [1.0],
        "pseudo_label.threshold": 0.3,
        "student_train.epochs": 1,
        "student_train.epoch_samples": 4,
        "student_train.control": False,
        "evaluate.settings": [{"name": "single", "scales": [1.0], "flip": False}],
    }
    made = work_over(tmp_path / "ws", data, "new", calibrate="cde", report="f", changes=changes)
    (made.root / "teachers").mkdir()
    colours = np.array([[0.2, 0.5, 0.5], [0.5, 0.2, 0.5], [0.5, 0.5, 0.2], [0.9, 0.9, 0.9]])
    net = nearest_colour(made.root / "teachers" / "net.onnx", ("strasse", "auto", "himmel", "tor"), colours)
    table(net, "classes: {strasse: road, auto: car, himmel: sky}\n")
    prepare.run(made)
    teacher_pretrain.run(made)
    index = Index.load(made.path("data/index/learn.parquet"))
    folder = made.path("models/teacher")
    lineage = learned(index.samples, root="target", source="fine")
    folder.mkdir(parents=True)
    models.save(
        small_model(classes=3),
        folder,
        class_table=index.classes.to_json(),
        lineage=lineage.summary(lineage.save(folder / "lineage.json")),
        inference={"scales": [1.0], "flip": False},
    )
    return made


def test_a_network_of_another_tool_labels_and_its_student_is_not_promoted_unproven(ws: Workspace) -> None:
    for stage in (calibrate, auto_infer, pseudo_label, student_train, evaluate, report):
        stage.run(ws)
    net = ws.path("teachers/net.onnx")
    digest = digest_of(f"onnx:{net}")
    raw, policy = LabelStore.open(ws.path("labels/raw")), ThresholdPolicy.load(ws.path("calibration/policy.json"))
    assert raw.lineage["teacher"] == digest
    assert policy.binding is not None
    assert policy.binding["teacher"] == digest
    gap = f"onnx {digest[:16]}: what it learned from is not listed"
    assert read_json(ws.path("calibration/leaks.json"))["unknown_lineage"] == [f"teacher: {gap}"]
    assert Lineage.load(ws.path("models/student/lineage.json")).unknown == (gap,)
    verdict = read_json(ws.path("evaluation/verdict.json"))
    assert not verdict["promote"]
    assert any("is not proven" in reason and gap in reason for reason in verdict["reasons"])
    assert 0 < read_json(ws.path("metrics/evaluate.json"))["kept"]["precision"] <= 1
    assert ws.path("report/index.html").is_file()
    assert "control is false" in read_json(ws.path("models/control/skipped.json"))["reason"]

    table(net, "classes: {strasse: road, auto: car}\n")
    with pytest.raises(ConfigError, match="the teacher is now") as caught:
        student_train.run(ws)
    assert caught.value.hint == "`dvc repro --force --single-item calibrate auto-infer`, then `dvc repro`"
    before = len(list(ws.work("calibrate").iterdir()))
    calibrate.run(ws)
    assert len(list(ws.work("calibrate").iterdir())) == before + 1, "a changed table is another teacher"


def test_without_a_teacher_the_student_starts_elsewhere_and_is_judged_against_the_control(ws: Workspace) -> None:
    changes = {"teacher_train": None, "student_train.init": "pretrained", "student_train.control": True}
    chain = edited(ws, changes)
    shutil.rmtree(chain.path("models/teacher"))
    for stage in (prepare, teacher_train, calibrate, auto_infer, pseudo_label, student_train, evaluate, report):
        stage.run(chain)
    assert "auto_infer.teacher labels" in read_json(chain.path("models/teacher/skipped.json"))["reason"]
    student, control = (chain.path(f"models/{name}") for name in ("student", "control"))
    labeller = digest_of(f"onnx:{chain.path('teachers/net.onnx')}")
    assert [Lineage.load(folder / "lineage.json").parents for folder in (student, control)] == [(labeller,), ()]
    metrics, verdict = (
        read_json(chain.path("evaluation/metrics.json")),
        read_json(chain.path("evaluation/verdict.json")),
    )
    assert set(metrics["models"]) == {"student", "control"}
    assert verdict["incumbent"] == "control"
    assert 0 < metrics["labels"]["mean_iou"] <= 1
    student = metrics["models"]["student"]["settings"][metrics["main_setting"]]["value"]
    gap = metrics["differences"]["student - auto-labels"]
    assert gap["value"] == pytest.approx(student - metrics["labels"]["mean_iou"])
    page = chain.path("report/index.html").read_text("utf-8")
    assert "The auto-labels themselves reach" in page
    assert apply_verdict(chain)["promoted"] is None, "what the foreign network learned from is not known"
    assert "The auto-labels themselves reach" in advise(chain).sentences[1]
    assert metrics["labels"]["chosen_on"] == 0
    judged = Index.load(chain.path("data/index/report.parquet")).samples
    member = {"teacher": "onnx:teachers/net.onnx", "classes": {"strasse": "road", "auto": "car", "himmel": "sky"}}
    classes = Index.load(chain.path("data/index/target.parquet")).classes.classes
    file = {"classes": classes, "members": [member], "images": [judged[0].image_sha256]}
    write_json(chain.path("teacher.yaml"), file)
    adopted = edited(chain, {"auto_infer.teacher": "teacher.yaml"})
    assert evaluate._seen_by_adopt(adopted, judged) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"auto_infer.teacher": None}, "auto_infer.teacher: the network that labels"),
        ({"student_train.init": "teacher"}, "student_train.init: pretrained"),
        ({"student_train.control": False}, "student_train.control: true"),
    ],
)
def test_a_chain_without_a_teacher_names_what_it_needs(tmp_path: Path, change: dict[str, object], said: str) -> None:
    complete = {"teacher_train": None, "auto_infer.teacher": "onnx:net.onnx", "student_train.init": "pretrained"}
    init_workspace(InitRequest(tmp_path / "ws", "tiny", make_data=False))
    with pytest.raises(ConfigError, match=f"teacher_train is skipped: write {said}"):
        _ = edited(Workspace(tmp_path / "ws"), complete | change).params
