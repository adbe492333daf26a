"""Trunks of timm: any model that offers `features_only`, each map projected to one width.

Convolutional models give maps at strides 4, 8, 16 and 32. A plain vision transformer gives the outputs of four of its
blocks, all at the stride of its patches; its position embeddings are resized to the image. Weights are fresh:
`hmsa_core.models.pretrained` loads published weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hmsa_core.config import MEAN, STD
from hmsa_core.io.errors import ConfigError, did_you_mean, one_line
from hmsa_core.models.layers.blocks import conv_bn
from hmsa_core.models.trunks import Widths

NAMES = ()
PATTERN = r"timm:[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?"
_WIDTH = 48  # channels of each projected map
_FINEST = 4  # stride; finer maps are not used
_BLOCKS = 4  # blocks of a vision transformer, evenly spaced, with the last block
_PROBE = (97, 131)  # pixels, no multiple of any stride


def build(name: str, *, drop_path: float = 0.0) -> TimmTrunk:
    """Build the trunk `timm:NAME`. ConfigError: timm has no such model, or it offers no feature maps."""
    return TimmTrunk(name.removeprefix("timm:"), drop_path)


class TimmTrunk(nn.Module):
    """B x 3 x H x W -> maps of 48 channels each, the finest first.

    `body` is timm's feature extractor, `project` a 1x1 convolution, batch norm and ReLU for each map. Sides of images
    become multiples of `multiple` pixels (1 for most models): images are enlarged for plain transformers, whose maps
    must cover exactly the image, and padded for other models.
    """

    widths = Widths(context="none", ocr_mid=96, ocr_key=48, attention_channels=96)

    def __init__(self, name: str, drop_path: float = 0.0) -> None:
        super().__init__()
        self.name, self._options = name, _options(name, drop_path)
        self.body = _make_body(name, self._options)
        info = cast("Any", self.body).feature_info
        self.strides = tuple(int(stride) for stride in info.reduction())
        self.channels = (_WIDTH,) * len(self.strides)
        self.project = nn.ModuleList(conv_bn(int(inputs), _WIDTH, 1) for inputs in info.channels())
        published = cast("Any", timm.get_pretrained_cfg(name) or timm.get_pretrained_cfg(_architecture(name)))
        # The published model was trained with another mean and standard deviation. Plain numbers: buffers would be
        # empty when a checkpoint is loaded.
        self._change = (
            [std / other for std, other in zip(STD, published.std, strict=True)],
            [(mean - offset) / std for mean, offset, std in zip(MEAN, published.mean, published.std, strict=True)],
        )
        self.multiple = 1 if self._has_plain_sizes() else max(self.strides)
        if self.multiple > 1:
            self._refuse_other_sizes()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the projected maps: map i is B x 48 x ceil(H / strides[i]) x ceil(W / strides[i])."""
        height, width = images.shape[-2:]
        if self._change != ([1.0] * 3, [0.0] * 3):
            # Filled on the images' device: a copy from the host makes a GPU wait and prevents a CUDA graph.
            parts = (torch.stack([images.new_full((), value) for value in values]) for values in self._change)
            factor, offset = (part.reshape(1, 3, 1, 1) for part in parts)
            images = images * factor + offset
        if self.multiple > 1 and len(set(self.strides)) == 1:
            rows, columns = ((length + self.multiple - 1) // self.multiple for length in (height, width))
            size = (rows * self.multiple, columns * self.multiple)  # always resized: an exported graph takes any size
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        elif self.multiple > 1:
            images = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        return [
            # Rounded up in whole numbers from 0 on: ONNX divides negative numbers in another way.
            project(maps[..., : (height + stride - 1) // stride, : (width + stride - 1) // stride])
            for maps, project, stride in zip(self.body(images), self.project, self.strides, strict=True)
        ]

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights of timm's classification model, by timm's names."""
        logging.getLogger("timm").setLevel(logging.ERROR)  # timm would log the classifier's keys, which are not loaded
        filled = timm.create_model(
            self.name, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)}, **self._options
        )
        self.body.load_state_dict(filled.state_dict())

    def published(self) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Names and shapes (no values) of timm's classification model, and the prefixes of its classifier."""
        with torch.device("meta"):
            whole: Any = timm.create_model(self.name, pretrained=False)
        classifier = whole.pretrained_cfg.get("classifier") or ()
        parts = (classifier,) if isinstance(classifier, str) else classifier
        return whole.state_dict(), tuple(f"{part}." for part in parts)

    def _refuse_other_sizes(self) -> None:
        """Raise ConfigError for a model that takes only one image size, or whose maps leave out the image's borders."""
        size = (5 * self.multiple, 7 * self.multiple)
        try:
            maps = self._sizes(*size)
        except (AssertionError, RuntimeError) as error:  # timm's models raise either for a refused size
            raise ConfigError(f"trunk timm:{self.name}: it takes images of one size ({one_line(error)})") from None
        if maps != self._wanted(*size):
            raise ConfigError(f"trunk timm:{self.name}: its maps leave out the edges of images")

    def _has_plain_sizes(self) -> bool:
        """Whether the model takes images of any size and gives maps of ceil(size / stride)."""
        try:
            return self._sizes(*_PROBE) == self._wanted(*_PROBE)
        except (AssertionError, RuntimeError):
            return False

    def _sizes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """Sizes of the maps of an image, computed on the meta device."""
        with torch.device("meta"):
            maps = _make_body(self.name, self._options)(torch.empty(1, 3, height, width))
        return [tuple(one.shape[-2:]) for one in maps]

    def _wanted(self, *image: int) -> list[tuple[int, ...]]:
        return [tuple(math.ceil(length / stride) for length in image) for stride in self.strides]


def _architecture(name: str) -> str:
    return name.partition(".")[0]


def _make_body(name: str, options: Mapping[str, Any]) -> nn.Module:
    return timm.create_model(name, pretrained=False, **options)


def _options(name: str, drop_path: float) -> dict[str, Any]:
    """Arguments with which `timm.create_model` gives the maps that the heads need."""
    if not timm.is_model(_architecture(name)):
        hint = did_you_mean(_architecture(name), timm.list_models(), "`timm.list_models()` lists them")
        raise ConfigError(f"trunk timm:{name}: timm {timm.__version__} has no model of this name; {hint}")
    options: dict[str, Any] = {"features_only": True} | ({"drop_path_rate": drop_path} if drop_path else {})
    try:
        with torch.device("meta"):
            body: Any = timm.create_model(name, pretrained=False, **options)
            reductions = body.feature_info.reduction()
            if len(set(reductions)) > 1:
                return options | {"out_indices": [i for i, stride in enumerate(reductions) if stride >= _FINEST]}
            # A plain vision transformer: timm's default takes the last blocks.
            whole: Any = timm.create_model(name, pretrained=False)
            depth = len(whole.blocks)
        wanted = {"out_indices": [depth * (i + 1) // _BLOCKS - 1 for i in range(_BLOCKS)], "dynamic_img_size": True}
        _make_body(name, options | wanted)
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        raise ConfigError(f"trunk timm:{name}: it offers no maps that are usable here ({one_line(error)})") from None
    return options | wanted
