"""The first lines of the page: a sentence for every outcome, in words that need no glossary."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.report.verdict import of_night, sentences

SEEDS = "One training does not show how much seeds differ; `autolabel models aa` measures it, then nights may promote."
NO_WORDS = ("gate", "alpha", "look", "champion", "incumbent", "A/A")


def _metrics(against: str = "teacher", control: bool = True, **ends: float | None) -> dict[str, Any]:
    """Teacher 39.0, student 44.3, control 43.0; ends of both differences are those given."""
    gain = {"value": 0.054, "low": ends.get("low", 0.042), "high": ends.get("high", 0.062), "blocks": 10}
    means = {"teacher": 0.39, "incumbent": 0.39, "student": 0.443, "control": 0.43}
    found = {f"student - {against}": gain} | ({"student - control": {**gain, "value": 0.013}} if control else {})
    models = {name: {"settings": {"multi": {"value": value}}} for name, value in means.items()}
    return {"main_setting": "multi", "models": models, "differences": found, "min_blocks": 10}


@pytest.mark.parametrize(
    ("ends", "first", "labels"),
    [
        ((0.042, 0.062), "The student is better: 44.3 against 39.0 mIoU (+5.4, interval 4.2 to 6.2).", "helped"),
        ((-0.01, 0.02), "The student is not shown to be better than the teacher: 44.3", "are not shown to help"),
        ((-0.03, -0.01), "The student is worse: 44.3 against 39.0", "did harm"),
    ],
)
@pytest.mark.parametrize("against", ["teacher", "incumbent"])
def test_each_outcome_has_its_sentence(
    ends: tuple[float | None, float | None], first: str, labels: str, against: str
) -> None:
    metrics = _metrics(against, low=ends[0], high=ends[1])
    student, twin, *more = sentences(metrics, {}, spread_is_measured=False)
    assert student.startswith(first)
    assert twin.startswith(f"The auto-labels {labels}: the same training without them reaches 43.0 (+1.3")
    assert more == [SEEDS] * (labels == "helped"), "nothing would be promoted otherwise"
    assert sentences(metrics, {}, spread_is_measured=True) == [student, twin]
    assert not any(word in line for word in NO_WORDS for line in (student, twin))


@pytest.mark.parametrize(("blocks", "low"), [(9, 0.042), (1, None)])
def test_few_blocks_of_report_images_call_nothing_better(blocks: int, low: float | None) -> None:
    metrics = _metrics(low=low, high=low)
    for gain in metrics["differences"].values():
        gain["blocks"] = blocks
    few = f"not known: the report images have {blocks} of the 10 blocks that an interval needs."
    student, twin = sentences(metrics, {}, spread_is_measured=False)
    assert student.startswith("The student has 44.3 against 39.0 mIoU (+5.4")
    assert student.endswith(f"; whether it is better is {few}")
    assert twin.startswith("The same training without them reaches 43.0 (+1.3")
    assert twin.endswith(f"; whether the auto-labels helped is {few}")


def test_what_a_student_leaves_of_its_labels_and_who_may_promote_it_is_said() -> None:
    metrics = _metrics("control") | {"labels": {"mean_iou": 0.62, "chosen_on": 3}}
    metrics["differences"]["student - auto-labels"] = {"value": -0.177, "low": -0.2, "high": -0.1, "blocks": 10}
    metrics["judgement"] = {"unknown_lineage": ["student: onnx abc: what it learned from is not listed"]}
    helped, gap, who = sentences(metrics, {}, spread_is_measured=False)
    assert "helped" in helped
    assert "by 3 of these images it was also chosen" in gap
    assert "The student reaches 44.3 of it; a longer training" in gap
    assert "`autolabel models promote` do" in who


@pytest.mark.parametrize(("labels", "said"), [(0.5, "they know more"), (0.42, "they teach nothing new. Adopt")])
def test_the_gap_of_the_labels_to_the_control_is_named(labels: float, said: str) -> None:
    metrics = _metrics() | {"labels": {"mean_iou": labels}}
    gap = sentences(metrics, {}, spread_is_measured=True)[-1]
    assert said in gap
    assert f"{100 * labels:.1f} ({100 * (labels - 0.43):+.1f} to the control)" in gap


def test_where_the_auto_labels_know_nothing_more_the_human_labels_carry_the_gain() -> None:
    by_people = {"classes": [{"from_human": 5, "both": 0, "from_teacher": 9}]}

    def said(low: float) -> str:
        metrics = _metrics(low=low) | {"labels": {"mean_iou": 0.42}}
        return sentences(metrics, by_people, spread_is_measured=True)[-1]

    assert "they teach nothing new, so what is gained comes from human labels. Adopt" in said(0.01)
    assert "they teach nothing new. Adopt" in said(-0.01), "nothing is shown to be gained"


@pytest.mark.parametrize(
    ("source", "subject"), [("both", "Auto-labels and human labels together"), ("", "The auto-labels")]
)
def test_a_gain_that_peoples_polygons_may_have_brought_is_not_called_one_of_the_auto_labels(
    source: str, subject: str
) -> None:
    row = {"from_human": 0, "both": 0, "from_teacher": 9}
    rows = [row, row | {source: 1}] if source else [row]
    assert sentences(_metrics(), {"classes": rows}, spread_is_measured=True)[1].startswith(f"{subject} helped: ")


def test_without_a_teacher_the_control_is_the_only_comparison() -> None:
    only = sentences(_metrics("control"), {}, spread_is_measured=True)
    assert len(only) == 1
    assert only[0].startswith("The auto-labels helped: the same training without them reaches 43.0 (+1.3")


def test_without_a_control_or_a_judge_the_page_says_so() -> None:
    assert "is not known" in sentences(_metrics(control=False), {}, spread_is_measured=True)[1]
    assert sentences({}, {}, spread_is_measured=False) == ["No student was judged: the stage evaluate has not run."]
    assert sentences({"unverified": "no report images"}, {}, spread_is_measured=False) == [
        "No student was judged: no report images."
    ]


def test_a_night_says_who_teaches_tomorrow_and_why_it_ended_early() -> None:
    def reported(verdict: dict[str, Any], failed: str = "") -> list[str]:
        return of_night(verdict, failed, _metrics(), {}, spread_is_measured=True)

    assert reported({"promoted": "v0003-1a2b"})[-1] == "The student teaches from tomorrow on, as v0003-1a2b."
    assert reported({"promoted": None})[-1] == "The teacher stays."
    assert reported({}) == ["Nobody was judged tonight."]
    assert reported({}, "no memory") == ["The night ended early: no memory"]
