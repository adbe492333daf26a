"""Training loss, gradients and batch-norm statistics of the released network, as recorded."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from hmsa_core.config import LossConfig
from hmsa_core.losses import training_loss
from hmsa_core.models.model import ModelOutput, MultiScaleModel, as_kind
from tests.reference import golden
from tests.unit.hmsa_core.models.conftest import filled_model

FROZEN = {k: v for k, v in golden.record("model_loss_frozen_bn").items() if k.startswith("fp32")}
STEP = golden.record("model_train_step")


@pytest.fixture(scope="module")
def frozen_outputs(w48: MultiScaleModel) -> dict[str, ModelOutput]:
    image = golden.image(1234, (1, 3, 128, 256))
    with torch.no_grad():
        return {"two_scale": w48(image), "plain": as_kind(w48, "single")(image)}


@pytest.mark.parametrize("name", FROZEN)
def test_training_loss_with_frozen_norms(frozen_outputs: dict[str, ModelOutput], name: str) -> None:
    match = re.fullmatch(r"fp32/(two_scale|plain)/(rmi|ce)(?:/supervised([\d.]+))?/aux_rmi(True|False)", name)
    assert match
    net, criterion, supervised, aux_rmi = match.groups()
    aux = {"ce": "cross_entropy", "rmi": "rmi" if aux_rmi == "True" else "released_bce"}[criterion]
    main = "rmi" if criterion == "rmi" else "cross_entropy"
    options = LossConfig(main=main, aux=aux, per_scale_weight=float(supervised or 0))
    labels = torch.from_numpy(golden.blocky_labels(4321, 1, 128, 256, 19))
    assert training_loss(frozen_outputs[net], labels, options).total.item() == pytest.approx(FROZEN[name], rel=1e-5)


def _two_steps(dtype: torch.dtype) -> tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    model = filled_model("hierarchical", dropout=0.0, top_attention="released").to(dtype).train()
    options = LossConfig(aux="released_bce", per_scale_weight=0.05)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images = golden.image(2468, (2, 3, 128, 256)).to(dtype)
    labels = torch.from_numpy(golden.blocky_labels(2469, 2, 128, 256, 19))
    losses, gradients, statistics = [], {}, {}
    for step in range(2):
        output = model(images)
        if step == 0:
            statistics = {
                key: value.clone()
                for key, value in model.state_dict().items()
                if key.startswith(("backbone", "ocr", "scale"))
            }
        loss = training_loss(output, labels, options).total
        losses.append(loss.item())
        optimiser.zero_grad()
        if step == 0:
            loss.backward()
            gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
            optimiser.step()
    return losses, gradients, statistics


def _check(record: dict[str, Any], dtype: torch.dtype, norms: float, second_loss: float) -> None:
    losses, gradients, statistics = _two_steps(dtype)
    assert losses[0] == pytest.approx(record["loss_two_steps"][0], rel=1e-5)
    assert losses[1] == pytest.approx(record["loss_two_steps"][1], rel=second_loss)
    for key, norm in record["grad_norm"].items():
        assert gradients[key].double().norm().item() == pytest.approx(norm, rel=norms), key
    for key, first in record["grad_first4"].items():
        scale = gradients[key].double().norm().item()
        assert gradients[key].flatten()[:4].tolist() == pytest.approx(first, rel=norms, abs=norms * scale), key
    for key, entry in record["running_stats_after_forward_1"].items():
        if not isinstance(entry, dict):
            assert statistics[key].item() == entry, key
            continue
        assert statistics[key].double().norm().item() == pytest.approx(entry["l2"], rel=1e-5), key
        assert statistics[key].flatten()[:8].tolist() == pytest.approx(entry["first8"], rel=1e-4, abs=1e-5), key


@pytest.mark.chain
def test_a_true_training_step_moves_the_network_as_recorded() -> None:
    """Losses of two steps, gradient norms, and each batch norm updated twice: 0.5x first, then 1x."""
    _check(STEP["fp32"], torch.float32, norms=5e-3, second_loss=2e-3)


@pytest.mark.slow
def test_a_true_training_step_in_double_precision() -> None:
    _check(STEP["fp64"], torch.float64, norms=1e-6, second_loss=1e-6)
