"""What is chosen of one network: which of its classes is which of ours, and at which scales it is run.

With labels a choice is the one of the highest mean IoU on the drawn pixels. Without labels it is the one whose
predictions agree most with each other (mirror images, neighbouring scales, other members): a weaker guide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hmsa_core.config import Passes
from hmsa_core.inference.adopt.samples import Float32, Pixels, View, Views, views_of
from hmsa_core.inference.teachers.classes import summed
from hmsa_core.metrics import iou_of
from hmsa_core.taxonomy import ClassTable
from hmsa_core.taxonomy.concepts import propose

_FEW = 200  # pixels; a channel that is seen less often is mapped by its name alone
_CLEAR = 0.6  # share of a channel's pixels that one of our classes must have to overrule or replace a name
_DOUBT = 0.15  # share of the class that a name proposes, below which the labels contradict the name
_GAIN = 0.003  # mean IoU that another scale or the mirror image must bring: both cost time


@dataclass(frozen=True)
class Mapped:
    """One channel of a network: the class of ours that it becomes (None = ignored), why, and the labels' evidence.

    `share` is the part of the channel's labelled pixels that have that class; None where it was not seen.
    """

    channel: int
    name: str
    target: int | None
    why: str  # name | labels | labels against the name | name against the labels | nothing
    share: float | None
    pixels: int


def overlap(scores: Float32, pixels: Pixels, num_classes: int) -> NDArray[np.int64]:
    """Pixels of (channel with the highest score, true class), int64 (T, C)."""
    known = pixels.known
    flat = scores[known].argmax(1) * num_classes + pixels.truth[known]
    counts = np.bincount(flat, minlength=scores.shape[1] * num_classes)
    return counts.reshape(scores.shape[1], num_classes).astype(np.int64)


def map_classes(names: Sequence[str], counts: NDArray[np.int64], classes: ClassTable) -> list[Mapped]:
    """Map each channel by its name, corrected where the labels clearly say something else.

    Args:
        names: of the channels; () where nothing names them: labels alone decide.
        counts: `overlap`; all zeros without labels.
        classes: ours.
    """
    proposed = propose(names, classes.classes) if names else {}
    return [_map_one(i, names[i] if names else str(i), proposed.get(i), row) for i, row in enumerate(counts)]


def _map_one(channel: int, name: str, proposed: int | None, row: NDArray[np.int64]) -> Mapped:
    total, best = int(row.sum()), int(row.argmax())
    share = float(row[best] / total) if total else 0.0
    target, why = proposed, "name" if proposed is not None else "nothing"
    if total >= _FEW and (proposed is None or row[proposed] < _DOUBT * total):
        if share >= _CLEAR:
            target, why = best, "labels" if proposed is None else "labels against the name"
        elif proposed is not None:
            why = "name against the labels"
    seen = None if not total or target is None else float(row[target] / total)
    return Mapped(channel, name, target, why, seen, total)


def apply(scores: Float32, targets: dict[int, int], num_classes: int) -> Float32:
    """Scores of our classes, (n, C), from those of the channels, (n, T): sums of what maps to each."""
    return summed(scores.T, targets, num_classes).T


def confusions(predicted: Float32, pixels: Pixels) -> NDArray[np.int64]:
    """Counts of each block, int64 (blocks, C, C + 1), rows = truth; the last column holds pixels without a class."""
    count = predicted.shape[1]
    known = pixels.known
    label = np.where(predicted.max(1) > 0, predicted.argmax(1), count)[known]
    flat = (pixels.block[known].astype(np.int64) * count + pixels.truth[known]) * (count + 1) + label
    size = len(pixels.blocks) * count * (count + 1)
    return np.bincount(flat, minlength=size).reshape(len(pixels.blocks), count, count + 1).astype(np.int64)


def mean_iou(predicted: Float32, pixels: Pixels) -> float:
    """Mean IoU over the classes that occur in the truth of the drawn pixels."""
    counts = confusions(predicted, pixels).sum(0)
    return float(np.nanmean(np.where(counts.sum(1) > 0, iou_of(counts), np.nan)))


def targets_of(maps: Sequence[Mapped]) -> dict[int, int]:
    """Class of ours of each channel that has one."""
    return {one.channel: one.target for one in maps if one.target is not None}


def reached(views: Views, chosen: Sequence[View], targets: dict[int, int], pixels: Pixels, num_classes: int) -> float:
    """Mean IoU of some views together, on the drawn pixels."""
    return mean_iou(apply(views.probabilities(chosen), targets, num_classes), pixels)


def choose_views(views: Views, targets: dict[int, int], pixels: Pixels, num_classes: int) -> Passes:
    """Scales and mirroring by labels: the best scale, then more as long as each brings `_GAIN`."""

    def score(passes: Passes) -> float:
        return reached(views, views_of(passes), targets, pixels, num_classes)

    known = sorted({view.scale for view in views.scores})
    chosen, best = _grow(known, lambda scales: score(Passes(scales, flip=False)))
    can_flip = any(view.mirrored for view in views.scores)
    return Passes(chosen, can_flip and score(Passes(chosen, flip=True)) >= best + _GAIN)


def _grow(known: list[float], score: Callable[[tuple[float, ...]], float]) -> tuple[tuple[float, ...], float]:
    chosen: tuple[float, ...] = ()
    best = -1.0
    while len(chosen) < len(known):
        tries = {scale: score((*chosen, scale)) for scale in known if scale not in chosen}
        scale = max(tries, key=lambda one: tries[one])
        if chosen and tries[scale] < best + _GAIN:
            break
        chosen, best = tuple(sorted((*chosen, scale))), tries[scale]
    return chosen, best


def agreeing_scales(views: Views) -> Passes:
    """Scales and mirroring without labels: the scale that agrees most with its mirror image and its neighbours."""
    found = {scale: agreement(views, scale) for scale in {view.scale for view in views.scores}}
    return Passes((max(sorted(found), key=lambda one: found[one]),), any(view.mirrored for view in views.scores))


def agreement(views: Views, scale: float) -> float:
    """Mean kappa (Cohen 1960) of a scale's labels with those of its mirror image and of the two next scales.

    Kappa leaves out the agreement of chance: a network that gives one class everywhere has none.
    """
    known = sorted({view.scale for view in views.scores})
    place = known.index(scale)
    neighbours = [View(one) for one in known[max(0, place - 1) : place + 2] if one != scale]
    here = views.scores[View(scale)].argmax(1)
    others = [views.scores[v].argmax(1) for v in (View(scale, mirrored=True), *neighbours) if v in views.scores]
    return float(np.mean([kappa(here, other) for other in others])) if others else 0.0


def kappa(one: NDArray[np.intp], other: NDArray[np.intp]) -> float:
    """Agreement of two label vectors beyond chance, at most 1."""
    count = int(max(one.max(), other.max())) + 1
    shares = [np.bincount(labels, minlength=count) / len(labels) for labels in (one, other)]
    chance = float((shares[0] * shares[1]).sum())
    return (float((one == other).mean()) - chance) / (1 - chance) if chance < 1 else 0.0
