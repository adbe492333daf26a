"""torchvision's DeepLabV3 (dilated ResNet + ASPP) without its classifier: 256 channels at stride 8.

ASPP pools the whole image into one position in front of a batch norm, so training needs at least two images a process
(or synchronised batch norm).
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import segmentation

from hmsa_core.models.trunks import Widths

NAMES = ("deeplabv3_resnet50", "deeplabv3_resnet101")


def build(name: str) -> DeepLabTrunk:
    """Build the trunk of this name."""
    return DeepLabTrunk(name)


class DeepLabTrunk(nn.Module):
    """B x 3 x H x W -> one map, B x 256 x ceil(H / 8) x ceil(W / 8)."""

    channels = (256,)
    strides = (8,)
    widths = Widths(context="none")  # ASPP is the context block

    def __init__(self, name: str) -> None:
        super().__init__()
        full = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=1)
        self.backbone = full.backbone
        self.context = nn.Sequential(*list(full.classifier)[:-1])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the ASPP features."""
        return [self.context(self.backbone(images)["out"])]
