"""Label stores of rows: the workspace's raw store under other thresholds, with or without human coarse labels."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from hmsa_core.data.decode import read_label
from hmsa_core.data.index import Index
from hmsa_core.io import atomic
from hmsa_core.io.engine import Engine
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels import ConfidenceCode, LabelStore, LabelStoreWriter, StoreStatistics, ThresholdPolicy
from hmsa_core.labels.finalise import CENTROIDS, finalise
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.store.format import MANIFEST
from hmsa_core.labels.thresholds.policy import WITHHELD, ClassPolicy, from_threshold
from hmsa_core.runtime.progress import Progress
from hmsa_core.spec import PseudoData
from hmsa_core.taxonomy import ClassTable
from pipeline.jobs.support import provenance, role_index
from pipeline.stages import pseudo_label
from pipeline.workspace import keys
from pipeline.workspace.params import MEASURED_POLICIES
from pipeline.workspace.workspace import Workspace
from research.ablation.plan import Labels

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
    raw = _raw(ws, labels)
    policy = _policy(ws, raw, labels)
    variant = _with_merging(ws, labels)
    recipe = pseudo_label.make_recipe(variant, raw, policy, pseudo_label.curves_of(variant, raw))
    name = atomic.digest(labels.to_json())[:8]
    work = keys.open_work(ws.work(WORK), f"labels-{name}", {"recipe": recipe.key(raw), "raw": raw.digest})
    with Progress(len(raw), what=f"labels {_named(labels)}", stream=sys.stderr) as progress:
        statistics = finalise(
            raw,
            recipe,
            work / "store",
            lineage=provenance("pseudo-label"),
            engine=Engine(ws.params.runtime.engine, ws.params.pseudo_label.workers),
            advance=progress.update,
            check_stop=ws.stop.check,
        )
    store = work / "store"
    if statistics["labelled"] == 0:
        raise ConfigError(f"labels {_named(labels)}: no pixel is left: there is nothing to learn from")
    data = PseudoData(store=store, centroids=store / CENTROIDS, index=role_index(ws, "unlabelled"))
    return MadeLabels(data, _figures(statistics))


def _raw(ws: Workspace, labels: Labels) -> LabelStore:
    """The workspace's raw store, or a store of those of its images that have a true label in the folder `only`.

    With threshold "truth" the store holds the true labels, sure everywhere.
    """
    whole = LabelStore.open(ws.path("labels/raw"), strict=True)
    if labels.only is None:
        return whole
    index = Index.load(role_index(ws, "unlabelled"))
    folder = ws.roots[index.root] / labels.only
    true = {name: path for name in whole.names() if (path := folder / f"{name}.png").is_file()}
    if not true:
        raise ConfigError(f"{folder}: no true label NAME.png of an unlabelled image: there is no ceiling to measure")
    is_truth = labels.threshold == "truth"
    material = {"raw": whole.digest, "truth": {n: atomic.sha256_file(p) for n, p in true.items()}, "is": is_truth}
    path = keys.open_work(ws.work(WORK), "truth" if is_truth else "subset", material) / "store"
    if not (path / MANIFEST).exists():
        with LabelStoreWriter(path, whole.lineage, classes=whole.classes) as writer:
            for row in whole.rows():
                if row["name"] in true:
                    label, code = whole.read(row["name"])
                    if is_truth:
                        label, code = read_label(true[row["name"]], whole.classes), np.full_like(code, NUM_CODES - 1)
                    facts = {key: row[key] for key in ("city", "image_path", "coarse_path", "image_sha256")}
                    writer.add(row["name"], label, ConfidenceCode().values[code], **facts)  # type: ignore[arg-type]
    return LabelStore.open(path, strict=True)


def _named(labels: Labels) -> str:
    chosen = f"{100 * labels.ignored:.0f} % ignored" if labels.ignored is not None else f"threshold {labels.threshold}"
    kept = " that win conflicts" if labels.conflict else ""
    return chosen + (f" with coarse labels{kept}" if labels.coarse else "")


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
    if labels.threshold in MEASURED_POLICIES:
        policy = ThresholdPolicy.load(ws.path(MEASURED_POLICIES[str(labels.threshold)]))
        policy.check(raw.lineage, raw.classes, str(raw.path))
        return policy
    return from_threshold(0.0 if labels.threshold == "truth" else labels.threshold, raw.classes)


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
