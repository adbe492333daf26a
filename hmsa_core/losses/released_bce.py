"""The released code's binary cross-entropy: a sigmoid for each class, summed over classes."""

from __future__ import annotations

from torch import Tensor

from hmsa_core.config import LossConfig
from hmsa_core.losses._pixels import LossParts
from hmsa_core.losses.rmi import Weights, bce_and_rmi


def released_bce(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Sigmoid cross-entropy summed over classes and pixels, divided by (valid pixels + 1), as released."""
    return bce_and_rmi(logits, labels, ignore_index, Weights(1.0, 0.0, "released")).total


def loss(logits: Tensor, labels: Tensor, options: LossConfig, ignore_index: int) -> LossParts:
    """`released_bce` as a training loss."""
    del options
    return LossParts(released_bce(logits, labels, ignore_index=ignore_index))
