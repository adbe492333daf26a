"""What a training run leaves behind: the checkpoint folder with everything that made it."""

from __future__ import annotations

import platform

import torch

from hmsa_core import __version__
from hmsa_core.data.transforms import MEAN, STD
from hmsa_core.lineage import LINEAGE_FILE
from hmsa_core.models import save
from hmsa_core.runtime.context import JobContext
from hmsa_core.spec import TrainSpec
from hmsa_core.training.rundata import RunData
from hmsa_core.training.trainer import Trainer

__all__ = ["save_model"]


def save_model(spec: TrainSpec, context: JobContext, trainer: Trainer, data: RunData) -> str:
    """Write `work/model/` on rank 0: the averaged weights where there are such, else the last ones.

    Nothing in it depends on the clock: the same run gives the same bytes. Returns the digest of the weights.
    """
    folder = spec.work / "model"
    if trainer.average is not None:
        trainer.average.copy_to(trainer.model)
    list_sha256 = data.lineage.save(folder / LINEAGE_FILE)
    runtime = spec.config.runtime
    lineage = {
        **spec.lineage,
        **data.lineage.summary(list_sha256),
        "stage": spec.stage,
        "config": spec.config.model_dump(mode="json"),
        "machine": {
            "ranks": context.world,
            "device": context.device.type,
            "threads": runtime.threads,
            "precision": runtime.precision,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "code": __version__,
        },
    }
    scales = [0.5, 1.0, 2.0] if spec.config.model.kind != "single" else [1.0]
    return save(
        trainer.model,
        folder,
        class_table=data.classes.to_json(),
        lineage=lineage,
        inference={"scales": scales, "flip": True, "mean": list(MEAN), "std": list(STD)},
        extra={"key": data.key, "steps": trainer.step, "averaged": trainer.average is not None},
    )
