"""Pooled cells of the RMI loss: 4 x 4 pixels, the first cell starting 2 pixels outside the map.

Cell i covers pixels 4i-2 .. 4i+1; there are floor(H/4) + 1 of them and what lies outside counts as zeros, so
that the numbers are those of avg_pool2d(kernel 4, stride 4, padding 2). A fourth left-over row belongs to none.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["POOL", "pool", "pool_labels", "times_cells"]

POOL = 4
PAD = POOL // 2


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
    """Share of each class in each cell (exact sixteenths), counted instead of pooled from one-hot maps."""
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
