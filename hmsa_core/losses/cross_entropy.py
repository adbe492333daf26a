"""Softmax cross-entropy, finite for every label map."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hmsa_core.errors import InputError

__all__ = ["check_shapes", "cross_entropy", "valid_pixels"]

_INT64_IGNORE = -100


def check_shapes(logits_BCHW: Tensor, label_BHW: Tensor) -> None:
    """Refuse labels that do not lie on the logits' grid."""
    if logits_BCHW.ndim != 4 or label_BHW.shape != (logits_BCHW.shape[0], *logits_BCHW.shape[2:]):
        raise InputError(
            f"labels {tuple(label_BHW.shape)} do not fit logits {tuple(logits_BCHW.shape)}: "
            "expected (N, C, H, W) and (N, H, W)"
        )


def valid_pixels(label_BHW: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Say which pixels count: a label in 0..C-1 that is not `ignore_index` (bool, N x H x W).

    The released code only asks `label < num_classes`; the same for 255 and for Mapillary's 65.
    """
    return (label_BHW >= 0) & (label_BHW < num_classes) & (label_BHW != ignore_index)


def cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Softmax cross-entropy, mean over valid pixels; 0 with zero gradient where no pixel is valid.

    Args:
        logits: N x C x H x W, float; half precision is computed in float32.
        labels: N x H x W, any integer dtype.
        ignore_index: label that does not count (nor does any outside 0..C-1).
    """
    check_shapes(logits, labels)
    valid = valid_pixels(labels, logits.shape[1], ignore_index)
    target = torch.where(valid, labels.long(), _INT64_IGNORE)
    scores = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    total = F.cross_entropy(scores, target, ignore_index=_INT64_IGNORE, reduction="sum")
    return total / valid.sum().clamp(min=1)
