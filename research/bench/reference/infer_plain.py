"""Reference for bench_infer.py: multi-scale inference the plain way, as published code does it.

NCHW float32, batch norms as trained, every scale's class scores (and attention) resized to full pixel
size before they are combined, the mirror image after the image, softmax over the whole map, then argmax.
Own code; written to be read, not slowed down: no gradient is recorded and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def run_scale(model: torch.nn.Module, images: Tensor) -> dict[str, Tensor]:
    """All outputs of one scale, resized to the pixel size of its input (the auxiliary scores, too)."""
    out = model.forward_scale(images)
    size = (images.shape[2], images.shape[3])
    return {
        "logits": resize(out.logits, size),
        "aux": resize(out.aux_logits, size),
        "attention": resize(out.attention, size),
    }


def hierarchical(model: torch.nn.Module, images: Tensor, scales: Sequence[float]) -> Tensor:
    """Fused scores N x C x H x W: `P = a L + (1 - a) P` from the highest scale down.

    Scores and attention of every scale are kept to the end, as the published code returns them all.
    """
    fused = None
    kept = {}
    for scale in sorted(scales, reverse=True):
        size = (int(images.shape[2] * scale), int(images.shape[3] * scale))
        out = run_scale(model, images if scale == 1.0 else resize(images, size))
        logits, attention = kept[scale] = out["logits"], out["attention"]
        if fused is None:
            fused = logits
        elif scale >= 1.0:
            fused = attention * logits + (1 - attention) * resize(fused, size)
        else:
            target = (fused.shape[2], fused.shape[3])
            fused = resize(attention * logits, target) + (1 - resize(attention, target)) * fused
    return fused


def normalise(image: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy()).float().div(255)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((pixels - mean) / std)[None]


def label_image(
    model: torch.nn.Module, image: np.ndarray, scales: Sequence[float], flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Label (uint8) and top probability (float32) of one uint8 HxWx3 image."""
    with torch.no_grad():
        images = normalise(image)
        logits = hierarchical(model, images, scales)
        if flip:
            logits = (logits + hierarchical(model, images.flip(3), scales).flip(3)) / 2
        probabilities = torch.softmax(logits, dim=1)
        confidence, label = probabilities.max(dim=1)
    return label[0].to(torch.uint8).numpy(), confidence[0].numpy()
