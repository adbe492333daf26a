"""The claims of research/notes: what the paper says, and what our own texts rest on, each a difference of two rows."""

from __future__ import annotations

from dataclasses import dataclass

_NO_HARM = 0.005  # mean IoU; set before the first row was trained: less than this is no harm


@dataclass(frozen=True)
class Claim:
    """`row` exceeds `baseline` in mean IoU (`hurts`: falls short of it).

    Attributes:
        group: which block of the page shows it.
        paper: the paper's gain in points, ">" where it compares the order alone, "-" where it gives none.
        allowed: mean IoU; above 0 it is a claim of no harm: `row` falls short by less than that.
    """

    group: str
    table: str
    row: str
    baseline: str
    text: str
    paper: str = "-"
    hurts: bool = False
    allowed: float = 0.0


_ALL = "hierarchical-0.5-1-2"


def _scales(group: str, table: str) -> tuple[Claim, ...]:
    four, mean = "hierarchical-0.25-0.5-1-2", "average-0.5-1-2"
    return (
        Claim(group, table, _ALL, mean, "hierarchical > average", ">"),
        Claim(group, table, _ALL, "hierarchical-1", "hierarchical > its own single scale", ">"),
        Claim(group, table, _ALL, "hierarchical-0.5-1", "2x costs hierarchical < 0.5 points", allowed=_NO_HARM),
        Claim(group, table, mean, "average-0.5-1", "2x hurts average", hurts=True),
        Claim(group, table, four, _ALL, "0.25x helps hierarchical", "+0.6"),
        Claim(group, table, "average-0.25-0.5-1-2", mean, "0.25x hurts average", "-0.7", hurts=True),
    )


def _attention() -> tuple[Claim, ...]:
    group, table, mean = "attention", "attention-camvid", "average-0.5-1-2"
    four, mean_of_four = "hierarchical-0.25-0.5-1-2", "average-0.25-0.5-1-2"
    return (
        Claim(group, table, _ALL, mean, "hierarchical > average", ">"),
        Claim(group, table, _ALL, "longer-0.5-1-2", "hierarchical > average of the same cost", ">"),
        Claim(group, table, _ALL, "averaged-0.5-1-2", "attention > averaging, the same network"),
        Claim(group, table, "single-1", "hierarchical-1", "trained for one scale > for two, run at {1}"),
        Claim(group, table, four, _ALL, "0.25x helps hierarchical", "+0.6"),
        Claim(group, table, mean_of_four, mean, "0.25x hurts average", "-0.7", hurts=True),
        Claim(group, table, four, mean_of_four, "hierarchical > average, four scales", ">"),
        Claim(group, table, "apart-0.5-1-2", _ALL, "loss of 1.0 instead of 0.4 at each scale helps"),
        Claim(group, table, "head-0.5-1-2", _ALL, "twice the rate of everything but the trunk helps"),
    )


def _attention_three() -> tuple[Claim, ...]:
    group, table, three = "attention-three", "attention-camvid-three", "three-0.5-1-2"
    return (
        Claim(group, table, three, "average-0.5-1-2", "hierarchical > average", ">"),
        Claim(group, table, three, "three-averaged-0.5-1-2", "attention > averaging, the same network"),
        Claim(group, table, three, _ALL, "2x in training helps hierarchical"),
    )


CLAIMS = (
    *_scales("scales", "scales"),
    Claim("scales", "scales", _ALL, "explicit-0.5-1-2", "hierarchical > explicit", ">"),
    Claim("scales", "scales", _ALL, "max-0.5-1-2", "hierarchical > max", ">"),
    Claim("scales", "scales", _ALL, "single-1", "hierarchical > single scale", ">"),
    *_scales("scales-camvid", "scales-camvid"),
    *_attention(),
    *_attention_three(),
    Claim(
        "reasons", "reasons", "hierarchical-0.5-1", "two-explicit-0.5-1", "> explicit, both trained on {0.5, 1}", ">"
    ),
    Claim("reasons", "reasons", f"three-{_ALL}", "explicit-0.5-1-2", "> explicit, both trained on {0.5, 1, 2}", ">"),
    Claim("reasons", "reasons", f"three-{_ALL}", _ALL, "2x in training helps hierarchical"),
    Claim("reasons", "reasons", "narrow-average-1-2", "narrow-single-1", "2x never seen in training hurts", hurts=True),
    Claim("reasons", "reasons", f"own-{_ALL}", "average-0.5-1-2", "loss at each scale > average"),
    Claim("reasons", "reasons-camvid", f"own-{_ALL}", "average-0.5-1-2", "the same, CamVid"),
    Claim("reasons", "reasons-camvid", "own-hierarchical-1", "hierarchical-1", "that loss helps {1} alone, CamVid"),
    Claim("labels", "labels", "attention", "baseline", "attention > baseline", "+0.5"),
    Claim("labels", "labels", "auto", "baseline", "auto-labels > baseline", "+1.1"),
    Claim("labels", "labels", "both", "baseline", "both > baseline", "+1.4"),
    Claim("labels", "labels", "both", "attention", "both > attention", ">"),
    Claim("labels", "labels", "both", "coarse", "auto > coarse as drawn", ">"),
    Claim("labels", "labels", "both-coarse", "coarse", "auto + coarse > coarse"),
    Claim("labels", "reasons", "all-classes", "coarse", "auto of all classes > coarse"),
    Claim("labels", "reasons", "all-classes", "both", "all classes > policy"),
    Claim("students", "threshold", "policy", "control", "auto alone > fine"),
    Claim("students", "threshold", "policy", "t0.9", "auto alone: policy > 0.9"),
    Claim("students", "merging", "policy", "control", "coarse + auto > fine"),
    Claim("students", "merging", "policy", "coarse", "coarse + auto > coarse"),
    Claim("students", "merging", "policy", "t0", "beside coarse: policy > no threshold"),
    Claim("students", "merging", "policy", "t0.9", "beside coarse: policy > 0.9"),
    Claim("students", "merging", "policy", "policy-human", "conflicts ignored > to the human"),
    Claim("camvid", "camvid-table-default", "merged", "control", "coarse + auto > fine"),
    Claim("camvid", "camvid-table-default", "merged", "coarse", "coarse + auto > coarse"),
    Claim("camvid", "camvid-table-default", "auto", "control", "auto alone > fine"),
    Claim("camvid", "camvid-table-default", "auto", "coarse", "auto > coarse as drawn", ">"),
    Claim("camvid", "threshold-camvid", "policy", "t0.9", "auto alone: policy > 0.9"),
    Claim("camvid", "threshold-camvid", "t0.9", "control", "auto of 0.9 > fine"),
    Claim("camvid", "merging-camvid", "policy", "t0.9", "beside coarse: policy > 0.9"),
    Claim("camvid", "camvid-table-default-1280", "merged", "control", "longer teacher: coarse + auto > fine"),
    Claim("camvid", "camvid-table-default-1280", "merged", "coarse", "longer teacher: coarse + auto > coarse"),
    Claim("camvid", "camvid-table-default-1280", "control", "teacher", "longer teacher: control > teacher"),
    Claim("camvid", "camvid-table-drive_shift", "merged", "control", "other drives: coarse + auto > fine"),
    Claim("camvid", "camvid-table-drive_shift", "merged", "coarse", "other drives: coarse + auto > coarse"),
    Claim("losses", "losses", "rmi-masked-30", "rmi-released-30", "masked RMI > released, 30 % ignored"),
    Claim("losses", "losses", "rmi-masked-merged", "rmi-released-merged", "masked RMI > released, merged labels"),
    Claim("losses", "losses", "mix-classmix", "mix-none", "ClassMix > none, auto-labels"),
    Claim("losses", "losses", "mix-classmix-merged", "rmi-masked-merged", "ClassMix > none, merged labels"),
    Claim("losses", "losses", "colour-100-merged", "rmi-masked-merged", "colour 1.0 > 0.25, merged labels"),
    Claim("losses", "losses", "tail-merged", "rmi-masked-merged", "an end on fine labels > none"),
    Claim("losses", "losses", "aux-cross-entropy", "aux-released-rmi", "auxiliary cross-entropy > RMI"),
    Claim("losses", "losses-camvid", "rmi-masked-merged", "rmi-released-merged", "masked RMI > released, CamVid"),
)
