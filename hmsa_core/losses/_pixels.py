"""Parts that losses over pixels share: checks of labels, type of the result, blocks of classes, reused buffers.

A loss over pixels is a handful of cheap operations on very many numbers. They are slow on memory that does not fit
the cache or is newly allocated. So N x C x H x W scores are processed in blocks of classes. A GPU has neither
problem, so its blocks are large.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hmsa_core.io.errors import InputError

_MOST_CLASSES = 64  # in a block: a product of 64 probabilities of at least 0.5 is far above float32's smallest number
# Small enough for the cache, large enough that threads do not synchronise every few microseconds
BLOCK_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}


@dataclass(frozen=True)
class LossParts:
    """A loss, a scalar with a gradient, and its parts: unweighted scalars for the log."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


def work_dtype(logits: Tensor) -> torch.dtype:
    """Return the precision to compute in: at least float32."""
    return torch.float32 if logits.dtype in (torch.float16, torch.bfloat16) else logits.dtype


def make_target(logits_NCHW: Tensor, label_NHW: Tensor, ignore_index: int) -> Tensor:
    """Check types and shapes, and give ignored pixels the number C, in a narrow dtype.

    A label counts when it is in 0..C-1 and not `ignore_index`. The released code only checks that it is
    below C: the same result for 255 and for Mapillary's 65.
    """
    for name, value in (("logits", logits_NCHW), ("labels", label_NHW)):
        if not isinstance(value, Tensor):
            raise InputError(f"{name} are a {type(value).__name__}: a loss takes tensors (torch.from_numpy)")
    if not logits_NCHW.is_floating_point() or label_NHW.is_floating_point():
        raise InputError(
            f"logits are {logits_NCHW.dtype} and labels {label_NHW.dtype}: expected float scores and integer trainIds"
        )
    if logits_NCHW.ndim == 4 and not logits_NCHW.numel():
        raise InputError(f"logits {tuple(logits_NCHW.shape)} hold nothing: a loss needs at least one pixel and class")
    if logits_NCHW.ndim != 4 or label_NHW.shape != (logits_NCHW.shape[0], *logits_NCHW.shape[2:]):
        raise InputError(
            f"labels {tuple(label_NHW.shape)} do not fit logits {tuple(logits_NCHW.shape)}: "
            "expected (N, C, H, W) and (N, H, W)"
        )
    classes, label_NHW = logits_NCHW.shape[1], label_NHW.long()  # narrow types wrap at -100 and at C
    valid = (label_NHW >= 0) & (label_NHW < classes) & (label_NHW != ignore_index)
    return torch.where(valid, label_NHW, classes).to(torch.uint8 if classes < 255 else torch.int16)


def blocks(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Divide N x C into blocks of images x classes whose full-size maps stay in the cache (or fit the GPU)."""
    count, classes, height, width = logits.shape
    maps = max(1, BLOCK_BYTES.get(logits.device.type, 64 << 20) // (height * width * 4))
    step_classes = min(classes, maps, _MOST_CLASSES)
    step_images = max(1, maps // classes)
    for image in range(0, count, step_images):
        for start in range(0, classes, step_classes):
            yield slice(image, image + step_images), slice(start, min(start + step_classes, classes))


def buffers(logits: Tensor, count: int) -> list[Tensor]:
    """Make buffers of the largest block; `[: images, : classes]` of them fits any block."""
    images, classes = next(blocks(logits))
    shape = logits[images, classes].shape
    return [logits.new_empty(shape, dtype=work_dtype(logits)) for _ in range(count)]


def blank(ignored_NHW: Tensor, dtype: torch.dtype) -> Tensor:
    """Make the mask that is added to all scores, N x 1 x H x W: minus infinity at ignored pixels, 0 elsewhere."""
    zeros = torch.zeros(ignored_NHW.shape, dtype=dtype, device=ignored_NHW.device)
    return zeros.masked_fill_(ignored_NHW, -torch.inf).unsqueeze(1)


def _index(target_NHW: Tensor, classes: int) -> Tensor:
    return target_NHW.clamp(max=classes - 1).long().unsqueeze(1)


def at_label(logits_NCHW: Tensor, target_NHW: Tensor) -> Tensor:
    """Pick the scores at the labels, N x 1 x H x W (anything at ignored pixels)."""
    return logits_NCHW.gather(1, _index(target_NHW, logits_NCHW.shape[1])).to(work_dtype(logits_NCHW))


def add_at_label(gradient_NCHW: Tensor, target_NHW: Tensor, value: Tensor) -> None:
    """Add one number at the label of every pixel that counts, in place."""
    classes = gradient_NCHW.shape[1]
    source = (target_NHW != classes).unsqueeze(1) * value
    gradient_NCHW.scatter_add_(1, _index(target_NHW, classes), source.to(gradient_NCHW.dtype))
