"""Batch norm over several ranks; independent layers share one message.

A block with batch norms is written as *steps*: a generator that yields `Norm(module, x)` where it needs the module's
output. It yields a list of steps where parts do not depend on each other. `run` executes such steps depth first, as
plain code would, until a batch norm needs the other ranks. That part waits, and the next part runs. When all parts
wait, their statistics travel in one message. Gradients come back the same way. So HRNet's branches, and the scales of a
training pass, need one message a layer in total.

Each rank has the same number of positions. With unequal numbers torch's SyncBatchNorm reads them from the device, and
the host waits at every layer. Legend: M norms of one message, C their channels laid end to end, R ranks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")
Group = dist.ProcessGroup | None  # None = all ranks


class Norm(NamedTuple):
    """A request for the output of this module for `x`."""

    module: nn.Module
    x: Tensor


Steps = Generator[Any, Any, T]  # yields Norm or a list of Steps; receives an output or the list of results


class Stepwise(nn.Module):
    """A module whose `steps` define its computation."""

    def steps(self, *inputs: Any) -> Steps[Any]:
        """Yield the computation as steps."""
        raise NotImplementedError

    def forward(self, *inputs: Any) -> Any:
        """Run the steps."""
        return run(self.steps(*inputs))


def steps_of(module: nn.Module, *inputs: Any) -> Steps[Any]:
    """Steps of any module: its `steps`, those of the parts of a `Sequential`, or one call (also if it has hooks)."""
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
    """Running steps; collects the results of their parts."""

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
            request = part.steps.send(answer)
        except StopIteration as end:
            if part.parent is None:
                return cast("T", end.value)
            above = part.parent
            above.results[part.place], above.missing = end.value, above.missing - 1
            if not above.missing:
                todo.append((above, above.results))
                above.results = []
            continue
        answer = None  # frees the largest maps as early as plain code would
        if isinstance(request, list):
            todo += part.split(request)
        elif isinstance(request.module, SyncedBatchNorm) and request.module.training:
            waiting.append((part, request))
        else:
            todo.append((part, request.module(request.x)))
        request = None


def run_all(parts: Iterable[Steps[T]]) -> list[T]:
    """Run independent steps; return their results in order."""

    def together() -> Steps[list[T]]:
        return (yield list(parts))  # type: ignore[no-any-return]

    return run(together())


class SyncedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that uses the statistics of all ranks of a group in training.

    Also stands in for timm's norms with drop and activation (`BatchNormAct2d`), whose parts it keeps.
    """

    def __init__(self, norm: nn.BatchNorm2d, group: Group) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.training, self.group = norm.training, group
        self.then = nn.ModuleList(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name))

    def forward(self, x: Tensor) -> Tensor:
        """Return B x C x h x w of the input's dtype."""
        if self.training:
            return normalise([Norm(self, x)])[0]
        return self.finish(super().forward(x))

    def finish(self, x: Tensor) -> Tensor:
        """Apply the drop and activation of timm's norms."""
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


def normalise(requests: Sequence[Norm]) -> list[Tensor]:
    """Outputs of `SyncedBatchNorm` modules in training, in order; modules with equal settings share one message.

    A module may occur more than once: its running statistics take the inputs in order.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    for place, (module, x) in enumerate(requests):
        norm = cast("SyncedBatchNorm", module)
        alike[norm.group, norm.eps, norm.momentum, x.dtype].append(place)
    outputs: list[Tensor] = [*(norm.x for norm in requests)]
    for (group, eps, _, _), places in alike.items():
        norms = [cast("SyncedBatchNorm", requests[i].module) for i in places]
        given = [t for i, n in zip(places, norms, strict=True) for t in (requests[i].x, n.weight, n.bias)]
        *found, mean, variance = _Normalise.apply(group, eps, *given)
        if _replay.get() is None:
            _remember(norms, mean, variance)
        for i, norm, out in zip(places, norms, found, strict=True):
            outputs[i] = norm.finish(out)
    return outputs


@torch.no_grad()
def _remember(norms: Sequence[SyncedBatchNorm], mean_C: Tensor, unbiased_C: Tensor) -> None:
    """Update running statistics; a module's second input comes after its first."""
    sizes = [norm.num_features for norm in norms]
    rounds: dict[int, list[tuple[SyncedBatchNorm, Tensor, Tensor]]] = defaultdict(list)
    seen: Counter[SyncedBatchNorm] = Counter()
    for norm, mean, unbiased in zip(norms, torch.split(mean_C, sizes), torch.split(unbiased_C, sizes), strict=True):
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
        totals = [ranks * x.numel() // x.shape[1] for x in inputs]
        mean, variance = _statistics_of(inputs, eps, group, ranks)
        invstd = (variance + eps).rsqrt()
        maps = zip(inputs, weights, biases, torch.split(mean, sizes), torch.split(invstd, sizes), strict=True)
        outputs = [torch.batch_norm_elemt(*one, eps) for one in maps]
        factors = [total / max(1, total - 1) for total in totals]
        unbiased = torch.cat(torch._foreach_mul(list(torch.split(variance, sizes)), factors))
        ctx.save_for_backward(*inputs, *weights, mean, invstd)
        ctx.group, ctx.totals = group, totals
        ctx.mark_non_differentiable(mean, unbiased)
        return (*outputs, mean, unbiased)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]  # torch leaves it untyped
    def backward(ctx: Any, *by_outputs: Tensor) -> tuple[Any, ...]:
        *saved, mean, invstd = ctx.saved_tensors
        inputs, weights = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        sizes = [x.shape[1] for x in inputs]
        pairs = list(zip(torch.split(mean, sizes), torch.split(invstd, sizes), strict=True))
        gradients = [_dense(g, x) for g, x in zip(by_outputs, inputs, strict=False)]  # the last two: of statistics
        sums = [
            torch.batch_norm_backward_reduce(g, x, *pair, None, True, False, False)[:2]
            for g, x, pair in zip(gradients, inputs, pairs, strict=True)
        ]
        # Sums over this rank's positions of the gradient, and of its product with the centred input.
        by_shift, by_centred = (torch.cat(kind) for kind in zip(*sums, strict=True))
        message = torch.cat([by_shift, by_centred])
        dist.all_reduce(message, group=ctx.group)
        means = torch._foreach_div([*torch.split(message, sizes * 2)], ctx.totals * 2)
        once = torch.ones(1, dtype=torch.int32, device=message.device)  # the sums are divided already
        # Parameters get this rank's share: gradients of all ranks are averaged once a step.
        shares = zip(torch.split(by_centred * invstd, sizes), torch.split(by_shift, sizes), strict=True)
        maps = zip(gradients, inputs, pairs, weights, means[: len(sizes)], means[len(sizes) :], shares, strict=True)
        found: list[Any] = [None, None]
        for grad, x, (mean_C, invstd_C), weight, by_mean, by_product, (by_weight, by_bias) in maps:
            found.append(torch.batch_norm_backward_elemt(grad, x, mean_C, invstd_C, weight, by_mean, by_product, once))
            found += [None, None] if weight is None else [by_weight.to(weight.dtype), by_bias.to(weight.dtype)]
        return tuple(found)


_tape: ContextVar[list[tuple[Tensor, Tensor]] | None] = ContextVar("_tape", default=None)
_replay: ContextVar[Iterator[tuple[Tensor, Tensor]] | None] = ContextVar("_replay", default=None)


def recomputed(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for the first and second run of a block under activation checkpointing.

    The second run reuses the statistics of the first, sends no message, and does not change running statistics.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    return _remembering(block, kept, again=False), _remembering(block, kept, again=True)


@contextmanager
def _remembering(block: nn.Module, kept: list[tuple[Tensor, Tensor]], *, again: bool) -> Iterator[None]:
    variable: ContextVar[Any] = _replay if again else _tape
    token = variable.set(iter(kept) if again else kept)
    try:
        with _buffers_copied(block) if again else nullcontext():
            yield
    finally:
        variable.reset(token)


@contextmanager
def _buffers_copied(block: nn.Module) -> Iterator[None]:
    """Let unsynchronised norms work on copies of their buffers, so that both runs save the same tensors."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and not isinstance(m, SyncedBatchNorm)]
    originals = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {name: None if b is None else b.clone() for name, b in norm._buffers.items()}
    try:
        yield
    finally:
        for norm, buffers in zip(norms, originals, strict=True):
            norm._buffers = buffers


def _statistics_of(inputs: Sequence[Tensor], eps: float, group: Group, ranks: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the ranks, C each."""
    replay, tape = _replay.get(), _tape.get()
    if replay is not None:
        return next(replay)
    local = [torch.batch_norm_stats(x, eps) for x in inputs]
    message = torch.cat([one for kind in zip(*local, strict=True) for one in kind])
    gathered = message.new_empty(ranks * message.numel())
    dist.all_gather_into_tensor(gathered, message, group=group)
    mean_RC, invstd_RC = gathered.view(ranks, 2, -1).unbind(1)
    # The mean of squares minus the square of the mean would lose digits.
    variance = (invstd_RC.pow(-2) - eps).mean(0) + mean_RC.var(0, correction=0)
    found = mean_RC.mean(0), variance.clamp_min_(0.0)
    if tape is not None:
        tape.append(found)
    return found


def _dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """Return the tensor in the memory format of `like`, one of the two formats that the kernels read."""
    like = x if like is None else like
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
