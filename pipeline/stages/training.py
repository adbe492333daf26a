"""Disk estimate, metrics and loss picture from the job's log, for the three training stages.

Metrics hold what a second run repeats to the byte: loss parts, learning rate, pixels of each class, validation. Speed,
waiting and memory differ from run to run, so they lie outside of the outputs, in work/times/<stage>-training.json.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmsa_core.config import TrainConfig
from hmsa_core.io import atomic
from hmsa_core.models import read_meta
from hmsa_core.runtime.progress import read_log
from pipeline.jobs.support import record_skip, speed_file, write_metrics
from pipeline.report import plots
from pipeline.workspace.workspace import Workspace

Log = list[dict[str, Any]]
_LOG = logging.getLogger(__name__)
# Fields of a log line "train" that are no part of the loss.
_NOT_LOSS = {"event", "time", "step", "epoch", "lr", "images", "pseudo", "images_per_s", "data_wait", "memory_mb"}
# Parameters in millions, rounded up, with OCR and attention heads; an unknown trunk counts as the largest.
_MILLIONS = {
    "hrnet_micro": 1,
    "hrnet_tiny": 2,
    "hrnet_w18": 16,
    "hrnet_w32": 37,
    "hrnet_w48": 74,
    "hrnet_w64": 126,
    "deeplabv3_resnet50": 43,
    "deeplabv3_resnet101": 62,
}


def disk_estimate(config: TrainConfig, *, models: int = 1) -> int:
    """Bytes: weights (progress, output, DVC's cache) and kept states (weights, moments, average) of `models` runs."""
    weights = 4 * 1_000_000 * _MILLIONS.get(config.model.trunk, max(_MILLIONS.values()))
    moments = 2 if config.optimiser.algorithm == "adamw" else 1
    state = weights * (1 + moments + bool(config.ema_decay))
    return models * (3 * weights + (config.keep_checkpoints + 1) * state)


def report(ws: Workspace, stage: str, runs: Mapping[str, Path]) -> None:
    """Write metrics/<stage>.json and plots/<stage>-loss.png from the logs of the runs (name -> work folder)."""
    logs = {name: list(read_log(work / "log.jsonl")) for name, work in runs.items()}
    curves = {name: _curve(log, "train", "loss") for name, log in logs.items()}
    scores = {name: _curve(log, "validation", "mean_iou") for name, log in logs.items()}
    figures = {name: _figures(work, logs[name], curves[name], scores[name]) for name, work in runs.items()}
    write_metrics(ws, stage, figures)
    atomic.write_json(speed_file(ws, stage), {name: _speed(log) for name, log in logs.items()})
    plots.lines(
        ws.path(f"plots/{stage}-loss.png"),
        curves,
        title=f"{stage}: training loss",
        x="step",
        y="loss",
        below={name: curve for name, curve in scores.items() if curve[0]},
        y_below="mIoU on calibration images",
    )


def skip(ws: Workspace, stage: str, model: str, reason: str) -> None:
    """Record why a stage trains no model; `model` is the stage's output."""
    _LOG.info("%s: %s", stage, reason)
    record_skip(ws, model, reason)
    write_metrics(ws, stage, {"skipped": reason})
    plots.lines(ws.path(f"plots/{stage}-loss.png"), {}, title="Not trained", x="step", y="loss")


def _speed(log: Log) -> dict[str, float] | None:
    """Speed over the whole run; each log line weighs by its time (time to save and to validate is left out)."""
    lines = [line for line in log if line["event"] == "train" and line["images_per_s"]]
    seconds = [line["images"] / line["images_per_s"] for line in lines]
    if not sum(seconds):
        return None
    return {
        "images_per_s": sum(line["images"] for line in lines) / sum(seconds),
        "data_wait": sum(line["data_wait"] * s for line, s in zip(lines, seconds, strict=True)) / sum(seconds),
        "data_wait_most": max(line["data_wait"] for line in lines),
        "memory_mb": max(line["memory_mb"] for line in lines),
    }


def _curve(log: Log, event: str, figure: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the lines with this event and figure; a step that was repeated counts once, the last time."""
    by_step: dict[int, float] = {}
    for line in log:
        if line["event"] == event and isinstance(line.get(figure), int | float):
            by_step[line["step"]] = float(line[figure])
    steps = sorted(by_step)
    return [float(s) for s in steps], [by_step[s] for s in steps]


def _figures(
    work: Path, log: Log, curve: tuple[list[float], list[float]], scores: tuple[list[float], list[float]]
) -> dict[str, Any]:
    meta = read_meta(work / "model")
    steps, losses = curve
    tail = losses[-max(1, len(losses) // 10) :]
    lineage = meta["lineage"]
    trained = [line for line in log if line["event"] == "train"]
    pixels = [line["pixels"] for line in log if line["event"] == "epoch"]
    return {
        "weights_sha256": meta["weights_sha256"],
        "values": meta.get("values"),
        "last_step": int(steps[-1]) if steps else None,
        "loss": sum(tail) / len(tail) if tail else None,  # mean of the last tenth: one step says little
        "loss_parts": _parts(trained[-max(1, len(trained) // 10) :]),  # the same of its parts
        "lr": trained[-1]["lr"] if trained else None,  # of the last step
        "pixels": pixels[-1] if pixels else None,  # of each class in the crops of the last epoch
        "lineage_images": lineage.get("images"),
        "validation": dict(zip(map(int, scores[0]), scores[1], strict=True)) or None,  # step -> mIoU, single scale
    }


def _parts(lines: Log) -> dict[str, float]:
    names = sorted({name for line in lines for name in line} - _NOT_LOSS - {"loss"})
    values = {name: [line[name] for line in lines if line.get(name) is not None] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items() if found}
