"""Region mutual information beyond the recorded cases: options, layouts, gradients, finite results."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa_core.config import LossConfig
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.losses import _pixels, cross_entropy, released_bce, rmi, rmi_loss
from hmsa_core.losses.rmi import RmiIgnore
from research.bench.reference.rmi_plain import rmi_plain


def scene(seed: int, shape: tuple[int, int, int, int], ignored: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n, classes, height, width = shape
    labels = torch.randint(0, classes, (n, -(-height // 6), -(-width // 6)), generator=generator)
    labels = labels.repeat_interleave(6, 1).repeat_interleave(6, 2)[:, :height, :width].clone()
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), labels


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 3),
    classes=st.integers(1, 7),
    height=st.integers(8, 41),
    width=st.integers(8, 41),
    ignored=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
)
def test_any_shape_gives_what_the_formula_gives(
    seed: int, n: int, classes: int, height: int, width: int, ignored: float
) -> None:
    logits, labels = scene(seed, (n, classes, height, width), ignored)
    plain = rmi_plain(logits, labels)
    (expected,) = torch.autograd.grad(plain, logits)
    ours = rmi_loss(logits, labels)
    (gradient,) = torch.autograd.grad(ours, logits)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-9, abs=1e-9)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-11)


@pytest.mark.parametrize("rmi_ignore", ["released", "masked"])
def test_the_gradient_agrees_with_finite_differences(rmi_ignore: str) -> None:
    logits, labels = scene(3, (2, 3, 17, 22), ignored=0.02)
    assert torch.autograd.gradcheck(
        lambda x: rmi_loss(x, labels, rmi_ignore=rmi_ignore), (logits,), eps=1e-6, atol=1e-7, rtol=1e-4, fast_mode=True
    )


@pytest.mark.parametrize("block_bytes", [1, 3000, 20_000, 1 << 30])
@pytest.mark.parametrize("loss", [rmi_loss, cross_entropy])
def test_the_size_of_a_block_does_not_change_the_result(
    loss: Callable[..., torch.Tensor], block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, labels = scene(4, (3, 5, 32, 40))
    whole = loss(logits, labels)
    (expected,) = torch.autograd.grad(whole, logits)
    monkeypatch.setitem(_pixels.BLOCK_BYTES, "cpu", block_bytes)
    cut = loss(logits, labels)
    (gradient,) = torch.autograd.grad(cut, logits)
    assert cut.item() == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("value", [50.0, -50.0, 1e4, -1e4, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_scores_stay_finite(value: float, dtype: torch.dtype) -> None:
    _, labels = scene(5, (1, 4, 24, 24))
    logits = torch.full((1, 4, 24, 24), value, dtype=dtype, requires_grad=True)
    loss = rmi_loss(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert gradient.dtype == dtype


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_give_a_loss_that_is_not(value: float) -> None:
    logits, labels = scene(15, (1, 4, 24, 24), ignored=0.0)
    with torch.no_grad():
        logits[0, 1, 5, 5] = value
    assert not torch.isfinite(rmi_loss(logits, labels))
    assert not torch.isfinite(released_bce(logits, labels))


def test_masked_leaves_absent_classes_and_touched_regions_out() -> None:
    logits, labels = scene(7, (1, 3, 40, 40), ignored=0.0)
    labels[:] = labels % 2  # class 2 does not occur
    released, masked = (rmi.loss(logits, labels, LossConfig(rmi_ignore=kind), 255) for kind in ("released", "masked"))
    constant = 0.5 * math.log(5e-4)
    assert released.parts["rmi"].item() == pytest.approx(masked.parts["rmi"].item() + constant, rel=1e-6)
    # One ignored pixel: only regions around it stop to count, so far-away gradients hardly move ...
    labels[0, 0, 0] = 255
    (with_hole,) = torch.autograd.grad(rmi_loss(logits, labels, rmi_ignore="masked"), logits)
    # ... and inside the regions that hold it, only the cross-entropy is left.
    alone = 0.5 * released_bce(logits, labels)
    (only_bce,) = torch.autograd.grad(alone, logits)
    torch.testing.assert_close(with_hole[..., :2, :2], only_bce[..., :2, :2])
    assert (with_hole - only_bce)[..., 20:, 20:].abs().max() > 0
    labels[:] = 255
    assert rmi_loss(logits, labels, rmi_ignore="masked").item() == 0.0


def test_masked_is_not_moved_by_scores_under_ignored_pixels() -> None:
    logits, labels = scene(8, (1, 4, 48, 48), ignored=0.0)
    labels[:, 10:20, 10:20] = 255
    changed = logits.detach().clone()
    changed[:, :, 10:20, 10:20] += 3.0
    for kind in ("released", "masked"):
        assert rmi_loss(changed, labels, rmi_ignore=kind).item() == pytest.approx(
            rmi_loss(logits, labels, rmi_ignore=kind).item(), rel=1e-12
        )
    released, masked = (rmi_loss(logits, labels, rmi_ignore=kind).item() for kind in ("released", "masked"))
    assert released != pytest.approx(masked, rel=1e-3)


def test_more_than_255_classes_and_labels_outside_the_range_are_ignored() -> None:
    logits, labels = scene(10, (1, 300, 16, 16), ignored=0.0)
    outside = labels.clone()
    outside[0, :8] = 300
    negative = labels.clone()
    negative[0, :8] = -1
    chosen = labels.clone()
    chosen[0, :8] = 255
    assert rmi_loss(logits, outside).item() == rmi_loss(logits, negative).item()
    # 255 is a class here unless it is named the ignored one
    assert rmi_loss(logits, chosen, ignore_index=999).item() != rmi_loss(logits, chosen).item()


def test_the_cross_entropy_is_that_of_torch_for_sure_scores_and_very_many_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape, spread in (((2, 19, 16, 24), 12.0), ((1, 1100, 8, 8), 0.0)):
        logits = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
        truth = torch.nn.functional.one_hot(labels, shape[1]).movedim(-1, 1).double()
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
        expected /= labels.numel() + 1
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            ours = rmi.loss(logits.to(dtype), labels, LossConfig(), 255).parts["bce"].item()
            assert ours == pytest.approx(expected.item(), rel=tolerance)


def test_channels_last_half_precision_and_a_factor_give_the_same_gradient() -> None:
    logits, labels = scene(11, (2, 4, 24, 32))
    single = logits.detach().float()
    (expected,) = torch.autograd.grad(rmi_loss(single.requires_grad_(), labels), single)
    strided = single.detach().to(memory_format=torch.channels_last).requires_grad_()
    (same,) = torch.autograd.grad(rmi_loss(strided, labels), strided)
    torch.testing.assert_close(same, expected, rtol=0, atol=0)
    (scaled,) = torch.autograd.grad(-2.0 * rmi_loss(strided, labels), strided)
    torch.testing.assert_close(scaled, -2.0 * expected, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = rmi_loss(single, labels)
    assert inside.item() == rmi_loss(single, labels).item()
    half = single.detach().bfloat16().requires_grad_()
    (rough,) = torch.autograd.grad(rmi_loss(half, labels), half)
    assert (rough.float() - expected).norm() / expected.norm() < 0.02


def test_wrong_arguments_are_named() -> None:
    logits, labels = scene(13, (1, 4, 24, 24))
    with pytest.raises(InputError, match=r"labels \(1, 23, 24\) do not fit"):
        rmi_loss(logits, labels[:, 1:])
    with pytest.raises(InputError, match="8 x 8"):
        rmi_loss(logits[..., :7, :], labels[:, :7])
    with pytest.raises(ConfigError, match="released or masked"):
        rmi_loss(logits, labels, rmi_ignore="none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="labels are a ndarray"):
        rmi_loss(logits, labels.numpy())  # type: ignore[arg-type]
    for wrong in ((logits, labels + 0.5), (labels[:, None].expand(-1, 4, -1, -1), labels)):
        with pytest.raises(InputError, match="expected float scores and integer trainIds"):
            rmi_loss(*wrong)


@pytest.mark.parametrize("rmi_ignore", ["released", "masked"])
@pytest.mark.parametrize("labels", ["some", "one", "none"])
def test_classes_that_do_not_occur_are_masked_as_well_as_left_out(
    monkeypatch: pytest.MonkeyPatch, rmi_ignore: RmiIgnore, labels: str
) -> None:
    """GPUs compute all classes, so that the host need not know which occur."""
    generator = torch.Generator().manual_seed(4)
    label = torch.randint(0, 3, (2, 40, 56), generator=generator)
    label = {"some": label * 2, "one": torch.where(label == 0, 255, 3), "none": torch.full_like(label, 255)}[labels]
    found = []
    for computes_all in (False, True):
        monkeypatch.setattr(rmi, "_computes_all", lambda _, wanted=computes_all: wanted)
        logits = torch.randn(2, 7, 40, 56, generator=torch.Generator().manual_seed(5)).requires_grad_()
        loss = rmi_loss(logits, label, rmi_ignore=rmi_ignore)
        loss.backward()
        found.append((loss.detach(), logits.grad))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-6)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-9)  # type: ignore[arg-type]
