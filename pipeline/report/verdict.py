"""State the result of a workspace in plain sentences; the gate's verdict stands in the details."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report.render import points


def sentences(metrics: Mapping[str, Any], statistics: Mapping[str, Any], *, spread_is_measured: bool) -> list[str]:
    """Say whether the student is better than the teacher, and whether its labels made it better.

    Args:
        metrics: evaluation/metrics.json; {} before `evaluate`.
        statistics: labels/final/statistics.json; {} before `pseudo-label`.
        spread_is_measured: whether `autolabel models aa` has run.
    """
    if "unverified" in metrics or not metrics.get("models"):
        return [f"No student was judged: {metrics.get('unverified', 'the stage evaluate has not run')}."]
    differences = metrics["differences"]
    rival = next(name for name in ("incumbent", "teacher", "control") if f"student - {name}" in differences)
    found = [] if rival == "control" else [_against_teacher(metrics, rival)]
    if "student - control" in differences:
        found += [_against_control(metrics, statistics), *of_labels(metrics, statistics)]
    else:
        found.append("No control was trained, so how much of it the auto-labels bring is not known.")
    gain = differences[f"student - {rival}"]
    if is_known(metrics, gain) and gain["low"] > 0:
        found += _of_promotion(metrics, spread_is_measured=spread_is_measured)
    return found


def is_known(metrics: Mapping[str, Any], gain: Mapping[str, Any]) -> bool:
    """Whether there are as many blocks of report images as the gate needs for an interval."""
    return gain["low"] is not None and gain["blocks"] >= metrics.get("min_blocks", 2)


def _too_few(metrics: Mapping[str, Any], gain: Mapping[str, Any]) -> str:
    needed = metrics.get("min_blocks", 2)
    return f"the report images have {gain['blocks']} of the {needed} blocks that an interval needs"


def _of_promotion(metrics: Mapping[str, Any], *, spread_is_measured: bool) -> list[str]:
    """What has to be done before a better student teaches."""
    if any(line.startswith("student:") for line in metrics.get("judgement", {}).get("unknown_lineage", [])):
        return [
            "The gate does not promote it, since what its teacher learned from is not known; "
            "`autolabel models register` and `autolabel models promote` do."
        ]
    if spread_is_measured:
        return []
    return [
        "One training does not show how much seeds differ; `autolabel models aa` measures it, then nights may promote."
    ]


def _against_teacher(metrics: Mapping[str, Any], rival: str) -> str:
    gain = metrics["differences"][f"student - {rival}"]
    shown = f"{_mean(metrics, 'student')} against {_mean(metrics, rival)} mIoU ({_change(gain)})"
    if not is_known(metrics, gain):
        return f"The student has {shown}; whether it is better is not known: {_too_few(metrics, gain)}."
    if gain["low"] > 0:
        return f"The student is better: {shown}."
    if gain["high"] < 0:
        return f"The student is worse: {shown}."
    return f"The student is not shown to be better than the teacher: {shown}."


def _has_human_labels(statistics: Mapping[str, Any]) -> bool:
    """Whether the student learned from labels of people that the control did not see."""
    return any(row["from_human"] + row["both"] for row in statistics.get("classes", []))


def _against_control(metrics: Mapping[str, Any], statistics: Mapping[str, Any]) -> str:
    gain = metrics["differences"]["student - control"]
    subject = "Auto-labels and human labels together" if _has_human_labels(statistics) else "The auto-labels"
    shown = f"the same training without them reaches {_mean(metrics, 'control')} ({_change(gain)})"
    if not is_known(metrics, gain):
        helped = f"whether {subject[0].lower()}{subject[1:]} helped is not known"
        return f"{shown[0].upper()}{shown[1:]}; {helped}: {_too_few(metrics, gain)}."
    if gain["low"] > 0:
        return f"{subject} helped: {shown}."
    if gain["high"] < 0:
        return f"{subject} did harm: {shown}."
    return f"{subject} are not shown to help: {shown}."


def of_labels(metrics: Mapping[str, Any], statistics: Mapping[str, Any]) -> list[str]:
    """Say whether the auto-labels know more than the control: gains follow this gap."""
    labels = metrics.get("labels", {}).get("mean_iou")
    if labels is None or "control" not in metrics["models"]:
        return []
    gap = labels - metrics["models"]["control"]["settings"][metrics["main_setting"]]["value"]
    shown = f"The auto-labels themselves reach {points(labels)} ({points(gap, sign='+')} to the control)"
    if seen := metrics["labels"].get("chosen_on"):
        shown += f"; by {seen} of these images it was also chosen how their networks are combined"
    if gap > 0:
        behind = metrics["differences"].get("student - auto-labels", {}).get("value", 0.0) < 0
        more = f" The student reaches {_mean(metrics, 'student')} of it; a longer training (student_train.epochs) or a "
        more += "larger network may bring more."
        return [f"{shown}: they know more than the fine labels teach.{more if behind else ''}"]
    gain = metrics["differences"]["student - control"]["low"]
    by_people = gain is not None and gain > 0 and _has_human_labels(statistics)
    source = ", so what is gained comes from human labels" if by_people else ""
    cure = "Adopt another network (autolabel adopt), or label more images."
    return [f"{shown}: they teach nothing new{source}. {cure}"]


def _mean(metrics: Mapping[str, Any], model: str) -> str:
    return points(metrics["models"][model]["settings"][metrics["main_setting"]]["value"])


def _change(gain: Mapping[str, Any]) -> str:
    ends = "" if gain["low"] is None else f", interval {points(gain['low'])} to {points(gain['high'])}"
    return f"{points(gain['value'], sign='+')}{ends}"


def of_night(
    verdict: Mapping[str, Any],
    failed: str,
    metrics: Mapping[str, Any],
    statistics: Mapping[str, Any],
    *,
    spread_is_measured: bool,
) -> list[str]:
    """Sentences of a night: `verdict` of the gate, {} if it did not judge; `failed` says why the night ended early."""
    if failed:
        return [f"The night ended early: {failed}"]
    if not verdict:
        return ["Nobody was judged tonight."]
    found = sentences(metrics, statistics, spread_is_measured=spread_is_measured)
    if verdict.get("promoted"):
        return [*found, f"The student teaches from tomorrow on, as {verdict['promoted']}."]
    return [*found, "The teacher stays."]
