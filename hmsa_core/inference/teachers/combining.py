"""Combining the members of an adopted teacher: temperatures, a weighted mean, or stacking by class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hmsa_core.inference.teachers.teacher_files import Adopted, Stacking

Float32 = NDArray[np.float32]
FLOOR = 1e-4  # a smaller probability counts as this one: a member that does not know a class vetoes no pixel
UNKNOWN = -1000.0  # bias of a class that no member knows: its probability is 0


def combine(adopted: Adopted, probabilities: list[Float32]) -> Float32:
    """Probabilities of our classes from those of the members, each C x ... float32 (any further axes)."""
    cooled = [cool(p, m.temperature) for p, m in zip(probabilities, adopted.members, strict=True)]
    if adopted.stacking is not None:
        return stack(cooled, adopted.stacking)
    return average(cooled, [m.weight for m in adopted.members])


def cool(probabilities: Float32, temperature: float) -> Float32:
    """Probabilities whose logits were divided by a temperature; sums of less than 1 keep what is missing."""
    if temperature == 1.0:
        return probabilities
    powered = np.power(probabilities, 1.0 / temperature)
    total = probabilities.sum(0, keepdims=True)
    return np.asarray(powered * (total / np.maximum(powered.sum(0, keepdims=True), 1e-30)), np.float32)


def average(probabilities: list[Float32], weights: list[float]) -> Float32:
    """Weighted mean, C x ... float32."""
    shares = np.asarray(weights, np.float32) / np.float32(sum(weights))
    total = probabilities[0] * shares[0]
    for one, share in zip(probabilities[1:], shares[1:], strict=True):
        total += one * share
    return np.asarray(total, np.float32)


def stack(probabilities: list[Float32], by: Stacking) -> Float32:
    """Softmax over classes of the weighted log-probabilities plus bias, C x ... float32.

    Probabilities sum to those of the member that knows the most of a pixel: what is no class of ours stays without one.
    Source: log-linear pooling (Genest and Zidek 1986) with a weight a member and class.
    """
    weights, bias = np.asarray(by.weights, np.float32), np.asarray(by.bias, np.float32)
    tail = (-1,) + (1,) * (probabilities[0].ndim - 1)
    logits = np.zeros_like(probabilities[0]) + bias.reshape(tail)
    for one, row in zip(probabilities, weights, strict=True):
        logits += np.log(np.maximum(one, FLOOR)) * row.reshape(tail)
    logits -= logits.max(0, keepdims=True)
    np.exp(logits, out=logits)
    known = np.max([one.sum(0, keepdims=True) for one in probabilities], axis=0)
    return np.asarray(logits / logits.sum(0, keepdims=True) * np.minimum(known, 1.0), np.float32)
