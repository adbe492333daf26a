"""What to expect of auto-labels: verdicts that follow evidence, and what a workspace, a page and a pipe are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa_core.data.decode import read_label
from hmsa_core.data.index import Index
from hmsa_core.io import atomic
from hmsa_core.labels import ThresholdPolicy
from hmsa_core.labels.thresholds.curves import CalibrationImage, Curves
from hmsa_core.labels.thresholds.policy import ClassPolicy
from pipeline.jobs.support import weights_of
from pipeline.report import advice
from pipeline.report.advice import Case, Situation, distance, expected, measured_cases
from pipeline.report.build import gather, render
from pipeline.report.results import diet
from pipeline.stages import prepare
from pipeline.workspace.workspace import Workspace
from tests.support.chain import set_params
from tests.support.checkpoints import checkpoint
from tests.support.photographs import photographs, work_over

BASE = Situation("policy", False, 0.5, 60, 200, 0.5)
CASE = Case(**vars(BASE), scene="a scene", table="t", gain=0.02, low=0.01, high=0.03, seeds=3, ceiling=0.04)
BESIDE = sum(case.beside for case in measured_cases())
NONE_IS_LIKE_IT = f"none of {len(measured_cases()) - BESIDE} measured comparisons is like this workspace"

situations = st.builds(
    Situation,
    labels=st.just("policy"),
    beside=st.just(False),
    teacher=st.floats(0.0, 1.0),
    fine=st.integers(0, 5000),
    unlabelled=st.integers(0, 50000),
    kept=st.floats(0.0, 1.0),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    low, high = sorted(draw(st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=2)))
    where = vars(draw(situations)) if draw(st.booleans()) else vars(BASE)
    seeds, table = draw(st.integers(1, 5)), draw(st.sampled_from("stu"))
    return Case(
        **where, scene="a scene", table=table, gain=(low + high) / 2, low=low, high=high, seeds=seeds, ceiling=None
    )


evidence = st.lists(cases(), max_size=6)


@pytest.mark.parametrize(("key", "near", "far"), [("teacher", 0.45, 0.3), ("fine", 30, 5), ("unlabelled", 400, 9000)])
def test_the_further_a_figure_lies_off_the_more_unlike_a_case_is(key: str, near: float, far: float) -> None:
    near_case, far_case = (replace(CASE, **{key: value}) for value in (near, far))
    assert 0 < distance(BASE, near_case) < distance(BASE, far_case)
    assert expected(BASE, [far_case, near_case])[1][0] == near_case, "the nearest one comes first"
    assert expected(BASE, [replace(CASE, fine=6000, unlabelled=20000)]) == ("unknown", ())
    assert distance(BASE, CASE) == 0
    assert distance(far_case, near_case) == pytest.approx(distance(near_case, far_case))


@given(situations, evidence, cases(), st.floats(0.0, 0.1))
def test_a_verdict_is_that_of_all_near_comparisons_and_of_several_seeds(
    situation: Situation, known: list[Case], new: Case, by: float
) -> None:
    verdict, near = expected(situation, known)
    assert expected(situation, known[::-1])[0] == verdict
    assert len(near) <= 3
    assert (verdict == "unknown") == (not near)
    if verdict in ("gain", "loss"):
        assert all(case.seeds > 1 and (case.low > 0 if verdict == "gain" else case.high < 0) for case in near)
    one_more = expected(situation, [*known, new])[0]
    assert {verdict, one_more} != {"gain", "loss"}, "one more comparison never turns one into the other"
    wider = expected(situation, [replace(case, low=case.low - by, high=case.high + by) for case in known])[0]
    assert wider in (verdict, "open"), "wider intervals never make a verdict surer"
    assert expected(situation, [replace(case, seeds=1) for case in known])[0] in ("open", "unknown")


def test_the_shipped_comparisons_can_be_read_and_their_figures_are_possible() -> None:
    found = measured_cases()
    assert {case.beside for case in found} == {True, False}
    assert all(case.low <= case.gain <= case.high and 0 < case.kept <= 1 and case.seeds for case in found)
    assert len({(case.table, case.labels, case.beside) for case in found}) == len(found)


# -- a workspace -------------------------------------------------------------------------------------


@pytest.fixture
def ws(tmp_path: Path, no_tools: None) -> Workspace:
    """Four pictures to learn from, two to calibrate, two without labels; its teacher takes every car for road."""
    data = photographs(tmp_path / "data", "abcdefgh", "ij", "extra", 7)
    changes = {"data.target.max_bad": 0.5, "pseudo_label.threshold": 0.5}
    made = work_over(tmp_path / "ws", data, "extra", calibrate="ef", report="gh", changes=changes)
    prepare.run(made)
    return made


def _calibrate(ws: Workspace) -> None:
    index = Index.load(ws.path("data/index/calibrate.parquet"))
    root, images = ws.roots["target"], []
    for sample in index.samples:
        truth = read_label(root / sample.label, index.classes)
        label = np.where(truth == 1, 0, truth).astype(np.uint8)
        code = np.where(label == 2, 10, 250).astype(np.uint8)  # the sky is found, and not kept
        images.append(CalibrationImage(sample.name, sample.block, label, code, truth))
    Curves.measure(images, index.classes).save(ws.path("calibration/curves.json"))


def test_a_workspace_is_told_what_it_is_what_to_expect_and_what_to_label(
    ws: Workspace, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _calibrate(ws)
    found = json.loads(said("advise", "--workspace", ws.root, "--json").out)
    assert found["verdict"] == "unknown", "nothing that was measured has four fine labels"
    situation = found["situation"]
    assert (situation["fine"], situation["unlabelled"], situation["beside"]) == (4, 2, False)
    assert situation["teacher"] == pytest.approx(0.5, abs=0.02), "road 1/2, car 0, sky 1"
    assert situation["kept"] == pytest.approx(2 / 3, abs=0.02)
    assert [one["name"] for one in found["collect"]] == ["car", "road", "sky"]
    assert found["collect"][0]["missing"] == pytest.approx(1 / 3), "one of three classes"
    assert sum(one["missing"] for one in found["collect"]) == pytest.approx(1 - situation["teacher"])
    text = said("advise", "--workspace", ws.root).out
    assert NONE_IS_LIKE_IT in text
    assert "Classes that people should label first: car (IoU 0.0, 0.0 % kept and right)" in text
    assert "Measured on CamVid (60 fine-labelled images, 222 unlabelled ones); " in text
    assert "a drive arrives, ImageNet weights (19 fine-labelled images, 154 unlabelled ones)" in text

    alike = Case(**situation, scene="a like one", table="t", gain=0.02, low=0.01, high=0.03, seeds=3, ceiling=0.04)
    for seeds, low, high, told in (
        (3, 0.01, 0.03, "A gain by auto-labels alone can be expected"),
        (3, -0.03, -0.01, "A loss by auto-labels alone must be expected"),
        (1, 0.01, 0.03, "No gain by auto-labels alone can be promised"),
    ):
        case = replace(alike, seeds=seeds, low=low, high=high, gain=(low + high) / 2)
        monkeypatch.setattr(advice, "measured_cases", lambda case=case: (case, replace(case, beside=True)))
        text = said("advise", "--workspace", ws.root).out
        assert f"{told}: in the most alike comparisons with fine labels alone (1 of 1)" in text
        assert f"from {100 * low:+.1f} to {100 * high:+.1f} points of mean IoU" in text
        assert "a like one" in text


def test_most_images_with_polygons_are_compared_with_students_of_polygons(ws: Workspace, said: Any) -> None:
    _calibrate(ws)
    path = ws.path("data/index/unlabelled.parquet")
    index = Index.load(path)
    Index.write(path, [replace(s, coarse="x.png") for s in index.samples], index.classes, index.root)
    told = said("advise", "--workspace", ws.root).out
    assert "What auto-labels beside human polygons bring here is not known: none of " in told
    assert f"none of {BESIDE} measured comparisons is like this workspace" in told
    set_params(ws.root, {"pseudo_label.merge.use_coarse": False})
    assert "What auto-labels alone bring here is not known" in said("advise", "--workspace", ws.root).out


def test_a_teacher_that_its_control_leaves_behind_is_to_be_trained_longer_first(ws: Workspace, said: Any) -> None:
    _calibrate(ws)
    atomic.write_json(ws.path("models/current.json"), {"teacher": "stage:teacher-train"})
    sha = weights_of(checkpoint(ws.path("models/teacher")))

    def told(low: float | None = 0.009, teacher: str = sha) -> bool:
        gain = {"control - teacher": {"value": 0.019, "low": low, "high": 0.028}}
        models = {"teacher": {"weights_sha256": teacher}}
        atomic.write_json(ws.path("evaluation/metrics.json"), {"differences": gain, "models": models})
        return "is +1.9 points [+0.9 … +2.8] over the teacher: " in said("advise", "--workspace", ws.root).out

    assert told()
    assert not told(low=-0.001), "no difference is shown"
    assert not told(low=None), "one block of report images gives no interval"
    assert not told(teacher="0" * 64), "another teacher was judged"
    set_params(ws.root, {"auto_infer.teacher": "models/other"})
    assert not told(), "another teacher labels"
    set_params(ws.root, {"auto_infer.teacher": None, "student_train.init": "pretrained"})
    assert not told(), "the control did not start from the teacher"


def test_without_calibration_images_one_line_says_what_to_do(ws: Workspace, said: Any) -> None:
    told = said("advise", "--workspace", ws.root, status=3).err
    assert "curves.json: not there\nhint: `dvc repro calibrate` makes it" in told
    atomic.write_json(ws.path("calibration/skipped.json"), {"reason": "no image"})
    wrote = said("advise", "--workspace", ws.root, status=3)
    assert wrote.out == ""
    assert wrote.err.startswith(
        f"error: {ws.root}: no calibration images, so nothing is known of the teacher\nhint: give "
    )
    assert "<p>No calibration images: nothing can be said.</p>" in _page(ws)


def _page(ws: Workspace) -> str:
    return render(gather(ws), [], title="t", profile="tiny")


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
    assert "What the student learns from" not in _page(ws), "there are no labels yet"
    assert diet(ws).rows == []
    _statistics(ws, road=(300, 10, 30), car=(0, 10, 0), sky=(100, 0, 0))
    page = _page(ws)
    assert "<h2>What to expect of auto-labels</h2>" in page
    assert NONE_IS_LIKE_IT in page
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
    cuts = [row[1:3] for row in diet(ws).rows[:3]]
    assert cuts[2] == ["withheld", "withheld"]
    assert cuts[1][0] == "withheld"
    assert float(str(cuts[0][0])) > float(str(cuts[0][1])), "teach asks for less"
    _statistics(ws, road=(1, 0, 0), car=(0, 0, 0), sky=(0, 0, 0))
    assert [str(row[4]) for row in diet(ws).rows] == ["–", "–", "–", "0"], "no pixel of people has no shares"
