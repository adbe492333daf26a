"""What labelling does on a GPU and not on a CPU: fused convolutions, captured passes, transfers that nobody waits for.

torch keeps pinned blocks for the next image and knows which of them a copy still reads, so two images can be under
way without buffers of our own. All is queued on one stream: a copy of 6 MB takes 0.3 ms, the kernels 100 ms.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hmsa_core.models.layers.blocks import resize
from hmsa_core.models.trunks.hrnet import BasicBlock, Bottleneck, ExchangeModule

_LOG = logging.getLogger(__name__)
_MOST_GRAPHS = 12  # four sizes of images at three scales; further shapes run without a graph
_SHAPES = 256  # that are remembered as seen once
Pass = Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]


# -------------------------------------------------------------------------------- convolutions


class FusedConv(nn.Module):
    """Convolution + bias (+ another map) + ReLU by one kernel of cuDNN."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(convolution.weight.detach(), requires_grad=False)
        bias = convolution.bias
        shift = self.weight.new_zeros(len(self.weight)) if bias is None else bias.detach()
        self.bias = nn.Parameter(shift, requires_grad=False)
        c = convolution
        self.geometry: tuple[Any, ...] = (c.stride, c.padding, c.dilation, c.groups)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """`relu(convolution of x + bias + z)`, B x K x H x W."""
        if z is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, *self.geometry)
        return torch.cudnn_convolution_add_relu(x, self.weight, z, 1.0, self.bias, *self.geometry)


class FusedBlock(nn.Module):
    """A residual block of HRNet, basic or bottleneck: as many kernels as convolutions."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        convolutions = [block.conv1, block.conv2, *([block.conv3] if isinstance(block, Bottleneck) else [])]
        *first, last = map(FusedConv, convolutions)
        self.first, self.last = nn.Sequential(*first), last
        self.shortcut = getattr(block, "downsample", None) or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Same values as the block, up to rounding."""
        return self.last(self.first(x), self.shortcut(x))  # type: ignore[no-any-return]


class FusedExchange(nn.Module):
    """HRNet's exchange between branches. The sum, its bias and its ReLU are part of the last convolution into it.

    A resize keeps a constant, so the biases of all terms of a sum are added once. The finest branch receives enlarged
    maps only: its sum has a ReLU of its own, and the bias is added to the coarsest of these maps.
    """

    def __init__(self, module: ExchangeModule) -> None:
        super().__init__()
        self.branches, self.paths = module.branches, cast("Sequence[nn.ModuleList]", module.fuse_layers)
        self.closing = nn.ModuleList([nn.Identity()])
        for target, row in enumerate(self.paths):
            paths = [path for i, path in enumerate(row) if i != target]
            last = [[module for module in path.modules() if isinstance(module, nn.Conv2d)][-1] for path in paths]
            into = last[target - 1]
            _move_biases(last, into)
            if target:
                self.closing.append(FusedConv(into))
                row[target - 1] = nn.Identity()  # no second copy of its weights

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """Same values as the module, up to rounding."""
        inputs = [branch(x) for branch, x in zip(self.branches, branches, strict=True)]
        return [self._fuse(inputs, target) for target in range(len(inputs))]

    def _fuse(self, inputs: list[Tensor], target: int) -> Tensor:
        total = inputs[target]
        size = (total.shape[-2], total.shape[-1])
        for source, x in enumerate(inputs):
            if source == target or (target and source == target - 1):
                continue
            term = resize(self.paths[target][source](x), size)
            total = total + term if total is inputs[target] else total.add_(term)
        return self.closing[target](inputs[target - 1], total) if target else total.relu_()


def _move_biases(terms: list[nn.Conv2d], to: nn.Conv2d) -> None:
    """Add up the biases of the terms of a sum in one of them."""
    total = torch.stack([one.bias.detach() for one in terms if one.bias is not None]).sum(dim=0)
    for one in terms:
        one.bias = None
    to.bias = nn.Parameter(total, requires_grad=False)


def fuse(model: nn.Module, probe: Tensor) -> None:
    """Give convolution, bias and ReLU one kernel wherever a ReLU's input is the fresh output of a convolution.

    HRNet's blocks and exchanges are rewritten by name; of other modules, which ReLU follows which convolution is
    found by watching `probe` pass through.

    Args:
        model: a MultiScaleModel with folded batch norms; changed in place.
        probe: 1 x 3 x H x W on the model's device.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, (BasicBlock, Bottleneck)):
            model.set_submodule(name, FusedBlock(module))
    for name, module in list(model.named_modules()):
        if isinstance(module, ExchangeModule):
            model.set_submodule(name, FusedExchange(module))
    names = {module: name for name, module in model.named_modules()}
    plain = [m for m in model.modules() if type(m) is nn.Conv2d and _is_plain(m)]
    calls: dict[nn.Module, list[nn.Conv2d | None]] = {}
    for relu, convolution in fresh_inputs(model, probe, plain, nn.ReLU):
        calls.setdefault(relu, []).append(convolution)
    for relu, convolutions in calls.items():
        fresh = [one for one in convolutions if one is not None]
        if len(fresh) == len(convolutions):
            for one in fresh:
                model.set_submodule(names[one], FusedConv(one))
            model.set_submodule(names[relu], nn.Identity())


def fresh_inputs(
    model: nn.Module, probe: Tensor, convolutions: list[nn.Conv2d], kind: type[nn.Module]
) -> list[tuple[nn.Module, nn.Conv2d | None]]:
    """Each call of a module of a kind, with the convolution whose untouched output it got; None where it got another.

    Args:
        model: a MultiScaleModel, which `probe` passes through.
        convolutions: those that are looked at. One that runs more than once in a pass counts as none.
    """
    fresh: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    runs: Counter[nn.Module] = Counter()
    calls: list[tuple[nn.Module, nn.Conv2d | None]] = []

    def remember(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        runs[module] += 1
        # The tensor is kept alive with its id, so that the id cannot be given to another one.
        fresh[id(output)] = (module, output, output._version)  # type: ignore[assignment]  # hooked on Conv2d only

    def match(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        convolution, _, version = fresh.get(id(inputs[0]), (None, None, -1))
        # A shortcut that was added in place gives the same tensor another version.
        calls.append((module, convolution if inputs[0]._version == version else None))

    handles = [one.register_forward_hook(remember) for one in convolutions]
    handles += [m.register_forward_pre_hook(match) for m in model.modules() if isinstance(m, kind)]
    model.forward_scale(probe)  # type: ignore[operator]  # a MultiScaleModel
    for handle in handles:
        handle.remove()
    return [(module, one if one is not None and runs[one] == 1 else None) for module, one in calls]


def _is_plain(convolution: nn.Conv2d) -> bool:
    # torch has better kernels than cuDNN's for depthwise convolutions.
    return convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str) and convolution.groups == 1


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this GPU's cuDNN computes the fused operators rightly; where it does not, the log says so."""
    generator = torch.Generator().manual_seed(0)
    layout = {"device": device, "dtype": dtype, "memory_format": torch.channels_last}
    x, z, weight = (torch.randn(shape, generator=generator).to(**layout) for shape in _PROBES)  # type: ignore[call-overload]
    bias = torch.linspace(-1, 1, len(weight), device=device, dtype=dtype)
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    try:
        # The operator's output gets this memory: what lay in it must not come through.
        torch.full_like(x, torch.nan)
        alone = torch.cudnn_convolution_relu(x, weight, bias, *geometry)
        added = torch.cudnn_convolution_add_relu(x, weight, z, 1.0, bias, *geometry)
        plain = F.conv2d(x.float(), weight.float(), bias.float(), padding=1)
        pairs = ((alone, plain.relu()), (added, (plain + z.float()).relu()))
        wrong = not all(torch.allclose(found.float(), want, rtol=0.02, atol=0.1) for found, want in pairs)
        reason = "other values than convolution, sum and ReLU" if wrong else ""
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    if reason:
        _LOG.warning("convolutions are not fused with bias and ReLU on %s in %s: %s", device, dtype, reason)
    return not reason


_PROBES = ((1, 16, 24, 40), (1, 16, 24, 40), (16, 16, 3, 3))


# -------------------------------------------------------------------------------- captured passes


class Graphs:
    """Runs a pass, captured as a CUDA graph from the second time on that a shape comes.

    Outputs are copied out of the graph's memory, so all graphs can share one pool: it is as large as the largest
    pass. `_MOST_GRAPHS` shapes are captured; the others, and all of them after `release`, run kernel by kernel.
    """

    def __init__(self, run: Pass) -> None:
        self._run = run
        self._seen: dict[tuple[Any, ...], None] = {}
        self._captured: dict[tuple[Any, ...], tuple[Any, Tensor, tuple[Tensor, Tensor | None]]] = {}
        self._pool: Any = None
        self._is_off = False

    def __call__(self, images: Tensor, attention: bool) -> tuple[Tensor, Tensor | None]:
        """Scores and attention of B x 3 x H x W, as `run` gives them."""
        key = (*images.shape, attention)
        if key not in self._captured and not self._capture(key, images, attention):
            return self._run(images, attention)
        graph, given, (scores, weight) = self._captured[key]
        given.copy_(images)
        graph.replay()
        return scores.clone(), None if weight is None else weight.clone()

    def release(self) -> None:
        """Give the graphs' memory back and capture no more: memory has run out."""
        self._captured.clear()
        self._pool, self._is_off = None, True

    def _capture(self, key: tuple[Any, ...], images: Tensor, attention: bool) -> bool:
        if key not in self._seen:  # the first pass chooses algorithms and makes workspaces, which cannot be captured
            if len(self._seen) < _SHAPES:
                self._seen[key] = None
            return False
        if self._is_off or len(self._captured) >= _MOST_GRAPHS:
            return False
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph, given = torch.cuda.CUDAGraph(), images.clone()
        try:
            # Other threads may ask CUDA for something meanwhile: that does not disturb this capture.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = self._run(given, attention)
        except RuntimeError as error:
            _LOG.warning("passes are not captured as CUDA graphs: %s", str(error).splitlines()[0])
            self.release()
            return False
        self._captured[key] = (graph, given, outputs)
        return True


# -------------------------------------------------------------------------------- transfers


def upload(image: NDArray[np.uint8], device: torch.device) -> Tensor:
    """The bytes of an image (H x W x 3) on the device, by one copy that the host does not wait for."""
    pinned = torch.empty(image.shape, dtype=torch.uint8, pin_memory=True)
    pinned.copy_(torch.from_numpy(image if image.flags.writeable else image.copy()))
    return pinned.to(device, non_blocking=True)


def normalised_on(image_HW3: Tensor, table: Tensor) -> Tensor:
    """An image of bytes as 1 x 3 x H x W float32, channels last in memory, by a `normalising_table` on its device.

    The values are those of the CPU, bit for bit.
    """
    channel = torch.arange(3, device=table.device, dtype=torch.int32)
    values = table.reshape(-1)[image_HW3.to(torch.int32) * 3 + channel]
    return values.permute(2, 0, 1)[None]


def download(*maps: Tensor) -> Callable[[], list[NDArray[Any]]]:
    """Begin to copy maps to the host; the function that is returned waits for them."""
    found = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in maps]
    for host, one in zip(found, maps, strict=True):
        host.copy_(one, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def wait() -> list[NDArray[Any]]:
        done.synchronize()
        return [host.numpy() for host in found]

    return wait
