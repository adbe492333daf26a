"""Multiply-accumulates of training and inference: as the model's own passes cost them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hmsa_core.config import ModelConfig
from hmsa_core.models.model import build_empty
from research.ablation.macs import inference_macs, main, training_macs

SIZE = (64, 96)
CLASSES = 5


def options(kind: str, **more: object) -> ModelConfig:
    return ModelConfig(kind=kind, trunk="hrnet_micro", **more)  # type: ignore[arg-type]


def counted(model: torch.nn.Module, call: object) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(model, torch.empty(1, 3, *SIZE, device="meta"))  # type: ignore[operator]
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("kind", ["hierarchical", "explicit"])
@pytest.mark.parametrize("scales", [None, (1.0, 2.0)])
def test_training_costs_what_the_models_own_forward_pass_costs(kind: str, scales: tuple[float, ...] | None) -> None:
    own = options(kind, train_scales=scales)
    assert training_macs(own, CLASSES, SIZE) == counted(build_empty(own, CLASSES).eval(), lambda m, x: m(x))


@pytest.mark.parametrize(
    ("kind", "mode", "scales"), [("hierarchical", "model", (0.5, 1.0, 2.0)), ("average", "model", (0.5, 1.0))]
)
def test_inference_costs_what_predict_runs(kind: str, mode: str, scales: tuple[float, ...]) -> None:
    model = build_empty(options(kind), CLASSES).eval()
    once = counted(model, lambda m, x: m.predict(x, scales))
    assert inference_macs(options(kind), CLASSES, mode, scales, SIZE, flip=False) == once
    assert inference_macs(options(kind), CLASSES, mode, scales, SIZE, flip=True) == 2 * once


def test_another_mode_leaves_the_attention_out() -> None:
    own = options("hierarchical")
    plain = options("average")
    assert inference_macs(own, CLASSES, "average", (0.5, 1.0), SIZE, flip=False) == inference_macs(
        plain, CLASSES, "model", (0.5, 1.0), SIZE, flip=False
    )
    single = inference_macs(own, CLASSES, "single", (0.5, 1.0, 2.0), SIZE, flip=False)
    assert single == inference_macs(options("single"), CLASSES, "model", (1.0,), SIZE, flip=False)


def test_the_command_answers_a_request_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = {
        "model": {"kind": "single", "trunk": "hrnet_micro"},
        "num_classes": 5,
        "crop": list(SIZE),
        "inference": [{"name": "a", "scales": [1.0], "flip": False, "mode": "model", "size": list(SIZE)}],
    }
    (tmp_path / "ask.json").write_text(json.dumps(request))
    assert main([str(tmp_path / "ask.json"), str(tmp_path / "answer.json")]) == 0
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["train_per_crop"] == 3 * answer["inference"]["a"], "a backward pass counts as two forward passes"
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
