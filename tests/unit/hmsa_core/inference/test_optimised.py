"""A prepared network computes what the trained one does: strips of rows, folded norms, half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hmsa_core import models
from hmsa_core.inference.network import optimised
from hmsa_core.inference.network.predictor import Predictor, label_image
from hmsa_core.io.errors import HmsaError
from tests.support.inference import noise_image, small_model

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
        return model.forward_scale(images, attention=attention), optimised.run_scale(model, images, attention)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(128, 96), (101, 67), (270, 60)])
def test_strips_equal_the_whole_pass(options, size, monkeypatch):
    monkeypatch.setattr(optimised, "_STRIP_BYTES", {"cpu": 1})  # the fewest rows there can be
    _, (logits, attention) = pair_of(options, size, attention=False)
    assert attention is None
    assert logits.dtype == torch.float32
    expected, (logits, attention) = pair_of(options, size)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-5)
    if expected.attention is None:
        assert attention is None
    else:
        torch.testing.assert_close(attention, expected.attention, rtol=1e-4, atol=1e-5)


def test_strips_are_smaller_than_the_image_and_none_of_an_awkward_height_enlarges_a_whole_branch(monkeypatch):
    monkeypatch.setattr(optimised, "_STRIP_BYTES", {"cpu": 1})
    heights, original = [], optimised.F.interpolate
    monkeypatch.setattr(
        optimised.F, "interpolate", lambda maps, **k: (heights.append(k["size"][0]), original(maps, **k))[1]
    )
    pair_of({"kind": "hierarchical"}, (256, 64))
    assert heights
    assert min(heights) < 64
    heights.clear()
    pair_of({"kind": "hierarchical"}, (1080, 32))  # branches of 270, 135, 68 and 34 rows
    calls = [h for h in heights if h <= 60]
    assert len(calls) > 60, "strips of three branches"


def test_batch_norms_are_gone_and_the_given_model_is_as_it_was():
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rewritten = optimised.prepare(model, torch.device("cpu"), torch.float32)
    assert not [m for m in rewritten.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_rewrite_that_changes_the_scores_is_refused(monkeypatch):
    def wrong(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        convolution.weight.mul_(1.1)

    monkeypatch.setattr(optimised, "_absorb", wrong)
    with pytest.raises(HmsaError, match="folding batch norms changed the scores by"):
        optimised.prepare(small_model(), torch.device("cpu"), torch.float32)


def test_half_precision_is_only_used_where_the_processor_has_it(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(optimised, "cpu_has_bf16", lambda: False)
    assert optimised.effective_precision("bf16", cpu) == "fp32"
    assert optimised.effective_precision("bf16", gpu) == "bf16"
    monkeypatch.setattr(optimised, "cpu_has_bf16", lambda: True)
    assert optimised.effective_precision("bf16", cpu) == "bf16"
    for has_bf16, fast in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bf16: including_emulation or has
        )
        assert optimised.effective_precision("auto", gpu) == fast


@pytest.mark.parametrize("is_supported", [True, False])
def test_bf16_is_not_used_where_onednn_is_kept_from_it(monkeypatch, is_supported):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: is_supported)
    assert optimised.effective_precision("bf16", torch.device("cpu")) == ("bf16" if is_supported else "fp32")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("supported", [None, False], ids=["as this processor has it", "without oneDNN's support"])
def test_half_precision_agrees_with_full_precision_on_nearly_all_pixels(monkeypatch, precision, supported):
    monkeypatch.setattr(optimised, "cpu_has_bf16", lambda: True)
    if supported is not None:
        for name in ("bf16", "fp16"):
            monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: False)
    model, image = small_model(), noise_image(3, 64, 96)
    full = label_image(Predictor(model), image, (0.5, 1.0), True)
    half = label_image(Predictor(model, "cpu", precision), image, (0.5, 1.0), True)
    assert (full[0] == half[0]).mean() > 0.97
    assert np.abs(full[1] - half[1]).mean() < 0.02
    assert (full[1] != half[1]).any(), "half precision must really be used"


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")])
def test_convolutions_are_packed_only_where_the_processor_convolves_in_that_precision(monkeypatch, dtype, name):
    packed = {}
    for supported in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda s=supported: s)
        monkeypatch.setattr(optimised, "_pack", lambda _model, s=supported: packed.setdefault(s, True))
        optimised.prepare(small_model(), torch.device("cpu"), dtype)
    assert packed == {True: True}
