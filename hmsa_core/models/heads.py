"""Parts behind a trunk: neck, context block, class heads, attention head.

The neck joins the trunk's maps. The context block is OCR (Yuan et al. 2020, arXiv 1909.11065), or none. Names of the
state dict follow the released code (`conv3x3_ocr`, `ocr_distri_head.object_context_block`, `cls_head`, `aux_head`).
Legend: B batch, C classes, K feature channels, k key channels, P = h x w positions.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from hmsa_core.config import ModelConfig
from hmsa_core.models.layers.batch_norm import Steps, Stepwise, steps_of
from hmsa_core.models.layers.blocks import BN_MOMENTUM, batch_norm_relu, conv, conv_bn, resize

_BINS = (1, 2, 3, 6)  # bins a side of pyramid pooling


class Concatenation(nn.Module):
    """Neck: the trunk's maps resized to the grid of the finest and concatenated, as in HRNetV2. No parameters."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return B x (sum of channels) x h x w."""
        if len(maps) == 1:
            return maps[0]
        size = (maps[0].shape[-2], maps[0].shape[-1])
        return torch.cat([maps[0], *(resize(one, size) for one in maps[1:])], dim=1)


class PixelScores(NamedTuple):
    """Output of a context block, all on the trunk's grid."""

    logits: Tensor  # B x C x h x w class scores
    aux_logits: Tensor  # B x C x h x w scores of the auxiliary head, which also gathers the object regions
    features: Tensor  # B x K x h x w input of the semantic head and of the attention head


def semantic_head(head: str, inputs: int, hidden: int, classes: int) -> nn.Module:
    """Make the class head: one 1x1 convolution as released, or 3x3-3x3-1x1 as the paper's figure 2 draws it."""
    if head == "released":
        return conv(inputs, classes, 1, bias=True)
    return nn.Sequential(*_two_layers(inputs, hidden, kernel=3), conv(hidden, classes, 1, bias=True))


def _aux_head(inputs: int, classes: int) -> nn.Sequential:
    # The bias in front of a batch norm has no effect, but published weights have it.
    return nn.Sequential(
        conv(inputs, inputs, 1, bias=True), batch_norm_relu(inputs), conv(inputs, classes, 1, bias=True)
    )


class ObjectAttention(Stepwise):
    """Each position attends to the C object regions (equation 3 of the OCR paper)."""

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.scale = key_channels**-0.5
        self.f_pixel = _two_layers(channels, key_channels)
        self.f_object = _two_layers(channels, key_channels)
        self.f_down = nn.Sequential(conv(channels, key_channels, 1), batch_norm_relu(key_channels))
        self.f_up = nn.Sequential(conv(key_channels, channels, 1), batch_norm_relu(channels))

    def steps(self, features_BKhw: Tensor, regions_BKC1: Tensor) -> Steps[Tensor]:
        """Return the object context of each position, B x K x h x w."""
        batch, _, height, width = features_BKhw.shape
        query, key, value = yield [
            steps_of(self.f_pixel, features_BKhw),
            steps_of(self.f_object, regions_BKC1),
            steps_of(self.f_down, regions_BKC1),
        ]
        query_BPk = query.flatten(2).transpose(1, 2)
        key_BkC, value_BCk = key.flatten(2), value.flatten(2).transpose(1, 2)
        weight_BPC = torch.softmax(torch.matmul(query_BPk, key_BkC) * self.scale, dim=-1)
        context_BkP = torch.matmul(weight_BPC, value_BCk.to(weight_BPC.dtype)).transpose(1, 2)
        return (yield from steps_of(self.f_up, context_BkP.reshape(batch, -1, height, width)))  # type: ignore[no-any-return]


def _two_layers(inputs: int, outputs: int, *, kernel: int = 1) -> nn.Sequential:
    first, second = conv(inputs, outputs, kernel), conv(outputs, outputs, kernel)
    return nn.Sequential(first, batch_norm_relu(outputs), second, batch_norm_relu(outputs))


class ObjectContext(Stepwise):
    """Object context, concatenated with the features and mixed down to their width, with dropout."""

    def __init__(self, channels: int, key_channels: int, dropout: float) -> None:
        super().__init__()
        self.object_context_block = ObjectAttention(channels, key_channels)
        self.conv_bn_dropout = nn.Sequential(
            conv(2 * channels, channels, 1), batch_norm_relu(channels), nn.Dropout2d(dropout)
        )

    def steps(self, features_BKhw: Tensor, regions_BKC1: Tensor) -> Steps[Tensor]:
        """Return the augmented features, B x K x h x w. The context comes first in the concatenation."""
        context = yield from steps_of(self.object_context_block, features_BKhw, regions_BKC1)
        both = torch.cat([context, features_BKhw], dim=1)
        return (yield from steps_of(self.conv_bn_dropout, both))  # type: ignore[no-any-return]


def gather_regions(features_BKhw: Tensor, aux_BChw: Tensor) -> Tensor:
    """Sum features per class, weighted by a softmax over *positions* of the auxiliary scores: B x K x C x 1."""
    weight_BCP = torch.softmax(aux_BChw.flatten(2), dim=2)
    features_BPK = features_BKhw.flatten(2).transpose(1, 2)
    regions_BCK = torch.matmul(weight_BCP.to(features_BPK.dtype), features_BPK)
    return regions_BCK.transpose(1, 2).unsqueeze(3)


class OCRBlock(Stepwise):
    """Trunk features -> object-contextual features -> class scores, with the auxiliary head in front."""

    def __init__(self, config: ModelConfig, inputs: int, classes: int, *, mid: int, key: int, hidden: int) -> None:
        super().__init__()
        self.out_channels = mid
        self.conv3x3_ocr = nn.Sequential(conv(inputs, mid, 3, bias=True), batch_norm_relu(mid))
        self.ocr_distri_head = ObjectContext(mid, key, config.dropout)
        self.cls_head = semantic_head(config.head, mid, hidden, classes)
        self.aux_head = _aux_head(inputs, classes)

    def steps(self, features: Tensor) -> Steps[PixelScores]:
        """Return scores and features on the trunk's grid; the gradient flows from the regions into the aux head."""
        aux, narrow = yield [steps_of(self.aux_head, features), steps_of(self.conv3x3_ocr, features)]
        context = yield from steps_of(self.ocr_distri_head, narrow, gather_regions(narrow, aux))
        return PixelScores((yield from steps_of(self.cls_head, context)), aux, context)


class PyramidPooling(nn.Module):
    """PSPNet's context: features with the means of 1, 2, 3 and 6 bins a side, mixed by a 3x3 convolution.

    Source: Zhao et al. 2017, section 3.2.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        width = max(1, inputs // len(_BINS))
        self.bins = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(n), conv_bn(inputs, width, 1)) for n in _BINS)
        self.mix = conv_bn(inputs + width * len(_BINS), outputs, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Return B x outputs x h x w."""
        size = (features.shape[-2], features.shape[-1])
        return self.mix(torch.cat([features, *(resize(one(features), size) for one in self.bins)], dim=1))  # type: ignore[no-any-return]


def make_pooling(kind: Literal["aspp", "psp"], inputs: int, outputs: int, stride: int) -> nn.Module:
    """Make a pooling context block: DeepLabv3's ASPP (Chen et al. 2017) or PSPNet's pyramid.

    The rates of ASPP are DeepLab's 12, 24 and 36 at stride 8, the same number of pixels at another `stride`.
    """
    if kind == "psp":
        return PyramidPooling(inputs, outputs)
    from torchvision.models.segmentation.deeplabv3 import ASPP  # the import takes a second

    pooling: nn.Module = ASPP(inputs, [max(1, rate * 8 // stride) for rate in (12, 24, 36)], outputs)
    return pooling


class PixelHeads(Stepwise):
    """The heads without OCR: on a pooling context block, or directly on the trunk's maps."""

    def __init__(
        self, config: ModelConfig, inputs: int, classes: int, *, hidden: int, pooling: nn.Module | None
    ) -> None:
        super().__init__()
        self.pooling = pooling  # trunk features -> B x inputs x h x w
        self.out_channels = inputs
        self.dropout = nn.Dropout2d(config.dropout)
        self.cls_head = semantic_head(config.head, inputs, hidden, classes)
        self.aux_head = _aux_head(inputs, classes)

    def steps(self, features: Tensor) -> Steps[PixelScores]:
        """Return scores and features on the trunk's grid."""
        if self.pooling is not None:
            features = yield from steps_of(self.pooling, features)
        dropped = self.dropout(features)
        scores, aux = yield [steps_of(self.cls_head, dropped), steps_of(self.aux_head, features)]
        return PixelScores(scores, aux, dropped)


def attention_head(inputs: int, hidden: int) -> nn.Sequential:
    """Make 3x3-BN-ReLU-3x3-BN-ReLU-1x1 to one channel, no biases (Tao et al. 2020, figure 2): B x 1 x h x w scores.

    Scores are those *before* the sigmoid: hierarchical fusion takes their sigmoid (on this grid, the map is
    upsampled afterwards, as released), explicit attention a softmax over scales.
    """
    layers: dict[str, nn.Module] = {
        "conv0": conv(inputs, hidden, 3),
        "bn0": nn.BatchNorm2d(hidden, momentum=BN_MOMENTUM),
        "re0": nn.ReLU(inplace=True),
        "conv1": conv(hidden, hidden, 3),
        "bn1": nn.BatchNorm2d(hidden, momentum=BN_MOMENTUM),
        "re1": nn.ReLU(inplace=True),
        "conv2": conv(hidden, 1, 1),
    }
    return nn.Sequential(OrderedDict(layers))
