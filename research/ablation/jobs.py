"""The jobs behind a cell, in keyed work folders: a training, an evaluation of several rows at once, the count of MACs.

A killed one goes on from its own progress; one that is finished under its key is found and not done again.
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

from hmsa_core.config import ModelConfig, RuntimeConfig, TrainConfig, key_material
from hmsa_core.data.index import Index
from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, HmsaError
from hmsa_core.io.process import run_child
from hmsa_core.runtime.progress import read_log
from hmsa_core.spec import EvaluateSpec, EvaluationSetting, Selection, TrainSpec
from pipeline import keys, launcher
from pipeline.stages import precision
from pipeline.stages.support import (
    INDEX,
    fine_data,
    provenance,
    role_index,
    root_paths,
    run_job,
    samples_digest,
    weights_of,
)
from pipeline.workspace import Workspace
from research.ablation.code import source_digests
from research.ablation.labels import WORK, MadeLabels
from research.ablation.plan import Training

__all__ = ["Evaluated", "Trained", "count_macs", "evaluate", "start_of", "train"]

_STAGES = {"teacher_train": "teacher-train", "student_train": "student-train"}


@dataclass(frozen=True)
class Trained:
    """A finished checkpoint and what it cost."""

    checkpoint: Path
    figures: dict[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """The folder of an evaluate job, and what was judged."""

    folder: Path
    figures: dict[str, Any]


def start_of(ws: Workspace, training: Training) -> Path | None:
    """Checkpoint that a training starts from; None = from scratch (the profile has no pretraining set).

    Raises:
        ConfigError: it is not there yet.
    """
    if training.start == "teacher":
        return own_teacher(ws)
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
    fine = fine_data(role_index(ws, "learn"), ws.path(f"{INDEX}/centroids-target.parquet"))
    index = Index.load(fine.selection.index)
    learning = index.select(roles=fine.selection.roles, kinds=fine.selection.kinds)
    start = start_of(ws, training)
    material: dict[str, Any] = {
        "config": key_material(config),
        "classes": index.classes.digest(),
        "fine": samples_digest(learning),
        "centroids": atomic.sha256_file(fine.centroids),
        "start": weights_of(start) if start else None,
        "labels": labels.figures["digest"] if labels else None,
        "code": atomic.digest(source_digests(("train",))),
    }
    work = keys.open_work(ws.work(WORK), f"train-{_name(training)}-seed{seed}", material)
    model = work / "model"
    if not (model / "model.json").exists():
        run_job(
            ws,
            TrainSpec(
                work=work,
                roots=root_paths(ws),
                stage=_STAGES[training.recipe],
                config=config,
                fine=fine,
                pseudo=labels.data if labels else None,
                init_from=start,
                teacher=own_teacher(ws) if labels else None,
                lineage=provenance(_STAGES[training.recipe]),
            ),
        )
    # A finished training is never resumed: its states only take up the disk.
    atomic.remove_tree(work / "state")
    figures = _training_figures(work, config) | {
        "fine": material["fine"],
        "start": material["start"],
        "labels": material["labels"],
        "weights_sha256": weights_of(model),
    }
    return Trained(model, figures)


def _name(training: Training) -> str:
    labels = training.labels.to_json() if training.labels else None
    return atomic.digest([training.recipe, training.start, training.changes, labels])[:8]


def _training_figures(work: Path, config: TrainConfig) -> dict[str, Any]:
    """Images seen, steps, seconds of training (saving and starting left out), device: from the job's own log."""
    images, pseudo, seconds, steps, device = 0, 0, 0.0, 0, "unknown"
    for line in read_log(work / "log.jsonl"):
        if line["event"] == "start":
            device = str(line["device"])
        if line["event"] != "train":
            continue
        images, pseudo, steps = images + line["images"], pseudo + line["pseudo"], line["step"]
        seconds += line["images"] / line["images_per_s"]
    return {
        "images_seen": images,
        "pseudo_seen": pseudo,
        "steps": steps,
        "epochs": config.epochs,
        "seconds": round(seconds, 1),
        "device": device,
        "ranks": config.runtime.ranks,
    }


def evaluate(
    ws: Workspace, name: str, checkpoint: Path, settings: Sequence[EvaluationSetting], runtime: RuntimeConfig
) -> Evaluated:
    """Score a checkpoint on the report images that it did not learn from, under the settings of several rows."""
    samples = precision.fine_samples(ws, "report")
    if not samples:
        raise ConfigError("no image has the role `report`: nothing can be compared", hint="see data.roles")
    names = precision.judge(ws, samples, {name: checkpoint}).names
    index = role_index(ws, "report")
    chosen = Index.load(index).select(names=names)
    material = {
        "weights": weights_of(checkpoint),
        "images": samples_digest(chosen),
        "details": True,
        "settings": [s.model_dump(mode="json") for s in settings],
        "runtime": key_material(runtime),
        "code": atomic.digest(source_digests(("evaluate",))),
    }
    work = keys.open_work(ws.work(WORK), f"evaluate-{name}", material)
    seconds = work / "seconds.json"
    if not (work / "summary.json").exists():
        spec = EvaluateSpec(
            work=work,
            roots=root_paths(ws),
            checkpoint=checkpoint,
            settings=tuple(settings),
            runtime=runtime,
            selection=Selection(index=index, names=names),
            details=True,
            lineage=provenance("evaluate"),
        )
        atomic.write_json(seconds, {"seconds": _timed(ws, spec)})
    figures = {
        "images": len(names),
        "left_out": len(samples) - len(names),
        "names": atomic.digest(list(names))[:16],
        # The rows of a job share its runs of the network: each takes its part of the time.
        "seconds": atomic.read_json(seconds)["seconds"] / len(settings) if seconds.exists() else None,
    }
    return Evaluated(work, figures)


def _timed(ws: Workspace, spec: EvaluateSpec) -> float:
    began = time.monotonic()
    run_job(ws, spec)
    return round(time.monotonic() - began, 1)


def image_size(ws: Workspace) -> tuple[int, int]:
    """The most frequent (height, width) of the report images."""
    sizes = Counter((s.height, s.width) for s in precision.fine_samples(ws, "report"))
    return sizes.most_common(1)[0][0]


def count_macs(
    ws: Workspace, model: ModelConfig, crop: tuple[int, int], settings: Sequence[EvaluationSetting]
) -> dict[str, Any]:
    """Multiply-accumulates of one training crop and of one report image under each setting (a process with torch)."""
    size = image_size(ws)
    ways = {_way(s): s for s in settings}  # rows that run the same model the same way are counted once
    request = {
        "model": model.model_dump(mode="json"),
        "num_classes": Index.load(role_index(ws, "report")).classes.num_classes,
        "crop": list(crop),
        "inference": [
            {"name": way, "scales": list(s.scales), "flip": s.flip, "mode": s.mode, "size": list(size)}
            for way, s in sorted(ways.items())
        ],
    }
    folder = ws.work(WORK) / "macs"
    key = keys.work_key({"request": request, "code": source_digests(("train",))})
    asked, answer = folder / f"{key}.request.json", folder / f"{key}.json"
    if not answer.exists():
        atomic.write_json(asked, request)
        command = [sys.executable, "-m", "hmsa_core.inference.macs", str(asked), str(answer)]
        environment = launcher.job_environment(RuntimeConfig(device="cpu"), os.environ)
        with ws.job():
            status = run_child(command, stop=ws.stop, env=environment, own_group=True)
        if status != 0:
            raise HmsaError(f"counting multiply-accumulates ended with status {status}; its output is above")
    counted = atomic.read_json(answer)
    inference = {s.name: counted["inference"][_way(s)] for s in settings}
    return {"train_per_crop": counted["train_per_crop"], "inference": inference, "image": list(size)}


def _way(setting: EvaluationSetting) -> str:
    """What of a setting its cost depends on."""
    scales = ",".join(f"{s:g}" for s in sorted(setting.scales))
    return f"{setting.mode} {{{scales}}}{' flip' if setting.flip else ''}"
