"""What calibration shows, in the terminal, on the report and as JSON; what a student learns from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmsa_core.data.decode import read_label
from hmsa_core.data.index import Index
from hmsa_core.io import atomic
from hmsa_core.labels import ThresholdPolicy
from hmsa_core.labels.thresholds.curves import CalibrationImage, Curves
from hmsa_core.labels.thresholds.policy import ClassPolicy, from_threshold
from pipeline.jobs.support import weights_of
from pipeline.report.build import render
from pipeline.report.facts import collect
from pipeline.report.results import diet
from pipeline.workspace.workspace import Workspace
from tests.support.chain import set_params
from tests.support.checkpoints import checkpoint
from tests.support.photographs import prepared

NO_FIGURES = {"class", "set", "layout", "images", "file", "reason", "detail", "stage", "seconds", "model"}


@pytest.fixture
def ws(tmp_path: Path, no_tools: None) -> Workspace:
    """Four pictures to learn from, two to calibrate, two without labels; its teacher takes every car for road."""
    return prepared(tmp_path)


def _calibrate(ws: Workspace) -> None:
    index = Index.load(ws.path("data/index/calibrate.parquet"))
    root, images = ws.roots["target"], []
    for sample in index.samples:
        truth = read_label(root / sample.label, index.classes)
        label = np.where(truth == 1, 0, truth).astype(np.uint8)
        code = np.where(label == 2, 10, 250).astype(np.uint8)  # the sky is found, and not kept
        images.append(CalibrationImage(sample.name, sample.block, label, code, truth))
    Curves.measure(images, index.classes).save(ws.path("calibration/curves.json"))


def test_a_workspace_is_told_what_calibration_shows_and_what_to_label(ws: Workspace, said: Any) -> None:
    _calibrate(ws)
    found = json.loads(said("advise", "--workspace", ws.root, "--json").out)
    assert (found["labels"], found["fine"], found["unlabelled"]) == ("0.5", 4, 2)
    assert found["teacher"] == pytest.approx(0.5, abs=0.02), "road 1/2, car 0, sky 1"
    assert found["kept"] == pytest.approx(2 / 3, abs=0.02)
    assert [one["name"] for one in found["collect"]] == ["car", "road", "sky"]
    assert found["collect"][0]["missing"] == pytest.approx(1 / 3), "one of three classes"
    assert sum(one["missing"] for one in found["collect"]) == pytest.approx(1 - found["teacher"])
    text = said("advise", "--workspace", ws.root).out
    assert text.startswith("4 images have fine labels, 2 have none. The teacher reaches ")
    assert "Classes that people should label first: car (IoU 0.0, 0.0 % kept and right)" in text


def test_the_report_compares_expected_precision_with_that_on_calibration_images(ws: Workspace) -> None:
    _calibrate(ws)
    policy = from_threshold("0.5", Curves.load(ws.path("calibration/curves.json")).classes)
    policy.evidence, policy.settings = {"target": 0.9}, {"rule": "teach", "tau": 0.7}
    policy.save(ws.path("calibration/policy.json"))
    drift = {"name": "road", "status": "below target", "adjusted": 0.25, "precision": 0.75, "usual": 0.125, "pixels": 9}
    atomic.write_json(ws.path("labels/shift.json"), {"cities": {"ulm": [drift]}})
    shown = render(collect(ws), [], title="t").partition("<h3>Drift")[2].partition("</table>")[0]
    assert re.findall("<td[^>]*>(.*?)</td>", shown) == ["ulm", "road", "below target", "25.0", "75.0"]


def test_a_teacher_that_its_control_leaves_behind_is_to_be_trained_longer_first(ws: Workspace, said: Any) -> None:
    _calibrate(ws)
    atomic.write_json(ws.path("models/current.json"), {"teacher": "stage:teacher-train"})
    sha = weights_of(checkpoint(ws.path("models/teacher")))

    def reported(low: float | None = 0.009, teacher: str = sha, says: str = "Train it longer") -> bool:
        gain = {"control - teacher": {"value": 0.019, "low": low, "high": 0.028}}
        models = {"teacher": {"weights_sha256": teacher}}
        atomic.write_json(ws.path("evaluation/metrics.json"), {"differences": gain, "models": models})
        return says in said("advise", "--workspace", ws.root).out

    assert reported(says="is +1.9 points [+0.9 … +2.8] over the teacher: the teacher is still learning")
    assert not reported(low=-0.001), "no difference is shown"
    assert reported(low=-0.001, says="[-0.1 … +2.8] over the teacher: more training is not shown to help")
    assert not reported(low=None), "one block of report images gives no interval"
    assert not reported(teacher="0" * 64), "another teacher was judged"
    set_params(ws.root, {"auto_infer.teacher": "models/other"})
    assert not reported(), "another teacher labels"
    set_params(ws.root, {"auto_infer.teacher": None, "student_train.init": "pretrained"})
    assert not reported(), "the control did not start from the teacher"


def test_without_calibration_images_one_line_says_what_to_do(ws: Workspace, said: Any) -> None:
    printed = said("advise", "--workspace", ws.root, status=3).err
    assert "curves.json: not there\nhint: `dvc repro calibrate` makes it" in printed
    atomic.write_json(ws.path("calibration/skipped.json"), {"reason": "no image"})
    wrote = said("advise", "--workspace", ws.root, status=3)
    assert wrote.out == ""
    assert wrote.err.startswith(
        f"error: {ws.root}: no calibration images, so nothing is known of the teacher\nhint: give "
    )
    assert "<p>No calibration images: nothing can be said.</p>" in _page(ws)


def _page(ws: Workspace) -> str:
    return render(collect(ws), [], title="t")


def _statistics(ws: Workspace, **rows: tuple[int, int, int]) -> None:
    classes = [
        {"name": name, "from_teacher": teacher, "from_human": human, "both": both}
        for name, (teacher, human, both) in rows.items()
    ]
    atomic.write_json(
        ws.path("labels/final/statistics.json"),
        {"images": 2, "pixels": 1000, "labelled_share": 0.5, "classes": classes, "skipped": [], "conflicts": []},
    )


def test_the_report_says_what_to_expect_and_what_the_student_learns_from(ws: Workspace) -> None:
    _calibrate(ws)
    assert "No training labels were made" in _page(ws)
    assert diet(ws).rows == []
    _statistics(ws, road=(300, 10, 30), car=(0, 10, 0), sky=(100, 0, 0))
    page = _page(ws)
    assert "<h2>Which classes to label by hand</h2>" in page
    unexplained = set(re.findall("<th>([^<]+)</th>", page)) - NO_FIGURES
    assert not unexplained, "each figure's name says what it is under the pointer"
    assert "<td>car</td><td>3" in page, "the share of the fine labels, in the table of classes to label"
    assert "these labels were made with <code>0.5</code>" in page
    assert "<td>80.00</td><td>75.00</td></tr>" in page, "road: 40 of 50 pixels of people, 300 of 400 of the teacher"
    index = Index.load(ws.path("data/index/learn.parquet"))
    labels = np.stack([read_label(ws.roots["target"] / sample.label, index.classes) for sample in index.samples])
    shares = [f"{100 * (labels == c).mean():.2f}" for c in range(3)]
    cells = [[str(cell) for cell in row] for row in diet(ws).rows]
    assert cells == [
        ["road", "–", "–", shares[0], "80.00", "75.00"],
        ["car", "–", "–", shares[1], "20.00", "0.00"],
        ["sky", "–", "–", shares[2], "0.00", "25.00"],
        ["pixels", "", "", f"{labels.size:,}", "50", "400"],
    ]
    codes = {"policy": (200, 256, 256), "teach": (150, 200, 256)}
    for name, chosen in codes.items():
        entries = tuple(
            ClassPolicy(of, code, "withheld" if code > 255 else "estimate")
            for of, code in zip(index.classes.classes, chosen, strict=True)
        )
        ThresholdPolicy(index.classes, entries).save(ws.path(f"calibration/{name}.json"))
    thresholds = [row[1:3] for row in diet(ws).rows[:3]]
    assert thresholds[2] == ["withheld", "withheld"]
    assert thresholds[1][0] == "withheld"
    assert float(str(thresholds[0][0])) > float(str(thresholds[0][1])), "teach asks for less"
    _statistics(ws, road=(1, 0, 0), car=(0, 0, 0), sky=(0, 0, 0))
    assert [str(row[4]) for row in diet(ws).rows] == ["–", "–", "–", "0"], "no pixel of people has no shares"
