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

__all__ = ["ABSENT", "RADIUS", "RegionTerms", "region_terms", "valid_regions"]

RADIUS = 3
SIZE = RADIUS * RADIUS
EPSILON = 5e-4  # ridge of both covariances
LOG_FLOOR = 1e-8  # added to the Cholesky diagonal inside the logarithm
ABSENT = math.log(math.sqrt(EPSILON) + LOG_FLOOR)  # term of a class that does not occur: M = e I, about -3.80


class RegionTerms(NamedTuple):
    """Loss of each map pair and its derivative by the pooled probabilities."""

    loss: Tensor  # R, double
    gradient: Tensor | None  # R x h x w in the maps' dtype, or None if not asked for


def valid_regions(is_whole_Rhw: Tensor) -> Tensor:
    """Say which regions consist of whole cells only: bool R x h x w -> R x (h-2)(w-2)."""
    height, width = _grid(is_whole_Rhw)
    whole = is_whole_Rhw[:, :height, :width].clone()
    for row in range(RADIUS):
        for column in range(RADIUS):
            whole &= is_whole_Rhw[:, row : row + height, column : column + width]
    return whole.flatten(1)


def region_terms(
    truth_Rhw: Tensor, guess_Rhw: Tensor, floor_hw: Tensor, keep_RP: Tensor | None, *, with_gradient: bool
) -> RegionTerms:
    """Compute logdet(M) / 18 for R pairs of pooled maps.

    Args:
        truth_Rhw: pooled one-hot labels, float.
        guess_Rhw: pooled probabilities, float, same shape.
        floor_hw: what is added to all of them, in double: next to a probability of 1 it would be rounded away.
        keep_RP: regions that count (bool), or None for all of them.
        with_gradient: also compute the derivative by `guess_Rhw`.
    """
    height, width = _grid(truth_Rhw)
    stacked = _stack(truth_Rhw, guess_Rhw.double() + floor_hw)
    if keep_RP is None:
        count: Tensor | int = height * width
    else:
        stacked *= keep_RP.unsqueeze(1)
        count = keep_RP.sum(dim=1).clamp(min=1).view(-1, 1, 1).double()
    mean = stacked.sum(dim=2, keepdim=True) / count
    moments = stacked @ stacked.transpose(1, 2) - count * (mean @ mean.transpose(1, 2))
    loss, by_stacked = _logdet(moments, with_gradient=with_gradient)
    if by_stacked is None:
        return RegionTerms(loss, None)
    by_region = by_stacked @ stacked - by_stacked @ mean
    if keep_RP is not None:
        by_region *= keep_RP.unsqueeze(1)
    return RegionTerms(loss, _fold(by_region, guess_Rhw))


def _grid(maps_Rhw: Tensor) -> tuple[int, int]:
    return maps_Rhw.shape[-2] - RADIUS + 1, maps_Rhw.shape[-1] - RADIUS + 1


def _stack(truth_Rhw: Tensor, guess_Rhw: Tensor) -> Tensor:
    """Stack shifted labels over shifted probabilities: R x 18 x P, double, rows of the neighbourhood first."""
    height, width = _grid(truth_Rhw)
    count = truth_Rhw.shape[0]
    out = torch.empty((count, 2, RADIUS, RADIUS, height, width), dtype=torch.float64, device=truth_Rhw.device)
    for index, maps in enumerate((truth_Rhw, guess_Rhw)):
        # R x h x w -> R x row shift x column shift x height x width, a view
        shifted = maps.unfold(1, height, 1).unfold(2, width, 1)
        out[:, index] = shifted
    return out.view(count, 2 * SIZE, height * width)


def _logdet(moments: Tensor, *, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Return logdet(M)/18 (R) and the 9 x 18 matrix that maps centred X to the derivative by its guess half."""
    ridge = EPSILON * torch.eye(SIZE, dtype=moments.dtype, device=moments.device)
    cov_truth = moments[:, :SIZE, :SIZE]
    cross = moments[:, :SIZE, SIZE:]
    # S is symmetric positive definite: K = cross S^-1 through its Cholesky factor
    factor_guess = torch.linalg.cholesky(moments[:, SIZE:, SIZE:] + ridge)
    regression = torch.cholesky_solve(cross.transpose(1, 2), factor_guess).transpose(1, 2)
    unexplained = cov_truth - regression @ cross.transpose(1, 2)
    factor = torch.linalg.cholesky((unexplained + unexplained.transpose(1, 2)) / 2 + ridge)
    diagonal = torch.diagonal(factor, dim1=1, dim2=2)
    loss = torch.log(diagonal + LOG_FLOOR).sum(dim=1) / SIZE
    if not with_gradient:
        return loss, None
    # d/dM of 2 sum log(diag chol(M) + floor) = L^-T diag(l / (l + floor)) L^-1; the loss is that / 18
    inverse = torch.linalg.solve_triangular(factor, ridge / EPSILON, upper=False)
    by_unexplained = inverse.transpose(1, 2) @ ((diagonal / (diagonal + LOG_FLOOR)).unsqueeze(2) * inverse)
    by_unexplained /= 2 * SIZE
    product = by_unexplained @ regression
    by_cross_T = -2 * product.transpose(1, 2)
    by_guess = 2 * (regression.transpose(1, 2) @ product)
    return loss, torch.cat([by_cross_T, by_guess], dim=2)


def _fold(by_region_R9P: Tensor, like_Rhw: Tensor) -> Tensor:
    """Add the nine shifted maps back onto the pooled grid (the transpose of `_stack`)."""
    height, width = _grid(like_Rhw)
    out = torch.zeros(like_Rhw.shape, dtype=torch.float64, device=like_Rhw.device)
    for index in range(SIZE):
        row, column = divmod(index, RADIUS)
        out[:, row : row + height, column : column + width] += by_region_R9P[:, index].view(-1, height, width)
    return out.to(like_Rhw.dtype)
