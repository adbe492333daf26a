"""How members are combined: weights, temperatures, stacking by class; each kept only where held-out blocks gain by it.

Weights come from ensemble selection (Caruana et al. 2004): the member that helps most is taken, again and again.
Stacking is a multinomial logistic regression on the members' log-probabilities, with a weight for each member and
class and a bias for each class, shrunk towards their mean. All figures are of blocks that took no part in the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from hmsa_core.inference.adopt.fitting import confusions, mean_iou
from hmsa_core.inference.adopt.samples import Float32, Pixels
from hmsa_core.inference.teachers.combining import FLOOR, UNKNOWN, average, cool, stack
from hmsa_core.inference.teachers.teacher_files import Stacking
from hmsa_core.metrics import bootstrap_difference
from hmsa_core.taxonomy import IGNORE

_ROUNDS = 12  # of ensemble selection
_GAIN = 0.001  # mean IoU that a further round must bring
_FOLDS = 5
_FIT_PIXELS = 40_000
_SHRINKAGE = 0.02  # of squared distances from the plain mean, added to the mean log loss
_SURE = 0.9  # certainty that stacking gains on held-out blocks, below which it is left out
_EPSILON = 1e-7


@dataclass(frozen=True)
class Combination:
    """Weights (0 = left out), temperatures and, perhaps, stacking of the members with a weight."""

    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    stacking: Stacking | None
    # Held-out predictions (n, C) of what was chosen, and the certainty that stacking gains (None = not tried).
    held_out: Float32
    certainty: float | None


def combine(members: Sequence[Float32], pixels: Pixels) -> Combination:
    """Choose the combination of members' probabilities, each (n, C), by labels.

    Args:
        members: at the drawn pixels.
        pixels: their truth and blocks.
    """
    count = min(_FOLDS, len(pixels.blocks))
    folds = [pixels.block % count == fold for fold in range(count)] if count > 1 else []  # blocks stay whole
    temperatures = tuple(_temperature(one, pixels) for one in members)
    cooled = [cool(one.T, t).T for one, t in zip(members, temperatures, strict=True)]
    weights = _select(cooled, pixels, np.ones(len(pixels.truth), bool))
    plain = _held_out(folds, lambda fit: average(cooled, list(_select(cooled, pixels, fit))))
    used = [i for i, weight in enumerate(weights) if weight > 0]
    if not folds:
        return Combination(weights, temperatures, None, plain, None)
    chosen = [cooled[i] for i in used]
    stacked = _held_out(folds, lambda fit: stack([one.T for one in chosen], fit_stacking(chosen, pixels, fit)).T)
    first, second = (confusions(predicted, pixels) for predicted in (stacked, plain))
    certainty = float(bootstrap_difference(first, second, list(pixels.blocks)).above_zero)
    if certainty < _SURE or mean_iou(stacked, pixels) <= mean_iou(plain, pixels):
        return Combination(weights, temperatures, None, plain, certainty)
    everything = np.ones(len(pixels.truth), bool)
    return Combination(weights, temperatures, fit_stacking(chosen, pixels, everything), stacked, certainty)


def agreeing_weights(members: Sequence[Float32]) -> tuple[float, ...]:
    """Weights without labels: members that agree with the mean of the others count, outliers do not."""
    if len(members) < 3:
        return (1.0,) * len(members)
    labels = [one.argmax(1) for one in members]
    total = np.sum(members, axis=0)
    shares = np.array([(label == (total - one).argmax(1)).mean() for label, one in zip(labels, members, strict=True)])
    return tuple(float(weight) for weight in np.where(shares >= shares.max() - 0.02, 1.0, 0.0))


def _held_out(folds: list[NDArray[np.bool_]], predict: Callable[[NDArray[np.bool_]], Float32]) -> Float32:
    """Predictions (n, C) in which each fold comes from a fit to the others."""
    if not folds:
        return predict(np.ones(1, bool))
    whole = np.zeros(0, np.float32)
    for held in folds:
        found = predict(~held)
        whole = whole if len(whole) else np.empty_like(found)
        whole[held] = found[held]
    return whole


def _temperature(member: Float32, pixels: Pixels) -> float:
    """The temperature of the smallest log loss (Guo et al. 2017)."""
    known = np.flatnonzero(pixels.known)[:: max(1, len(pixels.truth) // _FIT_PIXELS)]
    if not len(known):
        return 1.0
    given, truth = member[known].T, pixels.truth[known]

    def loss(log_t: float) -> float:
        right = cool(given, float(np.exp(log_t)))[truth, np.arange(len(truth))]
        return float(-np.log(np.maximum(right, FLOOR)).mean())

    found = minimize_scalar(loss, bounds=(-1.5, 1.5), method="bounded", options={"xatol": 0.01})
    return round(float(np.exp(found.x)), 3)


def _select(members: Sequence[Float32], pixels: Pixels, fit: NDArray[np.bool_]) -> tuple[float, ...]:
    """How often ensemble selection takes each member."""
    part = pixels if fit.all() else Pixels(pixels.truth[fit], pixels.block[fit], pixels.blocks)
    given = [one if fit.all() else one[fit] for one in members]
    taken, total, best = [0.0] * len(given), np.zeros_like(given[0]), -1.0
    for _ in range(_ROUNDS):
        tries = [mean_iou(total + one, part) for one in given]
        i = int(np.argmax(tries))
        if tries[i] < best + _GAIN:
            break
        best, total = tries[i], total + given[i]
        taken[i] += 1.0
    return tuple(taken)


def fit_stacking(members: Sequence[Float32], pixels: Pixels, fit: NDArray[np.bool_]) -> Stacking:
    """Weights (M, C) and bias (C,) of the smallest class-balanced log loss, shrunk to the plain mean of logarithms.

    Classes weigh by the square root of their frequency's inverse, so that rare ones count without ruling the fit.
    A class that no member ever gives takes no part.
    """
    given = np.any([one.any(0) for one in members], axis=0)
    position = np.append(np.where(given, np.cumsum(given) - 1, IGNORE), np.full(256 - len(given), IGNORE))
    known = np.flatnonzero(fit & (position[pixels.truth] != IGNORE))
    known = known[:: max(1, len(known) // _FIT_PIXELS)]
    truth = position[pixels.truth[known]].astype(np.intp)
    logs = np.stack([np.log(np.maximum(one[known][:, given], FLOOR)) for one in members])  # M, n, classes
    count, classes = logs.shape[0], logs.shape[2]
    share = np.bincount(truth, minlength=classes) / max(1, len(truth))
    weight = (1 / np.sqrt(np.maximum(share, _EPSILON)))[truth]
    weight /= weight.sum()
    onehot = np.eye(classes)[truth]
    start = np.concatenate([np.full(count * classes, 1 / count), np.zeros(classes)])

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        rows, bias = flat[:-classes].reshape(count, classes), flat[-classes:]
        logits = np.einsum("mnc,mc->nc", logs, rows) + bias
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(1, keepdims=True)
        right = np.maximum(p[np.arange(len(truth)), truth], 1e-12)
        slope = (p - onehot) * weight[:, None]
        away = flat - start
        gradient = np.concatenate([np.einsum("mnc,nc->mc", logs, slope).ravel(), slope.sum(0)])
        return float(-(weight * np.log(right)).sum() + _SHRINKAGE * (away**2).sum()), gradient + 2 * _SHRINKAGE * away

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    rows, bias = np.zeros((count, len(given))), np.full(len(given), UNKNOWN)
    rows[:, given], bias[given] = found[:-classes].reshape(count, classes), found[-classes:]
    return Stacking(
        weights=tuple(tuple(round(float(v), 4) for v in row) for row in rows),
        bias=tuple(round(float(v), 4) for v in bias),
    )
