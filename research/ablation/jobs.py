"""The jobs behind a row: a training, an evaluation of several rows at once, the count of multiply-accumulates.

Trainings and evaluations are those of the stages, under the same keys: a killed one goes on, a finished one is found.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmsa_core.config import ModelConfig, RuntimeConfig, TrainConfig
from hmsa_core.data.index import Index
from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, HmsaError
from hmsa_core.io.process import run_child
from hmsa_core.runtime.progress import read_log
from hmsa_core.spec import EvaluationSetting
from pipeline.jobs import launcher, measure
from pipeline.jobs.nodes import Meeting
from pipeline.jobs.support import evaluate_model, fine_data, labelling_teacher, role_index, train_model
from pipeline.stages import student_train
from pipeline.workspace import keys
from pipeline.workspace.workspace import Workspace
from research.ablation.labels import WORK, MadeLabels
from research.ablation.plan import Training


@dataclass(frozen=True)
class Trained:
    """A finished checkpoint, the crops that it saw, and seconds of training (starting and saving left out)."""

    checkpoint: Path
    images_seen: int
    seconds: float


@dataclass(frozen=True)
class Evaluated:
    """The folder of an evaluate job, the number of judged images, and seconds a row."""

    folder: Path
    images: int
    seconds: float


def start_of(ws: Workspace, training: Training) -> Path | None:
    """Checkpoint that a training starts from; None = the trunk's own weights, or from scratch.

    Raises:
        ConfigError: it is not there yet.
    """
    if training.start == "teacher":
        return own_teacher(ws) if ws.params.student_train.init == "teacher" else student_train.start_of(ws)
    pretrained = ws.path("models/pretrain")
    if (pretrained / "model.json").exists():
        return pretrained
    if (pretrained / "skipped.json").exists():
        return None
    raise ConfigError(f"{pretrained}: no checkpoint yet", hint="run with --prepare, or `dvc repro teacher-pretrain`")


def own_teacher(ws: Workspace) -> Path:
    """The teacher that this workspace trained; a promoted one would make other labels than a fresh clone's."""
    if ws.is_promoted():
        raise ConfigError(
            "models/current.json names a registered model as the teacher: ablations compare the workspace's own",
            hint="use a workspace in which nothing was promoted",
        )
    return ws.teacher()


def train(ws: Workspace, training: Training, config: TrainConfig, labels: MadeLabels | None, seed: int) -> Trained:
    """Train (or go on, or find trained)."""
    stage = training.recipe.replace("_", "-")
    fine = fine_data(ws)
    with ws.lock(stage):  # the stage's own trainings lie in the same folder
        work = train_model(
            ws,
            stage,
            f"ablation-{_name(training)}-seed{seed}",
            config,
            fine,
            pseudo=(labels.data,) if labels else (),
            init_from=start_of(ws, training),
            teacher=labelling_teacher(ws) if labels else None,
        )
    # A finished training is never resumed: its states only take up the disk.
    atomic.remove_tree(work / "state")
    lines = [line for line in read_log(work / "log.jsonl") if line["event"] == "train"]
    seconds = sum(line["images"] / line["images_per_s"] for line in lines)
    return Trained(work / "model", sum(line["images"] for line in lines), round(seconds, 1))


def _name(training: Training) -> str:
    labels = training.labels.to_json() if training.labels else None
    return atomic.digest([training.recipe, training.start, training.changes, labels])[:8]


def evaluate(
    ws: Workspace, name: str, checkpoint: Path, settings: Sequence[EvaluationSetting], runtime: RuntimeConfig
) -> Evaluated:
    """Score a checkpoint on the report images that it did not learn from, under the settings of several rows."""
    samples = measure.fine_samples(ws, "report")
    if not samples:
        raise ConfigError("no image has the role `report`: nothing can be compared", hint="see data.roles")
    names = measure.judge(ws, samples, {name: checkpoint}).names
    began = time.monotonic()
    with ws.lock("evaluate"):
        job, index = f"ablation-{name}", role_index(ws, "report")
        work = evaluate_model(ws, "evaluate", job, checkpoint, index, names, tuple(settings), runtime, details=True)
    # The rows of a job share its runs of the network: each takes its part of the time.
    return Evaluated(work, len(names), round((time.monotonic() - began) / len(settings), 1))


def count_macs(
    ws: Workspace, model: ModelConfig, crop: tuple[int, int], settings: Sequence[EvaluationSetting]
) -> tuple[int, dict[str, int]]:
    """Multiply-accumulates of one training crop, and of one report image under each setting (a process with torch)."""
    size = _image_size(ws)
    request = {
        "model": model.model_dump(mode="json"),
        "num_classes": Index.load(role_index(ws, "report")).classes.num_classes,
        "crop": list(crop),
        "inference": [
            {"name": s.name, "scales": list(s.scales), "flip": s.flip, "mode": s.mode, "size": list(size)}
            for s in settings
        ],
    }
    folder, key = ws.work(WORK) / "macs", keys.work_key(request)
    request_file, answer = folder / f"{key}.request.json", folder / f"{key}.json"
    if not answer.exists():
        atomic.write_json(request_file, request)
        command = [sys.executable, "-m", "research.ablation.macs", str(request_file), str(answer)]
        environment = launcher.job_environment(RuntimeConfig(device="cpu"), os.environ, Meeting())
        with ws.job():
            status = run_child(command, stop=ws.stop, env=environment)
        if status != 0:
            raise HmsaError(f"counting multiply-accumulates ended with status {status}; its output is above")
    counted: dict[str, Any] = atomic.read_json(answer)
    return counted["train_per_crop"], counted["inference"]


def _image_size(ws: Workspace) -> tuple[int, int]:
    """The most frequent (height, width) of the report images."""
    sizes = Counter((s.height, s.width) for s in measure.fine_samples(ws, "report"))
    return sizes.most_common(1)[0][0]
