"""Sections of the results page that come from kept answers of `autolabel evaluate --json`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmsa_core.io import atomic
from hmsa_core.io.errors import IntegrityError
from pipeline.results import how_run
from pipeline.scoring import ANSWER
from research.results.provenance import provenance_lines
from research.results.tables import points, span, table

__all__ = ["evaluation_sections"]

_Answer = Mapping[str, Any]


def evaluation_sections(folder: Path) -> list[str]:
    """One section a file, in the order of names; NAME.md stands below its table."""
    lines: list[str] = []
    for path in sorted(folder.glob("*.json")):
        answer = atomic.read_json(path)
        if (answer.get("format"), answer.get("version")) != (ANSWER, 1):
            raise IntegrityError(f"{path}: not an answer of version 1", hint="make it with `autolabel evaluate --json`")
        notes, made = path.with_suffix(".md"), answer["made"]
        places = [word for word in shlex.split(made["command"]) if word.startswith(("/", "~"))]
        if places:
            raise IntegrityError(f"{path}: its command names {places[0]}", hint="make it with relative paths")
        lines += [
            f"## Scored: {path.stem.replace('-', ' ')}",
            "",
            f"`{made['command']}`; {answer['images']} images (`{answer['judged'][:12]}`).",
            "",
            *_models(answer),
            "",
            *_by_class(answer),
            "",
            *provenance_lines([made]),
            "",
            *([notes.read_text("utf-8").strip(), ""] if notes.exists() else []),
        ]
    return lines


def _models(answer: _Answer) -> list[str]:
    base, gain = answer.get("baseline"), answer.get("difference")
    rows = [("model", answer), *([("baseline", base)] if base else [])]
    lines = [
        (
            name,
            how_run(one),
            span(one["interval"]),
            points(one.get("boundary", {}).get("mean_iou")),
            f"`{one['checkpoint'][:12]}`",
            str(one["learned"]["images"]),
        )
        for name, one in rows
    ]
    told = table(("", "run at", "mIoU", "boundary IoU", "weights", "of these images learned from"), lines)
    if not gain:
        return told
    seeds = "how two trainings of one recipe differ is not in it"
    return [*told, "", f"Model - baseline: **{span(gain, sign=True)}**, {gain['blocks']} blocks; {seeds}."]


def _by_class(answer: _Answer) -> list[str]:
    base, gain = answer.get("baseline"), answer.get("difference")
    if not base or not gain:
        return table(("class", "IoU"), [(name, points(value)) for name, value in answer["iou"].items()])
    rows = [
        (name, points(value), points(base["iou"][name]), _class_gain(gain["classes"][name]))
        for name, value in answer["iou"].items()
    ]
    return table(("class", "model", "baseline", "difference"), rows)


def _class_gain(ends: tuple[float | None, float | None, float | None]) -> str:
    return span(dict(zip(("value", "low", "high"), ends, strict=True)), sign=True)
