"""`pipeline/gains.json`, on which `autolabel advise` rests: what students gained by auto-labels, from the tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.report.advice import Case
from research.figures import CONFIRMING, EXPLORING, Figure, figures

__all__ = ["gains_text"]


@dataclass(frozen=True)
class _Source:
    """A table, its scene with the numbers of images, and its comparisons: {"row - baseline": labels}.

    With baseline `coarse`, both students have human polygons. The kept share of their labels is that of an earlier
    comparison without polygons, or else that of the pixels outside of the polygons.
    """

    table: str
    scene: str
    fine: int
    unlabelled: int
    comparisons: Mapping[str, str]
    teacher: tuple[str, str] | None = None  # file and table with the teacher's score; None = this one


_LABELS = {"t0": "0", "t0.5": "0.5", "t0.9": "0.9", "t0.95": "0.95", "policy": "policy"}
_ALONE = {f"{row} - control": labels for row, labels in _LABELS.items()}
_BESIDE = {f"{row} - coarse": labels for row, labels in _LABELS.items()}
_STUDENTS = {"auto - control": "policy", "merged - coarse": "policy"}
_PAYS = {
    "share - control": "0, share: 0.5",
    "rare - control": "0, mix: rare",
    "drawn - control": "0, draw: probability",
    **_ALONE,
    "teach - control": "teach",
    "coarse+t0 - coarse": "0",
    "coarse+teach - coarse": "teach",
    "coarse+policy - coarse": "policy",
}
_DEMO, _CAMVID, _DRIVES = ("demo", 28, 200), ("CamVid", 60, 222), ("CamVid, other drives", 41, 163)
_OF_DEMO, _OF_CAMVID = ("workspaces", "demo"), ("camvid-table-default", "camvid-table-default")
_SOURCES = (
    _Source("threshold", *_DEMO, _ALONE, _OF_DEMO),
    _Source("labels", *_DEMO, {"both - attention": "policy", "both-coarse - coarse": "policy"}, _OF_DEMO),
    _Source("merging", *_DEMO, _BESIDE, _OF_DEMO),
    # Labels of camvid-table-default are row `policy` of these two.
    _Source("threshold-camvid", *_CAMVID, _ALONE, _OF_CAMVID),
    _Source("merging-camvid", *_CAMVID, _BESIDE, _OF_CAMVID),
    _Source("camvid-table-default-1280", *_CAMVID, _STUDENTS),
    _Source("camvid-table-drive_shift", *_DRIVES, _STUDENTS),
    # Students of `pays` learn from those unlabelled images whose true labels are known.
    _Source("pays", *_DEMO, _PAYS),
    _Source("pays-camvid", "CamVid, ImageNet weights", 60, 113, _PAYS),
    _Source("pays-camvid-60", "CamVid of half size, ImageNet weights", 60, 113, _PAYS),
    _Source("pays-camvid-30", "CamVid of half size, ImageNet weights", 30, 143, _PAYS),
    _Source("pays-camvid-15", "CamVid of half size, ImageNet weights", 15, 158, _PAYS),
    _Source("pays-camvid-arrives", "CamVid, a drive arrives, ImageNet weights", 19, 154, _PAYS),
    _Source("pays-camvid-arrives-480", "CamVid, a drive arrives, teacher of 3,600 steps", 19, 154, _PAYS),
    _Source("pays-camvid-drive_shift", "CamVid, other drives, ImageNet weights", 41, 61, _PAYS),
)


def gains_text(tables: Path) -> str:
    """The file's text, one comparison a line; those that no table holds are left out."""
    shares: dict[tuple[float, str], float] = {}
    rows = [json.dumps(asdict(case)) for source in _SOURCES for case in _cases(tables, source, shares)]
    return '{"cases": [\n ' + ",\n ".join(rows) + "\n]}\n"


def _cases(tables: Path, source: _Source, shares: dict[tuple[float, str], float]) -> Iterator[Case]:
    """Comparisons of a table. `shares` collects {(the teacher's mean IoU, labels): kept share of the pixels}."""
    lines = _lines(tables, source.table)
    file, table = source.teacher or (source.table, source.table)
    teacher = _figure([x for x in _lines(tables, file) if x.table == table], "teacher", "mean_iou")
    for comparison, labels in source.comparisons.items():
        row, baseline = comparison.split(" - ")
        beside, share = baseline == "coarse", _figure(lines, row, "labelled_share")
        if teacher is not None and share is not None and not beside:
            shares[teacher, labels] = share
        found = _interval(lines, comparison)
        if teacher is not None and share is not None and beside and (teacher, labels) not in shares:
            drawn = _figure(lines, baseline, "labelled_share") or 0.0  # a policy of the pixels outside of polygons
            shares[teacher, labels] = round((share - drawn) / (1 - drawn), 4)
        if found and teacher is not None and (teacher, labels) in shares:
            of = {"scene": source.scene, "fine": source.fine, "unlabelled": source.unlabelled, "table": source.table}
            top = None if beside else _interval(lines, f"truth - {baseline}").get("gain")
            kept = shares[teacher, labels]
            yield Case(labels=labels, beside=beside, teacher=teacher, kept=kept, ceiling=top, **of, **found)


def _lines(tables: Path, file: str) -> list[Figure]:
    return [line for line in figures(tables / f"{file}.parquet") if not line.name and line.value is not None]


def _figure(lines: list[Figure], row: str, metric: str) -> float | None:
    return next((round(x.value or 0.0, 4) for x in lines if (x.row, x.metric) == (row, metric)), None)


def _interval(lines: list[Figure], row: str) -> dict[str, Any]:
    """Of the confirming seeds where there are some; {} where nothing was measured."""
    for kind in (CONFIRMING, EXPLORING):
        mine = [x for x in lines if (x.row, x.setting) == (row, kind) and x.metric.startswith("difference")]
        of = {x.metric: round(x.value or 0.0, 4) for x in mine if x.seed is None}
        if "difference_low" in of:
            ends = {"gain": of["difference"], "low": of["difference_low"], "high": of["difference_high"]}
            return {**ends, "seeds": sum(x.metric == "difference" and x.seed is not None for x in mine)}
    return {}
