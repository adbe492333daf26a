"""Region mutual information loss, written down as the formula reads and left to autograd.

The yardstick of `bench_rmi.py`: one-hot labels, full-size masks, pooling, nine shifted maps stacked into
vectors, covariances, inverse and Cholesky factor, each as one ordinary torch call on whole tensors. Nothing
is slowed down on purpose and nothing is fused by hand. Source: Zhao et al. 2019 (arXiv 1910.12037), with the
constants of the published recipe: radius 3, pooling 4 with padding 2, 0.5 binary cross-entropy + 0.5 RMI.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

RADIUS = 3
POOL = 4
EPSILON = 5e-4


def rmi_plain(logits_NCHW: Tensor, label_NHW: Tensor) -> Tensor:
    """Return 0.5 BCE + 0.5 RMI as a scalar; pixels whose label is not below C are ignored."""
    classes = logits_NCHW.shape[1]
    valid_NHW = label_NHW < classes
    mask_NHW = valid_NHW.to(logits_NCHW.dtype)
    onehot_NHWC = F.one_hot(torch.where(valid_NHW, label_NHW, 0), classes).to(logits_NCHW.dtype)
    onehot_NHWC = onehot_NHWC * mask_NHW.unsqueeze(3)
    # Cross-entropy: one row a pixel, one column a class
    rows = logits_NCHW.permute(0, 2, 3, 1).reshape(-1, classes)
    summed = F.binary_cross_entropy_with_logits(
        rows, onehot_NHWC.view(-1, classes), weight=mask_NHW.view(-1, 1), reduction="sum"
    )
    cross_entropy = summed / (mask_NHW.sum() + 1.0)
    probability = torch.sigmoid(logits_NCHW) * mask_NHW.unsqueeze(1) + 1e-6
    truth = _regions(onehot_NHWC.permute(0, 3, 1, 2))
    guess = _regions(probability)
    return 0.5 * cross_entropy + 0.5 * _mutual_information(truth, guess)


def _regions(maps_NCHW: Tensor) -> Tensor:
    """Pool by 4 and stack each 3x3 neighbourhood: N x C x 9 x positions, double precision."""
    pooled = F.avg_pool2d(maps_NCHW, kernel_size=POOL, stride=POOL, padding=POOL // 2)
    height, width = pooled.shape[2] - RADIUS + 1, pooled.shape[3] - RADIUS + 1
    shifted = [
        pooled[:, :, row : row + height, column : column + width] for row in range(RADIUS) for column in range(RADIUS)
    ]
    return torch.stack(shifted, dim=2).flatten(3).double()


def _mutual_information(truth: Tensor, guess: Tensor) -> Tensor:
    size = RADIUS * RADIUS
    ridge = EPSILON * torch.eye(size, dtype=truth.dtype, device=truth.device)
    truth = truth - truth.mean(dim=3, keepdim=True)
    guess = guess - guess.mean(dim=3, keepdim=True)
    cov_truth = truth @ truth.transpose(2, 3)
    cov_guess = guess @ guess.transpose(2, 3)
    cov_cross = truth @ guess.transpose(2, 3)
    inverse = torch.linalg.inv(cov_guess + ridge)
    unexplained = cov_truth - cov_cross @ inverse @ cov_cross.transpose(2, 3)
    factor = torch.linalg.cholesky(unexplained + ridge)
    logdet = 2.0 * torch.log(torch.diagonal(factor, dim1=2, dim2=3) + 1e-8).sum(dim=2)
    return (0.5 * logdet / size).mean(dim=0).sum()
