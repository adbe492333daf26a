"""teacher-train: train the teacher on the fine labels of role `learn`, from the pretraining checkpoint."""

from __future__ import annotations

from pathlib import Path

from pipeline.jobs.support import fine_data, publish_checkpoint, train_model
from pipeline.stages import training
from pipeline.workspace.workspace import Workspace

STAGE = "teacher-train"


def disk_estimate(ws: Workspace) -> int:
    """Bytes of checkpoints and training states."""
    return 0 if ws.params.teacher_train.skip else training.disk_estimate(ws.params.teacher_train)


def run(ws: Workspace) -> None:
    """Train and publish models/teacher, or record that another network labels."""
    config = ws.params.teacher_train
    if config.skip:
        training.skip(ws, STAGE, "models/teacher", "teacher_train is null: the network of auto_infer.teacher labels")
        return
    fine = fine_data(ws)
    work = train_model(ws, STAGE, "teacher", config, fine, init_from=_start(ws), validate_every=config.validate_every)
    publish_checkpoint(ws, work / "model", "models/teacher")
    training.report(ws, STAGE, {"teacher": work})


def _start(ws: Workspace) -> Path | None:
    """The given checkpoint, else the pretraining's, else none (from scratch)."""
    given = ws.params.teacher_train.init_from
    if given:
        return ws.resolve(given)
    pretrained = ws.path("models/pretrain")
    return pretrained if (pretrained / "model.json").exists() else None
