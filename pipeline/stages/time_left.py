"""How long the chain will still take: the work of each stage in megapixels through a network, and the speed so far.

An estimate for people: no result depends on it. Stages without a network count as nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from hmsa_core.config import InferConfig, TrainConfig
from hmsa_core.data.index import Index, Sample
from hmsa_core.io import atomic
from hmsa_core.spec import EvaluationSetting
from pipeline.stages import STAGES
from pipeline.stages.support import INDEX
from pipeline.workspace import Workspace

_BACKWARD = 3  # passes that a training pass costs: forward, and twice that backward
_TOLD_FROM = 0.15  # share of the work that has to be done before its speed says something


def seconds_left(ws: Workspace, after: str) -> float | None:
    """Seconds from the end of stage `after` to the end of the chain; None while too little is done to tell."""
    if not ws.path(INDEX).exists():  # a stage that needs no images was run by hand
        return None
    work = megapixels(ws)
    ended, ahead = STAGES[: STAGES.index(after) + 1], STAGES[STAGES.index(after) + 1 :]
    times = [ws.path(f"work/times/{stage}.json") for stage in ended if work[stage]]
    if not all(path.exists() for path in times):
        return None
    done, left = sum(work[stage] for stage in ended), sum(work[stage] for stage in ahead)
    if not done or done < _TOLD_FROM * (done + left):
        return None
    seconds = sum(float(atomic.read_json(path)["seconds"]) for path in times)
    return left * seconds / done


def megapixels(ws: Workspace) -> dict[str, float]:
    """Stage -> megapixels that it sends through a network, scales and mirror images included."""
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
    model = config.model
    scales = model.train_scales or ((model.low_scale, 1.0) if model.kind == "hierarchical" else (1.0,))
    crops = config.epochs * (config.epoch_samples or images) if images else 0
    return _BACKWARD * crops * config.crop[0] * config.crop[1] * sum(scale**2 for scale in scales)


def _labelling(samples: Sequence[Sample], config: InferConfig | EvaluationSetting) -> float:
    passes = sum(scale**2 for scale in config.scales) * (2 if config.flip else 1)
    return passes * sum(s.height * s.width for s in samples)
