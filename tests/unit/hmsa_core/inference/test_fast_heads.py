"""Strips of rows give the scores of the model's own pass, whatever the head, the context block and the size."""

from __future__ import annotations

import pytest
import torch

from hmsa_core import models
from hmsa_core.inference import fast_heads

OPTIONS = [
    {"kind": "hierarchical", "head": "released"},
    {"kind": "hierarchical", "head": "paper"},
    {"kind": "explicit"},
    {"kind": "single"},
    {"kind": "hierarchical", "context": "none"},
]


def pair_of(options, size, *, attention=True):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = models.build(trunk="hrnet_micro", num_classes=5, **options).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        return model.forward_scale(images, attention=attention), fast_heads.run_scale(
            model, images, attention=attention
        )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(128, 96), (101, 67), (270, 60)])
def test_strips_equal_the_whole_pass(options, size, monkeypatch):
    monkeypatch.setattr(fast_heads, "_STRIP_BYTES", {"cpu": 1})  # the fewest rows there can be
    expected, (logits, attention) = pair_of(options, size)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-5)
    if expected.attention is None:
        assert attention is None
    else:
        torch.testing.assert_close(attention, expected.attention, rtol=1e-4, atol=1e-5)


def test_no_strip_of_an_awkward_height_enlarges_a_whole_branch(monkeypatch):
    monkeypatch.setattr(fast_heads, "_STRIP_BYTES", {"cpu": 1})
    heights = []
    original = fast_heads.F.interpolate
    monkeypatch.setattr(
        fast_heads.F, "interpolate", lambda maps, **k: (heights.append(k["size"][0]), original(maps, **k))[1]
    )
    pair_of({"kind": "hierarchical"}, (1080, 32))  # branches of 270, 135, 68 and 34 rows
    calls = [h for h in heights if h <= 60]
    assert len(calls) > 60, "strips of three branches"


def test_attention_is_left_out_where_it_is_not_asked_for(monkeypatch):
    _, (logits, attention) = pair_of({"kind": "hierarchical"}, (64, 64), attention=False)
    assert attention is None
    assert logits.dtype == torch.float32


def test_strips_really_are_smaller_than_the_image(monkeypatch):
    monkeypatch.setattr(fast_heads, "_STRIP_BYTES", {"cpu": 1})
    heights = []
    original = fast_heads.F.interpolate
    monkeypatch.setattr(
        fast_heads.F, "interpolate", lambda maps, **k: (heights.append(k["size"][0]), original(maps, **k))[1]
    )
    pair_of({"kind": "hierarchical"}, (256, 64))
    assert heights
    assert min(heights) < 64
