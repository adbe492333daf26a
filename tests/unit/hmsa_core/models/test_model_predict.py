"""Multi-scale prediction and the training pass on a small network: weights, kinds, options, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.models import MultiScaleModel, as_kind, build
from hmsa_core.models import rows as rows_module
from hmsa_core.models.layers.blocks import LastNorm, resize, scaled_size

KINDS = ("hierarchical", "explicit", "average", "max", "single")


def micro(kind: str = "hierarchical", seed: int = 0, **options: Any) -> MultiScaleModel:
    torch.manual_seed(seed)
    model = build(kind, trunk="hrnet_micro", num_classes=5, **{"head": "released", **options})
    with torch.no_grad():  # fresh heads say nearly nothing: make classes and attention differ from pixel to pixel
        for name, parameter in model.named_parameters():
            if name.startswith("scale_attn.conv2") or name in ("ocr.cls_head.weight", "ocr.aux_head.2.weight"):
                parameter.normal_(std=0.7)
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, MultiScaleModel]:
    parent = micro()
    return {kind: as_kind(parent, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(1))


scale_lists = st.lists(
    st.floats(0.2, 2.5).map(lambda s: round(s, 3)).filter(lambda s: s != 1.0), max_size=3, unique=True
).flatmap(lambda others: st.permutations([*others, 1.0]))


@settings(max_examples=15, deadline=None)
@given(scales=scale_lists, flip=st.booleans(), height=st.integers(20, 45), width=st.integers(20, 45))
def test_weights_sum_to_one_at_every_pixel_for_any_scales(
    models: dict[str, MultiScaleModel], scales: list[float], flip: bool, height: int, width: int
) -> None:
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height * 100 + width))
    for kind in KINDS:
        prediction = models[kind].predict(image, scales, flip=flip)
        assert prediction.logits.shape == (1, 5, height, width)
        assert prediction.probabilities.sum(dim=1) == pytest.approx(1.0, abs=1e-5)
        if kind == "max":
            assert prediction.weights is None
            continue
        assert prediction.weights is not None
        assert set(prediction.weights) == set(scales)
        assert all(w.shape == (1, 1, height, width) for w in prediction.weights.values())
        total = torch.stack(list(prediction.weights.values())).sum(dim=0)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)
        assert min(float(w.min()) for w in prediction.weights.values()) >= -1e-6


@pytest.mark.parametrize("scales", [(0.5, 1.0, 2.0), (1.0,), (0.7, 1.0), (1.0, 1.3)])
def test_attention_has_a_map_for_each_scale_but_the_highest(
    models: dict[str, MultiScaleModel], images: torch.Tensor, scales: tuple[float, ...]
) -> None:
    prediction = models["hierarchical"].predict(images, scales)
    assert set(prediction.attention) == set(scales) - {max(scales)}
    for attention in prediction.attention.values():
        assert attention.shape == (2, 1, 40, 56)
        assert 0.0 <= float(attention.min()) <= float(attention.max()) <= 1.0
    assert models["average"].predict(images, scales).attention == {}


def test_the_hierarchical_chain_is_the_papers_formula(models: dict[str, MultiScaleModel], images: torch.Tensor) -> None:
    model = models["hierarchical"]
    outputs = {}
    for scale in (0.5, 1.0, 2.0):
        size = scaled_size((40, 56), scale)
        with torch.no_grad():
            out = model.forward_scale(resize(images, size))
        assert out.attention is not None
        outputs[scale] = resize(out.logits, size), resize(out.attention, size)
    fused = outputs[2.0][0]
    logits, attention = outputs[1.0]
    fused = attention * logits + (1 - attention) * resize(fused, (40, 56))
    logits, attention = outputs[0.5]
    fused = resize(attention * logits, (40, 56)) + (1 - resize(attention, (40, 56))) * fused
    prediction = model.predict(images, (2.0, 0.5, 1.0))
    torch.testing.assert_close(prediction.logits, fused)
    torch.testing.assert_close(prediction.attention[0.5], resize(attention, (40, 56)))
    assert prediction.weights is not None
    torch.testing.assert_close(prediction.weights[0.5], resize(attention, (40, 56)))


def test_baselines_are_mean_maximum_and_softmax_over_scales(
    models: dict[str, MultiScaleModel], images: torch.Tensor
) -> None:
    each, scores = [], []
    for scale in (0.5, 1.0):
        size = scaled_size((40, 56), scale)
        with torch.no_grad():
            out = models["explicit"].forward_scale(resize(images, size))
        assert out.attention is not None
        each.append(resize(resize(out.logits, size), (40, 56)))
        scores.append(resize(out.attention, (40, 56)))
    weights = torch.softmax(torch.stack(scores), dim=0)
    expected = {
        "average": (each[0] + each[1]) / 2,
        "max": torch.maximum(each[0], each[1]),
        "explicit": weights[0] * each[0] + weights[1] * each[1],
        "single": each[1],
    }
    for kind, logits in expected.items():
        torch.testing.assert_close(models[kind].predict(images, (0.5, 1.0)).logits, logits)
    single = models["single"].predict(images, (0.5, 1.0)).weights
    assert single is not None
    assert float(single[0.5].max()) == 0.0
    explicit = models["explicit"].predict(images, (0.5, 1.0)).weights
    assert explicit is not None
    torch.testing.assert_close(explicit[0.5], weights[0])


@pytest.mark.parametrize("kind", KINDS)
def test_flip_averages_logits_and_weights_with_the_mirror_image(
    models: dict[str, MultiScaleModel], images: torch.Tensor, kind: str
) -> None:
    model = models[kind]
    one, other = model.predict(images, (0.5, 1.0)), model.predict(images.flip(3), (0.5, 1.0))
    both = model.predict(images, (0.5, 1.0), flip=True)
    torch.testing.assert_close(both.logits, (one.logits + other.logits.flip(3)) / 2)
    if both.weights is not None and one.weights is not None and other.weights is not None:
        torch.testing.assert_close(both.weights[0.5], (one.weights[0.5] + other.weights[0.5].flip(3)) / 2)
    mirrored = model.predict(images.flip(3), (0.5, 1.0), flip=True)
    torch.testing.assert_close(mirrored.logits.flip(3), both.logits)


def test_no_full_size_class_scores_of_a_scale_are_ever_held(
    models: dict[str, MultiScaleModel], images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = models["hierarchical"].predict(images, (0.5, 1.0, 2.0), flip=True).logits
    made: list[int] = []
    inner = rows_module._columns

    def watched(maps: Any, width: int) -> Any:
        out = inner(maps, width)
        made.append(out.size)
        return out

    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", {"cpu": 2 * 5 * 56 * 4 * 8})  # 8 rows of both images' scores
    monkeypatch.setattr(rows_module, "_columns", watched)
    found = models["hierarchical"].predict(images, (0.5, 1.0, 2.0), flip=True).logits
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
    assert 0 < max(made) <= 2 * 5 * (2 * 8 + 2) * 112, "a block of 8 rows reads no more than its rows of the 2.0x scale"


def test_channels_last_and_double_precision_are_welcome(images: torch.Tensor) -> None:
    model = micro()
    expected = model.predict(images).logits
    strided = micro().to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        strided.predict(images.to(memory_format=torch.channels_last)).logits, expected, rtol=1e-4, atol=1e-4
    )
    double = micro().double().predict(images.double())
    assert double.logits.dtype == torch.float64
    torch.testing.assert_close(double.logits.float(), expected, rtol=1e-4, atol=1e-4)


def test_predicting_in_the_middle_of_training_touches_nothing(images: torch.Tensor) -> None:
    model = micro().train()
    model.backbone.bn1.eval()  # frozen on purpose
    modes = {name: module.training for name, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    logits = model.predict(images).logits
    assert torch.equal(logits, model.predict(images).logits)  # no dropout
    assert not logits.requires_grad
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


@pytest.mark.parametrize("scales", [(0.5, 2.0), (1.0, 1.0), (1.0, -0.5), (1.0, 0.0), ()])
def test_unusable_scales_are_refused(models: dict[str, MultiScaleModel], images: torch.Tensor, scales: Any) -> None:
    with pytest.raises(ConfigError, match="one of them"):
        models["hierarchical"].predict(images, scales)


def test_images_of_another_form_and_those_that_the_weights_cannot_meet_are_refused_in_one_line(
    models: dict[str, MultiScaleModel],
) -> None:
    images = torch.zeros(1, 3, 16, 16)
    for bad, reported in (
        (images[0], r"\(N, 3, H, W\)"),
        (images[:, :1], r"\(N, 3, H, W\)"),
        (images.byte(), r"\(N, 3, H, W\)"),
        (images.numpy(), r"are a ndarray: a model takes a tensor"),
        (images.double(), r"torch\.float64, the model torch\.float32"),
        (images.half(), r"torch\.float16, the model torch\.float32"),
        (images.to("meta"), r"on meta, the model on cpu"),
    ):
        for run in (models["single"].predict, models["single"]):
            with pytest.raises(InputError, match=reported):
                run(bad)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # it brings both to one precision
        assert models["single"].predict(images.bfloat16()).logits.isfinite().all()


def test_a_hierarchical_model_cannot_be_made_of_one_without_attention() -> None:
    with pytest.raises(ConfigError, match="attention head"):
        as_kind(micro("single"), "hierarchical")


# ------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize(
    ("kind", "scales"),
    [
        ("hierarchical", (0.5, 1.0)),
        ("explicit", (0.5, 1.0, 2.0)),
        ("average", (1.0,)),
        ("max", (1.0,)),
        ("single", (1.0,)),
    ],
)
def test_every_parameter_learns_from_the_training_pass(
    kind: str, scales: tuple[float, ...], images: torch.Tensor
) -> None:
    model = micro(kind).train()
    for module in model.modules():
        # Residual branches start at zero, so nothing inside them has a gradient in the very first step.
        if isinstance(module, LastNorm):
            torch.nn.init.ones_(module.weight)
    output = model(images)
    assert tuple(output.scale_logits) == scales == model.config.training_scales
    assert output.logits.shape == output.aux_logits.shape == (2, 5, 40, 56)
    (output.logits.square().mean() + output.aux_logits.square().mean()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # a bias right in front of a batch norm cannot matter
    assert [name for name in silent if not name.endswith(("conv3x3_ocr.0.bias", "aux_head.0.bias"))] == []


def test_the_training_pass_in_evaluation_mode_is_the_two_scale_prediction(images: torch.Tensor) -> None:
    model = micro()
    with torch.no_grad():
        output = model(images)
    torch.testing.assert_close(output.logits, model.predict(images, (0.5, 1.0)).logits)
    assert set(output.attention) == {0.5}
    assert output.scale_logits[0.5].shape == (2, 5, 20, 28)


CHANGES: list[dict[str, Any]] = [
    {"low_scale": 0.25},
    {"train_scales": (0.5, 1.0, 1.5)},
    {"head": "paper"},
    {"ocr_mid": 24},
    {"ocr_key": 8},
    {"attention_channels": 8},
    {"context": "none"},
    {"dropout": 0.9},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_option_changes_what_training_sees(change: dict[str, Any], images: torch.Tensor) -> None:
    def logits(**options: Any) -> torch.Tensor:
        model = micro(**options).train()
        torch.manual_seed(5)  # the same dropout draws
        return model(images).logits

    assert torch.equal(logits(), logits())
    assert not torch.allclose(logits(**change), logits(), rtol=1e-3, atol=1e-3)


def test_top_attention_released_updates_the_attention_norms_once_more(images: torch.Tensor) -> None:
    counts, outputs = {}, {}
    for choice in ("skip", "released"):
        model = micro(top_attention=choice).train()
        torch.manual_seed(0)
        outputs[choice] = model(images).logits
        counts[choice] = int(model.scale_attn.bn0.num_batches_tracked)
        assert int(model.backbone.bn1.num_batches_tracked) == 2
    assert counts == {"skip": 1, "released": 2}
    assert torch.equal(outputs["skip"], outputs["released"])


def test_activation_checkpointing_saves_memory_and_changes_no_bit(images: torch.Tensor) -> None:
    results, held = [], []
    for checkpointing in (False, True):
        model = micro(activation_checkpointing=checkpointing).train()
        saved: list[int] = []
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: (s.append(t.numel()), t)[1], lambda t: t):
            loss = model(images).logits.square().mean()
        loss.backward()
        held.append(sum(saved))
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((grads, torch.cat([b.flatten().double() for b in model.buffers()])))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])  # running statistics are updated once, not twice
    assert held[1] < 0.7 * held[0]


def test_a_fresh_model_starts_at_the_class_prior_and_with_equal_scales() -> None:
    torch.manual_seed(0)
    model = build("hierarchical", trunk="hrnet_micro", num_classes=19)
    prediction = model.predict(torch.randn(1, 3, 64, 64), (0.5, 1.0))
    assert float(torch.sigmoid(prediction.logits).mean()) == pytest.approx(1 / 19, rel=0.2)
    assert prediction.weights is not None
    assert float(prediction.weights[0.5].mean()) == pytest.approx(0.5, abs=0.05)
    with torch.no_grad():
        deep = model.neck(model.backbone(torch.randn(2, 3, 64, 64)))
    assert 0.2 < deep.std().item() < 5.0


def test_a_fresh_residual_block_is_the_identity_and_learns_from_the_second_step_on(images: torch.Tensor) -> None:
    model = micro("single").train()
    blocks = [m for m in model.modules() if any(isinstance(part, LastNorm) for part in m.children())]
    assert blocks
    assert all(not part.weight.any() for block in blocks for part in block.children() if isinstance(part, LastNorm))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(images).logits.square().mean().backward()
        optimiser.step()
    assert all(block.conv1.weight.grad.abs().max() > 0 for block in blocks)
