"""HRNetV2 trunk of any width from one definition (Sun et al. 2019, arXiv 1904.04514).

Names and shapes of the state dict are those of the released segmentation trunk (1830 keys at any
published width), so that published weights load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hmsa_core.models.layers.batch_norm import Norm, Steps, Stepwise, recomputed, steps_of
from hmsa_core.models.layers.blocks import BN_MOMENTUM, LastNorm, conv, conv_bn, resize
from hmsa_core.models.trunks import Widths

NAMES = ("hrnet_w18", "hrnet_w32", "hrnet_w48", "hrnet_w64", "hrnet_tiny", "hrnet_micro")
PATTERN = r"hrnet_w[1-9]\d{0,2}"  # any width of the published depth

_T = TypeVar("_T", Tensor, list[Tensor])


class HRNetSpec(NamedTuple):
    """Sizes of an HRNet; the defaults are the published depth."""

    width: int  # channels of the finest branch; each coarser branch doubles them
    stem: int = 64  # channels of the two stride-2 convolutions
    layer1_planes: int = 64  # a quarter of layer1's output channels
    layer1_blocks: int = 4
    modules: tuple[int, int, int] = (1, 4, 3)  # exchange modules in stages 2, 3, 4
    blocks: tuple[int, int, int] = (4, 4, 4)  # residual blocks a branch and module in stages 2, 3, 4
    widths: Widths = Widths()


# For CPUs: about a tenth of W18's work, by fewer modules and a thin stem (the stem runs on the largest grids).
_NARROW = {
    "hrnet_tiny": HRNetSpec(16, 32, 16, 2, (1, 2, 1), (2, 2, 2), Widths("ocr", 64, 32, 32)),
    "hrnet_micro": HRNetSpec(8, 16, 8, 1, (1, 1, 1), (1, 1, 1), Widths("ocr", 32, 16, 16)),
}


def build(name: str) -> HRNet:
    """Build `hrnet_w<width>` (any width, published depth), `hrnet_tiny` or `hrnet_micro`."""
    return HRNet(_NARROW.get(name) or HRNetSpec(int(name.removeprefix("hrnet_w"))))


class BasicBlock(Stepwise):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels, 3)
        self.bn1 = nn.BatchNorm2d(channels, momentum=BN_MOMENTUM)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = LastNorm(channels, momentum=BN_MOMENTUM)
        self.relu = nn.ReLU(inplace=True)

    def steps(self, x: Tensor) -> Steps[Tensor]:
        """Return a tensor of the input's shape."""
        out = self.relu((yield Norm(self.bn1, self.conv1(x))))
        out = yield Norm(self.bn2, self.conv2(out))
        out += x  # batch norm's backward needs its input, not this output: in place is safe
        return self.relu(out)  # type: ignore[no-any-return]  # nn.Module calls are untyped in torch


class Bottleneck(Stepwise):
    """Residual block 1x1, 3x3, 1x1 with four times as many output channels as planes."""

    expansion = 4

    def __init__(self, inputs: int, planes: int) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = conv(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes, momentum=BN_MOMENTUM)
        self.conv2 = conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes, momentum=BN_MOMENTUM)
        self.conv3 = conv(planes, outputs, 1)
        self.bn3 = LastNorm(outputs, momentum=BN_MOMENTUM)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv_bn(inputs, outputs, 1, relu=False) if inputs != outputs else None

    def steps(self, x: Tensor) -> Steps[Tensor]:
        """Return B x 4*planes x H x W."""
        parts = [self._residual(x)] if self.downsample is None else [self._residual(x), steps_of(self.downsample, x)]
        out, *shortcut = yield parts
        out += shortcut[0] if shortcut else x
        return self.relu(out)  # type: ignore[no-any-return]

    def _residual(self, x: Tensor) -> Steps[Tensor]:
        out = self.relu((yield Norm(self.bn1, self.conv1(x))))
        out = self.relu((yield Norm(self.bn2, self.conv2(out))))
        return (yield Norm(self.bn3, self.conv3(out)))  # type: ignore[no-any-return]


class ExchangeModule(Stepwise):
    """Residual blocks in each branch; then every branch receives the sum of all branches, resampled to its grid."""

    def __init__(self, channels: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(width) for _ in range(blocks))) for width in channels)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_exchange(channels, source, target) for source in range(len(channels)))
            for target in range(len(channels))
        )
        self.relu = nn.ReLU(inplace=True)

    def steps(self, branches: list[Tensor]) -> Steps[list[Tensor]]:
        """Map one tensor a branch to one tensor a branch, same shapes."""
        inputs = yield [steps_of(branch, x) for branch, x in zip(self.branches, branches, strict=True)]
        return (yield [self._fuse(inputs, target) for target in range(len(inputs))])  # type: ignore[no-any-return]

    def _fuse(self, inputs: list[Tensor], target: int) -> Steps[Tensor]:
        # Summed in the order of the branches, as released; in place once the sum is a new tensor.
        size = (inputs[target].shape[-2], inputs[target].shape[-1])
        layers = cast("nn.ModuleList", self.fuse_layers[target])
        total, *terms = yield [steps_of(layer, x) for layer, x in zip(layers, inputs, strict=True)]
        is_ours = target != 0
        for term in terms:
            resized = resize(term, size)
            total = total.add_(resized) if is_ours else total + resized
            is_ours = True
        return self.relu(total)  # type: ignore[no-any-return]


def _exchange(channels: Sequence[int], source: int, target: int) -> nn.Module:
    """Make the path from branch `source` to branch `target` (resizing upwards is done by the caller)."""
    if source == target:
        return nn.Identity()
    if source > target:
        return conv_bn(channels[source], channels[target], 1, relu=False)
    wide = channels[source]
    first = [conv_bn(wide, wide, 3, stride=2) for _ in range(target - source - 1)]
    return nn.Sequential(*first, conv_bn(wide, channels[target], 3, stride=2, relu=False))


class HRNet(Stepwise):
    """HRNetV2 trunk: B x 3 x H x W -> four branches at strides 4, 8, 16, 32.

    `checkpointing` = True recomputes each exchange module in the backward pass instead of keeping its
    activations; outputs, gradients and running statistics stay bit-identical.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, spec: HRNetSpec) -> None:
        super().__init__()
        self.widths = spec.widths
        self.checkpointing = False
        channels = [spec.width << level for level in range(4)]
        self.channels = tuple(channels)
        self.conv1 = conv(3, spec.stem, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(spec.stem, momentum=BN_MOMENTUM)
        self.conv2 = conv(spec.stem, spec.stem, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(spec.stem, momentum=BN_MOMENTUM)
        self.relu = nn.ReLU(inplace=True)
        wide = spec.layer1_planes * Bottleneck.expansion
        inputs = [spec.stem] + [wide] * (spec.layer1_blocks - 1)
        self.layer1 = nn.Sequential(*(Bottleneck(one, spec.layer1_planes) for one in inputs))
        self.transition1 = _transition([wide], channels[:2])
        self.stage2 = _stage(spec, channels[:2], 0)
        self.transition2 = _transition(channels[:2], channels[:3])
        self.stage3 = _stage(spec, channels[:3], 1)
        self.transition3 = _transition(channels[:3], channels)
        self.stage4 = _stage(spec, channels, 2)

    def steps(self, images_B3HW: Tensor) -> Steps[list[Tensor]]:
        """Return the branches."""
        x = self.relu((yield Norm(self.bn1, self.conv1(images_B3HW))))
        x = self.relu((yield Norm(self.bn2, self.conv2(x))))
        branches = [(yield from self._run(self.layer1, x))]
        del x  # the largest map
        for transition, stage in (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            # A new branch starts from the coarsest existing branch.
            inputs = branches + [branches[-1]] * (len(transition) - len(branches))
            branches = yield [steps_of(step, one) for step, one in zip(transition, inputs, strict=True)]
            del inputs
            branches = yield from self._run(stage, branches)
        return branches

    def _run(self, blocks: nn.Sequential, x: _T) -> Steps[_T]:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return (yield from steps_of(blocks, x))  # type: ignore[no-any-return]
        for block in blocks:
            x = _checkpointed(block, x)
        return x


def _checkpointed(block: nn.Module, x: _T) -> _T:
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: recomputed(block))  # type: ignore[no-any-return]


def _stage(spec: HRNetSpec, channels: Sequence[int], index: int) -> nn.Sequential:
    return nn.Sequential(*(ExchangeModule(channels, spec.blocks[index]) for _ in range(spec.modules[index])))


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """Adapt channel counts of the existing branches and start one more by a stride-2 convolution."""
    steps: list[nn.Module] = []
    for i, outputs in enumerate(after):
        if i < len(before):
            steps.append(nn.Identity() if before[i] == outputs else conv_bn(before[i], outputs, 3))
        else:
            steps.append(nn.Sequential(conv_bn(before[-1], outputs, 3, stride=2)))
    return nn.ModuleList(steps)
