"""What gain to expect of auto-labels before a night is spent, and which classes people should label.

Some dozen measured comparisons allow no formula. So advice names those that are most like the workspace, with their
intervals, and says where the evidence ends. `python -m research.results` writes them into `gains.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.index import Index
from hmsa_core.io.errors import InputError
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.metrics import finite, iou_of, mean_iou_of
from pipeline.jobs.measure import chosen_policy, kept_figures
from pipeline.jobs.support import weights_of
from pipeline.report.render import Share, Table, points
from pipeline.report.results import json_of
from pipeline.workspace.counts import fine_pixels
from pipeline.workspace.workspace import Workspace

_NEAREST = 3
_FAR = 1.5  # comparisons at a larger distance are not like the workspace
_TEACHER, _KEPT, _DOUBLINGS = 0.1, 0.25, 2.0  # differences that count as 1: mean IoU, share of pixels, log2 of images
_CLASSES = 5  # that people should label
_NAMED = 3  # of them in the sentence

Verdict = Literal["gain", "loss", "open", "unknown"]


@dataclass(frozen=True)
class Situation:
    """What a workspace and a measured comparison are compared by."""

    labels: str  # threshold or policy
    beside: bool  # whether most unlabelled images have human polygons
    teacher: float  # mean IoU in [0, 1]
    fine: int  # images with fine labels that are learned from
    unlabelled: int  # images that the teacher labels
    kept: float  # share in [0, 1] of the pixels that the threshold keeps, without polygons


@dataclass(frozen=True)
class Case(Situation):
    """A measured comparison: a student with auto-labels minus the same student without them, in mean IoU.

    `beside`: both students have the human polygons.
    """

    scene: str
    table: str  # in research/tables
    gain: float
    low: float  # 95 % interval
    high: float
    seeds: int
    ceiling: float | None  # what true labels of the same images gain; None = not measured


@dataclass(frozen=True)
class ClassFacts:
    """A class on the calibration images; shares and IoU in [0, 1]."""

    name: str
    fine: float  # share of the pixels in the fine labels that are learned from
    iou: float  # of the teacher
    shown: float  # share of the true pixels that is kept and right
    missing: float  # in mean IoU, because this class is not perfect


@dataclass(frozen=True)
class Advice:
    """What to expect, and on which evidence."""

    verdict: Verdict
    sentences: tuple[str, ...]
    situation: Situation
    nearest: tuple[Case, ...]
    limits: tuple[str, ...]  # of the evidence
    collect: tuple[ClassFacts, ...]  # classes to label by hand, first what may bring most


def measured_cases() -> tuple[Case, ...]:
    """The comparisons that this version was shipped with."""
    found = json.loads(resources.files("pipeline").joinpath("gains.json").read_text("utf-8"))
    return tuple(Case(**row) for row in found["cases"])


def advise(ws: Workspace) -> Advice:
    """Compare a workspace with what was measured.

    Raises:
        InputError: `calibrate` has not run, or there was no calibration image.
        ConfigError: the threshold names a policy that is not there, or that is of another teacher.
    """
    curves = _curves(ws)
    names, counts = curves.classes.classes, curves.joint.sum(axis=2)
    iou = np.where(counts.sum(axis=1) > 0, iou_of(counts), np.nan)  # of the classes that these images show
    kept = kept_figures(curves, chosen_policy(ws, curves), ws.params.calibrate)
    learn, unlabelled = (Index.load(ws.path(f"data/index/{role}.parquet")) for role in ("learn", "unlabelled"))
    coarse = sum(bool(sample.coarse) for sample in unlabelled.samples)
    situation = Situation(
        labels=str(ws.params.pseudo_label.threshold),
        beside=ws.params.pseudo_label.merge.use_coarse and 2 * coarse > len(unlabelled.samples),
        teacher=finite(mean_iou_of(iou)) or 0.0,
        fine=len(learn.select(kinds=("fine",))),
        unlabelled=len(unlabelled.samples),
        kept=kept["coverage"] or 0.0,
    )
    facts = _classes(ws, names, iou, kept["classes"])
    cases = [case for case in measured_cases() if case.beside == situation.beside]
    verdict, near = expected(situation, cases)
    sentences = [
        f"{situation.fine} images have fine labels, {situation.unlabelled} have none. The teacher makes "
        f"{Share(situation.teacher)} points of mean IoU on {len(curves.images)} calibration images. Threshold "
        f"{situation.labels} keeps {Share(situation.kept)} % of their pixels, and {Share(kept['precision'])} % of the "
        "kept ones are right.",
        _sentence(situation, verdict, near, len(cases)),
    ]
    sentences.extend(_of_learning(ws))
    if facts:
        first = (f"{one.name} (IoU {Share(one.iou)}, {Share(one.shown)} % kept and right)" for one in facts[:_NAMED])
        sentences.append(f"Classes that people should label first: {', '.join(first)}.")
    scenes = {f"{case.scene} ({case.fine} fine-labelled images, {case.unlabelled} unlabelled ones)" for case in cases}
    limits = [
        f"Measured on {'; '.join(sorted(scenes))}. The intervals do not cover how scenes and teachers differ.",
        "The teacher's mean IoU is that on calibration images here, and that on report images in the comparisons.",
    ]
    if unseen := [name for name, value in zip(names, iou, strict=True) if np.isnan(value)]:
        limits.append(f"No calibration image shows {', '.join(unseen)}: nothing is known of how they are labelled.")
    return Advice(verdict, tuple(sentences), situation, near, tuple(limits), tuple(facts[:_CLASSES]))


def _of_learning(ws: Workspace) -> list[str]:
    """What to do first where the last control is better than the teacher that it started from and that labels."""
    metrics = json_of(ws, "evaluation/metrics.json")
    gain = metrics.get("differences", {}).get("control - teacher")
    if gain is None or gain["low"] is None or gain["low"] <= 0:  # one block of report images gives no interval
        return []
    if ws.params.student_train.init != "teacher" or ws.params.auto_infer.teacher:
        return []
    if metrics["models"]["teacher"]["weights_sha256"] != weights_of(ws.teacher()):
        return []
    shown = Share(gain["value"], gain["low"], gain["high"], sign="+")
    return [
        f"The last control learned from fine labels alone and is {shown} points [{shown.interval}] over the teacher: "
        "the teacher is still learning, and its labels hold a student back. Train it longer first "
        "(teacher_train.epochs)."
    ]


def _classes(
    ws: Workspace, names: Sequence[str], iou: NDArray[np.float64], kept: Mapping[str, Any]
) -> list[ClassFacts]:
    """The classes of the calibration images, first those that lack most mean IoU where auto-labels do not show them."""
    fine, seen = fine_pixels(ws), [c for c, value in enumerate(iou) if np.isfinite(value)]
    facts = []
    for c, name in ((c, names[c]) for c in seen):
        share, missing = fine.get(name, 0) / max(1, sum(fine.values())), float(1 - iou[c]) / len(seen)
        facts.append(ClassFacts(name, share, float(iou[c]), kept[name]["recall"] or 0.0, missing))
    return sorted(facts, key=lambda one: (-one.missing * (1 - one.shown), one.fine))


def _curves(ws: Workspace) -> Curves:
    path = ws.path("calibration/curves.json")
    if path.exists():
        return Curves.load(path)
    if json_of(ws, "calibration/skipped.json"):
        hint = "give fine-labelled images the role `calibrate` (data.roles), then `dvc repro calibrate`"
        raise InputError(f"{ws.root}: no calibration images, so nothing is known of the teacher", hint=hint)
    raise InputError(f"{path}: not there", hint="`dvc repro calibrate` makes it")


def expected(situation: Situation, cases: Sequence[Case]) -> tuple[Verdict, tuple[Case, ...]]:
    """What the most alike comparisons say, and these comparisons, nearest first.

    It is a gain or a loss only where all of them exclude zero on that side, and each has at least two seeds.
    The interval of one seed does not cover how trainings differ.
    """
    alike = (case for case in cases if distance(situation, case) <= _FAR)
    near = tuple(sorted(alike, key=lambda case: (distance(situation, case), case.table, case.labels))[:_NEAREST])
    if not near:
        return "unknown", near
    if min(case.seeds for case in near) >= 2:
        if min(case.low for case in near) > 0:
            return "gain", near
        if max(case.high for case in near) < 0:
            return "loss", near
    return "open", near


def distance(one: Situation, other: Situation) -> float:
    """How unlike two situations are: in the teacher, the numbers of images, and the share of pixels that is kept."""
    pairs = ((one.fine, other.fine), (one.unlabelled, other.unlabelled))
    images = (math.log2(max(1, a) / max(1, b)) / _DOUBLINGS for a, b in pairs)
    return math.hypot((one.teacher - other.teacher) / _TEACHER, (one.kept - other.kept) / _KEPT, *images)


def _sentence(situation: Situation, verdict: Verdict, near: Sequence[Case], many: int) -> str:
    what = f"auto-labels {'beside human polygons' if situation.beside else 'alone'}"
    against = "the polygons alone" if situation.beside else "fine labels alone"
    if verdict == "unknown":
        return f"What {what} bring here is not known: none of {many} measured comparisons is like this workspace."
    head = {"gain": "A gain by {} can be expected", "loss": "A loss by {} must be expected"}
    ends = " to ".join(points(end, sign="+") for end in (min(c.low for c in near), max(c.high for c in near)))
    return (
        f"{head.get(verdict, 'No gain by {} can be promised').format(what)}: in the most alike comparisons with "
        f"{against} ({len(near)} of {many}), the intervals go from {ends} points of mean IoU."
    )


# -- for the terminal and the report -----------------------------------------------------------------


def tables(advice: Advice) -> dict[str, Table]:
    """{title: table}: the comparisons that are most alike, and the classes to label by hand."""
    head = ["measured on", "threshold", "teacher", "fine", "unlabelled", "kept %", "gain", "95 %", "ceiling", "seeds"]
    near: list[list[object]] = []
    for c in advice.nearest:
        gain, ceiling = Share(c.gain, c.low, c.high, 1, "+"), Share(c.ceiling, sign="+")
        teacher = [Share(c.teacher), c.fine, c.unlabelled, Share(c.kept)]
        near.append([c.scene, c.labels, *teacher, str(gain), gain.interval, ceiling, c.seeds])
    rows = [
        [one.name, Share(one.fine, digits=2), Share(one.iou), Share(one.shown), Share(one.missing)]
        for one in advice.collect
    ]
    classes = [
        "class",
        "share of fine labels %",
        "IoU",
        "of its pixels, kept and right %",
        "points missing from mean IoU",
    ]
    found = {
        "Measured comparisons that are most alike": Table(head, near),
        "Classes to label by hand, first what may bring most": Table(classes, rows),
    }
    return {title: table for title, table in found.items() if table.rows}


def text(advice: Advice) -> str:
    """For the terminal."""
    shown = [f"{title}\n{table.text()}" for title, table in tables(advice).items()]
    limits = "".join(f"- {limit}\n" for limit in advice.limits)
    return "\n".join([*(f"{sentence}\n" for sentence in advice.sentences), *shown, limits])
