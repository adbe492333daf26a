"""The attention head: how much a scale is to be trusted at each position."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from hmsa_core.models.layers import BN_MOMENTUM, conv

__all__ = ["AttentionHead"]


class AttentionHead(nn.Module):
    """3x3-BN-ReLU-3x3-BN-ReLU-1x1 to one channel, no biases (Tao et al. 2020, figure 2).

    Returns the score *before* the sigmoid: hierarchical fusion takes its sigmoid (on this grid, the map is
    upsampled afterwards, as released), explicit attention a softmax over scales.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.conv0 = conv(inputs, hidden, 3)
        self.bn0 = nn.BatchNorm2d(hidden, momentum=BN_MOMENTUM)
        self.re0 = nn.ReLU(inplace=True)
        self.conv1 = conv(hidden, hidden, 3)
        self.bn1 = nn.BatchNorm2d(hidden, momentum=BN_MOMENTUM)
        self.re1 = nn.ReLU(inplace=True)
        self.conv2 = conv(hidden, 1, 1)

    def forward(self, features_BKhw: Tensor) -> Tensor:
        """Return unbounded scores, B x 1 x h x w."""
        x = self.re0(self.bn0(self.conv0(features_BKhw)))
        x = self.re1(self.bn1(self.conv1(x)))
        return cast("Tensor", self.conv2(x))
