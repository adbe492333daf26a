"""Precision of a teacher on images with fine labels: one inference into a store, then counts on stored codes.

`calibrate` measures on the calibration images and chooses thresholds; `evaluate` measures these thresholds on the
report images. Both use the settings of `auto-infer`, and so the same precision of numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import read_label
from hmsa_core.data.index import Index, Sample
from hmsa_core.inference.teachers.sources import Spec, lineage_of
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels import ConfidenceCode, LabelStore, ThresholdPolicy
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.thresholds.choice import figures, smallest_global_code
from hmsa_core.labels.thresholds.curves import CalibrationImage, Curves, outside_coarse
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.labels.thresholds.settings import CalibrateConfig
from hmsa_core.leaks import Judgement, judge_only_unseen
from hmsa_core.metrics import confusion_counts
from pipeline.jobs.support import infer_store, labelling_teacher, role_index, warn
from pipeline.workspace.params import MEASURED_POLICIES
from pipeline.workspace.workspace import JUDGED_CURVES, Workspace

# Of an image: name, block, and how its labels before any threshold compare with the truth, as `confusion_counts`.
Counted = tuple[str, str, NDArray[np.int64]]
PAIRS = "pairs.npz"  # in calibration/: human label, teacher's label and code on the calibration images


@dataclass(frozen=True)
class Precision:
    """Curves of one teacher on one role's images, and the store they were counted on.

    `judged` counts the pixels that `calibrate.region` selects; `curves` and `counts` count all pixels.
    """

    store: LabelStore
    curves: Curves
    judged: Curves
    counts: list[Counted]  # of all pixels

    def save_curves(self, folder: Path) -> None:
        """Write `curves.json`, and JUDGED_CURVES where `calibrate.region` leaves pixels out."""
        self.curves.save(folder / "curves.json")
        if self.judged is not self.curves:
            self.judged.save(folder / JUDGED_CURVES)


def fine_samples(ws: Workspace, role: str) -> list[Sample]:
    """Images of a role that have fine labels."""
    return list(Index.load(role_index(ws, role)).select(kinds=("fine",)))


def judge(ws: Workspace, samples: list[Sample], models: Mapping[str, Spec]) -> Judgement:
    """Leave out images that a judged model learned from (`evaluate.max_leaked`, `max_gap`, `max_distance`)."""
    config = ws.params.evaluate
    return judge_only_unseen(
        samples,
        {name: lineage_of(model) for name, model in models.items()},
        max_leaked=config.max_leaked,
        max_gap=config.max_gap,
        max_distance=config.max_distance,
        known=Index.load(ws.path("data/index/target.parquet")).samples,
    )


def measure(ws: Workspace, stage: str, job: str, role: str, names: tuple[str, ...]) -> Precision:
    """Let `labelling_teacher` label the named images of a role; count right and wrong pixels by class and code.

    Raises:
        ConfigError: thresholds shall be measured outside of coarse labels, and no calibration image has any.
    """
    index_path = role_index(ws, role)
    folder = infer_store(ws, stage, job, ws.params.auto_infer, labelling_teacher(ws), index_path, names)
    store = LabelStore.open(folder, strict=True)
    index = Index.load(index_path)
    config, root = ws.params.calibrate, ws.roots[index.root]
    counts: list[Counted] = []
    pairs = _counted(_pairs(store, index, root, names), store.classes.num_classes, counts)
    curves = Curves.measure(pairs, store.classes, config=config, lineage=store.lineage)
    if config.region == "all":
        return Precision(store, curves, curves, counts)
    if not any(sample.coarse for sample in index.select(names=names)):
        wrong = f"calibrate.region is {config.region}, but no image of role {role} has a coarse label"
        if role == "calibrate":
            raise ConfigError(wrong, hint="set calibrate.region to all")
        warn(stage, f"{wrong}: all of their pixels are judged")
        return Precision(store, curves, curves, counts)
    outside = outside_coarse(_pairs(store, index, root, names))
    judged = Curves.measure(outside, store.classes, config=config, lineage=store.lineage)
    return Precision(store, curves, judged, counts)


def _counted(images: Iterable[CalibrationImage], classes: int, into: list[Counted]) -> Iterator[CalibrationImage]:
    """The images; each one that passes is counted."""
    for image in images:
        into.append((image.name, image.block, confusion_counts(image.label, image.truth, classes)))
        yield image


def _pairs(store: LabelStore, index: Index, root: Path, names: tuple[str, ...]) -> Iterator[CalibrationImage]:
    for sample in index.select(names=names):
        if sample.name not in store:
            continue  # the file changed since `prepare`: the store's manifest lists it as skipped
        label, code = store.read(sample.name)
        truth = read_label(root / sample.label, index.classes, sha256=sample.label_sha256)
        human = None
        if sample.coarse:
            human = read_label(root / sample.coarse, index.classes, sha256=sample.coarse_sha256)
        yield CalibrationImage(sample.name, sample.block, label, code, truth, human)


def policy_file(ws: Workspace) -> Path | None:
    """The file that `pseudo_label.threshold` names, even if it does not exist; None for a number."""
    threshold = ws.params.pseudo_label.threshold
    if isinstance(threshold, float | int):
        return None
    return ws.resolve(MEASURED_POLICIES.get(threshold, threshold))


def chosen_policy(ws: Workspace, made: LabelStore | Curves) -> ThresholdPolicy:
    """The policy that `pseudo_label.threshold` names; refuses a policy that was made for another teacher."""
    threshold, path = ws.params.pseudo_label.threshold, policy_file(ws)
    if path is None:
        return from_threshold(float(threshold), made.classes)
    if not path.is_file():
        hint = "correct pseudo_label.threshold in params.yaml"
        if ws.params.pseudo_label.is_measured:
            measurable = ws.params.data.target.has_labels
            hint = "run calibrate first" if measurable else "there are no labels to measure it on: set it to a number"
        raise ConfigError(f"pseudo_label.threshold is {threshold}: {path} is not there", hint=hint)
    policy = ThresholdPolicy.load(path)
    where = str(made.path) if isinstance(made, LabelStore) else "the calibration's labels"
    policy.check(made.lineage, made.classes, where)
    return policy.on(made.digest) if isinstance(made, LabelStore) else policy


def used_policy(ws: Workspace, store: LabelStore) -> tuple[ThresholdPolicy, dict[str, dict[str, Any]]]:
    """The policy that makes the training labels, and each class's figures on the calibration images at its threshold.

    A policy of plain numbers gets the measured table of precision by confidence. Without calibration images there
    are no figures.
    """
    policy = chosen_policy(ws, store)
    measured = ws.path("calibration/policy.json")
    if not measured.is_file():
        return policy, {}
    if ws.params.pseudo_label.threshold == "policy":
        return policy, {entry.name: entry.evidence for entry in policy.entries}
    curves = Curves.load(judged_curves(ws))
    if policy.table is None:
        policy.table = ThresholdPolicy.load(measured).table
    return policy, kept_figures(curves, policy, ws.params.calibrate)["classes"]


def judged_curves(ws: Workspace) -> Path:
    """Curves file of the judged pixels: a separate file where `calibrate.region` leaves pixels out."""
    judged = ws.path(f"calibration/{JUDGED_CURVES}")
    return judged if judged.exists() else ws.path("calibration/curves.json")


def kept_figures(curves: Curves, policy: ThresholdPolicy, config: CalibrateConfig) -> dict[str, Any]:
    """Figures of the pixels that a policy keeps on the curves' images: per class, of all pixels, and class means."""
    codes = policy.codes()
    limits = (config.confidence, config.marginal_share)
    rows = {e.name: figures(curves, c, int(codes[c]), *limits) for c, e in enumerate(policy.entries)}
    for entry in policy.entries:
        rows[entry.name]["status"] = entry.status
    total, correct = curves.kept("total").sum(axis=0), curves.kept("correct").sum(axis=0)
    picked = [(c, int(code)) for c, code in enumerate(codes) if code < NUM_CODES]
    kept = sum(int(total[c, code]) for c, code in picked)
    right = sum(int(correct[c, code]) for c, code in picked)
    precisions = [row["precision"] for row in rows.values() if row["precision"] is not None]
    return {
        "classes": rows,
        "precision": right / kept if kept else None,
        "coverage": kept / int(total[:, 0].sum()) if total[:, 0].any() else None,
        "class_mean_precision": float(np.mean(precisions)) if precisions else None,
        "class_mean_coverage": float(np.mean([row["coverage"] for row in rows.values()])),
        "worst_precision": min(precisions, default=None),
        "beside": against_global(curves, policy),
    }


def against_global(curves: Curves, policy: ThresholdPolicy) -> dict[str, Any]:
    """Compare the policy with one threshold for all classes, on classes with a measured or estimated threshold.

    The rival is the smallest threshold that is as precise in its worst class *on these very images*. This choice uses
    fine labels that the policy does not know. The paper takes 0.9.
    """
    codes = policy.codes()
    classes = [c for c, e in enumerate(policy.entries) if e.status in ("measured", "estimate") and codes[c] < NUM_CODES]
    total, correct = curves.kept("total").sum(axis=0), curves.kept("correct").sum(axis=0)
    classes = [c for c in classes if total[c, int(codes[c])]]
    if not classes:
        return {"classes": [], "rows": []}

    def row(name: str, chosen: Mapping[int, int]) -> dict[str, Any]:
        precision = {c: float(correct[c, k] / total[c, k]) if total[c, k] else 1.0 for c, k in chosen.items()}
        worst = min(precision, key=lambda c: precision[c])
        coverage = float(np.mean([total[c, k] / total[c, 0] for c, k in chosen.items()]))
        return {
            "name": name,
            "worst_class": policy.entries[worst].name,
            "worst_precision": precision[worst],
            "class_mean_coverage": coverage,
        }

    rows = [row("policy", {c: int(codes[c]) for c in classes})]
    one = smallest_global_code(curves, rows[0]["worst_precision"], classes)
    if one < NUM_CODES:
        name = f"smallest global as precise ({ConfidenceCode().threshold(one)})"
        rows.append(row(name, dict.fromkeys(classes, one)))
    rows.append(row("global 0.9", dict.fromkeys(classes, int(from_threshold(0.9, curves.classes).codes()[0]))))
    return {"classes": [policy.entries[c].name for c in classes], "rows": rows}
