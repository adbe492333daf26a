"""teacher-train: train the teacher on the fine labels of role `learn`, from the pretraining checkpoint."""

from __future__ import annotations

from pathlib import Path

from pipeline.jobs.support import fine_data, publish_checkpoint, train_model
from pipeline.stages import training
from pipeline.workspace.workspace import Workspace

STAGE = "teacher-train"


def disk_estimate(ws: Workspace) -> int:
    """Bytes of checkpoints and training states."""
    return training.disk_estimate(ws.params.teacher_train)


def run(ws: Workspace) -> None:
    """Train and publish models/teacher."""
    config = ws.params.teacher_train
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
