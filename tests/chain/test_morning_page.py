"""A night's page of a finished workspace: every number is the metric files', and it is the report with a section more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmsa_core.io import atomic
from hmsa_core.labels import ConfidenceCode, LabelStore, StoreStatistics, ThresholdPolicy
from hmsa_core.labels.review import ReviewFile
from hmsa_core.labels.thresholds.curves import Curves
from pipeline.jobs.measure import chosen_policy, judged_curves, kept_figures
from pipeline.night import morning
from pipeline.night.discover import discover
from pipeline.night.figures import expected_loss
from pipeline.night.gatekeeper import apply_verdict
from pipeline.night.parameters import parameters_of_night
from pipeline.report.facts import collect
from pipeline.report.render import number, points
from pipeline.report.sections import trust
from pipeline.report.since import Since, Tonight, artifacts, as_markdown
from pipeline.workspace.workspace import Workspace
from tests.support.chain import set_params
from tests.support.chromium import chromium

pytestmark = pytest.mark.chain


def _night(folder: Path, **known: Any) -> tuple[Workspace, Since, str]:
    ws = Workspace(folder)
    since, _ = morning.publish(ws, Tonight(discover(ws), apply_verdict(ws, promote=False), **known))
    return ws, since, ws.path(morning.PAGE).read_text()


def _trust(ws: Workspace, since: Since) -> list[dict[str, str]]:
    return artifacts(since, trust(collect(ws), since.coverage))["auto-label-trust"][1]


def test_numbers_are_those_of_the_metric_files(workspace: Path) -> None:
    ws, page, _ = _night(workspace, seconds={"auto-infer": 7.7, "prepare": 2.0})
    statistics = atomic.read_json(ws.path("labels/final/statistics.json"))
    summary = atomic.read_json(ws.path("data/index/summary.json"))["target"]
    funnel = {row["step"]: row["in all"] for row in page.funnel}
    assert funnel["labelled by the teacher"] == len(LabelStore.open(ws.path("labels/raw")).names()) == 14
    assert funnel["pixels with a training label, %"] == round(100 * statistics["labelled_share"], 2)
    assert funnel["pixels against a human's label"] == sum(row["pixels"] for row in statistics["conflicts"])
    photographs = list(ws.roots["target"].rglob("*_leftImg8bit.png"))
    # Three are not in the index: two bad ones and a copy. A coarse label that is refused, or has no image, is none.
    assert funnel["images arrived"] == len(photographs) == sum(summary["by_role"].values()) + 3
    assert (funnel["copies of known images"], funnel["quarantined"]) == (1, 4)
    policy = {e.name: e for e in ThresholdPolicy.load(ws.path("calibration/policy.json")).entries}
    report = atomic.read_json(ws.path("evaluation/metrics.json"))["kept"]["classes"]
    for row, kept in zip(_trust(ws, page), statistics["classes"], strict=True):
        name = row["class"]
        assert row["coverage"] == f"{100 * kept['coverage']:.1f}"
        assert row["threshold"] == (kept["threshold"] or "–")
        evidence = policy[name].evidence
        assert row["blocks"] == (number(evidence["effective_blocks"], 0) if kept["threshold"] else "–")
        assert row["precision"] == points(evidence["precision"], 2)
        assert row["on void"] == points(evidence["void"])
        assert row["report set"] == points(report[name]["precision"], 2)
    assert page.cost["hours"] == pytest.approx((2 * 7.7 + 2.0) / 3600, abs=1e-4), "two ranks infer, one prepares"
    means = atomic.read_json(ws.path("metrics/evaluate.json"))["mean_iou"]
    assert page.verdict["gain"]["candidate"] == pytest.approx(means["student"]["multi"])
    assert page.verdict["gain"]["incumbent"] == pytest.approx(means["teacher"]["multi"])
    learned = {str(row[0]): row for row in collect(ws).diet.rows}
    teacher = {row["name"]: row["from_teacher"] for row in statistics["classes"]}
    road = teacher["road"] / sum(teacher.values())
    assert str(learned["road"][5]) == f"{100 * road:.2f}"
    assert learned["pixels"][5] == f"{sum(teacher.values()):,}"
    wrong = [row["wrong"] for row in page.queue]
    assert wrong
    assert wrong == sorted(wrong, reverse=True)
    assert page.pays


def test_precision_and_ranking_are_those_of_the_threshold_in_use(workspace: Path) -> None:
    ws, measured, _ = _night(workspace)
    usual_trust = [row["precision"] for row in _trust(ws, measured)]
    with parameters_of_night(workspace, {"pseudo_label.threshold": 0.99}):
        ws, page, _ = _night(workspace)
        store = LabelStore.open(ws.path("labels/raw"))
        curves = Curves.load(judged_curves(ws))
        expected = kept_figures(curves, chosen_policy(ws, store), ws.params.calibrate)["classes"]
        for row in _trust(ws, page):
            assert row["precision"] == points(expected[row["class"]]["precision"], 2)
        assert [row["precision"] for row in _trust(ws, page)] != usual_trust
    # A region counts with half a wrong pixel or more; at 0.99 fewer are expected to be wrong.
    strict, usual = (sum(row["wrong"] for row in p.queue) for p in (page, measured))
    assert strict < usual


def test_what_differs_is_reported_in_words_and_the_change_in_coverage_in_points(workspace: Path) -> None:
    _, first, _ = _night(workspace)
    assert first.differs == ("this is the first night",)
    ws, second, _ = _night(workspace)
    assert "nothing differs" in second.differs[0]
    assert {row["change"] for row in _trust(ws, second)} == {"="}
    set_params(workspace, {"student_train.epochs": 3})
    statistics = workspace / "labels/final/statistics.json"
    changed = json.loads(statistics.read_text())
    changed["classes"][0]["coverage"] += 0.1
    atomic.write_json(statistics, changed)
    review = ReviewFile(workspace / "labels/raw")
    review.add(LabelStore.open(workspace / "labels/raw").names()[0], "flag", reviewer="ann")
    ws, third, html = _night(workspace, overrides={"student_train.epochs": 3})
    assert "student_train.epochs: 2 → 3" in third.differs
    assert "for this run only: student_train.epochs = 3" in third.differs
    assert _trust(ws, third)[0]["change"] == "+10.0"
    corrected = third.funnel[-1]
    assert (corrected["tonight"], corrected["in all"], len(corrected["images"])) == (1, 1, 1)
    assert "dvc exp run -S ++student_train.epochs=3" in html
    assert len(third.nights) == 3


def test_a_failed_night_has_a_page_that_says_why_and_shows_the_last_lines(workspace: Path) -> None:
    ws = Workspace(workspace)
    why = "auto-infer was killed by signal 9: no memory <b>"
    page, _ = morning.publish(ws, Tonight(discover(ws), {}, {}, {}, why, ("one line", "last line")))
    html = ws.path(morning.PAGE).read_text()
    assert page.kind == "failed"
    assert "The night ended early: auto-infer was killed by signal 9: no memory &lt;b&gt;" in html
    assert "last line" in html
    assert "last line" in as_markdown(page, "x")


def test_a_night_that_ended_without_training_labels_has_a_page_and_keeps_the_counts_of_before(workspace: Path) -> None:
    _night(workspace)
    before = _night(workspace)[1].nights[-1]["counts"]
    (workspace / "labels/final").rename(workspace / "labels/gone")  # as DVC does before it runs the stage
    try:
        for failed in ("pseudo-label was killed by signal 9", ""):
            ws = Workspace(workspace)
            tonight = Tonight(discover(ws), failed=failed, arguments={"promote": False, "stages": ["calibrate"]})
            page, _ = morning.publish(ws, tonight)
            html = ws.path(morning.PAGE).read_text()
            assert "no training labels were made" in html
            assert "-p promote=false -p &#x27;stages=[&quot;calibrate&quot;]&#x27;" in html
            if failed:
                assert page.nights[-1]["counts"] == before
                assert {row["tonight"] for row in page.funnel if row["step"].startswith("pixels")} == {0}
    finally:
        (workspace / "labels/gone").rename(workspace / "labels/final")


def test_expected_loss_is_the_calibration_tables_share_of_wrong_kept_pixels(workspace: Path) -> None:
    statistics = StoreStatistics.open(workspace / "labels/raw")
    policy = ThresholdPolicy.load(workspace / "calibration/policy.json")
    found = expected_loss(statistics, policy)
    store = LabelStore.open(workspace / "labels/raw")
    assert policy.table is not None
    exact = []
    for name in statistics.names:
        label, code = store.read(name)
        kept = code >= policy.codes()[label]
        exact.append(float((1 - policy.table[label, code])[kept].sum()) / label.size)
    assert np.abs(found - exact).max() < 0.03, "one error rate a cell of confidence is close to one a code"
    assert np.corrcoef(found, exact)[0, 1] > 0.98
    assert found.sum() * label.size == pytest.approx(sum(exact) * label.size, rel=1e-6), "in all it is exact"
    numbers = ThresholdPolicy(policy.classes, policy.entries)
    edges = np.array([float(e) for e in ConfidenceCode().edges])
    label, code = store.read(statistics.names[0])
    kept = code >= numbers.codes()[label]
    raw = float((1 - edges[code])[kept].sum()) / label.size
    assert expected_loss(statistics, numbers)[0] == pytest.approx(raw, abs=0.03)


@pytest.mark.browser
def test_the_page_is_the_report_with_a_section_more_and_loads_nothing(workspace: Path) -> None:
    for _ in range(3):
        ws, _, html = _night(workspace, seconds={"prepare": 3.0, "auto-infer": 8.0, "student-train": 20.0})
    assert "src='http" not in html
    with chromium(1500, 940) as browser:
        browser.get(ws.path("report/index.html").as_uri())
        report = [h.text for h in browser.find_elements("css selector", "h2")]
        browser.get(ws.path(morning.PAGE).as_uri())
        titles = [h.text for h in browser.find_elements("css selector", "h2")]
        assert titles == ["Since last night", *(title for title in report if title != "What the labels look like")]
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 1500
        mute = "return [...document.querySelectorAll('th, .sparks div')].filter(n => n.textContent && !n.title)"
        assert [n.text for n in browser.execute_script(mute)] == [], "each figure's name explains itself at the mouse"
        top = browser.execute_script("return document.querySelector('section').getBoundingClientRect().top")
        assert top < 500, "the section is on the first screen"
        shown = [h.text for h in browser.find_elements("css selector", ".cards h3")]
        for part in (
            "What differs from last night",
            "From arrived to corrected",
            "Your twenty minutes",
            "The last 30 nights",
            "Cost",
            "Health",
            "What to type",
        ):
            assert part in shown
        assert browser.execute_script("return [...document.images].every(i => i.naturalWidth > 0)")
        assert len(browser.find_elements("css selector", ".thumbs img")) == 14
        listed = browser.find_elements("css selector", ".cards details")[1]
        assert not listed.find_element("css selector", "li").is_displayed()
        listed.find_element("css selector", "summary").click()
        link = listed.find_element("css selector", "a")
        assert link.is_displayed()
        browser.get(link.get_attribute("href"))
        assert browser.execute_script("return document.images[0]?.naturalWidth") > 0, "the link shows the image"
        assert browser.get_log("browser") == []
