"""Mutual information of 3x3 regions from their 18 x 18 second moments, with the analytic gradient.

Maps are pooled (h x w); a region is the 3x3 neighbourhood of a position whose nine cells lie on the map, so
there are P = (h-2)(w-2) of them. Stack the 9 shifted label maps over the 9 shifted probability maps: X is
18 x P and everything the loss needs is X X^T and the row sums. With S = Cov(p) + e I and K = Cov(y,p) S^-1

    M = Cov(y) - K Cov(y,p)^T + e I,        loss = logdet(M) / 18

and for the gradient, with G = d loss / d M:  d loss / d Cov(p) = K^T G K,  d loss / d Cov(y,p) = -2 G K.
The moments and everything 9 x 9 are double precision: M is a difference of sums of up to 1e5 terms, and can
be as small as e = 5e-4. Source: Zhao et al. 2019 (arXiv 1910.12037); constants of the published recipe.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "ABSENT",
    "RADIUS",
    "Moments",
    "PooledMaps",
    "Workspace",
    "region_gradient",
    "region_moments",
    "unexplained_logdet",
    "valid_regions",
]

RADIUS = 3
SIZE = RADIUS * RADIUS
EPSILON = 5e-4  # ridge of both covariances
LOG_FLOOR = 1e-8  # added to the Cholesky diagonal inside the logarithm
ABSENT = math.log(math.sqrt(EPSILON) + LOG_FLOOR)  # term of a class that does not occur: M = e I, about -3.80


class PooledMaps(NamedTuple):
    """R pairs of pooled maps, one for each class that occurs in an image."""

    truth: Tensor  # R x h x w shares of the class, float
    guess: Tensor  # R x h x w probabilities, float
    floor: Tensor  # h x w, added to all probabilities in double: next to a 1 it would be rounded away
    keep: Tensor | None  # R x P regions that count (bool), or None for all of them


class Moments(NamedTuple):
    """Centred second moments of the stacked maps (sums over regions) and their means, double."""

    covariance: Tensor  # R x 18 x 18
    mean: Tensor  # R x 18 x 1


class Workspace:
    """The two large buffers of a chunk of maps, made once: fresh memory costs more than the arithmetic."""

    def __init__(self, regions: int, height: int, width: int, device: torch.device) -> None:
        rows, columns = height - RADIUS + 1, width - RADIUS + 1
        self._columns = torch.empty((regions, 2, RADIUS, height, columns), dtype=torch.float64, device=device)
        self._by_region = torch.empty((regions, SIZE, rows * columns), dtype=torch.float64, device=device)
        self._holds: PooledMaps | None = None

    def columns(self, maps: PooledMaps) -> Tensor:
        """Stack the maps shifted by 0, 1, 2 columns, labels first: R x 6 x h x (w-2), double.

        Shifts by rows are windows of it (`_window`), so that X with its 18 rows is never made.
        """
        out = self._columns[: maps.truth.shape[0]]
        if maps is self._holds:
            return out.flatten(1, 2)
        self._holds = maps
        width = out.shape[-1]
        for index, one in enumerate((maps.truth, maps.guess.double() + maps.floor)):
            out[:, index] = one.unfold(2, width, 1).transpose(1, 2)
        return out.flatten(1, 2)

    def by_region(self, maps: PooledMaps) -> Tensor:
        """Room for the derivatives by nine shifts, R x 9 x P."""
        return self._by_region[: maps.truth.shape[0]]


def valid_regions(is_whole_Rhw: Tensor) -> Tensor:
    """Say which regions consist of whole cells only: bool R x h x w -> R x (h-2)(w-2)."""
    height, width = _grid(is_whole_Rhw)
    whole = is_whole_Rhw[:, :height, :width].clone()
    for row in range(RADIUS):
        for column in range(RADIUS):
            whole &= is_whole_Rhw[:, row : row + height, column : column + width]
    return whole.flatten(1)


def region_moments(maps: PooledMaps, workspace: Workspace) -> Moments:
    """Sum X X^T over the regions that count and take the means out."""
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
    return Moments(second - count * (mean @ mean.transpose(1, 2)), mean)


def region_gradient(maps: PooledMaps, by_stacked: Tensor, mean: Tensor, workspace: Workspace) -> Tensor:
    """Carry the derivative by the moments back to the pooled probabilities: R x h x w, their dtype."""
    columns = workspace.columns(maps)
    height, _ = _grid(maps.truth)
    by_row = by_stacked.view(-1, SIZE, 2, RADIUS, RADIUS)
    by_region = workspace.by_region(maps)
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

    Pairs with the same difference of shifts differ by the first and last rows only: one product over all
    rows a difference, minus the rows that a pair does not cover.
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
    regression = torch.cholesky_solve(cross.transpose(1, 2), factor_guess).transpose(1, 2)
    unexplained = cov_truth - regression @ cross.transpose(1, 2)
    factor, failed = torch.linalg.cholesky_ex((unexplained + unexplained.transpose(1, 2)) / 2 + ridge)
    diagonal = torch.diagonal(factor, dim1=1, dim2=2)
    loss = torch.log(diagonal + LOG_FLOOR).sum(dim=1) / SIZE
    # Both are positive definite unless a score is not finite: then the loss says so, as other losses do.
    loss = loss.masked_fill((failed_guess != 0) | (failed != 0), torch.nan)
    # d/dM of 2 sum log(diag chol(M) + floor) = L^-T diag(l / (l + floor)) L^-1; the loss is that / 18
    inverse = torch.linalg.solve_triangular(factor, ridge / EPSILON, upper=False)
    by_unexplained = inverse.transpose(1, 2) @ ((diagonal / (diagonal + LOG_FLOOR)).unsqueeze(2) * inverse)
    by_unexplained /= 2 * SIZE
    product = by_unexplained @ regression
    by_cross_T = -2 * product.transpose(1, 2)
    by_guess = 2 * (regression.transpose(1, 2) @ product)
    return loss, torch.cat([by_cross_T, by_guess], dim=2)
