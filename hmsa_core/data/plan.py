"""The crops of an epoch in their order: a pure function of (seed, epoch, index).

Ranks, workers and restarts only decide which process fetches a crop, never the crop itself. Random numbers come
from raw PCG64 output (whose stream numpy guarantees), keyed by (seed, epoch, purpose).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from hmsa_core.config import PseudoConfig, SamplingConfig
from hmsa_core.data.index import Sample
from hmsa_core.data.sampling import CLASS, Centroids, allot, cycle_capped, permutation, raw
from hmsa_core.io.errors import ConfigError, InputError

Source = Literal["fine", "pseudo"]
# Purposes of random numbers: parts of their key.
_LEFT_OVER, _CLASS, _RANDOM, _ORDER, _SEEDS = range(10, 15)


@dataclass(frozen=True)
class CropRequest:
    """One crop to fetch."""

    sample: Sample
    source: Source  # "fine" reads the sample's label file, "pseudo" the label store
    class_id: int  # class that the crop was chosen for, -1 = any
    x: int  # centre to cover, pixels of the stored image, -1 = anywhere
    y: int
    seed: int  # of the augmentation, 63 bits


class _Half:
    """The images of one source, and for each class the rows of its centroids."""

    def __init__(self, source: Source, samples: Sequence[Sample], centroids: Centroids, num_classes: int) -> None:
        self.source = source
        self.samples = tuple(samples)
        self.centroids = centroids.of([s.name for s in self.samples])
        self.rows = [np.flatnonzero(self.centroids.values[:, CLASS] == c) for c in range(num_classes)]
        self.images = [len(np.unique(self.centroids.image[rows])) for rows in self.rows]

    def at_centroid(self, row: int, seed: int) -> CropRequest:
        """Return a crop that covers a centroid."""
        class_id, x, y, _ = (int(v) for v in self.centroids.values[row])
        return CropRequest(self.samples[self.centroids.image[row]], self.source, class_id, x, y, seed)

    def anywhere(self, image: int, seed: int) -> CropRequest:
        """Return a crop from anywhere in an image."""
        return CropRequest(self.samples[image], self.source, -1, -1, -1, seed)


class EpochPlan:
    """The crops of every epoch of a run.

    Args:
        fine: images with fine labels, with their `fine_centroids`.
        epochs: number of epochs of the run (the last `pseudo_config.fine_only_epochs` take fine crops only).
        epoch_samples: crops an epoch; None = number of fine images.
        pseudo: auto-labelled images, with `pseudo_centroids` of their final labels.
        pseudo_weights: relative frequency of each auto-labelled image; None = all equally often.

    Raises:
        ConfigError: no images, or settings that leave an epoch empty.
    """

    def __init__(
        self,
        fine: Sequence[Sample],
        fine_centroids: Centroids,
        *,
        num_classes: int,
        seed: int,
        epochs: int,
        epoch_samples: int | None = None,
        sampling: SamplingConfig | None = None,
        pseudo: Sequence[Sample] = (),
        pseudo_centroids: Centroids | None = None,
        pseudo_weights: Sequence[float] | None = None,
        pseudo_config: PseudoConfig | None = None,
    ) -> None:
        self.num_classes, self.seed, self.epochs = num_classes, seed, epochs
        self.sampling = sampling or SamplingConfig()
        self.pseudo_config = pseudo_config or PseudoConfig()
        self._fine = _Half("fine", fine, fine_centroids, num_classes)
        weights = np.ones(len(pseudo)) if pseudo_weights is None else np.asarray(pseudo_weights, float)
        self._pseudo: list[tuple[float, _Half]] = []  # images of one weight, and their share of the auto-labelled crops
        for weight in np.unique(weights):
            chosen = [s for s, given in zip(pseudo, weights, strict=True) if given == weight]
            half = _Half("pseudo", chosen, pseudo_centroids or Centroids(), num_classes)
            self._pseudo.append((float(weight) * len(chosen) / float(weights.sum()), half))
        self.epoch_samples = epoch_samples or len(self._fine.samples)
        if not self._fine.samples and min(self.pseudo_share(0), self.pseudo_share(epochs - 1)) < 1.0:
            raise ConfigError("no image with a fine label to learn from: check roles and splits of the selection")
        # An instance attribute, so that a plan (and its cache) can be freed and pickled.
        self._cached: dict[int, list[CropRequest]] = {}
        self._ends: dict[int, int] = {}  # lengths of the first and last epoch, outside the cache

    def __len__(self) -> int:
        """Crops of all epochs."""
        return self.start(self.epochs)

    def pseudo_share(self, epoch: int) -> float:
        """Share of auto-labelled crops in an epoch."""
        last = self.epochs - self.pseudo_config.fine_only_epochs
        return self.pseudo_config.share if self._pseudo and epoch < last else 0.0

    def crops(self, epoch: int) -> list[CropRequest]:
        """All crops of an epoch in their global order: `epoch_samples`, fewer with `empty_classes: released`."""
        if not 0 <= epoch < self.epochs:
            raise InputError(f"epoch {epoch} is outside the run's {self.epochs} epochs")
        if epoch not in self._cached:
            if len(self._cached) >= 2:
                self._cached.pop(next(iter(self._cached)))
            self._cached[epoch] = self._make(epoch)
        return self._cached[epoch]

    def report(self, epoch: int) -> dict[str, Any]:
        """Numbers of an epoch's crops for the log: all, of each source, and by the class they were chosen for.

        By source: `per_class` crops of each class, `random` crops of no class, `empty` classes without a centroid.
        """
        halves = {"fine": [self._fine], "pseudo": [half for _, half in self._pseudo]}
        chosen = {source: [c.class_id for c in self.crops(epoch) if c.source == source] for source in halves}
        counts = {s: np.bincount(np.array(i) + 1, minlength=self.num_classes + 1) for s, i in chosen.items() if i}
        return {
            "crops": len(self.crops(epoch)),
            **{source: len(ids) for source, ids in chosen.items()},
            "per_class": {source: n[1:].tolist() for source, n in counts.items()},
            "random": {source: int(n[0]) for source, n in counts.items()},
            "empty": {s: np.flatnonzero(~np.any([h.images for h in halves[s]], axis=0)).tolist() for s in counts},
        }

    def start(self, epoch: int) -> int:
        """Crops of all epochs before `epoch`: position of its first crop in the run."""
        if self.sampling.empty_classes == "redistribute":
            return epoch * self.epoch_samples
        fine_only = max(0, epoch - (self.epochs - self.pseudo_config.fine_only_epochs))
        mixed = epoch - fine_only
        ends = [(mixed, 0), (fine_only, self.epochs - 1)]
        for _, at in ends:
            if at not in self._ends:
                self._ends[at] = len(self.crops(at))
        return sum(count * self._ends[at] for count, at in ends)

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, index in it) of a crop's position in the run."""
        if not 0 <= position < len(self):
            raise InputError(f"position {position} is outside the run's {len(self)} crops")
        low, high = 0, self.epochs - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.start(middle) <= position else (low, middle - 1)
        return low, position - self.start(low)

    def at(self, position: int) -> CropRequest:
        """The crop at a position of the run."""
        epoch, index = self.locate(position)
        return self.crops(epoch)[index]

    def partner(self, crop: CropRequest) -> CropRequest:
        """The fine crop that is pasted into `crop`: a class first, then its centroid."""
        pick_class, pick_row, seed = (int(v) for v in raw(crop.seed, 2, count=3))
        filled = [rows for rows in self._fine.rows if len(rows)]
        if not filled:
            return self._fine.anywhere(pick_row % len(self._fine.samples), seed >> 1)
        rows = filled[pick_class % len(filled)]
        return self._fine.at_centroid(int(rows[pick_row % len(rows)]), seed >> 1)

    def _make(self, epoch: int) -> list[CropRequest]:
        pseudo = int(self.epoch_samples * self.pseudo_share(epoch) + 0.5)
        picks: list[tuple[_Half, bool, int]] = []
        ends = np.floor(pseudo * np.cumsum([0.0, *(share for share, _ in self._pseudo)]) + 0.5).astype(int).tolist()
        counts = [self.epoch_samples - pseudo, *(b - a for a, b in pairwise(ends))]
        for stream, (half, count) in enumerate(zip((self._fine, *(h for _, h in self._pseudo)), counts, strict=True)):
            if not count:
                continue
            rows, images = self._pick(half, count, epoch, stream)
            picks += [(half, True, row) for row in rows] + [(half, False, image) for image in images]
        seeds = raw(self.seed, epoch, _SEEDS, count=len(picks))
        crops = []
        for i, number in zip(permutation(len(picks), self.seed, epoch, _ORDER), seeds, strict=True):
            half, at_centroid, what = picks[i]
            make = half.at_centroid if at_centroid else half.anywhere
            crops.append(make(what, int(number) >> 1))
        return crops

    def _pick(self, half: _Half, count: int, epoch: int, stream: int) -> tuple[list[int], list[int]]:
        """Choose `count` crops of one source: centroid rows for classes, then images at random for the rest."""
        released = self.sampling.empty_classes == "released"
        cap = count if released else self.sampling.max_repeats
        counts, anywhere = allot(
            count,
            self.sampling.class_uniform,
            [cap * n for n in half.images],
            permutation(self.num_classes, self.seed, epoch, _LEFT_OVER, stream),
            released=released,
        )
        rows: list[int] = []
        for class_id, wanted in enumerate(counts):
            if wanted:
                order = permutation(len(half.rows[class_id]), self.seed, epoch, _CLASS, stream, class_id)
                pool = half.rows[class_id][order]
                rows += (int(row) for row in cycle_capped(pool, half.centroids.image[pool], wanted, cap))
        images: list[int] = []
        for turn in range(-(-anywhere // len(half.samples)) if half.samples else 0):
            order = permutation(len(half.samples), self.seed, epoch, _RANDOM, stream, turn)
            images += (int(i) for i in order[: anywhere - len(images)])
        return rows, images
