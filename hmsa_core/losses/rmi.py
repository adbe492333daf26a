"""Region mutual information loss: 0.5 binary cross-entropy + 0.5 RMI (Zhao et al. 2019; the released recipe).

One autograd function goes through the classes in blocks that fit the cache. The forward pass keeps the
logits (which exist anyway) and the derivative by the pooled probabilities (1/16 of their size); the backward
pass computes the sigmoid again, cheaper than reading it back, and writes the gradient once.

Legend: N images, C classes, H x W pixels, h x w pooled cells (cell i covers pixels 4i-2 .. 4i+1).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.losses.blocks import add_at_label, at_label, blank, blocks, buffers, make_target, work_dtype
from hmsa_core.losses.cells import POOL, pool, pool_labels, times_cells
from hmsa_core.losses.regions import (
    ABSENT,
    RADIUS,
    PooledMaps,
    Workspace,
    region_gradient,
    region_moments,
    unexplained_logdet,
    valid_regions,
)

__all__ = ["RmiParts", "released_bce", "rmi_loss", "rmi_parts"]

PROBABILITY_FLOOR = 1e-6  # added to every probability before pooling, as released
_REGION_BYTES = {"cpu": 12 << 20, "cuda": 512 << 20}  # derivatives by nine shifts of one chunk

RmiIgnore = Literal["released", "masked"]


class RmiParts(NamedTuple):
    """The loss and its two halves; only `total` carries a gradient."""

    total: Tensor
    cross_entropy: Tensor
    mutual_information: Tensor


class _Settings(NamedTuple):
    cross_entropy_weight: float
    rmi_weight: float
    rmi_ignore: RmiIgnore


def rmi_loss(logits: Tensor, labels: Tensor, *, ignore_index: int = 255, rmi_ignore: RmiIgnore = "released") -> Tensor:
    """Return 0.5 BCE + 0.5 RMI, a scalar; finite for any finite logits and any label map, NaN for others.

    Args:
        logits: N x C x H x W raw scores; half precision is computed in float32, moments in float64.
        labels: N x H x W, any integer dtype.
        ignore_index: label that does not count (nor does any outside 0..C-1).
        rmi_ignore: "released": ignored pixels count as zeros in labels and probabilities, and every class
            absent from an image adds the constant 0.25 ln(5e-4) / N = -1.90 / N. "masked": only regions
            without an ignored pixel count, and a class absent from them adds nothing.

    Note:
        Covariances are sums over regions as released, not means: the value grows with the crop.
    """
    return rmi_parts(logits, labels, ignore_index=ignore_index, rmi_ignore=rmi_ignore).total


def rmi_parts(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, rmi_ignore: RmiIgnore = "released"
) -> RmiParts:
    """Return `rmi_loss` with its two halves (unweighted) for the log."""
    if rmi_ignore not in ("released", "masked"):
        raise ConfigError(f"rmi_ignore = {rmi_ignore!r}: choose released or masked")
    return _apply(logits, labels, ignore_index, _Settings(0.5, 0.5, rmi_ignore))


def released_bce(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Sigmoid cross-entropy summed over classes and pixels, divided by (valid pixels + 1), as released."""
    return _apply(logits, labels, ignore_index, _Settings(1.0, 0.0, "released")).total


def _apply(logits: Tensor, labels: Tensor, ignore_index: int, settings: _Settings) -> RmiParts:
    target = make_target(logits, labels, ignore_index)
    if settings.rmi_weight and min(logits.shape[2:]) < POOL * (RADIUS - 1):
        raise InputError(f"RMI needs crops of at least 8 x 8 pixels, got {tuple(logits.shape[2:])}")
    wants_gradient = torch.is_grad_enabled() and logits.requires_grad
    with torch.autocast(logits.device.type, enabled=False):
        parts = _RegionMutualInformation.apply(logits.contiguous(), target, settings, wants_gradient)
    return RmiParts(*parts)


class _RegionMutualInformation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, settings: _Settings, wants_gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = work_dtype(logits)
        ignored = target == logits.shape[1]
        summed, guess = _pixel_pass(logits, target, ignored, dtype, with_cells=settings.rmi_weight != 0.0)
        count = (~ignored).sum(dtype=torch.float64) + 1.0
        cross_entropy = summed / count
        mutual, by_guess = torch.zeros_like(cross_entropy), None
        if guess is not None:
            truth = pool_labels(target, guess)
            floor = PROBABILITY_FLOOR * pool(torch.ones_like(ignored[:1, None], dtype=torch.float64))[0, 0]
            keep = _kept_regions(ignored) if settings.rmi_ignore == "masked" else None
            mutual, by_guess = _region_pass(truth, guess, floor, keep, wants_gradient)
        total = settings.cross_entropy_weight * cross_entropy + settings.rmi_weight * mutual
        ctx.settings = settings
        ctx.save_for_backward(logits, target, ignored, count, by_guess)
        out = (total.to(dtype), cross_entropy.to(dtype), mutual.to(dtype))
        ctx.mark_non_differentiable(*out[1:])
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]  # torch leaves it untyped
    def backward(ctx: Any, by_total: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        logits, target, ignored, count, by_guess = ctx.saved_tensors
        dtype = work_dtype(logits)
        per_pixel = (by_total.double() * ctx.settings.cross_entropy_weight / count).to(dtype)
        cells = None
        if by_guess is not None:
            per_cell = by_total.double() * (ctx.settings.rmi_weight / POOL**2)
            # One more row and column: pixels behind the last whole cell belong to none.
            cells = F.pad((by_guess * per_cell).to(dtype), (0, 1, 0, 1))
        empty = blank(ignored, dtype)
        gradient = torch.empty_like(logits, dtype=dtype)
        p_buffer, slope_buffer = buffers(logits, 2)
        for images, classes in blocks(logits):
            part = gradient[images, classes]
            p, slope = p_buffer[: part.shape[0], : part.shape[1]], slope_buffer[: part.shape[0], : part.shape[1]]
            torch.add(logits[images, classes], empty[images], out=p).sigmoid_()
            if cells is None:
                torch.mul(p, per_pixel, out=part)
            else:
                torch.addcmul(p, p, p, value=-1.0, out=slope)
                torch.addcmul(times_cells(slope, cells[images, classes]), p, per_pixel, out=part)
        add_at_label(gradient, target, -per_pixel)
        return gradient.to(logits.dtype), None, None, None


def _pixel_pass(
    logits: Tensor, target: Tensor, ignored: Tensor, dtype: torch.dtype, *, with_cells: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum the cross-entropy and pool the probabilities, block by block, without one-hot labels.

    Ignored pixels get a score of minus infinity: probability and softplus are 0 then. At the label
    softplus(-x) = softplus(x) - x is meant; sums are double, so that nothing is lost.
    """
    empty = blank(ignored, dtype)
    summed = torch.zeros((), dtype=torch.float64, device=logits.device)
    guess = None
    if with_cells:
        grid = (logits.shape[2] // POOL + 1, logits.shape[3] // POOL + 1)
        guess = logits.new_empty((*logits.shape[:2], *grid), dtype=dtype)
    scores, work = buffers(logits, 2)
    for images, classes in blocks(logits):
        part = logits[images, classes]
        x, y = scores[: part.shape[0], : part.shape[1]], work[: part.shape[0], : part.shape[1]]
        torch.add(part, empty[images], out=x)
        summed += _summed_softplus(x, y)
        if guess is not None:
            guess[images, classes] = pool(torch.sigmoid(x, out=y))
    right = at_label(logits, target)
    return summed - right.masked_fill_(ignored.unsqueeze(1), 0.0).sum(dtype=torch.float64), guess


def _summed_softplus(x_NCHW: Tensor, work_NCHW: Tensor) -> Tensor:
    """Sum of ln(1 + exp(x)) = max(x, 0) - ln(sigmoid(|x|)), in double.

    One logarithm serves all classes of the block at a pixel: of the product of their sigmoid(|x|), each at least
    0.5. ln(1 + e) in float32, which softplus takes, was ten times as slow at some hours as at others on one
    AVX-512 machine.
    """
    if x_NCHW.device.type != "cpu":
        return F.softplus(x_NCHW, out=work_NCHW).sum(dtype=torch.float64)  # type: ignore[call-arg]  # missing in the stub
    first, *others = torch.abs(x_NCHW, out=work_NCHW).sigmoid_().unbind(dim=1)
    product = first.clone()
    for other in others:
        product.mul_(other)
    above = torch.clamp_min(x_NCHW, 0.0, out=work_NCHW).sum(dtype=torch.float64)
    return above - product.log_().sum(dtype=torch.float64)


def _kept_regions(ignored_NHW: Tensor) -> Tensor:
    """Find the regions without an ignored pixel: bool, N x P."""
    return valid_regions(pool(ignored_NHW.float().unsqueeze(1)).squeeze(1) == 0)


def _region_pass(
    truth: Tensor, guess: Tensor, floor_hw: Tensor, keep_NP: Tensor | None, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Mean over images, sum over classes of the region terms; derivative by `guess` if asked for.

    Only classes that occur in an image are computed: without them Cov(y) is zero, so that the term is a
    constant with no gradient ("released") or left out ("masked").
    """
    count, classes = truth.shape[:2]
    flat_truth, flat_guess = truth.flatten(0, 1), guess.flatten(0, 1)
    pairs = _present(truth, keep_NP).flatten().nonzero().squeeze(1)
    absent = count * classes - len(pairs) if keep_NP is None else 0
    by_guess = torch.zeros_like(flat_guess) if with_gradient else None
    total = torch.full((), absent * ABSENT, dtype=torch.float64, device=truth.device)
    if len(pairs) == 0:
        return total / count, None if by_guess is None else by_guess.view_as(guess)
    region_bytes = RADIUS**2 * truth.shape[2] * truth.shape[3] * 8  # the derivative by nine shifts is the largest
    step = min(len(pairs), max(1, _REGION_BYTES.get(truth.device.type, 64 << 20) // region_bytes))
    chunks = torch.split(pairs, step)
    workspace = Workspace(step, truth.shape[2], truth.shape[3], truth.device)
    maps = [
        PooledMaps(flat_truth[c], flat_guess[c], floor_hw, None if keep_NP is None else keep_NP[c // classes])
        for c in chunks
    ]
    # All 9 x 9 problems are solved at once, then the chunks are gone through again, backwards: the last is still there.
    moments = [region_moments(one, workspace) for one in maps]
    loss, by_stacked = unexplained_logdet(torch.cat([one.covariance for one in moments]))
    total += loss.sum()
    if by_guess is None:
        return total / count, None
    by_chunks = torch.split(by_stacked / count, step)
    for index in reversed(range(len(chunks))):
        by_guess[chunks[index]] = region_gradient(maps[index], by_chunks[index], moments[index].mean, workspace)
    return total / count, by_guess.view_as(guess)


def _present(truth_NChw: Tensor, keep_NP: Tensor | None) -> Tensor:
    """Say which classes occur in the pooled labels (masked: in a region that counts): bool, N x C."""
    if keep_NP is None:
        return truth_NChw.flatten(2).amax(dim=2) > 0
    height, width = truth_NChw.shape[2] - RADIUS + 1, truth_NChw.shape[3] - RADIUS + 1
    keep = keep_NP.view(-1, 1, height, width).to(truth_NChw.dtype)
    used = F.max_pool2d(F.pad(keep, (RADIUS - 1,) * 4), kernel_size=RADIUS, stride=1)
    return (truth_NChw * used).flatten(2).amax(dim=2) > 0
