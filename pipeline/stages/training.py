"""What the three training stages share: the disk estimate, metrics and the loss picture from the job's log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmsa_core.config import TrainConfig
from hmsa_core.engine.logs import read_log
from hmsa_core.models import read_meta
from pipeline import plots
from pipeline.stages.support import write_metrics
from pipeline.workspace import Workspace

__all__ = ["disk_estimate", "report"]

# Parameters in millions, rounded up, with OCR and attention heads; an unknown trunk counts as the largest.
_MILLIONS = {"hrnet_micro": 1, "hrnet_demo": 3, "hrnet_w18": 14, "hrnet_w32": 36, "hrnet_w48": 73, "hrnet_w64": 128}


def disk_estimate(config: TrainConfig, *, models: int = 1) -> int:
    """Bytes: weights (progress, output, DVC's cache) and kept states (weights, momentum, average) of `models` runs."""
    weights = 4 * 1_000_000 * _MILLIONS.get(config.model.trunk, max(_MILLIONS.values()))
    state = weights * (3 if config.ema_decay else 2)
    return models * (3 * weights + (config.keep_checkpoints + 1) * state)


def report(ws: Workspace, stage: str, runs: Mapping[str, Path]) -> None:
    """Write metrics/<stage>.json and plots/<stage>-loss.png from the logs of the runs (name -> work folder)."""
    curves = {name: _curve(work / "log.jsonl", "train", "loss") for name, work in runs.items()}
    scores = {name: _curve(work / "log.jsonl", "validation", "mean_iou") for name, work in runs.items()}
    write_metrics(ws, stage, {name: _figures(work, curves[name], scores[name]) for name, work in runs.items()})
    plots.lines(
        ws.path(f"plots/{stage}-loss.png"), curves, title=f"{stage}: training loss", x="step", y="loss",
        below={name: curve for name, curve in scores.items() if curve[0]}, y_below="mIoU on calibration images",
    )  # fmt: skip


def _curve(log: Path, event: str, figure: str) -> tuple[list[float], list[float]]:
    """(steps, figure) of the lines that have both; a step that was done again counts once, the last time."""
    by_step: dict[int, float] = {}
    for line in read_log(log):
        if line["event"] == event and isinstance(line.get(figure), int | float):
            by_step[line["step"]] = float(line[figure])
    steps = sorted(by_step)
    return [float(s) for s in steps], [by_step[s] for s in steps]


def _figures(
    work: Path, curve: tuple[list[float], list[float]], scores: tuple[list[float], list[float]]
) -> dict[str, Any]:
    meta = read_meta(work / "model")
    steps, losses = curve
    tail = losses[-max(1, len(losses) // 10) :]
    lineage = meta["lineage"]
    return {
        "weights_sha256": meta["weights_sha256"],
        "values": meta.get("values"),
        "last_step": int(steps[-1]) if steps else None,
        "loss": sum(tail) / len(tail) if tail else None,  # mean of the last tenth: one step says little
        "lineage_images": lineage.get("images"),
        "validation": dict(zip(map(int, scores[0]), scores[1], strict=True)) or None,  # step -> mIoU, single scale
    }
