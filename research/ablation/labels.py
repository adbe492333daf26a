"""Label stores of rows: the workspace's raw store under other thresholds, with or without human coarse labels."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, InterruptedRunError
from hmsa_core.labels import ConfidenceCode, LabelStore, StoreStatistics, ThresholdPolicy
from hmsa_core.labels.finalise import CENTROIDS, finalise
from hmsa_core.labels.thresholds.policy import WITHHELD, ClassPolicy, from_threshold
from hmsa_core.runtime.progress import Progress
from hmsa_core.spec import PseudoData
from hmsa_core.taxonomy import ClassTable
from pipeline import keys
from pipeline.stages import pseudo_label
from pipeline.stages.support import provenance, role_index
from pipeline.workspace import Workspace
from research.ablation.plan import Labels

__all__ = ["WORK", "MadeLabels", "make_labels", "threshold_that_ignores"]

WORK = "ablation"  # folder of progress below work/


@dataclass(frozen=True)
class MadeLabels:
    """A thresholded store for training, and what is in it."""

    data: PseudoData
    figures: dict[str, Any]


def make_labels(ws: Workspace, labels: Labels) -> MadeLabels:
    """Write (or find) the store that a row's auto-labelled half is read from.

    Raises:
        ConfigError: the workspace's policy belongs to another teacher. StoreError: the raw store is damaged.
    """
    raw = LabelStore.open(ws.path("labels/raw"), strict=True)
    policy = _policy(ws, raw, labels)
    variant = _with_merging(ws, labels)
    recipe = pseudo_label.make_recipe(variant, raw, policy)
    name = atomic.digest(labels.to_json())[:8]
    work = keys.open_work(ws.work(WORK), f"labels-{name}", {"recipe": recipe.key(raw), "raw": raw.digest})
    with Progress(len(raw), what=f"labels {_told(labels)}", stream=sys.stderr) as progress:
        statistics = finalise(
            raw,
            recipe,
            work / "store",
            lineage=provenance("pseudo-label"),
            workers=ws.params.pseudo_label.workers,
            advance=progress.update,
            check_stop=lambda: _check_stop(ws),
        )
    store = work / "store"
    if statistics["labelled"] == 0:
        raise ConfigError(f"labels {_told(labels)}: no pixel is left: there is nothing to learn from")
    data = PseudoData(store=store, centroids=store / CENTROIDS, index=role_index(ws, "unlabelled"))
    return MadeLabels(data, _figures(statistics))


def _told(labels: Labels) -> str:
    chosen = f"{100 * labels.ignored:.0f} % ignored" if labels.ignored is not None else f"threshold {labels.threshold}"
    kept = " that win conflicts" if labels.conflict else ""
    return chosen + (f" with coarse labels{kept}" if labels.coarse else "")


def _check_stop(ws: Workspace) -> None:
    if ws.stop.is_set():
        raise InterruptedRunError("stopped by a signal; finished shards stay", hint="run the same command again")


def _with_merging(ws: Workspace, labels: Labels) -> Workspace:
    """The workspace with merging of human labels as the row has it; nothing is written."""
    changes = {"use_coarse": labels.coarse} | ({"default": labels.conflict} if labels.conflict else {})
    merge = ws.params.pseudo_label.merge.model_copy(update=changes)
    section = ws.params.pseudo_label.model_copy(update={"merge": merge})
    variant = Workspace(ws.root)
    variant.stop = ws.stop
    variant.__dict__["params"] = ws.params.model_copy(update={"pseudo_label": section})
    return variant


def _policy(ws: Workspace, raw: LabelStore, labels: Labels) -> ThresholdPolicy:
    if labels.ignored is not None:
        return from_threshold(threshold_that_ignores(StoreStatistics.open(raw.path), labels.ignored), raw.classes)
    if labels.threshold == "none":
        return _withheld(raw.classes)
    if labels.threshold == "policy":
        policy = ThresholdPolicy.load(ws.path("calibration/policy.json"))
        policy.check(raw.lineage, raw.classes, str(raw.path))
        return policy
    return from_threshold(labels.threshold, raw.classes)


def _withheld(classes: ClassTable) -> ThresholdPolicy:
    entries = tuple(ClassPolicy(name, WITHHELD, "withheld") for name in classes.classes)
    return ThresholdPolicy(classes, entries, settings={"threshold": "none"})


def threshold_that_ignores(statistics: StoreStatistics, share: float) -> str:
    """The threshold on the grid whose share of left-out pixels is nearest to `share`."""
    by_code = statistics.totals().sum(axis=0)
    below = np.concatenate([[0], np.cumsum(by_code)[:-1]])  # pixels that code k as threshold leaves out
    nearest = int(np.argmin(np.abs(below / max(1, by_code.sum()) - share)))
    return ConfidenceCode().threshold(nearest)


def _figures(statistics: dict[str, Any]) -> dict[str, Any]:
    """Share of all pixels that is labelled, and that each class has."""
    pixels = max(1, statistics["pixels"])
    classes = {row["name"]: row["final"] / pixels for row in statistics["classes"]}
    return {"labelled_share": statistics["labelled_share"], "classes": classes}
