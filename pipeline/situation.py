"""What `pipeline.advice` asks of a workspace: counts of images and labels, and the teacher on calibration images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.index import Index
from hmsa_core.data.sampling import CLASS, PIXELS, Centroids
from hmsa_core.io.errors import InputError
from hmsa_core.labels import ThresholdPolicy
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.metrics import finite, iou_of, mean_iou_of
from pipeline.advice import ClassFacts, Situation
from pipeline.params import MEASURED_POLICIES
from pipeline.results import json_of
from pipeline.workspace import Workspace

Ints = NDArray[np.int64]
CURVES = "calibration/curves.json"


def read_situation(ws: Workspace) -> Situation:
    """Read it.

    Raises:
        InputError: `calibrate` has not run, or there was no calibration image.
        ConfigError: the threshold names a policy of another teacher.
    """
    if not ws.path(CURVES).exists():
        raise InputError(
            f"{ws.path(CURVES)}: not there: advice needs figures of calibration images",
            hint="`dvc repro calibrate`; without images of role `calibrate` (data.roles) there is no advice",
        )
    curves = Curves.load(ws.path(CURVES))
    learn, unlabelled = (Index.load(ws.path(f"data/index/{role}.parquet")) for role in ("learn", "unlabelled"))
    coarse = sum(bool(sample.coarse) for sample in unlabelled.samples)
    counts = curves.joint.sum(axis=2)
    iou = np.where(counts.sum(axis=1) > 0, iou_of(counts), np.nan)
    kept, right = _kept(curves, _policy(ws, curves).codes())
    every = counts.sum()
    threshold = ws.params.pseudo_label.threshold
    return Situation(
        labels=str(threshold if isinstance(threshold, float | int) else Path(threshold).stem),
        beside=ws.params.pseudo_label.merge.use_coarse and 2 * coarse > len(unlabelled.samples),
        teacher=float(mean_iou_of(iou)),
        fine=len(learn.select(kinds=("fine",))),
        unlabelled=len(unlabelled.samples),
        kept=float(kept.sum() / max(1, every)),
        right=finite(right.sum() / kept.sum()) if kept.sum() else None,
        images=len(curves.images),
        classes=_classes(curves, iou, kept, right, fine_pixels(ws, learn)),
        measured=_measured(ws),
    )


def fine_pixels(ws: Workspace, index: Index) -> list[int]:
    """Pixels of each class in the fine labels that are learned from."""
    learn = [s.name for s in index.select(roles=("learn",), kinds=("fine",))]
    of = Centroids.load(ws.path("data/index/centroids-target.parquet")).of(learn).values
    counted = np.bincount(of[:, CLASS], weights=of[:, PIXELS], minlength=index.classes.num_classes)
    return [int(n) for n in counted]


def _policy(ws: Workspace, curves: Curves) -> ThresholdPolicy:
    threshold = ws.params.pseudo_label.threshold
    if isinstance(threshold, float | int):
        return from_threshold(threshold, curves.classes)
    path = ws.resolve(MEASURED_POLICIES.get(threshold, threshold))
    if not path.exists():
        raise InputError(f"{path}: no such policy (pseudo_label.threshold)", hint="`dvc repro calibrate`")
    policy = ThresholdPolicy.load(path)
    policy.check(curves.lineage, curves.classes, str(ws.path(CURVES)))
    return policy


def _kept(curves: Curves, codes: NDArray[np.uint16]) -> tuple[Ints, Ints]:
    """Kept pixels of each class, and those of them that are right, (C,)."""
    at = np.minimum(codes, NUM_CODES - 1)
    every = np.arange(len(codes))
    found = (np.where(codes < NUM_CODES, curves.kept(what).sum(axis=0)[every, at], 0) for what in ("total", "correct"))
    kept, right = found
    return kept, right


def _classes(
    curves: Curves, iou: NDArray[np.float64], kept: Ints, right: Ints, fine: list[int]
) -> tuple[ClassFacts, ...]:
    truth, every = curves.truth.sum(axis=0), max(1, sum(fine))

    def share(part: Any, whole: Any) -> float | None:
        return float(part / whole) if whole else None

    return tuple(
        ClassFacts(name, fine[c] / every, finite(iou[c]), share(right[c], kept[c]), share(right[c], truth[c]))
        for c, name in enumerate(curves.classes.classes)
    )


def _measured(ws: Workspace) -> tuple[float, float | None, float | None] | None:
    found = json_of(ws, "evaluation/metrics.json").get("differences", {}).get("student - control")
    return (found["value"], found["low"], found["high"]) if found else None
