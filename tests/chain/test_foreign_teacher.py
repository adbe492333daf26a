"""A network of another tool labels in a workspace: calibration, policy, student, verdict and report follow it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index
from hmsa_core.inference.teachers.sources import digest_of
from hmsa_core.labels import LabelStore, ThresholdPolicy
from hmsa_core.lineage import Lineage
from pipeline.workspace import Workspace
from tests.support.chain import dvc, run, set_params
from tests.support.teachers import nearest_colour, table

pytestmark = pytest.mark.chain


def _foreign(workspace: Path) -> Path:
    """A network that knows the mean colour of each class of the learning images, under names of its own."""
    ws = Workspace(workspace)
    index = Index.load(ws.path("data/index/learn.parquet"))
    root, count = ws.roots[index.root], index.classes.num_classes
    sums, pixels = np.zeros((count, 3)), np.zeros(count)
    for sample in index.select(kinds=("fine",))[:12]:
        image, label = read_image(root / sample.image), read_label(root / sample.label, index.classes)
        for c in range(count):
            sums[c] += image[label == c].sum(0)
            pixels[c] += (label == c).sum()
    known = [c for c in range(count) if pixels[c]]
    centres = np.stack([sums[c] / pixels[c] / 255 for c in known])
    names = [f"class-{c}" for c in known]
    (workspace / "teachers").mkdir()
    path = nearest_colour(workspace / "teachers" / "colours.onnx", names, centres)
    rows = "".join(f"  class-{c}: {index.classes.classes[c]}\n" for c in known if c != known[-1])
    return table(path, f"classes:\n{rows}")


def test_a_network_of_another_tool_labels_and_the_student_is_not_promoted_unproven(workspace: Path) -> None:
    path = _foreign(workspace)
    changes = {"teacher": "onnx:teachers/colours.onnx", "scales": [1.0], "flip": False}
    changes = {f"auto_infer.{name}": value for name, value in changes.items()}
    set_params(workspace, changes | {"pseudo_label.threshold": 0.2, "student_train.control": False})
    ran = dvc(workspace, "repro").ran
    assert ran == ["calibrate", "auto-infer", "pseudo-label", "student-train", "evaluate", "report"]

    digest = digest_of(f"onnx:{path}")
    raw, policy = LabelStore.open(workspace / "labels/raw"), ThresholdPolicy.load(workspace / "calibration/policy.json")
    assert raw.lineage["teacher"] == digest
    assert policy.binding is not None
    assert policy.binding["teacher"] == digest
    gap = f"onnx {digest[:16]}: what it learned from is not listed"
    assert _read(workspace / "calibration/leaks.json")["unknown_lineage"] == [f"teacher: {gap}"]
    assert gap in Lineage.load(workspace / "models/student/lineage.json").unknown
    verdict = _read(workspace / "evaluation/verdict.json")
    assert not verdict["promote"]
    assert any("is not proven" in reason and gap in reason for reason in verdict["reasons"])
    assert 0 < _read(workspace / "metrics/evaluate.json")["kept"]["precision"] <= 1
    assert (workspace / "report/index.html").is_file()

    table(path, path.with_name("colours.onnx.teacher.yaml").read_text() + "multiple: 8\n")
    told = run(workspace, "autolabel", "stage", "student-train", status=2).text
    assert "teaches now" in told
    assert "dvc repro --force --single-item calibrate auto-infer" in told


def _read(path: Path) -> dict:
    return json.loads(path.read_text())
