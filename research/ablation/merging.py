"""What a teacher's labels add to human coarse ones: which of its pixels pass, and what happens where both disagree."""

from __future__ import annotations

from dataclasses import replace

from pipeline.params import Params
from research.ablation.plan import Ablation, Comparison, Labels
from research.ablation.rows import from_teacher, main_row

__all__ = ["make_merging"]

_THRESHOLDS: dict[str, Labels] = {
    "policy": Labels(coarse=True),
    "t0.9": Labels(0.9, coarse=True),
    "t0.5": Labels(0.5, coarse=True),
    "t0": Labels(0.0, coarse=True),
}


def make_merging(name: str, command: str, params: Params) -> Ablation:
    """Students by their recipe; the auto-labelled half holds human polygons and what is merged into them.

    `-human`: a pixel that teacher and human call by two names keeps the human's. Otherwise the profile's default:
    it is ignored, and with it what the teacher finds hard is gone from inside of the polygons. The lower the threshold,
    the less a class is missing outside of them.
    """
    rows = [
        main_row("control", "fine labels only", from_teacher(), params),
        main_row("coarse", "human coarse labels as drawn", from_teacher(labels=Labels("none", coarse=True)), params),
    ]
    comparisons = [
        Comparison("policy", "control", "student (coarse + auto, policy) > fine labels only"),
        Comparison("coarse", "control", "coarse > fine labels only"),
    ]
    for own, labels in _THRESHOLDS.items():
        told = "policy" if own == "policy" else f"threshold {labels.threshold:g}"
        kept = replace(labels, conflict="human")
        rows += [
            main_row(own, f"+ auto-labels, {told}", from_teacher(labels=labels), params),
            main_row(
                f"{own}-human", f"+ auto-labels, {told}; conflicts to the human", from_teacher(labels=kept), params
            ),
        ]
        comparisons += [
            Comparison(own, "coarse", f"coarse + auto ({told}) > coarse as drawn"),
            Comparison(f"{own}-human", "coarse", f"coarse + auto ({told}, conflicts to the human) > coarse as drawn"),
            Comparison(own, f"{own}-human", f"conflicts ignored > to the human ({told})"),
        ]
    comparisons += [
        Comparison(f"policy{end}", f"{other}{end}", f"policy > {name}{told}, beside coarse")
        for other, name in (("t0", "no threshold"), ("t0.5", "0.5"), ("t0.9", "0.9"))
        for end, told in (("", ""), ("-human", ", conflicts to the human"))
    ]
    title = "Auto-labels beside human polygons"
    return Ablation(name, title, "pseudo-label", tuple(rows), tuple(comparisons), command)
