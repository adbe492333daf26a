"""teacher-pretrain: train on the pretraining set (65 classes, single scale), or record that there is none."""

from __future__ import annotations

from hmsa_core.data.index import Index
from hmsa_core.io.errors import ConfigError
from pipeline.jobs.support import fine_data, publish_checkpoint, train_model
from pipeline.stages import training
from pipeline.workspace.workspace import Workspace

STAGE = "teacher-pretrain"


def disk_estimate(ws: Workspace) -> int:
    """Bytes of checkpoints and training states."""
    return training.disk_estimate(ws.params.teacher_pretrain) if ws.params.data.pretrain else 0


def run(ws: Workspace) -> None:
    """Train and publish models/pretrain, or record why there is none."""
    config = ws.params.teacher_pretrain
    fine = fine_data(ws, "pretrain")
    if not Index.load(fine.selection.index).select(roles=("learn",), kinds=("fine",)):
        if config.init_from:
            raise ConfigError(
                f"teacher_pretrain.init_from is {config.init_from}, but there is no pretraining set (data.pretrain)",
                hint="teacher_train.init_from starts the teacher from these weights",
            )
        why = "is given" if ws.params.data.pretrain is None else "has an image with a fine label in a training split"
        reason = f"no pretraining set {why} (data.pretrain): nothing to pretrain"
        training.skip(ws, STAGE, "models/pretrain", reason)
        return
    init_from = ws.resolve(config.init_from) if config.init_from else None
    work = train_model(ws, STAGE, "pretrain", config, fine, init_from=init_from)
    publish_checkpoint(ws, work / "model", "models/pretrain")
    training.report(ws, STAGE, {"pretrain": work})
