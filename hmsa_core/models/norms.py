"""Batch norm with statistics over ranks: no wait for the device, one message for branches that run side by side.

A network says what it computes as *steps*: generators that yield the batch norms they have come to. `together` runs
several side by side, so that their norms share one message a pass and direction; `run` answers what is yielded. A
module without a synchronised norm is called as ever, one after another.

    steps(module, x)          generator of any module
    run(generator)            its result
    together([generators])    generator of the list of their results

All ranks must give batches of the same size (the trainer refuses others), so the mean over ranks is the mean of means.
Statistics are float32 (float64 for float64) and combined as Chan et al. do: no difference of large squares.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

T = TypeVar("T")
Requests = list[tuple["SyncNorm", Tensor]]
Steps = Generator[Requests, list[Tensor], T]
_OUTSIDE = (0, 2, 3)  # all but the channels


class SyncNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that normalises with the statistics of all ranks of a process group; same state dict.

    Made by `synchronise`. In evaluation mode it is the plain one.
    """

    group: dist.ProcessGroup | None  # None = all ranks

    def forward(self, x: Tensor) -> Tensor:
        """Normalise B x C x H x W."""
        return self.finish(_normalise([(self, x)])[0] if self.training else super().forward(x))

    def finish(self, x: Tensor) -> Tensor:
        """What some norms of timm do next."""
        for name in ("drop", "act"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


def synchronise(model: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Make every batch norm of a model one over the ranks of `group` (None = all)."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SyncNorm  # so parameters, names and whoever holds the module stay
            cast("SyncNorm", module).group = group
    for module in model.modules():
        module.synchronised = any(isinstance(part, SyncNorm) for part in module.modules())


def steps(module: nn.Module, *inputs: Any) -> Steps[Any]:
    """Run a module as steps."""
    if not getattr(module, "synchronised", False):
        return module(*inputs)
    own = getattr(module, "steps", None)
    if own is not None:
        return (yield from own(*inputs))
    x = inputs[0]
    if type(module) is nn.Sequential:
        for part in module:
            x = yield from steps(part, x)
        return x
    if isinstance(module, SyncNorm) and module.training:
        return module.finish((yield [(module, x)])[0])
    return module(x)


def run(generator: Steps[T]) -> T:
    """Run steps to their end."""
    answer: list[Tensor] | None = None
    while True:
        try:
            requests = generator.send(cast("list[Tensor]", answer))
        except StopIteration as stop:
            return cast("T", stop.value)
        answer = _normalise(requests)


def together(generators: Iterable[Steps[T]]) -> Steps[list[T]]:
    """Run steps side by side: what they ask for at the same time is asked for at once."""
    results: dict[int, T] = {}
    waiting: dict[int, tuple[Steps[T], Requests]] = {}

    def advance(index: int, generator: Steps[T], answer: list[Tensor] | None) -> None:
        try:
            waiting[index] = generator, generator.send(cast("list[Tensor]", answer))
        except StopIteration as stop:
            results[index] = stop.value

    for index, generator in enumerate(generators):
        advance(index, generator, None)
    while waiting:
        asked = dict(sorted(waiting.items()))
        answers = iter((yield [request for _, requests in asked.values() for request in requests]))
        waiting.clear()
        for index, (generator, requests) in asked.items():
            advance(index, generator, [next(answers) for _ in requests])
    return [results[index] for index in sorted(results)]


def _normalise(requests: Requests) -> list[Tensor]:
    """Normalise what several norms were given; one message for norms of one group and precision."""
    norms, inputs = zip(*requests, strict=True)
    first = norms[0]
    inputs = tuple(_dense(x) for x in inputs)
    weights = [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
    *outputs, means, variances = _Normalise.apply(first.group, first.eps, len(norms), *inputs, *weights)
    sizes = [norm.num_features for norm in norms]
    world = dist.get_world_size(first.group)
    with torch.no_grad():
        for norm, x, mean, variance in zip(norms, inputs, means.split(sizes), variances.split(sizes), strict=True):
            _remember(norm, world * x.numel() // x.shape[1], mean, variance)
    return outputs


def _remember(norm: SyncNorm, count: int, mean: Tensor, variance: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    share = cast("float", norm.momentum)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_((variance * (count / max(count - 1, 1))).to(norm.running_var.dtype), share)


def _dense(x: Tensor) -> Tensor:
    """What the GPU's kernels read; nearly always the tensor itself."""
    known = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x if known else x.contiguous()


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Any, eps: float, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, weights, biases = tensors[:count], tensors[count::2], tensors[count + 1 :: 2]
        sizes = [x.shape[1] for x in inputs]
        own = [_moments(x, eps) for x in inputs]
        message = torch.cat([part for moments in zip(*own, strict=True) for part in moments])
        world = dist.get_world_size(group)
        gathered = message.new_empty(world * message.numel())
        dist.all_gather_into_tensor(gathered, message, group=group)
        means, variances = gathered.view(world, -1).chunk(2, dim=1)
        mean = means.mean(dim=0)
        variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        inverse = torch.rsqrt(variance + eps)
        parts = list(zip(mean.split(sizes), inverse.split(sizes), strict=True))
        ctx.group, ctx.count = group, count
        ctx.save_for_backward(*inputs, *weights, mean, inverse)
        ctx.mark_non_differentiable(mean, variance)
        outputs = [_apply(x, *one, w, b, eps) for x, one, w, b in zip(inputs, parts, weights, biases, strict=True)]
        return (*outputs, mean, variance)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]  # torch leaves it untyped
    def backward(ctx: Any, *by_outputs: Tensor) -> tuple[Tensor | None, ...]:
        count = ctx.count
        saved = ctx.saved_tensors
        inputs, weights, mean, inverse = saved[:count], saved[count : 2 * count], saved[-2], saved[-1]
        sizes = [x.shape[1] for x in inputs]
        parts = list(zip(mean.split(sizes), inverse.split(sizes), strict=True))
        gradients = [
            _dense(torch.zeros_like(x) if g is None else g) for g, x in zip(by_outputs[:count], inputs, strict=True)
        ]
        # Sums of the gradient, and of the gradient times the distance from the mean.
        sums = [_sums(g, x, *one) for g, x, one in zip(gradients, inputs, parts, strict=True)]
        message = torch.cat([part for pair in zip(*sums, strict=True) for part in pair])
        own = message.clone()
        dist.all_reduce(message, group=ctx.group)
        by_mean, by_distance = (half.split(sizes) for half in message.chunk(2))
        own_mean, own_distance = own.chunk(2)
        world = dist.get_world_size(ctx.group)
        by_inputs = [
            _gradient(g, x, *one, w, a, b, world)
            for g, x, one, w, a, b in zip(gradients, inputs, parts, weights, by_mean, by_distance, strict=True)
        ]
        pairs = zip((own_distance * inverse).split(sizes), own_mean.split(sizes), weights, strict=True)
        by_weights = [part.to(w.dtype) for scale, shift, w in pairs for part in (scale, shift)]
        return (None, None, None, *by_inputs, *by_weights)


# Four reductions and maps over one tensor: torch's kernels on a GPU, the same formulas elsewhere.


def _work(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _wide(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel."""
    if x.device.type == "cuda":
        mean, inverse = torch.batch_norm_stats(x, eps)
        return mean, inverse.square().reciprocal() - eps
    variance, mean = torch.var_mean(_work(x), _OUTSIDE, correction=0)
    return mean, variance


def _apply(x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if x.device.type == "cuda":
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps)
    scale = inverse * weight
    return torch.addcmul(_wide(bias - mean * scale), _work(x), _wide(scale)).to(x.dtype)


def _sums(g: Tensor, x: Tensor, mean: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    if x.device.type == "cuda":
        total, distance, _, _ = torch.batch_norm_backward_reduce(g, x, mean, inverse, None, True, False, False)
        return total, distance
    wide = _work(g)
    return wide.sum(_OUTSIDE), (wide * (_work(x) - _wide(mean))).sum(_OUTSIDE)


def _gradient(
    g: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, total: Tensor, distance: Tensor, world: int
) -> Tensor:
    count = x.numel() // x.shape[1]
    if x.device.type == "cuda":
        counts = torch.full((world,), count, dtype=torch.int32, device=x.device)
        return torch.batch_norm_backward_elemt(g, x, mean, inverse, weight, total, distance, counts)
    many = world * count
    centred = (_work(x) - _wide(mean)) * _wide(inverse.square() * distance / many)
    return ((_work(g) - _wide(total / many) - centred) * _wide(inverse * weight)).to(x.dtype)


