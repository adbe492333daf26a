"""Estimate how long the chain will still take: megapixels of each stage through a network, and the speed so far.

No result depends on the estimate. Stages without a network count as zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hmsa_core.config import InferConfig, TrainConfig
from hmsa_core.data.index import Index, Sample
from hmsa_core.io import atomic
from hmsa_core.spec import EvaluationSetting
from pipeline.jobs.support import INDEX, speed_file
from pipeline.workspace.table import STAGES, section_of
from pipeline.workspace.workspace import Workspace

_BACKWARD = 3  # passes that a training pass costs: forward, and twice that backward
_LEARN_FROM = {"teacher-pretrain": "pretrain", "teacher-train": "learn", "student-train": "learn"}
_TOLD_FROM = 0.15  # share of the work that has to be done before an estimate is given


def seconds_left(ws: Workspace, after: str) -> float | None:
    """Seconds from the end of stage `after` to the end of the chain; None while too little is done for an estimate."""
    if not ws.path(INDEX).exists():  # a stage that needs no images was run by hand
        return None
    work = megapixels(ws)
    ended, ahead = STAGES[: STAGES.index(after) + 1], STAGES[STAGES.index(after) + 1 :]
    timed = [stage for stage in ended if work[stage]]
    if not all(_times(ws, stage).exists() for stage in timed):
        return None
    done, left = sum(work[stage] for stage in ended), sum(work[stage] for stage in ahead)
    if not done or done < _TOLD_FROM * (done + left):
        return None
    return left * sum(_seconds(ws, stage) for stage in timed) / done


def _times(ws: Workspace, stage: str) -> Path:
    return ws.path(f"work/times/{stage}.json")


def _seconds(ws: Workspace, stage: str) -> float:
    """Seconds of the stage's last run; for a training that was resumed, the time of the whole by its logged speed."""
    seconds, speeds = float(atomic.read_json(_times(ws, stage))["seconds"]), speed_file(ws, stage)
    if stage not in _LEARN_FROM or not speeds.exists():
        return seconds
    crops = _crops(len(_images(ws, _LEARN_FROM[stage])), getattr(ws.params, section_of(stage)))
    runs = [float(run["images_per_s"]) for run in atomic.read_json(speeds).values() if run]
    return max(seconds, sum(crops / speed for speed in runs))


def megapixels(ws: Workspace) -> dict[str, float]:
    """Megapixels that each stage sends through a network, scales and mirror images included."""
    params = ws.params
    images = {name: _images(ws, name) for name in ("pretrain", "learn", "calibrate", "unlabelled", "report")}
    trainings = 2 if params.student_train.control else 1
    judged = sum(_labelling(images["report"], setting) for setting in params.evaluate.settings)
    work = dict.fromkeys(STAGES, 0.0)
    work["teacher-pretrain"] = _training(len(images["pretrain"]), params.teacher_pretrain)
    work["teacher-train"] = _training(len(images["learn"]), params.teacher_train)
    work["calibrate"] = _labelling(images["calibrate"], params.auto_infer)
    work["auto-infer"] = _labelling(images["unlabelled"], params.auto_infer)
    work["student-train"] = trainings * _training(len(images["learn"]), params.student_train)
    work["evaluate"] = (1 + trainings) * judged + _labelling(images["report"], params.auto_infer)
    return {stage: pixels / 1e6 for stage, pixels in work.items()}


def _images(ws: Workspace, index: str) -> Sequence[Sample]:
    samples = Index.load(ws.path(f"{INDEX}/{index}.parquet"))
    if index == "pretrain":
        return samples.select(roles=("learn",), kinds=("fine",))
    return samples.samples if index == "unlabelled" else samples.select(kinds=("fine",))


def _training(images: int, config: TrainConfig) -> float:
    scales = config.model.training_scales
    pixels = config.crop[0] * config.crop[1] * sum(scale**2 for scale in scales)
    return _BACKWARD * _crops(images, config) * pixels


def _crops(images: int, config: TrainConfig) -> int:
    return config.epochs * (config.epoch_samples or images) if images else 0


def _labelling(samples: Sequence[Sample], config: InferConfig | EvaluationSetting) -> float:
    passes = sum(scale**2 for scale in config.scales) * (2 if config.flip else 1)
    return passes * sum(s.height * s.width for s in samples)
