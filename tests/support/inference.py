"""Small models whose labels vary, and jobs that run them in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hmsa_core import models
from hmsa_core.config import InferConfig, RuntimeConfig
from hmsa_core.inference.evaluation import evaluate_job
from hmsa_core.inference.folder import infer_job
from hmsa_core.inference.network.predictor import Predictor
from hmsa_core.io.process import StopRequest
from hmsa_core.models.model import MultiScaleModel
from hmsa_core.runtime.ranks import JobContext, Ranks
from hmsa_core.spec import EvaluateSpec, EvaluationSetting, InferSpec, JobSpec, Selection, TrainSpec
from hmsa_core.training import run as training
from tests.support.training import CLASSES, class_table

CPU = RuntimeConfig(device="cpu", precision="fp32", threads=1)


def small_model(kind: str = "hierarchical", classes: int = len(CLASSES), seed: int = 0) -> MultiScaleModel:
    """hrnet_micro with lively batch norms, and heads scaled so that every class wins somewhere."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = models.build(kind, trunk="hrnet_micro", num_classes=classes, head="released").eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.8, 1.2)
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(0, 0.1)
        scores = model.forward_scale(torch.randn(1, 3, 64, 96))
        head = model.ocr.cls_head
        spread = scores.logits.std(dim=(0, 2, 3), keepdim=True)
        head.weight.mul_(2.0 / spread.reshape(-1, 1, 1, 1))
        head.bias.sub_(scores.logits.mean(dim=(0, 2, 3))).mul_(2.0 / spread.flatten())
        if model.config.has_attention:
            attention = model.scale_attn.conv2
            attention.weight.mul_(2.0 / attention.weight.abs().sum().clamp(min=1e-3) * 30)
    return model


def save_model(path: Path, model: MultiScaleModel | None = None, **inference: Any) -> Path:
    model = model or small_model()
    table = class_table() if model.num_classes == len(CLASSES) else None
    models.save(model, path, class_table=table.to_json() if table else None, lineage={}, inference=inference or None)
    return path


def sizes_run(predictor: Predictor) -> list[tuple[int, ...]]:
    """A list that grows by the size of each image that the network runs from now on."""
    sizes: list[tuple[int, ...]] = []
    inner = predictor.run
    predictor.run = lambda images, attention: (sizes.append(tuple(images.shape[2:])), inner(images, attention))[1]
    return sizes


def noise_image(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth noise: labels and attention of a small model vary over it."""
    import cv2

    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8)
    return np.ascontiguousarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))


def infer_spec(data: Path, work: Path, checkpoint: Path, **changes: Any) -> InferSpec:
    index = changes.pop("index", "toy")
    selection = Selection(index=data / f"{index}.parquet", **changes.pop("selection", {}))
    values = {"images_per_shard": 2, "scales": (0.5, 1.0), "flip": True, "runtime": CPU} | changes
    return InferSpec(
        work=work,
        roots={"target": data},
        teacher=checkpoint,
        selection=selection,
        config=InferConfig(**values),
        lineage={"licences": {"toy": "none"}},
    )


def evaluate_spec(
    data: Path, work: Path, checkpoint: Path, settings: Sequence[EvaluationSetting], **changes: Any
) -> EvaluateSpec:
    index = changes.pop("index", "toy")
    return EvaluateSpec(
        work=work,
        roots={"target": data},
        checkpoint=checkpoint,
        runtime=CPU,
        settings=tuple(settings),
        selection=Selection(index=data / f"{index}.parquet", **changes.pop("selection", {})),
        **changes,
    )


def job_context(work: Path, ranks: Ranks | None = None, stop: StopRequest | None = None) -> JobContext:
    torch.set_num_threads(1)
    ranks = ranks or Ranks(0, 1, torch.device("cpu"))
    return JobContext.of(work, ranks, CPU, stop or StopRequest())


class StopAfter(StopRequest):
    """Is set from the n-th time on that it is asked."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


def label_here(patch: pytest.MonkeyPatch) -> None:
    """`autolabel label` runs its job in this process; in one of its own: tests/chain."""
    here = lambda spec, *, stop: infer_job.run(spec, job_context(spec.work, stop=stop))  # noqa: E731
    patch.setattr("pipeline.jobs.launcher.run_job", here)


def run_job_here(_ws: Any, spec: JobSpec) -> None:
    """In place of `pipeline.jobs.support.run_job`: the job runs in this process."""
    kinds: dict[type, Any] = {InferSpec: infer_job, EvaluateSpec: evaluate_job, TrainSpec: training}
    kinds[type(spec)].run(spec, job_context(spec.work))
