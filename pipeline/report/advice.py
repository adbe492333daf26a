"""Advice before a student is trained: how good the teacher's labels are, and which classes people should label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.index import Index
from hmsa_core.io.errors import InputError
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.metrics import finite, mean_iou_of
from pipeline.jobs.measure import chosen_policy, kept_figures
from pipeline.jobs.support import weights_of
from pipeline.report.render import Share, Table
from pipeline.report.results import json_of
from pipeline.report.verdict import of_labels
from pipeline.workspace.counts import fine_pixels
from pipeline.workspace.workspace import Workspace

_CLASSES = 5  # most classes that are listed for labelling by hand
_NAMED = 3  # of these classes, those that the sentence names


@dataclass(frozen=True)
class ClassFacts:
    """A class on the calibration images; shares and IoU in [0, 1]."""

    name: str
    fine: float  # share of the class in the pixels of the fine labels that are learned from
    iou: float  # of the teacher on this class
    shown: float  # share of the class's true pixels that is kept and right
    missing: float  # part of mean IoU that is lost because the IoU of this class is below 1


@dataclass(frozen=True)
class Advice:
    """Advice from the calibration images, as sentences and figures."""

    sentences: tuple[str, ...]
    labels: str  # threshold or policy that keeps the labels
    fine: int  # images with fine labels that are learned from
    unlabelled: int  # images that the teacher labels
    teacher: float  # mean IoU in [0, 1] on the calibration images
    kept: float  # share in [0, 1] of the pixels that the threshold keeps, without polygons
    collect: tuple[ClassFacts, ...]  # classes to label by hand, the one that may bring most first


def advise(ws: Workspace) -> Advice:
    """Build the advice from the files that `calibrate` wrote.

    Raises:
        InputError: `calibrate` has not run, or there was no calibration image.
        ConfigError: the threshold names a policy that is missing or belongs to another teacher.
    """
    curves = _curves(ws)
    names, iou = curves.classes.classes, curves.iou
    kept = kept_figures(curves, chosen_policy(ws, curves), ws.params.calibrate)
    learn, unlabelled = (Index.load(ws.path(f"data/index/{role}.parquet")) for role in ("learn", "unlabelled"))
    labels, fine = str(ws.params.pseudo_label.threshold), len(learn.select(kinds=("fine",)))
    teacher, coverage = finite(mean_iou_of(iou)) or 0.0, kept["coverage"] or 0.0
    facts = _classes(ws, names, iou, kept["classes"])
    sentences = [
        f"{fine} images have fine labels, {len(unlabelled.samples)} have none. The teacher reaches {Share(teacher)} "
        f"points of mean IoU on {len(curves.images)} calibration images. Threshold {labels} keeps {Share(coverage)} % "
        f"of their pixels, and {Share(kept['precision'])} % of the kept ones are right.",
        *_of_learning(ws),
        *of_labels(json_of(ws, "evaluation/metrics.json"), json_of(ws, "labels/final/statistics.json")),
    ]
    if facts:
        first = (f"{one.name} (IoU {Share(one.iou)}, {Share(one.shown)} % kept and right)" for one in facts[:_NAMED])
        sentences.append(f"Classes that people should label first: {', '.join(first)}.")
    if unseen := [name for name, value in zip(names, iou, strict=True) if np.isnan(value)]:
        sentences.append(f"No calibration image shows {', '.join(unseen)}: nothing is known of how they are labelled.")
    return Advice(tuple(sentences), labels, fine, len(unlabelled.samples), teacher, coverage, tuple(facts[:_CLASSES]))


def _of_learning(ws: Workspace) -> list[str]:
    """Say whether longer training helps the teacher: the last control continued from it on fine labels alone."""
    metrics = json_of(ws, "evaluation/metrics.json")
    gain = metrics.get("differences", {}).get("control - teacher")
    if gain is None or gain["low"] is None:  # a single block of report images gives no interval
        return []
    if ws.params.student_train.init != "teacher" or ws.params.auto_infer.teacher:
        return []
    if metrics["models"]["teacher"]["weights_sha256"] != weights_of(ws.teacher()):
        return []
    shown = Share(gain["value"], gain["low"], gain["high"], sign="+")
    found = (
        f"The last control learned from fine labels alone and is {shown} points [{shown.interval}] over the teacher:"
    )
    if gain["low"] <= 0:
        return [f"{found} more training is not shown to help the teacher."]
    return [
        f"{found} the teacher is still learning, and its labels hold a student back. Train it longer first "
        "(teacher_train.epochs)."
    ]


def _classes(
    ws: Workspace, names: Sequence[str], iou: NDArray[np.float64], kept: Mapping[str, Any]
) -> list[ClassFacts]:
    """Facts of the classes in the calibration images, sorted by lost mean IoU times the share not kept and right."""
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


def table(advice: Advice) -> Table:
    """Table of the classes to label by hand."""
    head = ["class", "share of fine labels %", "IoU", "of its pixels, kept and right %", "points missing from mean IoU"]
    rows = [
        [one.name, Share(one.fine, digits=2), Share(one.iou), Share(one.shown), Share(one.missing)]
        for one in advice.collect
    ]
    return Table(head, rows)


def text(advice: Advice) -> str:
    """The advice as text for a terminal."""
    shown = [f"Classes to label by hand, first what may bring most\n{table(advice).text()}"] if advice.collect else []
    return "\n".join([*(f"{sentence}\n" for sentence in advice.sentences), *shown])
