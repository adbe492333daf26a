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

__all__ = [
    "ABSENT",
    "RADIUS",
    "Moments",
    "PooledMaps",
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


def valid_regions(is_whole_Rhw: Tensor) -> Tensor:
    """Say which regions consist of whole cells only: bool R x h x w -> R x (h-2)(w-2)."""
    height, width = _grid(is_whole_Rhw)
    whole = is_whole_Rhw[:, :height, :width].clone()
    for row in range(RADIUS):
        for column in range(RADIUS):
            whole &= is_whole_Rhw[:, row : row + height, column : column + width]
    return whole.flatten(1)


def region_moments(maps: PooledMaps) -> Moments:
    """Sum X X^T over the regions that count and take the means out."""
    stacked = _stack(maps)
    if maps.keep is None:
        count: Tensor | int = stacked.shape[2]
    else:
        count = maps.keep.sum(dim=1).clamp(min=1).view(-1, 1, 1).double()
    mean = stacked.sum(dim=2, keepdim=True) / count
    return Moments(stacked @ stacked.transpose(1, 2) - count * (mean @ mean.transpose(1, 2)), mean)


def region_gradient(maps: PooledMaps, by_stacked: Tensor, mean: Tensor) -> Tensor:
    """Carry the derivative by the moments back to the pooled probabilities: R x h x w, their dtype."""
    by_region = torch.baddbmm(-(by_stacked @ mean), by_stacked, _stack(maps))
    if maps.keep is not None:
        by_region *= maps.keep.unsqueeze(1)
    return _fold(by_region, maps.guess)


def _grid(maps_Rhw: Tensor) -> tuple[int, int]:
    return maps_Rhw.shape[-2] - RADIUS + 1, maps_Rhw.shape[-1] - RADIUS + 1


def _stack(maps: PooledMaps) -> Tensor:
    """Stack shifted labels over shifted probabilities: R x 18 x P, double, rows of the neighbourhood first."""
    height, width = _grid(maps.truth)
    count = maps.truth.shape[0]
    out = torch.empty((count, 2, RADIUS, RADIUS, height, width), dtype=torch.float64, device=maps.truth.device)
    for index, one in enumerate((maps.truth, maps.guess.double() + maps.floor)):
        # R x h x w -> R x row shift x column shift x height x width, a view
        out[:, index] = one.unfold(1, height, 1).unfold(2, width, 1)
    stacked = out.view(count, 2 * SIZE, height * width)
    return stacked if maps.keep is None else stacked.mul_(maps.keep.unsqueeze(1))


def unexplained_logdet(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return logdet(M)/18 (R) and the 9 x 18 matrices that map centred X to the derivative by its guess half."""
    ridge = EPSILON * torch.eye(SIZE, dtype=covariance.dtype, device=covariance.device)
    cov_truth = covariance[:, :SIZE, :SIZE]
    cross = covariance[:, :SIZE, SIZE:]
    # S is symmetric positive definite: K = cross S^-1 through its Cholesky factor
    factor_guess = torch.linalg.cholesky(covariance[:, SIZE:, SIZE:] + ridge)
    regression = torch.cholesky_solve(cross.transpose(1, 2), factor_guess).transpose(1, 2)
    unexplained = cov_truth - regression @ cross.transpose(1, 2)
    factor = torch.linalg.cholesky((unexplained + unexplained.transpose(1, 2)) / 2 + ridge)
    diagonal = torch.diagonal(factor, dim1=1, dim2=2)
    loss = torch.log(diagonal + LOG_FLOOR).sum(dim=1) / SIZE
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
