"""Cross-entropy plus the soft Jaccard loss, which counts a rare class as much as a common one."""

from __future__ import annotations

import torch
from torch import Tensor

from hmsa_core.config import LossConfig
from hmsa_core.losses._pixels import LossParts, at_label, make_target, work_dtype
from hmsa_core.losses.cross_entropy import cross_entropy

SOFTMAX = True


def jaccard(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Soft Jaccard loss: 1 - IoU of probabilities and labels, mean over the classes that the labels show.

    A class's IoU is that of all crops together: sum(p t) / (sum(p) + sum(t) - sum(p t)), with probability p and label
    t in {0, 1} (Rahman and Wang 2016; each rank computes it over its crops). No valid pixel: 0.

    Args:
        logits: N x C x H x W, float; half precision is computed in float32.
        labels: N x H x W, any integer dtype.
        ignore_index: label that does not count (nor does any outside 0..C-1).
    """
    target = make_target(logits, labels, ignore_index)
    classes = logits.shape[1]
    with torch.autocast(logits.device.type, enabled=False):
        probabilities = logits.to(work_dtype(logits)).softmax(dim=1)
        likely = at_label(probabilities, target).squeeze(1)
        shows = [target == c for c in range(classes)]
        both = torch.stack([(likely * pixels).sum() for pixels in shows])
        true = torch.stack([pixels.sum() for pixels in shows])
        valid = (target != classes).to(probabilities.dtype)
        given = torch.einsum("nchw,nhw->c", probabilities, valid)
        iou = both / (given + true - both).clamp(min=1e-6)
        present = true > 0
        return ((1 - iou) * present).sum() / present.sum().clamp(min=1)


def loss(logits: Tensor, labels: Tensor, options: LossConfig, ignore_index: int) -> LossParts:
    """`cross_entropy` plus `jaccard`, as a training loss."""
    del options
    nll = cross_entropy(logits, labels, ignore_index=ignore_index)
    region = jaccard(logits, labels, ignore_index=ignore_index)
    return LossParts(nll + region, {"cross_entropy": nll, "jaccard": region})
