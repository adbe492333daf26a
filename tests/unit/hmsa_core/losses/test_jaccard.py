"""Soft Jaccard loss: numbers by the definition, what is ignored, and what it is for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from hmsa_core.losses import jaccard
from tests.unit.hmsa_core.losses.test_rmi_behaviour import scene


@given(
    seed=st.integers(0, 1000), n=st.integers(1, 3), classes=st.integers(1, 9), ignored=st.sampled_from([0.0, 0.3, 1.0])
)
def test_value_and_gradient_are_those_of_the_definition(seed: int, n: int, classes: int, ignored: float) -> None:
    logits, labels = scene(seed, (n, classes, 7, 11), ignored)
    ours = jaccard(logits, labels)
    (gradient,) = torch.autograd.grad(ours, logits)
    losses = []
    for c in range(classes):
        p, t = logits.softmax(1)[:, c][labels != 255], (labels == c)[labels != 255].to(logits.dtype)
        if t.any():
            losses.append(1 - torch.minimum(p, t).sum() / torch.maximum(p, t).sum())  # Ruzicka's form of the same
    if not losses:
        assert ours.item() == gradient.abs().max() == 0.0
        return
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_it_lies_between_0_and_1_and_stays_finite(value: float) -> None:
    logits, labels = scene(2, (1, 5, 12, 12))
    hot = (logits.detach() * value).float().requires_grad_()
    loss = jaccard(hot, labels)
    assert 0 <= loss <= 1
    assert torch.isfinite(torch.autograd.grad(loss, hot)[0]).all()
    perfect = F.one_hot(labels.long().clamp(max=4), 5).permute(0, 3, 1, 2) * 100.0
    assert jaccard(perfect, labels) < 1e-6


def test_half_precision_is_computed_in_single() -> None:
    logits, labels = scene(5, (2, 4, 12, 16))
    half = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = jaccard(half, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, jaccard(half.float(), labels))


def test_a_rare_class_counts_as_much_as_a_common_one() -> None:
    labels = torch.zeros(1, 40, 40, dtype=torch.long)
    labels[0, :2, :2] = 1  # 4 of 1,600 pixels

    def missing(c: int) -> torch.Tensor:  # all pixels of class c are taken for the other one
        return F.one_hot(torch.where(labels == c, 1 - c, labels), 2).permute(0, 3, 1, 2) * 100.0

    assert jaccard(missing(1), labels) > 0.49
    assert F.cross_entropy(missing(1), labels) < F.cross_entropy(missing(0), labels) / 100
