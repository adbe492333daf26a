"""Region mutual information: recorded values and gradients of the released code, in both precisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hmsa_core.config import LossConfig
from hmsa_core.losses import cross_entropy, released_bce, rmi, rmi_loss
from tests.reference import golden

RECORD = golden.record("loss_rmi")
CONFIG = RECORD["_config"]
CASES = [name for name, value in RECORD.items() if not name.startswith("_") and "fp64" in value]


def make(config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels and one-hot labels by formula."""
    shape = (config["n"], config["c"], config["h"], config["w"])
    labels = golden.blocky_labels(config["seed"], shape[0], *shape[2:], shape[1], config.get("ignore", 255))
    onehot = np.moveaxis(np.eye(256)[labels][..., : shape[1]], 3, 1)
    noise = golden.pcg(config["seed"] + 500).standard_normal(shape)
    return (2 * noise + 2 * onehot - 1).astype(np.float32), labels, onehot


def case(name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Logits, labels and ignore index of a recorded case."""
    if name in CONFIG["more"]:
        config = CONFIG["more"][name]
        logits, labels, _ = make(config)
        return logits, labels, config.get("ignore", 255)
    logits, labels, onehot = make(CONFIG["main"])
    if name == "second_image_ignored":
        labels[1] = 255
    if name in ("main", "second_image_ignored"):
        return logits, labels, 255
    logits, labels, onehot = logits[:1], labels[:1], onehot[:1]
    if name == "all_ignored":
        labels[:] = 255
    elif name == "class3_absent":
        labels[labels == 3] = 255
    elif name == "one_class_only":
        labels[:] = 0
    elif name == "zeros":
        logits[:] = 0
    elif name == "extreme_correct_50":
        logits = np.where(onehot > 0, 50, -50).astype(np.float32)
    elif name == "extreme_random_sign_50":
        draw = golden.pcg(CONFIG["main"]["seed"] + 900).random(logits.shape)
        logits = np.where(draw < 0.5, -50, 50).astype(np.float32)
    else:
        raise AssertionError(f"unknown case {name}")
    return logits, labels, 255


def tensors(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    logits, labels, ignore = case(name)
    return torch.from_numpy(logits).to(dtype).requires_grad_(), torch.from_numpy(labels), ignore


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_the_recorded_ones(name: str, precision: str) -> None:
    logits, labels, ignore = tensors(name, torch.float64 if precision == "fp64" else torch.float32)
    loss = rmi.loss(logits, labels, LossConfig(rmi_ignore="released"), ignore)
    (gradient,) = torch.autograd.grad(loss.total, logits)

    recorded = RECORD[name][precision]
    tight = 1e-6 if precision == "fp64" else 1e-5
    for ours, key in ((loss.total, "total"), (loss.parts["bce"], "bce"), (loss.parts["rmi"], "rmi")):
        assert ours.item() == pytest.approx(recorded[key], rel=tight, abs=1e-12)
    assert torch.isfinite(gradient).all()
    whole = gradient.double().numpy()
    # With every pixel right by 50 the gradient is rounding noise of 1e-26; the released fp32 is off by 6e-5 too.
    loose = 1e-4 if (name, precision) == ("extreme_correct_50", "fp32") else tight
    assert np.linalg.norm(whole) == pytest.approx(recorded["grad_total"]["l2"], rel=max(loose, 1e-6))

    def check(mine: np.ndarray, theirs: np.ndarray) -> None:
        if name == "extreme_correct_50":  # at |logit| = 50 the two halves of p (1 - p) differ in fp32
            assert golden.relative_l2(mine, theirs) <= (1e-6 if precision == "fp64" else 1e-3)
        else:
            assert golden.relative_l2(mine, theirs) <= tight

    golden.compare("loss_rmi", f"{name}/grad_fp64", RECORD[name]["stored_grad_slice"], whole, check)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_each_class_released_bce_and_cross_entropy_are_the_recorded_ones(name: str) -> None:
    logits, labels, ignore = tensors(name, torch.float64)
    recorded = RECORD[name]["fp64"]
    (gradient,) = torch.autograd.grad(rmi_loss(logits, labels, ignore_index=ignore), logits)
    norms = gradient.transpose(0, 1).flatten(1).norm(dim=1)
    assert norms.tolist() == pytest.approx(recorded["grad_l2_per_class"], rel=1e-6, abs=1e-30)
    bce = released_bce(logits, labels, ignore_index=ignore)
    assert bce.item() == pytest.approx(recorded["bce"], rel=1e-6, abs=1e-12)
    (gradient,) = torch.autograd.grad(bce, logits)
    assert gradient.norm().item() == pytest.approx(recorded["grad_bce_only"]["l2"], rel=1e-6, abs=1e-20)
    ours = cross_entropy(logits, labels, ignore_index=ignore).item()
    if name == "all_ignored":
        assert ours == 0.0  # released: not a number
    else:
        assert ours == pytest.approx(RECORD[name]["cross_entropy_mean_fp64"], rel=1e-6)


def test_the_weighted_recipes_add_up_as_recorded() -> None:
    record = golden.record("loss_weighted")
    config = record["_config"]
    main, labels, _ = make(config)
    shape = main.shape
    by_name = {"main": main}
    for offset, name in enumerate(("aux", "lo", "hi")):
        noise = golden.pcg(config["seed"] + 600 + offset).standard_normal(shape)
        by_name[name] = (1.5 * noise).astype(np.float32)
    target = torch.from_numpy(labels)
    for name, logits in by_name.items():
        scores = torch.from_numpy(logits).double()
        assert rmi_loss(scores, target).item() == pytest.approx(record[f"{name}_rmi_total"], rel=1e-6)
        assert released_bce(scores, target).item() == pytest.approx(record[f"{name}_bce"], rel=1e-6)
        assert cross_entropy(scores, target).item() == pytest.approx(record[f"{name}_cross_entropy"], rel=1e-6)
