"""Names, sizes and costs of the networks: state dict keys, parameters, multiply-accumulates."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hmsa_core.config import Kind, ModelConfig
from hmsa_core.io.errors import ConfigError
from hmsa_core.models import build
from hmsa_core.models.layers.batch_norm import Steps
from hmsa_core.models.model import MultiScaleModel, ScaleOutput, build_empty
from tests.reference import golden

RELEASED = golden.state_dict_keys()


def empty(kind: str, trunk: str = "hrnet_w48", num_classes: int = 19, **options: Any) -> MultiScaleModel:
    """A network with the released head, which the recorded ones have."""
    config = ModelConfig.checked({"kind": kind, "trunk": trunk, "head": "released", **options}, "test")
    return build_empty(config, num_classes).eval()


def released_keys(name: str) -> list[list[Any]]:
    """The recorded list, with the differences applied that are recorded instead of a list of their own."""
    record = RELEASED[name]
    keys = [
        [key, record["shapes_changed"].get(key, shape) if "shapes_changed" in record else shape, dtype]
        for key, shape, dtype in RELEASED["HRNet_Mscale_19"]["keys"]
    ]
    return [entry for entry in keys if entry[0] not in record.get("keys_missing", [])]


@pytest.mark.parametrize(
    ("name", "kind", "classes"),
    [
        ("HRNet_Mscale_19", "hierarchical", 19),
        ("HRNet_Mscale_65", "hierarchical", 65),
        ("HRNet_19", "single", 19),
        ("HRNet_65", "single", 65),
    ],
)
def test_the_state_dict_is_the_released_one_in_order(name: str, kind: str, classes: int) -> None:
    model = empty(kind, num_classes=classes)
    ours = [[key, list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in model.state_dict().items()]
    assert ours == released_keys(name)
    assert len(ours) == RELEASED[name]["num_keys"]
    assert sum(p.numel() for p in model.parameters()) == RELEASED[name]["num_parameters"]


def test_attention_kinds_share_their_keys_and_so_do_the_others() -> None:
    keys = {kind: list(empty(kind, trunk="hrnet_micro").state_dict()) for kind in get_args(Kind)}
    assert keys["hierarchical"] == keys["explicit"]
    assert keys["single"] == keys["average"] == keys["max"]
    assert set(keys["hierarchical"]) - set(keys["single"]) == {k for k in keys["hierarchical"] if "scale_attn" in k}


@pytest.mark.parametrize("width", [18, 32, 48, 64, 40])
def test_every_width_is_one_definition(width: int) -> None:
    model = empty("single", trunk=f"hrnet_w{width}")
    assert sum(model.backbone.channels) == 15 * width
    trunk_keys = [key for key in model.state_dict() if key.startswith("backbone.")]
    assert len(trunk_keys) == 1830
    assert model.state_dict()["backbone.stage4.2.branches.3.3.conv2.weight"].shape[0] == 8 * width


@pytest.mark.parametrize(("trunk", "low", "high"), [("hrnet_tiny", 1.0e6, 2.2e6), ("hrnet_micro", 0.1e6, 0.3e6)])
def test_narrow_trunks_are_small(trunk: str, low: float, high: float) -> None:
    assert low < sum(p.numel() for p in empty("hierarchical", trunk=trunk).parameters()) < high


# ------------------------------------------------------------------------------------- what it costs


@cache
def macs_of_scale(attention: bool, classes: int, height: int, width: int) -> int:
    """Multiply-accumulates of convolutions and matrix products of one scale, on tensors without memory."""
    model = empty("hierarchical", num_classes=classes)
    for parent in list(model.modules()):  # batch norms are not counted, but cost the counter most of its time
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d | nn.ReLU):
                setattr(parent, name, nn.Identity())
    images = torch.empty(1, 3, height, width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.forward_scale(images, attention=attention)
    return counter.get_total_flops() // 2


def macs(model: MultiScaleModel, call: Any, height: int = 512, width: int = 1024) -> int:
    """Add up what the model's own scales cost while `call(model, images)` runs."""
    total = 0

    def costed(images: torch.Tensor, attention: bool) -> Steps[ScaleOutput]:
        nonlocal total
        with_head = attention and model.config.has_attention
        h, w = images.shape[2:]
        total += macs_of_scale(with_head, model.num_classes, h, w)
        grid = torch.empty(1, model.num_classes, h // 4, w // 4, device="meta")
        return ScaleOutput(grid, grid, grid[:, :1] if with_head else None)
        yield  # steps, of which there are none

    model._scale_steps = costed  # type: ignore[method-assign]
    call(model, torch.empty(1, 3, height, width, device="meta"))
    return total


def cost(kind: str, scales: tuple[float, ...], size: tuple[int, int] = (512, 1024), **options: Any) -> int:
    """What a pass over these scales costs."""
    if len(scales) == 1:
        return macs_of_scale(kind == "hierarchical", options.get("num_classes", 19), *size)
    model = empty(kind, train_scales=scales, **options)
    return macs(model, lambda m, x: m(x), *size)


@pytest.mark.parametrize(
    ("scales", "classes", "size"),
    [
        ((1.0,), 19, (512, 1024)),
        ((0.5, 1.0), 19, (512, 1024)),
        ((0.5, 1.0, 2.0), 19, (512, 1024)),
        pytest.param((0.25, 0.5, 1.0, 2.0), 19, (512, 1024), marks=pytest.mark.chain),  # counting takes seconds
        pytest.param((0.5, 1.0, 2.0), 19, (1024, 2048), marks=pytest.mark.chain),
        pytest.param((0.5, 1.0, 2.0), 65, (512, 1024), marks=pytest.mark.chain),
    ],
)
def test_multiply_accumulates_are_the_recorded_ones(
    scales: tuple[float, ...], classes: int, size: tuple[int, int]
) -> None:
    recorded = RELEASED["macs"][f"HRNet_Mscale_{classes}_1x3x{size[0]}x{size[1]}_{list(scales)}"]
    assert cost("hierarchical", scales, size, num_classes=classes, top_attention="released") == recorded


@pytest.mark.parametrize(
    ("kind", "scales", "top_attention", "against_attention", "against_plain"),
    [
        ("hierarchical", (0.5, 1.0), "released", 1.25, 1.473),
        ("explicit", (0.5, 1.0, 2.0), "released", 5.25, 6.188),
        ("hierarchical", (0.5, 1.0), "skip", 1.098, 1.295),
        ("hierarchical", (0.5, 1.0, 2.0), "skip", 4.643, 5.473),
    ],
)
def test_cost_of_the_scales_as_the_paper_counts_it(
    kind: str, scales: tuple[float, ...], top_attention: str, against_attention: float, against_plain: float
) -> None:
    """The paper's 1.25x and 5.25x hold with the attention head in the single-scale figure; skip saves the top one."""
    found = cost(kind, scales, top_attention=top_attention)
    assert found / cost("hierarchical", (1.0,), top_attention="released") == pytest.approx(against_attention, rel=1e-3)
    assert found / cost("single", (1.0,)) == pytest.approx(against_plain, rel=1e-3)


def test_plain_ocr_costs_what_is_recorded_and_training_what_inference_on_the_same_scales_costs() -> None:
    model = empty("hierarchical")
    assert cost("single", (1.0,)) == RELEASED["macs"]["HRNet_19_1x3x512x1024_None"]
    assert macs(model, lambda m, x: m(x)) == macs(model, lambda m, x: m.predict(x, (0.5, 1.0)))


# ------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"kind": "hierarchic"},
            "kind: .*'hierarchical', 'explicit', 'average', 'max' or 'single', found 'hierarchic'",
        ),
        ({"trunk": "hrnet_48"}, "unknown trunk 'hrnet_48'"),
        ({"trunk": "resnet50"}, "deeplabv3_resnet50"),
        ({"ocr_mdi": 64}, r"unknown key 'ocr_mdi': did you mean ocr_mid\?"),
        ({"zzz": 1}, "known: kind, trunk, trunk_weights"),
        ({"head": "big"}, "head: .*'paper' or 'released', found 'big'"),
        ({"num_classes": 0}, "at least 1"),
        ({"dropout": 1.0}, "dropout: .*less than 1, found 1.0"),
        ({"low_scale": 1.5}, "low_scale: .*less than 1, found 1.5"),
        ({"train_scales": (0.5, 2.0)}, "train_scales: scales must be different .* one of them 1"),
        ({"train_scales": (1.0,)}, "train_scales must be at least two"),
        ({"kind": "single", "train_scales": (0.5, 1.0)}, "must not be set for kind single"),
        ({"trunk_weights": "package:efficientnet-lite0"}, "are for trunk timm:tf_efficientnet_lite0"),
    ],
)
def test_impossible_options_are_refused_with_what_is_possible(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**{"kind": "hierarchical", "trunk": "hrnet_micro", **arguments})
