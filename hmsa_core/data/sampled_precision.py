"""Precision of kept pixels, weighted as the student's sampler shows the pixels.

Class-uniform sampling shows a rare class far more often than it occurs, and the teacher's errors with it: crops for a
class lie where the *teacher* predicts the class. So kept pixels are counted as often as an epoch of the student shows
them (the same plan, scales and crops), on images with truth that the teacher never saw.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.config import TrainConfig
from hmsa_core.data.index import Sample
from hmsa_core.data.plan import CropRequest, EpochPlan
from hmsa_core.data.sampling import Centroids, find_centroids
from hmsa_core.data.transforms import CropRandom, JointAugment
from hmsa_core.metrics import confusion_counts

UInt8 = NDArray[np.uint8]
Labelled = tuple[Sample, UInt8, UInt8]  # sample, kept label (255 = left out), truth
_PER_IMAGE = 4  # crops an image, so that the chance of one epoch does not matter


def sampled_precision(
    images: Callable[[], Iterator[Labelled]], classes: tuple[str, ...], config: TrainConfig, min_component: int = 0
) -> dict[str, Any]:
    """Precision of kept pixels in the crops of one epoch of auto-labelled images, and of all kept pixels.

    Args:
        images: returns a new iterator at each call (images are read twice, one at a time).
        classes: names, index = trainId.
        config: the student's sampling, crop, scales and seed.
        min_component: pixels; a smaller connected piece gives no centroid.

    Returns:
        {"crops", "precision", "plain_precision", "classes": {name: {"crops", "precision", "plain_precision",
        "share", "plain_share"}}}; shares are of the kept pixels, None where nothing is kept.
    """
    count, sampling = len(classes), config.sampling
    parts, samples, plain = [], [], np.zeros((2, count), np.int64)
    for sample, kept, truth in images():
        found = find_centroids(kept, count, sampling.tile, min_pixels=sampling.min_pixels, min_component=min_component)
        parts.append((sample.name, found))
        samples.append(sample)
        plain += _count(kept, truth, count)
    drawn, chosen = np.zeros((2, count), np.int64), np.zeros(count, np.int64)
    if samples:
        plan = EpochPlan(
            (),
            Centroids(),
            num_classes=count,
            seed=config.seed,
            epochs=1,
            epoch_samples=_PER_IMAGE * len(samples),
            sampling=sampling,
            pseudo=samples,
            pseudo_centroids=Centroids.collect(parts),
            pseudo_config=config.pseudo.model_copy(update={"share": 1.0, "fine_only_epochs": 0}),
        )
        drawn, chosen = _drawn(images, plan, config, count)
    return {
        "crops": _PER_IMAGE * len(samples),
        **_ratios(drawn.sum(axis=1), plain.sum(axis=1)),
        "classes": {
            name: {
                "crops": int(chosen[c]),
                **_ratios(drawn[:, c], plain[:, c]),
                "share": _ratio(drawn[0, c], drawn[0].sum()),
                "plain_share": _ratio(plain[0, c], plain[0].sum()),
            }
            for c, name in enumerate(classes)
        },
    }


def _drawn(
    images: Callable[[], Iterator[Labelled]], plan: EpochPlan, config: TrainConfig, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kept and right pixels by class in all crops, (2, C), and the number of crops drawn for each class, (C,)."""
    by_image: dict[str, list[CropRequest]] = defaultdict(list)
    for crop in plan.crops(0):
        by_image[crop.sample.name].append(crop)
    # Colour and blur change no label; without both, the same random numbers give the same crops.
    look = config.augment.model_copy(update={"colour": 0.0, "blur": 0.0})
    augment = JointAugment(config.crop, look, None, config.long_edge)
    drawn, chosen = np.zeros((2, count), np.int64), np.zeros(count, np.int64)
    for sample, kept, truth in images():
        empty = np.zeros((*kept.shape, 3), np.uint8)
        for crop in by_image[sample.name]:
            centre = (crop.x, crop.y) if crop.x >= 0 else None
            kept_crop, truth_crop = (augment(empty, label, centre, CropRandom(crop.seed))[1] for label in (kept, truth))
            drawn += _count(kept_crop, truth_crop, count)
            if crop.class_id >= 0:
                chosen[crop.class_id] += 1
    return drawn, chosen


def _count(kept: UInt8, truth: UInt8, count: int) -> NDArray[np.int64]:
    """Kept pixels of each class whose truth is known, and those of them that are right, (2, C)."""
    counts = confusion_counts(kept, truth, count)[:, :count]
    return np.stack([counts.sum(axis=0), counts.diagonal()])


def _ratios(drawn: NDArray[np.int64], plain: NDArray[np.int64]) -> dict[str, float | None]:
    return {"precision": _ratio(drawn[1], drawn[0]), "plain_precision": _ratio(plain[1], plain[0])}


def _ratio(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
