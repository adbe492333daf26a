"""student-train: go on from the teacher with half fine, half auto-labelled crops; and the control beside it.

The control has the same start, the same number of steps and crops, the same seed, and sees fine labels only:
what the student gains over it is what the auto-labels gave.
"""

from __future__ import annotations

from pathlib import Path

from hmsa_core import atomic
from hmsa_core.config import PseudoConfig
from hmsa_core.engine.spec import PseudoData
from hmsa_core.trees import new_tree
from pipeline.stages import training
from pipeline.stages.support import INDEX, fine_data, publish_checkpoint, role_index, train_model
from pipeline.workspace import Workspace

__all__ = ["SKIPPED", "disk_estimate", "run"]

STAGE = "student-train"
SKIPPED = "skipped.json"  # in models/control/ instead of a checkpoint


def disk_estimate(ws: Workspace) -> int:
    """Bytes of checkpoints and training states."""
    config = ws.params.student_train
    return training.disk_estimate(config, models=2 if config.control else 1)


def run(ws: Workspace) -> None:
    """Train and publish models/student and models/control."""
    config = ws.params.student_train
    teacher = ws.teacher()
    fine = fine_data(role_index(ws, "learn"), ws.path(f"{INDEX}/centroids-target.parquet"))
    labels = ws.path("labels/final")
    pseudo = PseudoData(store=labels, centroids=labels / "centroids.parquet", index=role_index(ws, "unlabelled"))
    every = config.validate_every
    student = train_model(
        ws, STAGE, "student", config, fine, pseudo=pseudo, init_from=teacher, teacher=teacher, validate_every=every
    )
    runs = {"student": student}
    if config.control:
        # Its key must not change with settings of the other half; crops an epoch do not depend on them.
        fine_only = config.model_copy(update={"pseudo": PseudoConfig()})
        runs["control"] = train_model(
            ws, STAGE, "control", fine_only, fine, init_from=teacher, validate_every=every
        )
    publish_checkpoint(ws, student / "model", "models/student")
    _publish_control(ws, runs.get("control"))
    training.report(ws, STAGE, runs)


def _publish_control(ws: Workspace, work: Path | None) -> None:
    if work is not None:
        publish_checkpoint(ws, work / "model", "models/control")
        return
    with new_tree(ws.path("models/control")) as out:
        atomic.write_json(out / SKIPPED, {"reason": "student_train.control is false"})
