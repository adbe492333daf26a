"""The small interface a trunk has to offer, and the trunks that are known by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn

from hmsa_core.io.errors import ConfigError
from hmsa_core.models.hrnet import HRNet, hrnet_spec

__all__ = ["Trunk", "TrunkDefaults", "make_trunk", "trunk_defaults"]

_RESNETS = {"deeplabv3_resnet50": "resnet50", "deeplabv3_resnet101": "resnet101"}


class Trunk(Protocol):
    """B x 3 x H x W images -> B x out_channels x ceil(H / stride) x ceil(W / stride) features."""

    out_channels: int
    stride: int

    def __call__(self, images: Tensor, /) -> Tensor:
        """Compute the features."""
        ...


@dataclass(frozen=True)
class TrunkDefaults:
    """Widths of what is put on top of a trunk where the caller names none."""

    context: str  # "ocr" or "none"
    ocr_mid: int
    ocr_key: int
    attention_channels: int


_PUBLISHED = TrunkDefaults("ocr", 512, 256, 256)  # released configuration, any published width
_DEFAULTS = {"hrnet_tiny": TrunkDefaults("ocr", 64, 32, 32), "hrnet_micro": TrunkDefaults("ocr", 32, 16, 16)}


def trunk_defaults(name: str) -> TrunkDefaults:
    """Look up the widths that fit a trunk; an unknown trunk is a ConfigError."""
    if name in _RESNETS:
        return TrunkDefaults("none", 512, 256, 256)
    if hrnet_spec(name) is None:
        known = "hrnet_w18, hrnet_w32, hrnet_w48, hrnet_w64 (any hrnet_w<N>), " + ", ".join([*_DEFAULTS, *_RESNETS])
        raise ConfigError(f"unknown trunk {name!r}: choose one of {known}")
    return _DEFAULTS.get(name, _PUBLISHED)


def make_trunk(name: str) -> nn.Module:
    """Build a trunk by name; the result satisfies `Trunk`. Nothing is downloaded."""
    if name in _RESNETS:
        return DeepLabTrunk(name)
    spec = hrnet_spec(name)
    if spec is None:
        raise ConfigError(f"unknown trunk {name!r}")
    return HRNet(spec)


class DeepLabTrunk(nn.Module):
    """torchvision's DeepLabV3 (dilated ResNet + ASPP) without its classifier: 256 channels at stride 8.

    ASPP pools the whole image into one position in front of a batch norm, so training needs at least two
    images a process (or synchronised batch norm).
    """

    out_channels = 256
    stride = 8

    def __init__(self, name: str) -> None:
        super().__init__()
        from torchvision.models import segmentation  # heavy, and HRNet users never need it

        full = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=1)
        self.backbone = full.backbone
        self.context = nn.Sequential(*list(full.classifier)[:-1])

    def forward(self, images: Tensor) -> Tensor:
        """Return ASPP features."""
        return cast("Tensor", self.context(self.backbone(images)["out"]))
