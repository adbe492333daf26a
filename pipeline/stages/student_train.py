"""student-train: train a student on half fine, half auto-labelled crops, from the teacher or another start; a control.

The control has the same start, steps, number of crops and seed, and sees fine labels only. The student's gain over
the control is the gain by auto-labels.
"""

from __future__ import annotations

import logging
from pathlib import Path

from hmsa_core.config import PseudoConfig
from hmsa_core.data.index import Index
from hmsa_core.inference.teachers.sources import Spec, digest_of, only_checkpoint, parse
from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, HmsaError
from hmsa_core.labels.finalise import STATISTICS
from hmsa_core.labels.store.format import read_manifest
from hmsa_core.models import read_meta
from hmsa_core.spec import PseudoData
from hmsa_core.taxonomy import ClassTable
from pipeline.jobs.support import fine_data, labelling_teacher, publish_checkpoint, record_skip, role_index, train_model
from pipeline.stages import training
from pipeline.workspace.registry import Registry
from pipeline.workspace.workspace import Workspace

STAGE = "student-train"
_FEW = 0.01  # labelled share of the pixels below which the auto-labelled part of an epoch is worth a warning
_LOG = logging.getLogger(__name__)


def disk_estimate(ws: Workspace) -> int:
    """Bytes of checkpoints and training states."""
    config = ws.params.student_train
    return training.disk_estimate(config, models=2 if config.control else 1)


def run(ws: Workspace) -> None:
    """Train and publish models/student and models/control."""
    config = ws.params.student_train
    labeller = labelling_teacher(ws)
    fine = fine_data(ws)
    labels = ws.path("labels/final")
    check_teacher(labels, labeller)
    check_rounds(ws, labeller)
    _check_classes(ws, labels, only_checkpoint(labeller), Index.load(fine.selection.index).classes)
    _tell_of_empty_labels(ws, labels)
    pseudo = pseudo_data(ws)
    every, start = config.validate_every, start_of(ws)
    student = train_model(
        ws, STAGE, "student", config, fine, pseudo=pseudo, init_from=start, teacher=labeller, validate_every=every
    )
    runs = {"student": student}
    if config.control:
        # The control's key must not change with settings of the auto-labelled half; crops per epoch do not.
        fine_only = config.model_copy(update={"pseudo": PseudoConfig()})
        runs["control"] = train_model(ws, STAGE, "control", fine_only, fine, init_from=start, validate_every=every)
    publish_checkpoint(ws, student / "model", "models/student")
    if "control" in runs:
        publish_checkpoint(ws, runs["control"] / "model", "models/control")
    else:
        record_skip(ws, "models/control", "student_train.control is false")
    training.report(ws, STAGE, runs)


def pseudo_data(ws: Workspace) -> tuple[PseudoData, ...]:
    """Labels of the workspace, then those of other workspaces (student_train.stores).

    Raises:
        ConfigError: a store does not lie in a workspace, or another teacher than this workspace's labelled the store.
    """
    local = _store_of(ws, ws.path("labels/final"))
    others = []
    for given in ws.params.student_train.stores:
        store = ws.resolve(given.store)
        try:
            home = Workspace.find(store)
        except HmsaError as error:
            raise ConfigError(f"student_train.stores: {store}: not in a workspace ({error.message})") from error
        by, teacher = (read_manifest(labels)["lineage"].get("teacher") for labels in (store, local.store))
        if by != teacher:
            raise ConfigError(
                f"student_train.stores: {store}: labelled by {str(by)[:16]}, {local.store} by {str(teacher)[:16]}",
                hint="label both with one teacher (`autolabel models register`), or leave the store out",
            )
        found = _store_of(home, store)
        others.append(found.model_copy(update={"root": home.roots["target"], "weight": given.weight}))
    return local, *others


def _store_of(ws: Workspace, store: Path) -> PseudoData:
    return PseudoData(store=store, centroids=store / "centroids.parquet", index=role_index(ws, "unlabelled"))


def start_of(ws: Workspace) -> Path | None:
    """The checkpoint that student and control start from; None = the weights of their trunk."""
    init = ws.params.student_train.init
    return None if init == "pretrained" else ws.teacher() if init == "teacher" else ws.resolve(init)


def check_teacher(labels: Path, teacher: Spec) -> None:
    """Raise a ConfigError for labels that another teacher made: the stages before were not run for this teacher."""
    made_by, now = read_manifest(labels)["lineage"].get("teacher"), digest_of(teacher)
    if made_by != now:
        names = ", ".join(str(source) for source in parse(teacher))
        raise ConfigError(
            f"{labels}: labelled by {str(made_by)[:16]}, but the teacher is now {names} ({now[:16]})",
            hint="`dvc repro` labels again with this teacher"
            if only_checkpoint(teacher)
            else "`dvc repro --force --single-item calibrate auto-infer`, then `dvc repro`",
        )


def check_rounds(ws: Workspace, labeller: Spec) -> None:
    """Raise a ConfigError where a labelling checkpoint's lineage holds as many rounds as student_train.max_rounds.

    A student repeats its teacher's errors with more confidence, and does so in each round.
    """
    limit, registry = ws.params.student_train.max_rounds, Registry(ws.root)
    if limit is None:
        return
    for teacher in (source.path for source in parse(labeller) if source.family == "checkpoint"):
        if (rounds := registry.rounds(teacher)) >= limit:
            raise ConfigError(
                f"{teacher}: {rounds} rounds of auto-labels are behind it, and student_train.max_rounds is {limit}",
                hint="return to an earlier teacher (`autolabel models rollback`), train one on human labels, or raise"
                " max_rounds (null = no limit)",
            )


def _check_classes(ws: Workspace, labels: Path, teacher: Path | None, wanted: ClassTable) -> None:
    """Refuse labels of other classes than the fine labels, with a hint, before a job refuses them without one."""
    held = ClassTable.from_json(read_manifest(labels)["classes"])
    if held == wanted:
        return
    if not teacher or ClassTable.of_meta(read_meta(teacher)) in (None, wanted):
        hint = (
            "they are older than the last edit of the class file: "
            "`dvc repro --force --single-item calibrate auto-infer`, then `dvc repro`"
        )
    elif ws.is_promoted():
        hint = (
            "the teacher that models/current.json names has other classes too: undo the edit of the class file, or "
            "return to a teacher of these classes (`autolabel models rollback`)"
        )
    else:
        hint = "the teacher is older than the last edit of the class file too: `dvc repro` trains it anew"
    differing = _difference(held, wanted)
    raise ConfigError(f"{labels}: its classes are not those of the fine labels ({differing})", hint=hint)


def _difference(held: ClassTable, wanted: ClassTable) -> str:
    if held.num_classes != wanted.num_classes:
        return f"{held.num_classes} classes there, {wanted.num_classes} here"
    for old, new in zip(held.to_json()["classes"], wanted.to_json()["classes"], strict=True):
        if old != new:
            a, b = (f"{row['name']} {row['colour']} {row['group']}" for row in (old, new))
            return f"class {new['id']} is {a} there, {b} here"
    return f"{held.name} there, {wanted.name} here; or other ids"


def _tell_of_empty_labels(ws: Workspace, labels: Path) -> None:
    share, config = float(atomic.read_json(labels / STATISTICS)["labelled_share"]), ws.params.student_train.pseudo
    if share >= _FEW or not config.share:
        return
    chosen = ws.params.pseudo_label
    eased = {"policy": "calibrate.target", "teach": "calibrate.tau"}
    easier = "its thresholds" if chosen.given_policy else eased.get(str(chosen.threshold), "pseudo_label.threshold")
    _LOG.warning(
        "labels/final: %.1f %% of the pixels are labelled at threshold %s: %g %% of each epoch teaches (almost) "
        "nothing; lower %s, or train the teacher longer (docs/thresholds.md: Why is a class withheld?)",
        100 * share,
        chosen.threshold,
        100 * config.share,
        easier,
    )
