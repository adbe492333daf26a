"""Nobody is judged on what it learned from: find images of a judged model's lineage and leave them out.

An image counts as learned when the model's lineage holds its bytes (SHA-256) or a near copy (perceptual hash within
`max_distance` bits). A neighbour in time counts as well: the same sequence, at most `max_gap` frames away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hmsa_core.data.index import Sample
from hmsa_core.data.near import hash_values, nearest
from hmsa_core.data.tables import Rows
from hmsa_core.io.errors import InputError, LeakageError
from hmsa_core.lineage import LearnedImage, Lineage


@dataclass(frozen=True)
class Leak:
    """A judged image that a model learned from, and how that is known."""

    name: str
    model: str
    learned: str  # name of the learned image
    why: str  # "same file" | "perceptual hash, N bits apart" | "N frames apart in sequence S"


@dataclass(frozen=True)
class Judgement:
    """Which images may judge, which may not and why, and what could not be traced."""

    names: tuple[str, ...]
    leaks: tuple[Leak, ...]
    unknown: Mapping[str, tuple[str, ...]]  # model -> in words, what it learned from and cannot be traced

    def to_json(self) -> dict[str, Any]:
        """For metrics files: counts, the list, and gaps in the models' lineage."""
        return {
            "judged": len(self.names),
            "left_out": len({leak.name for leak in self.leaks}),
            "leaks": [asdict(leak) for leak in self.leaks],
            "unknown_lineage": [f"{model}: {gap}" for model, gaps in self.unknown.items() for gap in gaps],
        }


def judge_only_unseen(
    samples: Sequence[Sample],
    models: Mapping[str, Lineage],
    *,
    max_leaked: float,
    max_gap: int,
    max_distance: int,
    known: Sequence[Sample] = (),
) -> Judgement:
    """Images that are in no model's lineage.

    Args:
        samples: candidates (role `calibrate` or `report`).
        models: name -> lineage of every model that will be judged on them.
        max_leaked: share of `samples` that may be left out.
        max_gap, max_distance: see the module's text.
        known: images that the index has now; of those a model learned from them, their sequence and frame count, not
            what a lineage from before a change of `pattern` says.

    Raises:
        InputError: there are no candidates. LeakageError: more than `max_leaked` of them were learned.
    """
    if not samples:
        raise InputError("there is no image to judge on", hint="give some cities or sequences a role in data.roles")
    leaks: list[Leak] = []
    now = {s.image_sha256: s for s in known}
    for model, learned in models.items():
        lineage = _as_named_now(learned, now)
        leaks += find_leaks(samples, lineage, model=model, max_gap=max_gap, max_distance=max_distance)
    seen = {leak.name for leak in leaks}
    if len(seen) > max_leaked * len(samples):
        few = ", ".join(f"{leak.name} ({leak.model}: {leak.why} {leak.learned})" for leak in leaks[:3])
        raise LeakageError(
            f"{len(seen)} of {len(samples)} judged images are in a model's lineage, at most "
            f"{100 * max_leaked:g} % may be: {few}",
            hint="take other cities or sequences for this role in data.roles, or train without them",
        )
    names = tuple(s.name for s in samples if s.name not in seen)
    return Judgement(names, tuple(leaks), {model: lineage.unknown for model, lineage in models.items()})


def _as_named_now(lineage: Lineage, now: Mapping[str, Sample]) -> Lineage:
    images = {
        sha: replace(image, sequence=now[sha].sequence, frame=now[sha].frame) if sha in now else image
        for sha, image in lineage.images.items()
    }
    return replace(lineage, images=images)


def find_leaks(
    samples: Sequence[Sample], lineage: Lineage, *, model: str, max_gap: int, max_distance: int
) -> list[Leak]:
    """The first reason found for each sample that the lineage knows, in the order of `samples`."""
    by_time: dict[str, list[LearnedImage]] = defaultdict(list)
    for image in lineage.images.values():
        if image.sequence and image.frame >= 0 and max_gap:
            by_time[image.sequence].append(image)
    hashed = [image for image in lineage.images.values() if image.phash]
    near = nearest(hash_values(s.phash for s in samples), hash_values(i.phash for i in hashed), max_distance)
    leaks = []
    for sample, (place, bits) in zip(samples, near, strict=True):
        in_time = by_time.get(sample.sequence, ()) if sample.frame >= 0 else ()
        neighbour = min(in_time, key=lambda image: abs(image.frame - sample.frame), default=None)
        apart = abs(neighbour.frame - sample.frame) if neighbour else max_gap + 1
        if same := lineage.images.get(sample.image_sha256):
            leaks.append(Leak(sample.name, model, same.name, "same file"))
        elif neighbour and apart <= max_gap:
            why = f"{apart} frames apart in sequence {sample.sequence}"
            leaks.append(Leak(sample.name, model, neighbour.name, why))
        elif sample.phash and place >= 0:
            leaks.append(Leak(sample.name, model, hashed[place].name, f"perceptual hash, {bits} bits apart"))
    return leaks


def possible_leaks(
    samples: Sequence[Sample], learning: Rows[Sample], *, max_gap: int, max_distance: int
) -> list[Sample]:
    """Of many images that will be learned from those that `find_leaks` can name for these samples."""
    close = nearest(hash_values(s.phash for s in samples), hash_values(learning.values("phash")), max_distance)
    same, drives = {s.image_sha256 for s in samples}, {s.sequence for s in samples if max_gap}
    places = {i for i, _ in close if i >= 0}
    places |= {
        i for i, row in enumerate(learning.values("image_sha256", "sequence")) if row[0] in same or row[1] in drives
    }
    return list(learning.at(np.array(sorted(places), np.int64)))
