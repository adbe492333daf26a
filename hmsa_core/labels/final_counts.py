"""What happened to the pixels on their way from a raw to a thresholded store: counted a shard, then summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.labels.store.format import SOURCES
from hmsa_core.labels.thresholds.policy import ClassPolicy
from hmsa_core.taxonomy import IGNORE

__all__ = ["ShardCounts", "summarise"]

Labels = NDArray[np.uint8]


class ShardCounts:
    """What happened to the pixels of one shard."""

    def __init__(self, num_classes: int) -> None:
        self.c = num_classes
        self.raw = np.zeros(num_classes, np.int64)
        self.passed = np.zeros(num_classes, np.int64)
        self.sources = np.zeros((len(SOURCES), num_classes), np.int64)
        self.conflicts = np.zeros((num_classes, num_classes), np.int64)
        self.cities: dict[str, list[int]] = {}
        self.centroids: list[tuple[str, list[list[int]]]] = []

    def add(
        self,
        name: str,
        city: str,
        label: Labels,
        passed: Labels,
        human: Labels | None,
        final: Labels,
        source: Labels,
        centroids: NDArray[np.int32],
    ) -> None:
        """Count one image: the teacher's label, what passed, the human's, the final one and its sources."""
        self.centroids.append((name, centroids.tolist()))
        self.raw += np.bincount(label.reshape(-1), minlength=256)[: self.c]
        self.passed += np.bincount(passed.reshape(-1), minlength=256)[: self.c]
        key = (source.astype(np.uint16) << 8) | final
        self.sources += np.bincount(key.reshape(-1), minlength=len(SOURCES) * 256).reshape(-1, 256)[:, : self.c]
        if human is not None:
            both = (human < self.c) & (passed < self.c) & (human != passed)
            pair = human[both].astype(np.int64) * self.c + passed[both]
            self.conflicts += np.bincount(pair, minlength=self.c**2).reshape(self.c, self.c)
        sums = self.cities.setdefault(city, [0, 0, 0])
        for i, value in enumerate((1, final.size, int(np.count_nonzero(final != IGNORE)))):
            sums[i] += value

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, for the receipt."""
        return {
            "raw": self.raw.tolist(),
            "passed": self.passed.tolist(),
            "sources": self.sources.tolist(),
            "conflicts": [[int(h), int(t), int(self.conflicts[h, t])] for h, t in np.argwhere(self.conflicts)],
            "cities": self.cities,
            "centroids": self.centroids,
        }


def summarise(notes: Sequence[Mapping[str, Any]], entries: Sequence[ClassPolicy]) -> dict[str, Any]:
    """Statistics of a thresholded store from the notes in its receipts."""
    c, names = len(entries), [e.name for e in entries]
    empty = np.zeros(c, np.int64)
    given = sum((np.array(n["raw"], np.int64) for n in notes), empty)
    passed = sum((np.array(n["passed"], np.int64) for n in notes), empty)
    sources = sum((np.array(n["sources"], np.int64) for n in notes), np.zeros((len(SOURCES), c), np.int64))
    conflicts: dict[tuple[int, int], int] = {}
    cities: dict[str, list[int]] = {}
    for note in notes:
        for human, teacher, pixels in note["conflicts"]:
            conflicts[human, teacher] = conflicts.get((human, teacher), 0) + pixels
        for city, sums in note["cities"].items():
            cities[city] = [a + b for a, b in zip(cities.get(city, [0, 0, 0]), sums, strict=True)]
    pixels, labelled = sum(s[1] for s in cities.values()), sum(s[2] for s in cities.values())
    return {
        "images": sum(s[0] for s in cities.values()),
        "pixels": pixels,
        "labelled": labelled,
        "labelled_share": labelled / pixels if pixels else 0.0,
        "classes": [
            {
                "name": names[i],
                "threshold": e.threshold,
                "status": e.status,
                "teacher_gave": int(given[i]),
                "passed": int(passed[i]),
                "coverage": float(passed[i] / given[i]) if given[i] else 0.0,
                "from_teacher": int(sources[SOURCES["teacher"], i]),
                "from_human": int(sources[SOURCES["human"], i]),
                "both": int(sources[SOURCES["both"], i]),
                "final": int(sources[:, i].sum()),
            }
            for i, e in enumerate(entries)
        ],
        "conflicts": [{"human": names[h], "teacher": names[t], "pixels": n} for (h, t), n in sorted(conflicts.items())],
        "cities": {
            city: {"images": s[0], "pixels": s[1], "labelled_share": s[2] / s[1]} for city, s in sorted(cities.items())
        },
    }
