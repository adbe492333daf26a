"""The trunk interface: torchvision's DeepLabV3-ResNet under the same attention head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hmsa_core import models
from hmsa_core.config import ModelConfig
from hmsa_core.inference import label_image
from hmsa_core.io.errors import ConfigError
from hmsa_core.models import trunks


@pytest.fixture(scope="module")
def deeplab() -> models.MultiScaleModel:
    torch.manual_seed(0)
    return models.build("hierarchical", trunk="deeplabv3_resnet50", num_classes=4, attention_channels=16)


def test_deeplab_is_fused_over_scales_like_any_trunk(deeplab: models.MultiScaleModel, tmp_path: Path) -> None:
    image = torch.randn(1, 3, 45, 61)
    deeplab.eval()
    prediction = deeplab.predict(image, (0.5, 1.0))
    assert prediction.logits.shape == (1, 4, 45, 61)
    assert prediction.weights is not None
    total = prediction.weights[0.5] + prediction.weights[1.0]
    torch.testing.assert_close(total, torch.ones_like(total))
    with torch.no_grad():
        raw = deeplab.forward_scale(image)
    assert raw.logits.shape == (1, 4, 6, 8)  # stride 8
    models.save(deeplab, tmp_path / "deeplab", class_table=None, lineage={})
    again = models.load(tmp_path / "deeplab")
    assert torch.equal(again.predict(image, (0.5, 1.0)).logits, prediction.logits)


def test_deeplab_learns_through_the_attention(deeplab: models.MultiScaleModel) -> None:
    output = deeplab.train()(torch.randn(2, 3, 32, 32))
    (output.logits.square().mean() + output.aux_logits.square().mean()).backward()
    assert deeplab.scale_attn.conv0.weight.grad.abs().max() > 0
    assert deeplab.backbone.backbone.conv1.weight.grad.abs().max() > 0
    deeplab.eval()


def test_ocr_can_stand_on_deeplab_and_be_left_out_of_hrnet() -> None:
    with torch.device("meta"):
        on_deeplab = models.build("single", trunk="deeplabv3_resnet50", context="ocr", ocr_mid=32, ocr_key=16)
        without = models.build("single", trunk="hrnet_micro", context="none")
    assert "ocr.ocr_distri_head.conv_bn_dropout.0.weight" in on_deeplab.state_dict()
    assert not any("ocr_distri_head" in key for key in without.state_dict())
    assert without.state_dict()["ocr.cls_head.weight"].shape == (19, 120, 1, 1)


def test_activation_checkpointing_is_refused_where_it_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="not offered for the trunk"):
        models.build("single", trunk="deeplabv3_resnet50", activation_checkpointing=True)


def test_a_file_in_the_folder_of_trunks_is_a_trunk_and_settings_know_its_name() -> None:
    file = Path(trunks.__file__).with_name("test_only_trunk.py")
    try:
        file.write_text(TRUNK)
        trunks._declared.cache_clear()
        assert ModelConfig(trunk="two_convolutions").trunk == "two_convolutions"
        model = models.build("hierarchical", trunk="two_convolutions", num_classes=4).eval()
        image = torch.randn(1, 3, 33, 50)
        assert model.predict(image, (0.5, 1.0)).logits.shape == (1, 4, 33, 50)
        label, _ = label_image(model, np.zeros((33, 50, 3), np.uint8), (0.5, 1.0), True)
        assert label.shape == (33, 50)
    finally:
        file.unlink()
        trunks._declared.cache_clear()
    with pytest.raises(ValueError, match="unknown trunk 'two_convolutions'"):
        ModelConfig(trunk="two_convolutions")


TRUNK = """
from torch import nn
from hmsa_core.models.trunks import Widths

NAMES = ("two_convolutions",)

def build(name):
    return TwoConvolutions()

class TwoConvolutions(nn.Module):
    channels, strides, widths = (8, 16), (4, 8), Widths("ocr", 16, 8, 8)

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 7, stride=4, padding=3), nn.Conv2d(8, 16, 3, stride=2, padding=1)

    def forward(self, images):
        fine = self.fine(images).relu()
        return [fine, self.coarse(fine).relu()]
"""
