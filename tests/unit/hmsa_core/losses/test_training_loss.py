"""The training loss: every option moves it, parts are named, weights are those of the recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from hmsa_core.config import LossConfig
from hmsa_core.losses import cross_entropy, released_bce, rmi_loss, training_loss
from hmsa_core.models import ModelOutput


@pytest.fixture
def output() -> ModelOutput:
    generator = torch.Generator().manual_seed(0)
    full = [torch.randn(2, 5, 32, 48, generator=generator) for _ in range(3)]
    low = torch.randn(2, 5, 16, 24, generator=generator)
    return ModelOutput(full[0], full[1], {0.5: low, 1.0: full[2]}, {})


@pytest.fixture
def labels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 5, (2, 4, 6), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    blocks[:, 3:9, 10:30] = 255
    return blocks


def test_defaults_are_the_papers(output: ModelOutput, labels: torch.Tensor) -> None:
    loss = training_loss(output, labels, LossConfig())
    expected = rmi_loss(output.logits, labels) + 0.4 * cross_entropy(output.aux_logits, labels)
    torch.testing.assert_close(loss.total, expected)
    assert set(loss.parts) == {"main", "bce", "rmi", "aux"}
    torch.testing.assert_close(loss.parts["main"], 0.5 * loss.parts["bce"] + 0.5 * loss.parts["rmi"])


def test_the_released_recipe_adds_each_scale(output: ModelOutput, labels: torch.Tensor) -> None:
    loss = training_loss(output, labels, LossConfig(aux="released_bce", per_scale_weight=0.05))
    low = torch.nn.functional.interpolate(output.scale_logits[0.5], size=(32, 48), mode="bilinear")
    expected = (
        rmi_loss(output.logits, labels)
        + 0.4 * released_bce(output.aux_logits, labels)
        + 0.05 * (released_bce(low, labels) + released_bce(output.scale_logits[1.0], labels))
    )
    torch.testing.assert_close(loss.total, expected)
    assert {"scale_0.5", "scale_1"} <= set(loss.parts)
    # Single scales are judged by cross-entropy where the main loss is.
    loss = training_loss(output, labels, LossConfig(main="cross_entropy", per_scale_weight=0.05))
    torch.testing.assert_close(loss.parts["scale_1"], cross_entropy(output.scale_logits[1.0], labels))


@pytest.mark.parametrize(
    "option",
    [
        {"main": "cross_entropy"},
        {"main": "released_bce"},
        {"aux": "released_bce"},
        {"aux": "rmi"},
        {"aux_weight": 0.0},
        {"aux_weight": 1.0},
        {"per_scale_weight": 0.05},
        {"rmi_ignore": "masked"},
    ],
)
def test_every_option_and_another_ignored_label_change_the_loss(
    output: ModelOutput, labels: torch.Tensor, option: dict[str, Any]
) -> None:
    default = training_loss(output, labels, LossConfig()).total
    changed = training_loss(output, labels, LossConfig(**option)).total
    assert torch.isfinite(changed)
    assert abs(changed - default) > 1e-4
    assert abs(training_loss(output, labels, LossConfig(), ignore_index=3).total - default) > 1e-4
    with pytest.raises(ValidationError, match="did you mean rmi"):
        LossConfig(main="rmj")
    with pytest.raises(ValidationError, match="choose one of cross_entropy, jaccard, released_bce, rmi"):
        LossConfig(aux="none")


@pytest.mark.parametrize("main", ["rmi", "cross_entropy", "jaccard", "released_bce"])
def test_a_pixels_weight_multiplies_its_gradient_under_every_loss(
    output: ModelOutput, labels: torch.Tensor, main: str
) -> None:
    options = LossConfig(main=main, per_scale_weight=0.05)
    weight = torch.where(torch.arange(labels.shape[-1]) % 2 == 0, 1.0, 0.25).expand(labels.shape)
    gradients = []
    for given in (None, weight):
        scores = output.logits.detach().clone().requires_grad_()
        found = training_loss(
            ModelOutput(scores, output.aux_logits, output.scale_logits, {}), labels, options, weight=given
        )
        (gradient,) = torch.autograd.grad(found.total, scores)
        gradients.append((gradient, found.total.detach()))
    (plain, value), (weighed, same) = gradients
    assert torch.equal(value, same)
    assert torch.equal(weighed, plain * weight.unsqueeze(1))
    assert plain.abs().max() > 0
