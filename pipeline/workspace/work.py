"""How much a chain sends through networks: megapixels of each stage, scales and mirror images included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hmsa_core.config import InferConfig, TrainConfig
from hmsa_core.spec import EvaluationSetting
from pipeline.workspace.params import Params
from pipeline.workspace.table import STAGES

Sizes = Sequence[tuple[int, int]]  # height and width of images

_BACKWARD = 3  # passes that a training pass costs: forward, and twice that backward


def megapixels(params: Params, images: Mapping[str, Sizes]) -> dict[str, float]:
    """Megapixels that each stage sends through a network; stages without a network have none.

    Args:
        params: the settings.
        images: sizes of those with labels of "pretrain", "learn", "calibrate" and "report", and those of "unlabelled".
    """
    learn = len(images["learn"])
    trainings = 2 if params.student_train.control else 1
    scored = trainings if params.teacher_train.skip else 1 + trainings
    judged = sum(labelled(images["report"], setting) for setting in params.evaluate.settings)
    work = dict.fromkeys(STAGES, 0.0)
    work["teacher-pretrain"] = _training(len(images["pretrain"]), params.teacher_pretrain)
    work["teacher-train"] = 0.0 if params.teacher_train.skip else _training(learn, params.teacher_train)
    work["calibrate"] = labelled(images["calibrate"], params.auto_infer)
    work["auto-infer"] = labelled(images["unlabelled"], params.auto_infer)
    work["student-train"] = trainings * _training(learn, params.student_train)
    work["evaluate"] = scored * judged + labelled(images["report"], params.auto_infer)
    return work


def of_crop(config: TrainConfig) -> float:
    """Megapixels of one crop of a training."""
    pixels = config.crop[0] * config.crop[1] * sum(scale**2 for scale in config.model.training_scales)
    return _BACKWARD * pixels / 1e6


def crops(images: int, config: TrainConfig) -> int:
    """Crops of a whole training from so many images."""
    return config.epochs * (config.epoch_samples or images) if images else 0


def labelled(images: Sizes, config: InferConfig | EvaluationSetting) -> float:
    """Megapixels of labelling images."""
    passes = sum(scale**2 for scale in config.scales) * (2 if config.flip else 1)
    return passes * sum(height * width for height, width in images) / 1e6


def in_words(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _training(images: int, config: TrainConfig) -> float:
    return crops(images, config) * of_crop(config)
