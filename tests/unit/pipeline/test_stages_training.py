"""A training's log becomes DVC metrics that repeat to the byte, and figures of speed next to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hmsa_core.config import ModelConfig, OptimiserConfig, TrainConfig
from hmsa_core.io import atomic
from hmsa_core.models.model import build_empty
from pipeline.stages import training
from research.tests.ablations import bare_workspace
from tests.support.checkpoints import checkpoint

LINE = {
    "event": "train",
    "epoch": 0,
    "images": 40,
    "pseudo": 20,
    "memory_mb": 500.0,
    "bce": 0.4,
    "rmi": 0.8,
    "aux": 1.0,
}


def finished_run(folder: Path, speed: float) -> Path:
    """A work folder with a log of twenty lines, the last two with other losses."""
    checkpoint(folder / "model")
    lines = [
        LINE
        | {
            "step": 10 * i,
            "time": i / speed,
            "lr": 0.1 - i / 1000,
            "loss": 2.0 if i < 19 else 1.0,
            "bce": 0.4 if i < 19 else 0.2,
            "images_per_s": speed if i < 20 else 3 * speed,
            "data_wait": 0.02 if i < 20 else 0.06,
        }
        for i in range(1, 21)
    ]
    lines.append({"event": "epoch", "step": 200, "epoch": 0, "pixels": {"road": 9, "car": 1}})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_metrics_hold_loss_parts_rate_and_classes_and_speed_lies_next_to_them(tmp_path: Path) -> None:
    ws = bare_workspace(tmp_path / "ws")
    training.report(ws, "teacher-train", {"teacher": finished_run(tmp_path / "one", 10.0)})
    metrics = ws.path("metrics/teacher-train.json").read_bytes()
    found = json.loads(metrics)["teacher"]
    assert found["loss"] == pytest.approx(1.0)
    assert found["loss_parts"] == {"aux": 1.0, "bce": pytest.approx(0.2), "rmi": pytest.approx(0.8)}
    assert found["lr"] == pytest.approx(0.08)
    assert found["pixels"] == {"road": 9, "car": 1}
    speed = atomic.read_json(training.speed_file(ws, "teacher-train"))["teacher"]
    seconds = 19 * 4 + 4 / 3
    assert speed["images_per_s"] == pytest.approx(800 / seconds)
    assert speed["data_wait"] == pytest.approx((0.02 * 76 + 0.06 * 4 / 3) / seconds)
    assert (speed["data_wait_most"], speed["memory_mb"]) == (0.06, 500.0)

    training.report(ws, "teacher-train", {"teacher": finished_run(tmp_path / "two", 20.0)})
    assert ws.path("metrics/teacher-train.json").read_bytes() == metrics, "a faster machine changes no metric"
    assert atomic.read_json(training.speed_file(ws, "teacher-train"))["teacher"] != speed


@pytest.mark.parametrize("trunk", training._MILLIONS)
def test_the_disk_estimate_knows_the_size_of_every_trunk(trunk: str) -> None:
    model = build_empty(ModelConfig(trunk=trunk), 66)
    weights = 4 * sum(p.numel() for p in model.parameters())
    config = TrainConfig(model=ModelConfig(trunk=trunk), keep_checkpoints=2, ema_decay=0.0)
    copies = 3 + 3 * 2  # progress, output, DVC's cache; two kept states and one in the making, each with momentum
    assert weights <= training.disk_estimate(config) / copies <= weights + 4_000_000
    adamw = config.model_copy(update={"optimiser": OptimiserConfig(algorithm="adamw")})
    assert training.disk_estimate(adamw) / training.disk_estimate(config) == pytest.approx(12 / 9), "two moments"
