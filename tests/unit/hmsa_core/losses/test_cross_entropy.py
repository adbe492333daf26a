"""Softmax cross-entropy: torch's numbers where torch has one, finite where it has none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hmsa_core.io.errors import InputError
from hmsa_core.losses import cross_entropy
from tests.unit.hmsa_core.losses.test_rmi_behaviour import scene


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 3),
    classes=st.integers(1, 9),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_value_and_gradient_are_torchs(
    seed: int, n: int, classes: int, height: int, width: int, ignored: float
) -> None:
    logits, labels = scene(seed, (n, classes, height, width), ignored)
    ours = cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(ours, logits)
    if bool((labels == 255).all()):
        assert ours.item() == gradient.abs().max() == 0.0
        return
    expected = F.cross_entropy(logits, labels, ignore_index=255)
    (by_torch,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient, by_torch)


@pytest.mark.parametrize("value", [1e4, -1e4, 80.0])
def test_extreme_scores_stay_finite(value: float) -> None:
    logits, labels = scene(2, (1, 5, 12, 12))
    hot = (logits.detach() * value).float().requires_grad_()
    loss = cross_entropy(hot, labels)
    (gradient,) = torch.autograd.grad(loss, hot)
    torch.testing.assert_close(loss, F.cross_entropy(hot, labels, ignore_index=255))
    assert torch.isfinite(gradient).all()


def test_other_layouts_dtypes_and_factors() -> None:
    logits, labels = scene(5, (2, 4, 12, 16))
    expected = torch.autograd.grad(cross_entropy(logits, labels), logits)[0]
    strided = logits.detach().to(memory_format=torch.channels_last).requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(-2 * cross_entropy(strided, labels.byte()), strided)[0], -2 * expected
    )
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(half, labels)
    assert loss.dtype == torch.float32
    rough = torch.autograd.grad(loss, half)[0]
    assert rough.dtype == torch.bfloat16
    assert (rough.double() - expected).norm() / expected.norm() < 0.02


def test_labels_outside_the_classes_and_the_ignored_one_do_not_count() -> None:
    logits, labels = scene(6, (1, 4, 12, 12), ignored=0.0)
    odd = labels.clone()
    odd[0, :3] = 200
    odd[0, 3:5] = -1
    masked = labels.clone()
    masked[0, :5] = 255
    assert cross_entropy(logits, odd).item() == cross_entropy(logits, masked).item()
    without_two = F.cross_entropy(logits, labels, ignore_index=2)
    torch.testing.assert_close(cross_entropy(logits, labels, ignore_index=2), without_two)
    with pytest.raises(InputError, match="do not fit"):
        cross_entropy(logits, labels[:, 1:])


@pytest.mark.parametrize(
    ("dtype", "classes", "ignore"),
    [
        (torch.uint8, 200, -100),
        (torch.uint8, 300, 255),
        (torch.int8, 200, 255),
        (torch.int16, 200, -100),
        (torch.uint16, 9, 255),
    ],
)
def test_labels_of_any_integer_type_give_the_same_loss(dtype: torch.dtype, classes: int, ignore: int) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, classes, 6, 7, generator=generator)
    labels = torch.randint(0, min(classes, 127), (1, 6, 7), generator=generator)
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(cross_entropy(logits, labels.to(dtype), ignore_index=ignore), expected)
