"""Resizing: values and gradients are torch's own to the last bit, in whichever layout they come."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hmsa_core.models.layers.blocks import resize

SIDE = st.integers(1, 23)
LAYOUT = st.sampled_from([torch.contiguous_format, torch.channels_last])


@settings(max_examples=60, deadline=None)
@given(
    channels=st.sampled_from([1, 2, 19]),
    source=st.tuples(SIDE, SIDE),
    target=st.tuples(SIDE, SIDE),
    layout=LAYOUT,
    from_above=LAYOUT,
)
def test_the_gradient_has_the_bits_of_torch(
    channels: int,
    source: tuple[int, int],
    target: tuple[int, int],
    layout: torch.memory_format,
    from_above: torch.memory_format,
) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn((2, channels, *source), generator=generator).to(memory_format=layout).requires_grad_()
    above = torch.randn((2, channels, *target), generator=generator).to(memory_format=from_above)
    ours, theirs = resize(maps, target), F.interpolate(maps, size=target, mode="bilinear", align_corners=False)
    assert torch.equal(ours, theirs)
    (gradient,) = torch.autograd.grad(ours, maps, above)
    (expected,) = torch.autograd.grad(theirs, maps, above)
    assert torch.equal(gradient, expected)
    if source != target:
        assert gradient.stride() == expected.stride()


def test_half_precision_comes_back_in_its_own_dtype() -> None:
    maps = torch.randn(1, 3, 5, 7, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (gradient,) = torch.autograd.grad(resize(maps, (10, 14)).float().sum(), maps)
    assert gradient.dtype == torch.bfloat16
    assert gradient.float().sum().item() == pytest.approx(3 * 10 * 14, rel=1e-2)
