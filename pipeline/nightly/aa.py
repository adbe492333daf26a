"""A/A trainings: by how much do two trainings of the student's recipe differ through chance alone?

The same configuration, the same data, the same teacher, other seeds. Their mean IoU on the report images goes to
models/registry/aa.json, from which the gate takes the seed variance; without it nothing is promoted. Each training
and each evaluation is resumable, and what is there already is not done again: the first run is tonight's student.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from hmsa_core import __version__
from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels.store.format import read_manifest
from hmsa_core.metrics import iou_of
from hmsa_core.spec import PseudoData
from pipeline.counts import read_counts
from pipeline.nightly.gatekeeper import aa_file, recipe_digest
from pipeline.stages import precision, training
from pipeline.stages.runner import check_space
from pipeline.stages.student_train import check_teacher
from pipeline.stages.support import (
    INDEX,
    evaluate_model,
    fine_data,
    role_index,
    samples_digest,
    train_model,
    weights_of,
)
from pipeline.workspace import Workspace

__all__ = ["measure_aa"]

_LOG = logging.getLogger(__name__)
_STAGE = "student-train"


def measure_aa(ws: Workspace, runs: int) -> dict[str, Any]:
    """Train the student's recipe `runs` times (seeds seed, seed + 1, ...), evaluate each, write aa.json.

    The locks of student-train and evaluate are held by the caller.

    Returns:
        What was written: {"mean_iou": [...], "sd": standard deviation, "recipe", "runs": [...], "lineage": {...}}.

    Raises:
        ConfigError: fewer than two runs. InputError: no labels to learn from, or no image to judge on.
    """
    if runs < 2:
        raise ConfigError(f"{runs} A/A training says nothing about a spread: at least 2 are needed")
    if not ws.path("labels/final/manifest.json").exists():
        raise InputError(f"{ws.path('labels/final')}: no auto-labels yet", hint="run `dvc repro` first")
    check_teacher(ws.path("labels/final"), ws.teacher())
    check_space(ws, "models aa", training.disk_estimate(ws.params.student_train, models=runs))
    samples = precision.fine_samples(ws, "report")
    if not samples:
        raise InputError("no image has the role `report`: A/A trainings cannot be judged", hint="see data.roles")
    models = {f"aa-{seed}": _train(ws, seed, i, runs) for i, seed in enumerate(_seeds(ws, runs))}
    names = precision.judge(ws, samples, models).names
    scores = [_mean_iou(ws, name, model, names) for name, model in models.items()]
    record = {
        "mean_iou": scores,
        "sd": float(np.std(scores, ddof=1)),
        "recipe": recipe_digest(ws),
        "runs": [
            {"seed": seed, "weights_sha256": weights_of(model), "mean_iou": score}
            for seed, model, score in zip(_seeds(ws, runs), models.values(), scores, strict=True)
        ],
        "lineage": {
            "student_train": ws.params.student_train.model_dump(mode="json"),
            "setting": ws.params.evaluate.settings[0].model_dump(mode="json"),
            "teacher": weights_of(ws.teacher()),
            "labels": str(read_manifest(ws.path("labels/final"))["digest"]),
            "report_images": samples_digest([s for s in samples if s.name in set(names)]),
            "images": len(names),
            "code_version": __version__,
        },
    }
    atomic.write_json(aa_file(ws), record)
    return record


def _seeds(ws: Workspace, runs: int) -> list[int]:
    return [ws.params.student_train.seed + i for i in range(runs)]


def _train(ws: Workspace, seed: int, number: int, runs: int) -> Path:
    """The student of this seed, as student-train makes it; seed 0 of the recipe *is* tonight's student."""
    _LOG.info("A/A training %d of %d: seed %d", number + 1, runs, seed)
    config = ws.params.student_train.model_copy(update={"seed": seed})
    teacher = ws.teacher()
    labels = ws.path("labels/final")
    pseudo = PseudoData(store=labels, centroids=labels / "centroids.parquet", index=role_index(ws, "unlabelled"))
    fine = fine_data(role_index(ws, "learn"), ws.path(f"{INDEX}/centroids-target.parquet"))
    # The job's name is part of the key: with the student's own name its training is found, not repeated.
    job = "student" if number == 0 else f"aa-{seed}"
    return train_model(ws, _STAGE, job, config, fine, pseudo=pseudo, init_from=teacher, teacher=teacher) / "model"


def _mean_iou(ws: Workspace, name: str, model: Path, names: tuple[str, ...]) -> float:
    config = ws.params.evaluate
    main = config.settings[0]
    folder = evaluate_model(ws, "evaluate", name, model, role_index(ws, "report"), names, (main,), config.runtime)
    (confusions,) = read_counts(folder / f"{main.name}.npz", "confusions")
    return float(np.nanmean(iou_of(confusions.sum(axis=0))))
