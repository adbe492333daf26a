"""Region mutual information loss: 0.5 binary cross-entropy + 0.5 RMI (Zhao et al. 2019; the released recipe).

One autograd function goes through the classes in blocks that fit the cache. The forward pass keeps the
logits (which exist anyway) and the derivative by the pooled probabilities (1/16 of their size). The backward pass
computes the sigmoid again, which is cheaper than reading it back, and writes the gradient once.

Legend: N images, C classes, H x W pixels, h x w pooled cells. Cell i covers pixels 4i-2 .. 4i+1, and there are
floor(H/4) + 1 cells. Pixels outside count as zeros, as in avg_pool2d(kernel 4, stride 4, padding 2). A fourth
left-over row belongs to no cell.

A region is the 3x3 neighbourhood of a position whose nine cells lie on the map, so there are P = (h-2)(w-2) of them.
Stack the 9 shifted label maps over the 9 shifted probability maps: X is 18 x P, and the loss needs only
X X^T and the row sums. With S = Cov(p) + e I and K = Cov(y,p) S^-1

    M = Cov(y) - K Cov(y,p)^T + e I,        loss = logdet(M) / 18

and for the gradient, with G = d loss / d M:  d loss / d Cov(p) = K^T G K,  d loss / d Cov(y,p) = -2 G K.
The moments and all 9 x 9 matrices are double precision: M is a difference of sums of up to 1e5 terms, and can
be as small as e = 5e-4. Source: Zhao et al. 2019 (arXiv 1910.12037); constants of the published recipe.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hmsa_core.config import LossConfig
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.losses._pixels import LossParts, add_at_label, at_label, blank, blocks, buffers, make_target, work_dtype

POOL = 4
PAD = POOL // 2
RADIUS = 3
SIZE = RADIUS * RADIUS
EPSILON = 5e-4  # ridge of both covariances
LOG_FLOOR = 1e-8  # added to the Cholesky diagonal in the logarithm
ABSENT = math.log(math.sqrt(EPSILON) + LOG_FLOOR)  # term of a class that does not occur: M = e I, about -3.80
PROBABILITY_FLOOR = 1e-6  # added to every probability before pooling, as released
_REGION_BYTES = {"cpu": 12 << 20, "cuda": 512 << 20}  # derivatives by nine shifts of one chunk

RmiIgnore = Literal["released", "masked"]


class Weights(NamedTuple):
    """Weights and mode of the two halves; RMI is not computed if its weight is 0."""

    bce: float
    rmi: float
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
    if rmi_ignore not in ("released", "masked"):
        raise ConfigError(f"rmi_ignore = {rmi_ignore!r}: choose released or masked")
    return bce_and_rmi(logits, labels, ignore_index, Weights(0.5, 0.5, rmi_ignore)).total


def loss(logits: Tensor, labels: Tensor, options: LossConfig, ignore_index: int) -> LossParts:
    """`rmi_loss` as a training loss; the log gets its halves as `bce` and `rmi`."""
    return bce_and_rmi(logits, labels, ignore_index, Weights(0.5, 0.5, options.rmi_ignore))


def bce_and_rmi(logits: Tensor, labels: Tensor, ignore_index: int, settings: Weights) -> LossParts:
    """Return the weighted sum of the two halves, and both unweighted as `bce` and `rmi`, which carry no gradient."""
    target = make_target(logits, labels, ignore_index)
    if settings.rmi and min(logits.shape[2:]) < POOL * (RADIUS - 1):
        raise InputError(f"RMI needs crops of at least 8 x 8 pixels, got {tuple(logits.shape[2:])}")
    wants_gradient = torch.is_grad_enabled() and logits.requires_grad
    with torch.autocast(logits.device.type, enabled=False):
        total, bce, rmi = _RegionMutualInformation.apply(logits.contiguous(), target, settings, wants_gradient)
    return LossParts(total, {"bce": bce, "rmi": rmi})


class _RegionMutualInformation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, settings: Weights, wants_gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = work_dtype(logits)
        ignored = target == logits.shape[1]
        summed, guess = _pixel_pass(logits, target, ignored, dtype, with_cells=settings.rmi != 0.0)
        count = (~ignored).sum(dtype=torch.float64) + 1.0
        cross_entropy = summed / count
        mutual, by_guess = torch.zeros_like(cross_entropy), None
        if guess is not None:
            truth = pool_labels(target, guess)
            floor = PROBABILITY_FLOOR * pool(torch.ones_like(ignored[:1, None], dtype=torch.float64))[0, 0]
            keep = None
            if settings.rmi_ignore == "masked":  # the regions without an ignored pixel, N x P
                keep = (F.max_pool2d(pool(ignored[:, None].float()), RADIUS, stride=1) == 0).flatten(1)
            mutual, by_guess = _region_pass(truth, guess, floor, keep, wants_gradient)
        total = settings.bce * cross_entropy + settings.rmi * mutual
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
        per_pixel = (by_total.double() * ctx.settings.bce / count).to(dtype)
        cells = None
        if by_guess is not None:
            per_cell = by_total.double() * (ctx.settings.rmi / POOL**2)
            # One more row and column: pixels behind the last whole cell belong to no cell.
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
    softplus(-x) = softplus(x) - x is used; sums are double, to lose no digits.
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

    At a pixel, one logarithm serves all classes of the block: the logarithm of the product of their sigmoid(|x|), each
    at least 0.5. The ln(1 + e) of softplus in float32 was up to ten times as slow on one AVX-512 machine.
    """
    if x_NCHW.device.type != "cpu":
        return F.softplus(x_NCHW, out=work_NCHW).sum(dtype=torch.float64)  # type: ignore[call-arg]  # missing in the stub
    first, *others = torch.abs(x_NCHW, out=work_NCHW).sigmoid_().unbind(dim=1)
    product = first.clone()
    for other in others:
        product.mul_(other)
    above = torch.clamp_min(x_NCHW, 0.0, out=work_NCHW).sum(dtype=torch.float64)
    return above - product.log_().sum(dtype=torch.float64)


def _region_pass(
    truth: Tensor, guess: Tensor, floor_hw: Tensor, keep_NP: Tensor | None, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Mean over images, sum over classes of the region terms; derivative by `guess` on request.

    Only classes that occur in an image are computed: without them Cov(y) is zero, so that the term is a
    constant with no gradient ("released") or left out ("masked"). A GPU computes all classes and masks the
    results of absent classes: otherwise the host would have to wait for the number of classes that occur.
    """
    count, classes = truth.shape[:2]
    flat_truth, flat_guess = truth.flatten(0, 1), guess.flatten(0, 1)
    present = _present(truth, keep_NP).flatten()
    masked = _computes_all(truth)
    pairs = torch.arange(len(present), device=truth.device) if masked else present.nonzero().squeeze(1)
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
    # All 9 x 9 problems are solved at once. Then the chunks run again, backwards: the last chunk is still in memory.
    moments = [region_moments(one, workspace) for one in maps]
    loss, by_stacked = unexplained_logdet(torch.cat([covariance for covariance, _ in moments]))
    if masked:
        loss = torch.where(present, loss, ABSENT if keep_NP is None else 0.0)
        by_stacked = by_stacked * present.view(-1, 1, 1)
    total += loss.sum()
    if by_guess is None:
        return total / count, None
    by_chunks = torch.split(by_stacked / count, step)
    for index in reversed(range(len(chunks))):
        by_guess[chunks[index]] = region_gradient(maps[index], by_chunks[index], moments[index][1], workspace)
    return total / count, by_guess.view_as(guess)


def _computes_all(maps: Tensor) -> bool:
    return maps.device.type != "cpu"


def _present(truth_NChw: Tensor, keep_NP: Tensor | None) -> Tensor:
    """Return which classes occur in the pooled labels (masked: in a region that counts): bool, N x C."""
    if keep_NP is None:
        return truth_NChw.flatten(2).amax(dim=2) > 0
    height, width = truth_NChw.shape[2] - RADIUS + 1, truth_NChw.shape[3] - RADIUS + 1
    keep = keep_NP.view(-1, 1, height, width).to(truth_NChw.dtype)
    used = F.max_pool2d(F.pad(keep, (RADIUS - 1,) * 4), kernel_size=RADIUS, stride=1)
    return (truth_NChw * used).flatten(2).amax(dim=2) > 0


def pool(maps_NCHW: Tensor) -> Tensor:
    """Average over the cells, N x C x H x W -> N x C x h x w; whole rows are added first, which vectorises better."""
    height, width = maps_NCHW.shape[-2:]
    whole = (height - PAD) // POOL
    rows = maps_NCHW.new_empty((*maps_NCHW.shape[:-2], height // POOL + 1, width + POOL))
    rows[..., :PAD] = 0.0
    rows[..., PAD + width :] = 0.0
    inner = rows[..., PAD : PAD + width]
    torch.sum(maps_NCHW[..., :PAD, :], dim=-2, out=inner[..., 0, :])
    middle = maps_NCHW[..., PAD : PAD + POOL * whole, :].view(*maps_NCHW.shape[:-2], whole, POOL, width)
    torch.sum(middle, dim=-2, out=inner[..., 1 : 1 + whole, :])
    if 1 + whole < inner.shape[-2]:
        torch.sum(maps_NCHW[..., PAD + POOL * whole :, :], dim=-2, out=inner[..., 1 + whole, :])
    cells = width // POOL + 1
    return rows[..., : POOL * cells].view(*rows.shape[:-1], cells, POOL).sum(dim=-1).mul_(1.0 / POOL**2)


def pool_labels(target_NHW: Tensor, like_NChw: Tensor) -> Tensor:
    """Share of each class in each cell (exact sixteenths), by counting instead of pooling one-hot maps."""
    count, classes, height, width = like_NChw.shape
    device = target_NHW.device
    inside = target_NHW[:, : POOL * height - PAD, : POOL * width - PAD]
    row = torch.arange(PAD, PAD + inside.shape[1], device=device) // POOL
    column = torch.arange(PAD, PAD + inside.shape[2], device=device) // POOL
    cell = row[:, None] * width + column
    image = torch.arange(count, device=device).view(-1, 1, 1) * (classes + 1)
    # Ignored pixels are counted in a plane behind the last class.
    index = (inside + image) * (height * width) + cell
    shares = like_NChw.new_zeros(count * (classes + 1) * height * width)
    shares.scatter_add_(0, index.flatten(), shares.new_full((), 1.0 / POOL**2).expand(index.numel()))
    return shares.view(count, classes + 1, height, width)[:, :classes]


def times_cells(maps: Tensor, cells: Tensor) -> Tensor:
    """Multiply pixels by the value of their cell, in place (cells have one spare row and column)."""
    height, width = maps.shape[-2:]
    columns = cells.repeat_interleave(POOL, dim=3)[..., PAD : PAD + width]
    whole = (height - PAD) // POOL
    middle = slice(PAD, PAD + POOL * whole)
    maps[..., :PAD, :] *= columns[..., :1, :]
    rows = maps[..., middle, :].view(*maps.shape[:-2], whole, POOL, width)
    rows *= columns[..., 1 : 1 + whole, None, :]
    if PAD + POOL * whole < height:
        maps[..., PAD + POOL * whole :, :] *= columns[..., 1 + whole : 2 + whole, :]
    return maps


class PooledMaps(NamedTuple):
    """R pairs of pooled maps, one for each class that occurs in an image."""

    truth: Tensor  # R x h x w shares of the class, float
    guess: Tensor  # R x h x w probabilities, float
    floor: Tensor  # h x w, added to all probabilities in double: float32 would round it away next to a 1
    keep: Tensor | None  # R x P regions that count (bool), or None for all of them


class Workspace:
    """The two large buffers of a chunk of maps, made once: fresh memory costs more than the arithmetic."""

    def __init__(self, regions: int, height: int, width: int, device: torch.device) -> None:
        rows, columns = height - RADIUS + 1, width - RADIUS + 1
        self._columns = torch.empty((regions, 2, RADIUS, height, columns), dtype=torch.float64, device=device)
        # derivatives by nine shifts, R x 9 x P
        self.by_region = torch.empty((regions, SIZE, rows * columns), dtype=torch.float64, device=device)
        self._holds: PooledMaps | None = None

    def columns(self, maps: PooledMaps) -> Tensor:
        """Stack the maps shifted by 0, 1, 2 columns, labels first: R x 6 x h x (w-2), double.

        Shifts by rows are windows of this stack (`_window`), so X with its 18 rows is never made.
        """
        out = self._columns[: maps.truth.shape[0]]
        if maps is self._holds:
            return out.flatten(1, 2)
        self._holds = maps
        width = out.shape[-1]
        for index, one in enumerate((maps.truth, maps.guess.double() + maps.floor)):
            out[:, index] = one.unfold(2, width, 1).transpose(1, 2)
        return out.flatten(1, 2)


def region_moments(maps: PooledMaps, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """Centred second moments of X (sums over the regions that count), R x 18 x 18, and means, R x 18 x 1, double."""
    columns = workspace.columns(maps)
    height, width = _grid(maps.truth)
    if maps.keep is None:
        products, sums = _whole_products(columns, height)
        count: Tensor | int = height * width
    else:
        products, sums = _kept_products(columns, maps.keep.view(-1, 1, height, width), height)
        count = maps.keep.sum(dim=1).clamp(min=1).view(-1, 1, 1).double()
    regions = columns.shape[0]
    # (row shift, label or guess, column shift) -> (label or guess, row shift, column shift)
    by_map = products.view(regions, RADIUS, RADIUS, 2, RADIUS, 2, RADIUS).permute(0, 3, 1, 4, 5, 2, 6)
    second = by_map.reshape(regions, 2 * SIZE, 2 * SIZE)
    mean = sums.view(regions, RADIUS, 2, RADIUS).transpose(1, 2).reshape(regions, 2 * SIZE, 1) / count
    return second - count * (mean @ mean.transpose(1, 2)), mean


def region_gradient(maps: PooledMaps, by_stacked: Tensor, mean: Tensor, workspace: Workspace) -> Tensor:
    """Carry the derivative by the moments back to the pooled probabilities: R x h x w, their dtype."""
    columns = workspace.columns(maps)
    height, _ = _grid(maps.truth)
    by_row = by_stacked.view(-1, SIZE, 2, RADIUS, RADIUS)
    by_region = workspace.by_region[: maps.truth.shape[0]]
    by_region.copy_(-(by_stacked @ mean))
    for row in range(RADIUS):
        by_region.baddbmm_(by_row[:, :, :, row].flatten(2), _window(columns, row, height))
    if maps.keep is not None:
        by_region *= maps.keep.unsqueeze(1)
    # Add the nine shifted maps back onto the pooled grid
    return F.fold(by_region, maps.guess.shape[1:], RADIUS).squeeze(1).to(maps.guess.dtype)


def _grid(maps_Rhw: Tensor) -> tuple[int, int]:
    return maps_Rhw.shape[-2] - RADIUS + 1, maps_Rhw.shape[-1] - RADIUS + 1


def _window(columns: Tensor, row: int, height: int) -> Tensor:
    """Rows of X with one row shift: R x 6 x P, a view."""
    return columns[:, :, row : row + height].flatten(2)


def _whole_products(columns: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Products of all pairs of row shifts over all regions, R x 3 x 3 x 6 x 6, and sums, R x 3 x 6.

    Pairs with the same difference of shifts differ by the first and last rows only. So one product over all rows is
    computed for each difference, and the rows that a pair does not cover are subtracted.
    """
    regions = columns.shape[0]
    products = columns.new_empty((regions, RADIUS, RADIUS, 2 * RADIUS, 2 * RADIUS))
    for shift in range(RADIUS):
        last = columns.shape[2] - shift
        everywhere = columns[:, :, :last].flatten(2) @ columns[:, :, shift:].flatten(2).transpose(1, 2)
        for row in range(RADIUS - shift):
            outside = [*range(row), *range(row + height, last)]
            pair = everywhere
            for edge in outside:
                pair = pair - columns[:, :, edge] @ columns[:, :, edge + shift].transpose(1, 2)
            products[:, row, row + shift] = pair
            products[:, row + shift, row] = pair.transpose(1, 2)
    by_line = columns.sum(dim=3)
    sums = torch.stack([by_line[:, :, row : row + height].sum(dim=2) for row in range(RADIUS)], dim=1)
    return products, sums


def _kept_products(columns: Tensor, keep_R1hw: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """`_whole_products` over the regions that count."""
    regions = columns.shape[0]
    products = columns.new_empty((regions, RADIUS, RADIUS, 2 * RADIUS, 2 * RADIUS))
    sums = columns.new_empty((regions, RADIUS, 2 * RADIUS))
    for row in range(RADIUS):
        kept = (columns[:, :, row : row + height] * keep_R1hw).flatten(2)
        sums[:, row] = kept.sum(dim=2)
        for other in range(row, RADIUS):
            pair = kept @ _window(columns, other, height).transpose(1, 2)
            products[:, row, other] = pair
            products[:, other, row] = pair.transpose(1, 2)
    return products, sums


def unexplained_logdet(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return logdet(M)/18 (R) and the 9 x 18 matrices that map centred X to the derivative by its guess half."""
    ridge = EPSILON * torch.eye(SIZE, dtype=covariance.dtype, device=covariance.device)
    cov_truth = covariance[:, :SIZE, :SIZE]
    cross = covariance[:, :SIZE, SIZE:]
    # S is symmetric positive definite: K = cross S^-1 through its Cholesky factor
    factor_guess, failed_guess = torch.linalg.cholesky_ex(covariance[:, SIZE:, SIZE:] + ridge)
    regression = _solve(factor_guess, cross.transpose(1, 2)).transpose(1, 2)
    unexplained = cov_truth - regression @ cross.transpose(1, 2)
    factor, failed = torch.linalg.cholesky_ex((unexplained + unexplained.transpose(1, 2)) / 2 + ridge)
    diagonal = torch.diagonal(factor, dim1=1, dim2=2)
    loss = torch.log(diagonal + LOG_FLOOR).sum(dim=1) / SIZE
    # Both are positive definite unless a score is not finite: then the loss is not finite, like other losses.
    loss = loss.masked_fill((failed_guess != 0) | (failed != 0), torch.nan)
    # d/dM of 2 sum log(diag chol(M) + floor) = L^-T diag(l / (l + floor)) L^-1; the loss is that / 18
    inverse = torch.linalg.solve_triangular(factor, ridge / EPSILON, upper=False)
    by_unexplained = inverse.transpose(1, 2) @ ((diagonal / (diagonal + LOG_FLOOR)).unsqueeze(2) * inverse)
    by_unexplained /= 2 * SIZE
    product = by_unexplained @ regression
    by_cross_T = -2 * product.transpose(1, 2)
    by_guess = 2 * (regression.transpose(1, 2) @ product)
    return loss, torch.cat([by_cross_T, by_guess], dim=2)


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    """Solve S x = right by the lower Cholesky factor of S."""
    if not _computes_all(factor):
        return torch.cholesky_solve(right, factor)
    # On GPUs `cholesky_solve` of a batch goes through MAGMA, which makes the host wait.
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(factor.transpose(1, 2), half, upper=True)
    return whole
