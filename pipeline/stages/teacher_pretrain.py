"""teacher-pretrain: train on the pretraining set (65 classes, single scale), or record that there is none."""

from __future__ import annotations

import logging

from hmsa_core.data.index import Index
from hmsa_core.io.errors import ConfigError
from pipeline.jobs.support import fine_data, publish_checkpoint, record_skip, train_model, write_metrics
from pipeline.report import plots
from pipeline.stages import training
from pipeline.workspace.workspace import Workspace

STAGE = "teacher-pretrain"
_LOG = logging.getLogger(__name__)


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
        _record_skip(ws, f"no pretraining set {why} (data.pretrain): teacher-train starts from scratch")
        return
    init_from = ws.resolve(config.init_from) if config.init_from else None
    work = train_model(ws, STAGE, "pretrain", config, fine, init_from=init_from)
    publish_checkpoint(ws, work / "model", "models/pretrain")
    training.report(ws, STAGE, {"pretrain": work})


def _record_skip(ws: Workspace, reason: str) -> None:
    _LOG.info("%s: %s", STAGE, reason)
    record_skip(ws, "models/pretrain", reason)
    write_metrics(ws, STAGE, {"skipped": reason})
    plots.lines(ws.path(f"plots/{STAGE}-loss.png"), {}, title="No pretraining", x="step", y="loss")
