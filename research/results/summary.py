"""First table of the results page: what the paper claims, what was measured here, and under which heading it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from research.ablation.plan import Ablation, Comparison
from research.ablation.statistics import Cells, Compared, Table
from research.results.tables import gains, seeds, table, verdict

__all__ = ["Found", "summary_section"]

Found = Mapping[str, tuple[Cells, Table]]  # {"exploring" | "confirming": (cells, table)}

_TEXT = """Confirming seeds where there are some, else those that were looked at while the recipe was chosen. Why an
effect is not shown stands below the table that the line names. Paper: its gain in points of mean IoU (Tao, Sapra,
Catanzaro 2020), ">" where only the order is compared, "-" where it gives none. Our baseline sees no human coarse
labels, the paper's does: its gains from auto-labels are also to be held against "auto > coarse as drawn". The lines
were picked by hand: the paper's claims and those that our texts rest on, for every data set they were measured on."""


@dataclass(frozen=True)
class _Claim:
    """A comparison of an ablation, and the paper's figure for it."""

    ablation: str
    row: str
    baseline: str
    paper: str
    harm: bool = False  # the claim of the two rows that allows a loss: what an added scale costs

    def is_about(self, comparison: Comparison) -> bool:
        """Whether a comparison is this claim."""
        rows = (comparison.row, comparison.baseline) == (self.row, self.baseline)
        return rows and bool(comparison.allowed) == self.harm


_SCALES = (
    _Claim("scales", "hierarchical-0.5-1-2", "average-0.5-1-2", ">"),
    _Claim("scales", "hierarchical-0.5-1-2", "explicit-0.5-1-2", ">"),
    _Claim("scales", "hierarchical-0.5-1-2", "max-0.5-1-2", ">"),
    _Claim("scales", "hierarchical-0.5-1-2", "single-1", ">"),
    _Claim("scales", "hierarchical-0.5-1-2", "hierarchical-1", ">"),
    _Claim("scales", "hierarchical-0.5-1-2", "hierarchical-0.5-1", "-", harm=True),
    _Claim("scales", "average-0.5-1-2", "average-0.5-1", "-"),
    _Claim("scales", "hierarchical-0.25-0.5-1-2", "hierarchical-0.5-1-2", "+0.6"),
    _Claim("scales", "hierarchical-0.25-0.5-1-2", "hierarchical-0.5-1-2", "-", harm=True),
    _Claim("scales", "average-0.25-0.5-1-2", "average-0.5-1-2", "-0.7"),
)
_DEMO_ONLY = ("explicit-0.5-1-2", "max-0.5-1-2", "single-1")  # untrained on CamVid, or near to averaging there
_CLAIMS = (
    *_SCALES,
    *(replace(claim, ablation="scales-camvid") for claim in _SCALES if claim.baseline not in _DEMO_ONLY),
    *(
        _Claim(name, "own-hierarchical-0.5-1-2", other, "-")
        for name in ("reasons", "reasons-camvid")
        for other in ("average-0.5-1-2", "hierarchical-0.5-1-2")
    ),
    _Claim("reasons", "hierarchical-0.5-1", "two-explicit-0.5-1", ">"),
    _Claim("reasons", "three-hierarchical-0.5-1-2", "hierarchical-0.5-1-2", "-"),
    _Claim("reasons", "three-hierarchical-0.5-1-2", "explicit-0.5-1-2", ">"),
    _Claim("labels", "attention", "baseline", "+0.5"),
    _Claim("labels", "auto", "baseline", "+1.1"),
    _Claim("labels", "both", "baseline", "+1.4"),
    _Claim("labels", "both", "attention", ">"),
    _Claim("labels", "both", "coarse", ">"),
    _Claim("reasons", "all-classes", "coarse", "-"),
    _Claim("labels", "both-coarse", "coarse", "-"),
    _Claim("threshold", "policy", "control", "-"),
    _Claim("threshold", "policy", "t0.9", "-"),
    _Claim("merging", "policy", "control", "-"),
    _Claim("merging", "policy", "coarse", "-"),
    _Claim("merging", "policy", "t0", "-"),
    _Claim("merging", "policy-human", "t0.5-human", "-"),
    _Claim("merging-camvid", "policy", "t0.9", "-"),
    _Claim("camvid-table-default", "auto", "control", "-"),
    _Claim("threshold-camvid", "t0.9", "control", "-"),
    _Claim("threshold-camvid", "policy", "t0.9", "-"),
    _Claim("camvid-table-default", "auto", "coarse", ">"),
    _Claim("camvid-table-default", "merged", "control", "-"),
    _Claim("camvid-table-default", "merged", "coarse", "-"),
    _Claim("camvid-table-default-1280", "control", "teacher", "-"),
    _Claim("camvid-table-default-1280", "merged", "control", "-"),
    _Claim("camvid-table-default-1280", "auto", "control", "-"),
    _Claim("camvid-table-default-1280", "merged", "coarse", "-"),
    _Claim("camvid-table-drive_shift", "merged", "control", "-"),
)


def summary_section(found: Iterable[tuple[Ablation, Found]]) -> list[str]:
    """The section's lines; none while nothing is measured."""
    by_name = {ablation.name: (ablation, tables) for ablation, tables in found}
    lines = [_line(claim, *by_name[claim.ablation]) for claim in _CLAIMS if claim.ablation in by_name]
    if not any(lines):
        return []
    told = table(
        ("claim", "paper", "here: mIoU, points", "boundary IoU", "mIoU by seed", "mIoU: verdict", "table"),
        [line for line in lines if line],
    )
    cost = _cost(by_name["scales"][1]) if "scales" in by_name else []
    return ["## In short: what the paper claims, and what was measured", "", _TEXT, "", *told, "", *cost]


def _line(claim: _Claim, ablation: Ablation, tables: Found) -> tuple[str, ...] | None:
    where = f"[{ablation.title}](#{_anchor(ablation.title)})"
    for kind in ("confirming", "exploring"):
        one = _compared(tables, kind, claim)
        if one is None:
            continue
        return (one.comparison.claim, claim.paper, *gains(one), f"{seeds(one)} ({kind})", verdict(one), where)
    if not tables:
        return None
    text = next(c.claim for c in ablation.comparisons if claim.is_about(c))
    return (text, claim.paper, "not measured yet", "-", "-", "-", where)


def _compared(tables: Found, kind: str, claim: _Claim) -> Compared | None:
    if kind not in tables:
        return None
    return next((c for c in tables[kind][1].compared if claim.is_about(c.comparison)), None)


def _cost(tables: Found) -> list[str]:
    """Cost of a training over that of the single-scale model (the paper counts 1.25 and 5.25)."""
    macs = {
        row.row: row.first["macs"]["train_total"]
        for _, made in tables.values()
        for row in made.rows
        if row.first["training"] is not None
    }
    single = macs.get("single-1")
    if not single:
        return []
    told = [
        f"{name} {f'{macs[row] / single:.2f}' if row in macs else 'not measured yet'} (paper: {paper})"
        for name, row, paper in (
            ("hierarchical", "hierarchical-0.5-1-2", "1.25"),
            ("explicit over {0.5, 1, 2}", "explicit-0.5-1-2", "5.25"),
        )
    ]
    return [
        f"Multiply-accumulates of a training, single scale = 1: {'; '.join(told)}. Of the cells of table "
        '"Fusing scales" (`macs.train_total`), counted by torch.',
        "",
    ]


def _anchor(title: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
