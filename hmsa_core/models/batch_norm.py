"""Batch norm over several ranks, and an order of work in which layers that do not depend on each other share a message.

A block with batch norms is written as *steps*: a generator that yields `Norm(module, x)` where it needs the module's
output. It yields a list of steps where parts do not depend on each other. `run` works on such steps depth first, as
plain code would, until a batch norm needs the other ranks. That part waits, and the next one goes on. When all parts
wait, their statistics travel in one message. Gradients come back the same way. So HRNet's branches, and the scales of a
training pass, need one message a layer and not one each.

Each rank has the same number of positions. With unequal numbers torch's SyncBatchNorm asks the device for them, and
the host waits at every layer. Legend: M norms of one message, C their channels laid end to end, R ranks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from hmsa_core.io.errors import InputError

T = TypeVar("T")
Group = dist.ProcessGroup | None  # None = all ranks


class Norm(NamedTuple):
    """A request: the output of this module for `x`."""

    module: nn.Module
    x: Tensor


Steps = Generator[Any, Any, T]  # yields Norm or a list of Steps; is sent an output or the list of results


class Stepwise(nn.Module):
    """A module whose `steps` say what it computes."""

    def steps(self, *inputs: Any) -> Steps[Any]:
        """The work as steps."""
        raise NotImplementedError

    def forward(self, *inputs: Any) -> Any:
        """Run the steps."""
        return run(self.steps(*inputs))


def steps_of(module: nn.Module, *inputs: Any) -> Steps[Any]:
    """Steps of any module: of its own, of the parts of a `Sequential`, or one call (also where hooks wait for one)."""
    if isinstance(module, _BatchNorm):
        return (yield Norm(module, *inputs))
    if module._forward_hooks or module._forward_pre_hooks:
        return module(*inputs)
    if isinstance(module, Stepwise):
        return (yield from module.steps(*inputs))
    if type(module).forward is not nn.Sequential.forward:
        return module(*inputs)
    (x,) = inputs
    for part in cast("nn.Sequential", module):
        x = yield from steps_of(part, x)
    return x


class _Part:
    """Steps under way; the results of its own parts are collected here."""

    def __init__(self, steps: Steps[Any], parent: _Part | None = None, place: int = 0) -> None:
        self.steps, self.parent, self.place = steps, parent, place
        self.results: list[Any] = []
        self.missing = 0

    def split(self, parts: Sequence[Steps[Any]]) -> list[tuple[_Part, Any]]:
        self.results, self.missing = [None] * len(parts), len(parts)
        return [(_Part(steps, self, place), None) for place, steps in reversed(list(enumerate(parts)))]


def run(steps: Steps[T]) -> T:
    """Run steps to their end and return their result."""
    todo: list[tuple[_Part, Any]] = [(_Part(steps), None)]
    waiting: list[tuple[_Part, Norm]] = []
    while True:
        if not todo:
            todo += reversed(
                list(zip((part for part, _ in waiting), normalise([norm for _, norm in waiting]), strict=True))
            )
            waiting = []
        part, answer = todo.pop()
        try:
            asked = part.steps.send(answer)
        except StopIteration as end:
            if part.parent is None:
                return cast("T", end.value)
            above = part.parent
            above.results[part.place], above.missing = end.value, above.missing - 1
            if not above.missing:
                todo.append((above, above.results))
                above.results = []
            continue
        answer = None  # the largest maps: nothing is held longer than plain code would hold it
        if isinstance(asked, list):
            todo += part.split(asked)
        elif isinstance(asked.module, SyncedBatchNorm) and asked.module.training:
            waiting.append((part, asked))
        else:
            todo.append((part, asked.module(asked.x)))
        asked = None


def run_all(parts: Iterable[Steps[T]]) -> list[T]:
    """Run steps that do not depend on each other; returns their results in order."""

    def together() -> Steps[list[T]]:
        return (yield list(parts))  # type: ignore[no-any-return]

    return run(together())


class SyncedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics, while training, are those of all ranks of a group.

    Also stands in for timm's norms with drop and activation (`BatchNormAct2d`), whose parts it keeps.
    """

    def __init__(self, norm: nn.BatchNorm2d, group: Group) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.training, self.group = norm.training, group
        self.then = nn.ModuleList(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name))

    def forward(self, x: Tensor) -> Tensor:
        """B x C x h x w of the input's dtype."""
        if self.training:
            return normalise([Norm(self, x)])[0]
        return self.finish(super().forward(x))

    def finish(self, x: Tensor) -> Tensor:
        """Apply what timm's norms hold besides the norm."""
        for layer in self.then:
            x = layer(x)
        return x


def synchronise(model: nn.Module, group: Group = None) -> nn.Module:
    """Replace every batch norm by one over the ranks of a group, with the same tensors under the same names."""
    if isinstance(model, nn.BatchNorm2d):
        return SyncedBatchNorm(model, group)
    for name, child in model.named_children():
        setattr(model, name, synchronise(child, group))
    return model


def normalise(asked: Sequence[Norm]) -> list[Tensor]:
    """Outputs of `SyncedBatchNorm` modules that train, in order; one message for those of the same settings.

    A module may be asked for more than once: its running statistics take the inputs in order.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    for place, (module, x) in enumerate(asked):
        norm = cast("SyncedBatchNorm", module)
        alike[norm.group, norm.eps, norm.momentum, x.dtype].append(place)
    outputs: list[Tensor] = [*(norm.x for norm in asked)]
    for (group, eps, _, _), places in alike.items():
        norms = [cast("SyncedBatchNorm", asked[i].module) for i in places]
        given = [t for i, n in zip(places, norms, strict=True) for t in (asked[i].x, n.weight, n.bias)]
        *found, mean, variance = _Normalise.apply(group, eps, *given)
        if _replay.get() is None:
            _remember(norms, mean, variance)
        for i, norm, out in zip(places, norms, found, strict=True):
            outputs[i] = norm.finish(out)
    return outputs


@torch.no_grad()
def _remember(norms: Sequence[SyncedBatchNorm], mean_C: Tensor, unbiased_C: Tensor) -> None:
    """Move running statistics; a module's second input comes after its first."""
    sizes = [norm.num_features for norm in norms]
    rounds: dict[int, list[tuple[SyncedBatchNorm, Tensor, Tensor]]] = defaultdict(list)
    seen: Counter[SyncedBatchNorm] = Counter()
    for norm, mean, unbiased in zip(norms, _split(mean_C, sizes), _split(unbiased_C, sizes), strict=True):
        if norm.track_running_stats:
            rounds[seen[norm]].append((norm, mean, unbiased))
            seen[norm] += 1
    for found in rounds.values():
        moved, means, variances = zip(*found, strict=True)
        torch._foreach_lerp_([norm.running_mean for norm in moved], means, moved[0].momentum)
        torch._foreach_lerp_([norm.running_var for norm in moved], variances, moved[0].momentum)
        torch._foreach_add_([norm.num_batches_tracked for norm in moved], 1)


class _Normalise(torch.autograd.Function):
    """(x, weight, bias) of M norms -> M outputs, then mean and unbiased variance (C) for the running statistics."""

    @staticmethod
    def forward(ctx: Any, group: Group, eps: float, *given: Tensor) -> tuple[Tensor, ...]:
        inputs, weights, biases = [_dense(x) for x in given[::3]], given[1::3], given[2::3]
        sizes, ranks = [x.shape[1] for x in inputs], dist.get_world_size(group)
        counts = [x.numel() // x.shape[1] for x in inputs]
        mean, variance = _statistics_of(inputs, counts, eps, group, ranks)
        invstd = (variance + eps).rsqrt()
        maps = zip(inputs, weights, biases, _split(mean, sizes), _split(invstd, sizes), strict=True)
        outputs = [_scale_shift(*one, eps) for one in maps]
        factors = [ranks * count / max(1, ranks * count - 1) for count in counts]
        unbiased = torch.cat(torch._foreach_mul(list(_split(variance, sizes)), factors))
        ctx.save_for_backward(*inputs, *weights, mean, invstd)
        ctx.group, ctx.totals = group, [ranks * count for count in counts]
        ctx.mark_non_differentiable(mean, unbiased)
        return (*outputs, mean, unbiased)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]  # torch leaves it untyped
    def backward(ctx: Any, *by_outputs: Tensor) -> tuple[Any, ...]:
        *saved, mean, invstd = ctx.saved_tensors
        inputs, weights = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        sizes = [x.shape[1] for x in inputs]
        pairs = list(zip(_split(mean, sizes), _split(invstd, sizes), strict=True))
        gradients = [_dense(g, x) for g, x in zip(by_outputs, inputs, strict=False)]  # the last two are of statistics
        own = [_backward_sums(g, x, *pair) for g, x, pair in zip(gradients, inputs, pairs, strict=True)]
        by_shift, by_centred = (torch.cat(kind) for kind in zip(*own, strict=True))
        message = torch.cat([by_shift, by_centred])
        dist.all_reduce(message, group=ctx.group)
        parts = [part for kind in message.view(2, -1).unbind(0) for part in _split(kind, sizes)]
        means = torch._foreach_div(parts, ctx.totals * 2)
        maps = zip(gradients, inputs, pairs, weights, means[: len(sizes)], means[len(sizes) :], strict=True)
        # Parameters get the share of this rank: gradients of all ranks are averaged once a step.
        shares = zip(_split(by_centred * invstd, sizes), _split(by_shift, sizes), strict=True)
        found: list[Any] = [None, None]
        for (gradient, x, pair, weight, *averages), (by_weight, by_bias) in zip(maps, shares, strict=True):
            found.append(_backward_inputs(gradient, x, pair, weight, averages))
            found += [None, None] if weight is None else [by_weight.to(weight.dtype), by_bias.to(weight.dtype)]
        return tuple(found)


def _shared_statistics(
    inputs: Sequence[Tensor], counts: list[int], eps: float, group: Group, ranks: int
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the ranks, C each."""
    own = [_statistics(x, eps) for x in inputs]
    told = _gather(torch.cat([one for kind in zip(*own, strict=True) for one in kind]), counts, group, ranks)
    mean_RC, invstd_RC = told.view(ranks, 2, -1).unbind(1)
    # The mean of squares minus the square of the mean would lose digits; this does not.
    variance = (invstd_RC.pow(-2) - eps).mean(0) + mean_RC.var(0, correction=0)
    return mean_RC.mean(0), variance.clamp_min_(0.0)


_tape: ContextVar[list[tuple[Tensor, Tensor]] | None] = ContextVar("_tape", default=None)
_replay: ContextVar[Iterator[tuple[Tensor, Tensor]] | None] = ContextVar("_replay", default=None)


def recomputed(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for the first and second run of a block that an activation checkpoint computes again.

    The second one takes the statistics of the first, so it sends no message, and leaves running statistics as they are.
    """
    kept: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def first() -> Iterator[None]:
        token = _tape.set(kept)
        try:
            yield
        finally:
            _tape.reset(token)

    @contextmanager
    def second() -> Iterator[None]:
        token = _replay.set(iter(kept))
        try:
            with _buffers_copied(block):
                yield
        finally:
            _replay.reset(token)

    return first(), second()


@contextmanager
def _buffers_copied(block: nn.Module) -> Iterator[None]:
    """Let norms that no other rank shares work on copies of their buffers: both runs then save the same tensors."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and not isinstance(m, SyncedBatchNorm)]
    originals = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {name: None if b is None else b.clone() for name, b in norm._buffers.items()}
    try:
        yield
    finally:
        for norm, buffers in zip(norms, originals, strict=True):
            norm._buffers = buffers


def _statistics_of(
    inputs: Sequence[Tensor], counts: list[int], eps: float, group: Group, ranks: int
) -> tuple[Tensor, Tensor]:
    replay, tape = _replay.get(), _tape.get()
    if replay is not None:
        return next(replay)
    found = _shared_statistics(inputs, counts, eps, group, ranks)
    if tape is not None:
        tape.append(found)
    return found


def _gather(own: Tensor, counts: list[int], group: Group, ranks: int) -> Tensor:
    """The vectors of all ranks, R x its length."""
    told = own.new_empty((ranks, own.numel()))
    if own.device.type != "cpu":
        dist.all_gather_into_tensor(told, own, group=group)
        return told
    # A message of gloo is read on the host anyway, so the counts that must be equal ride along.
    own = torch.cat([own, own.new_tensor(counts)])
    rows = [torch.empty_like(own) for _ in range(ranks)]
    dist.all_gather(rows, own, group=group)
    found = torch.stack(rows)
    if not torch.equal(found[:, -len(counts) :], found[:1, -len(counts) :].expand(ranks, -1)):
        raise InputError(
            f"batch norm over {ranks} ranks needs equal batches: they have"
            f" {', '.join(str(int(row[-len(counts)])) for row in rows)} positions",
            hint="give each rank the same number of crops of the same size",
        )
    return found[:, : -len(counts)].reshape(told.shape)


# ---- The arithmetic of one norm


def _has_kernels(x: Tensor) -> bool:
    """Whether torch has the kernels of its SyncBatchNorm for the tensor's device."""
    return x.device.type != "cpu"


def _dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """The tensor in one of the two memory formats that the kernels read; that of `like`."""
    like = x if like is None else like
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(biased variance + eps) of each channel, at least float32."""
    if _has_kernels(x):
        return torch.batch_norm_stats(x, eps)
    variance, mean = torch.var_mean(x.to(_wide(x)), (0, 2, 3), correction=0)
    return mean, (variance + eps).rsqrt()


def _scale_shift(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    if _has_kernels(x):
        return torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps)
    scale = invstd if weight is None else invstd * weight
    out = (x - _column(mean)) * _column(scale)
    return (out if bias is None else out + _column(bias)).to(x.dtype)


def _backward_sums(gradient: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the gradient, and of its product with the centred input, over this rank's positions."""
    if _has_kernels(x):
        return torch.batch_norm_backward_reduce(gradient, x, mean, invstd, None, True, False, False)[:2]
    wide = gradient.to(_wide(x))
    return wide.sum((0, 2, 3)), (wide * (x - _column(mean))).sum((0, 2, 3))


def _backward_inputs(
    gradient: Tensor, x: Tensor, statistics: tuple[Tensor, Tensor], weight: Tensor | None, averages: Sequence[Tensor]
) -> Tensor:
    """Gradient by the input; `averages` over all ranks of the gradient, and of its product with the centred input."""
    mean, invstd = statistics
    mean_gradient, mean_centred = averages
    if _has_kernels(x):
        one = torch.ones(1, dtype=torch.int32, device=x.device)  # the sums are divided already
        return torch.batch_norm_backward_elemt(gradient, x, mean, invstd, weight, mean_gradient, mean_centred, one)
    scale = invstd if weight is None else invstd * weight
    along = (x - _column(mean)) * _column(invstd.square() * mean_centred)
    return ((gradient - _column(mean_gradient) - along) * _column(scale)).to(x.dtype)


def _column(channels: Tensor) -> Tensor:
    return channels.view(1, -1, 1, 1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _split(channels: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    return torch.split(channels, sizes)
