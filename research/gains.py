"""`pipeline/gains.json`, on which `autolabel advise` rests: what students gained by auto-labels, from the tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.advice import Case
from research.figures import CONFIRMING, EXPLORING, Figure, figures

__all__ = ["gains_text"]

_ALONE, _BESIDE = False, True
_TAUGHT = ("teach", "policy", "t0", "t0.5", "t0.9", "t0.95", "drawn", "rare")
Pairs = tuple[tuple[bool, str, tuple[str, ...]], ...]  # beside polygons, baseline, rows that are compared with it


@dataclass(frozen=True)
class _Source:
    """A table, the scene it was measured on with its numbers of images, and where its teacher's score stands."""

    table: str
    scene: str
    fine: int
    unlabelled: int
    pairs: Pairs
    teacher: tuple[str, str] | None = None  # file, table; None: its own


_DEMO, _CAMVID, _DRIVES = ("demo", 28, 200), ("CamVid", 60, 222), ("CamVid, other drives", 41, 163)
_OF_DEMO, _OF_CAMVID = ("workspaces", "demo"), ("camvid-table-default", "camvid-table-default")
_STUDENTS: Pairs = ((_ALONE, "control", ("auto",)), (_BESIDE, "coarse", ("merged",)))
_PAYS: Pairs = ((_ALONE, "control", _TAUGHT), (_BESIDE, "coarse", ("coarse+teach",)))
# The auto-labels of camvid-table-default are row `policy` of threshold-camvid and of merging-camvid.
_SOURCES = (
    _Source("threshold", *_DEMO, ((_ALONE, "control", ("policy", "t0.9")),), _OF_DEMO),
    _Source("labels", *_DEMO, ((_ALONE, "attention", ("both",)), (_BESIDE, "coarse", ("both-coarse",))), _OF_DEMO),
    _Source("merging", *_DEMO, ((_BESIDE, "coarse", ("policy", "t0.9", "t0.5", "t0")),), _OF_DEMO),
    _Source("threshold-camvid", *_CAMVID, ((_ALONE, "control", ("policy", "t0.9")),), _OF_CAMVID),
    _Source("merging-camvid", *_CAMVID, ((_BESIDE, "coarse", ("policy", "t0.9")),), _OF_CAMVID),
    _Source("camvid-table-default-1280", *_CAMVID, _STUDENTS),
    _Source("camvid-table-drive_shift", *_DRIVES, _STUDENTS),
    # Rows of `pays` learn from the pictures whose true labels are known.
    _Source("pays", *_DEMO, _PAYS),
    _Source("pays-camvid", "CamVid, ImageNet weights", 60, 113, _PAYS),
    _Source("pays-camvid-drive_shift", "CamVid, other drives, ImageNet weights", 41, 61, _PAYS),
)
_NAMES = {"auto": "policy", "merged": "policy", "both": "policy", "both-coarse": "policy", "coarse+teach": "teach"}


def gains_text(tables: Path) -> str:
    """The file's text: one comparison a line, confirming seeds where there are some."""
    rows = [json.dumps(asdict(case)) for source in _SOURCES for case in _cases(tables, source)]
    return '{"cases": [\n ' + ",\n ".join(rows) + "\n]}\n"


def _cases(tables: Path, source: _Source) -> Iterator[Case]:
    lines = [line for line in figures(tables / f"{source.table}.parquet") if not line.name]
    for beside, baseline, rows in source.pairs:
        ceiling = None if beside else _interval(lines, f"truth - {baseline}")
        for row in rows:
            found = _interval(lines, f"{row} - {baseline}")
            if found is None:
                continue
            value, low, high, seeds, commit = found
            shares = [x.value for x in lines if x.row == row and x.metric == "labelled_share" and x.value is not None]
            yield Case(
                scene=source.scene,
                labels=_NAMES.get(row, row),
                beside=beside,
                teacher=round(_teacher(tables, source), 4),
                fine=source.fine,
                unlabelled=source.unlabelled,
                kept=None if beside or not shares else round(shares[0], 4),
                gain=value,
                low=low,
                high=high,
                seeds=seeds,
                ceiling=ceiling[0] if ceiling else None,
                table=source.table,
                commit=commit,
            )


def _interval(lines: list[Figure], row: str) -> tuple[float, float, float, int, str] | None:
    for kind in (CONFIRMING, EXPLORING):
        mine = [line for line in lines if line.row == row and line.setting == kind]
        of = {line.metric: line for line in mine if line.seed is None}
        ends = [of[m].value for m in ("difference", "difference_low", "difference_high") if m in of]
        known = [round(end, 4) for end in ends if end is not None]
        if len(known) == 3:
            seeds = sum(line.metric == "difference" and line.seed is not None for line in mine)
            return known[0], known[1], known[2], seeds, of["difference"].commit
    return None


def _teacher(tables: Path, source: _Source) -> float:
    """Mean IoU on the report images."""
    file, table = source.teacher or (source.table, source.table)
    lines = (line for line in figures(tables / f"{file}.parquet") if (line.table, line.row) == (table, "teacher"))
    return next(x.value for x in lines if x.metric == "mean_iou" and not x.name and x.value is not None)
