"""How fast this machine trains and labels, measured by one step and one image of noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hmsa_core.config import InferConfig, ModelConfig, RuntimeConfig, TrainConfig
from hmsa_core.inference.network.predictor import Predictor, label_image
from hmsa_core.inference.teachers.teacher import open_teacher
from hmsa_core.models.model import build_fresh
from hmsa_core.runtime.ranks import JobContext, start_ranks
from hmsa_core.taxonomy import ClassTable
from hmsa_core.training.recipe import fastest, seconds_a_pass, ways_to_compute

_BUDGET = 1.0  # seconds for each way to compute
_IMAGE = (384, 512)  # pixels, height and width


def seconds_a_crop(config: TrainConfig) -> float:
    """Seconds of a training for each crop, forward and backward: one rank is measured, all work at once."""
    device = start_ranks(config.runtime, {}).device
    count = config.batch_per_rank
    shape = (count, *config.crop)
    ways = ways_to_compute(device.type)
    times = [seconds_a_pass(config, way, shape, budget=_BUDGET, device=device) for way in ways]
    return min(times) / count / config.runtime.ranks


def seconds_a_megapixel(model: ModelConfig, runtime: RuntimeConfig) -> float:
    """Seconds of labelling for each megapixel of an image at one scale: one rank is measured, all work at once."""
    device = start_ranks(runtime, {}).device
    precision = "bf16" if runtime.precision == "auto" else runtime.precision  # fp32 where a CPU has no bf16
    predictor = Predictor(build_fresh(model, num_classes=19), device, precision, in_place=True)
    image = np.random.default_rng(0).integers(0, 256, (*_IMAGE, 3), np.uint8)
    seconds = fastest(lambda: label_image(predictor, image, [1.0], flip=False), _BUDGET)
    return seconds / (_IMAGE[0] * _IMAGE[1] / 1e6) / runtime.ranks


def seconds_an_image(
    teacher: Sequence[str], config: InferConfig, classes: ClassTable, name: str, image: NDArray[np.uint8]
) -> float:
    """Seconds in which another network labels an image, uint8 HxWx3 RGB: one rank is measured, all work at once.

    Raises:
        HmsaError: the network cannot be opened, or does not fit classes or image.
    """
    opened = open_teacher(teacher, config.passes, classes, JobContext.alone(config.runtime))
    opened.check([name])
    return fastest(lambda: opened.label(name, image), _BUDGET) / config.runtime.ranks
