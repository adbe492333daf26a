"""From a raw store to training labels: thresholds, human labels, camera masks, reviews; one shard at a time.

The thresholded store mirrors the raw store's shards. Its `label` is the final one. Its `source` says where each pixel
comes from (SOURCES). Its `confidence` holds the teacher's raw code where the final label is the teacher's (or both
agree), and 0 elsewhere. Pixels that were not kept cannot be brought back from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.sampling import Centroids, find_centroids
from hmsa_core.io import atomic
from hmsa_core.io.engine import HERE, Engine
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels.merge import MergeRules, merge_labels
from hmsa_core.labels.review import UNTOUCHED
from hmsa_core.labels.store.format import SOURCES
from hmsa_core.labels.store.reader import LabelStore
from hmsa_core.labels.store.shards import ShardPlan, ShardWriter, read_receipt, shard_done
from hmsa_core.labels.store.writer import write_manifest
from hmsa_core.labels.thresholds.policy import ClassPolicy, ThresholdPolicy, keep
from hmsa_core.taxonomy import IGNORE

CENTROIDS, STATISTICS = "centroids.parquet", "statistics.json"

# Sources where what was concluded about alike regions stands in for the teacher's label, by number in SOURCES.
_WITHOUT_TEACHER = np.array([SOURCES[name] for name in ("none", "alike", "human", "human")], np.uint8)

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
HumanLabels = Callable[[Mapping[str, Any]], Labels | None]
Reviewed = Callable[[str, int, int], tuple[Mask, Labels] | None]


@dataclass(frozen=True)
class CentroidSettings:
    """See hmsa_core.data.sampling.find_centroids."""

    tile: int = 1024
    min_pixels: int = 0
    min_component: int = 0


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a final label, besides the raw store. Its callables must pickle."""

    policy: ThresholdPolicy
    rules: MergeRules | None = None  # None: no human label is used
    human: HumanLabels | None = None  # row of the raw store (name, coarse_path, ...) -> trainIds uint8 HxW, or None
    human_paths: Mapping[str, str] | None = None  # by name, as of now; None: as of when the image was labelled
    masks: Mapping[tuple[int, int], Mask] = field(default_factory=dict)  # ignored pixels (True) by image size
    # (name, height, width) -> pixels that people flagged, and corrected labels (hmsa_core.labels.review), or None
    reviewed: Reviewed | None = None
    # (name, height, width) -> labels concluded from answers about alike regions (elsewhere UNTOUCHED), or None; they
    # take the place of the teacher's
    alike: Callable[[str, int, int], Labels | None] | None = None
    centroids: CentroidSettings = CentroidSettings()
    # Digests of what the callables read, by image: only the shards of images whose value changed are made again.
    per_image: Mapping[str, Any] = field(default_factory=dict)

    def key(self, raw: LabelStore) -> str:
        """Digest of everything that decides labels, except what differs by shard: raw bytes and `per_image`."""
        return atomic.digest(
            {
                "lineage": raw.lineage,
                "classes": raw.classes.digest(),
                "policy": self.policy.digest,
                "code": 2,
                "rules": self.rules.to_json() if self.rules else None,
                "centroids": vars(self.centroids),
                "masks": sorted(
                    [*size, atomic.sha256_bytes(np.packbits(m).tobytes())] for size, m in self.masks.items()
                ),
            }
        )

    def plans(self, raw: LabelStore) -> list[ShardPlan]:
        """One shard for each of the raw store's, keyed by its content."""
        key, plans, images = self.key(raw), [], iter(raw.pictures().items())
        for entry in raw.manifest["shards"]:
            held = dict(islice(images, entry["rows"]))
            shard_key = atomic.digest([key, entry["sha256"], [self.per_image.get(name) for name in held]])
            plans.append(ShardPlan(entry["index"], tuple(held), tuple(held.values()), shard_key))
        return plans


def finalise(
    raw: LabelStore,
    recipe: Recipe,
    out: str | Path,
    *,
    lineage: Mapping[str, Any] | None = None,
    engine: Engine = HERE,
    advance: Callable[[int], None] = lambda _count: None,
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the thresholded store with its centroids and statistics; return the statistics.

    Args:
        raw, recipe: what is labelled, and how.
        out: folder of the result; finished shards of the same recipe in it are kept (resume).
        lineage: entries that are added to the raw store's.
        engine, advance: processes that write shards; called with the number of images done.
        check_stop: called between shards; raises to stop (finished shards stay).

    Raises:
        ConfigError: the policy or the rules are not for this store.
        StoreError: a raw shard is damaged.
    """
    _check(raw, recipe)
    root, plans, todo = Path(out), recipe.plans(raw), []
    for plan in plans:
        if shard_done(root, plan):
            advance(len(plan.names))
        else:
            todo.append(plan)
    writer = _Writer(raw, recipe, root)
    with closing(engine.map(writer, todo, what="writes labels", check_stop=check_stop)) as written:
        for images in written:
            advance(images)
    return _commit(raw, recipe, root, plans, dict(lineage or {}))


def _check(raw: LabelStore, recipe: Recipe) -> None:
    if raw.kind != "raw":
        raise ConfigError(f"{raw.path}: is thresholded already", hint="give the raw store")
    recipe.policy.check(raw.lineage, raw.classes, str(raw.path))
    if recipe.rules is not None and recipe.rules.classes != raw.classes:
        raise ConfigError(f"the merge rules are for {recipe.rules.classes.name}, {raw.path} has {raw.classes.name}")


@dataclass(frozen=True)
class _Writer:
    """Writes one planned shard; the number of its images."""

    raw: LabelStore
    recipe: Recipe
    root: Path

    def __call__(self, plan: ShardPlan) -> int:
        raw, root = self.raw, self.root
        if shard_done(root, plan):  # by a process that died before it could say so
            return len(plan.names)
        with ShardWriter(root, plan, classes=raw.classes, kind="thresholded", codec=raw.manifest["codec"]) as shard:
            counts = _ShardCounts(raw.classes.num_classes)
            for name in plan.names:
                _write_image(raw, self.recipe, shard, counts, name)
            shard.notes = counts.to_json()
        return len(plan.names)


def _write_image(raw: LabelStore, recipe: Recipe, shard: ShardWriter, counts: _ShardCounts, name: str) -> None:
    label, code = raw.read(name)
    row = raw.row(name)
    if recipe.human_paths is not None:
        row["coarse_path"] = recipe.human_paths.get(name, "")
    flagged, corrected = (recipe.reviewed and recipe.reviewed(name, *label.shape)) or (None, None)
    if flagged is not None and flagged.all():
        shard.skip(name, "flagged in review")
        return
    passed = keep(label, code, recipe.policy.codes())
    alike = None if recipe.alike is None else recipe.alike(name, *label.shape)
    rules = recipe.rules or MergeRules.default(raw.classes)
    human = recipe.human(row) if recipe.rules is not None and recipe.human is not None else None
    if alike is None:
        final, source = merge_labels(passed, human, rules)
    else:
        final, source = merge_labels(np.where(alike == UNTOUCHED, passed, alike), human, rules)
        source = np.where(alike == UNTOUCHED, source, _WITHOUT_TEACHER[source])
    if corrected is not None:  # by a person who saw these labels: no rule and no threshold stands above that
        final = np.where(corrected == UNTOUCHED, final, corrected)
        by_hand = np.where(corrected == IGNORE, np.uint8(SOURCES["none"]), np.uint8(SOURCES["human"]))
        source = np.where(corrected == UNTOUCHED, source, by_hand)
    for ignored in (recipe.masks.get((label.shape[0], label.shape[1])), flagged):
        if ignored is not None:
            final = np.where(ignored, np.uint8(IGNORE), final)
            source = np.where(ignored, np.uint8(SOURCES["none"]), source)
    teacher = (source == SOURCES["teacher"]) | (source == SOURCES["both"])
    facts = {key: row[key] for key in ("city", "image_path", "coarse_path", "image_sha256")}
    shard.add_coded(name, final, np.where(teacher, code, np.uint8(0)), source=source, **facts)
    counts.add(row["city"], label, passed, human, final, source)
    centroids = find_centroids(final, raw.classes.num_classes, **vars(recipe.centroids))
    counts.centroids.append((name, centroids.tolist()))


def _commit(
    raw: LabelStore, recipe: Recipe, root: Path, plans: list[ShardPlan], lineage: dict[str, Any]
) -> dict[str, Any]:
    notes = [read_receipt(root, plan)["notes"] for plan in plans]
    parts = ((name, np.array(rows, np.int32).reshape(-1, 4)) for note in notes for name, rows in note["centroids"])
    Centroids.collect(parts).write(root / CENTROIDS, **vars(recipe.centroids))
    statistics = _summarise(notes, recipe.policy.entries)
    statistics["skipped"] = [s for plan in plans for s in read_receipt(root, plan)["skipped"]]
    atomic.write_json(root / STATISTICS, statistics)
    write_manifest(
        root,
        plans,
        {**raw.lineage, **lineage},
        classes=raw.classes,
        extras=[CENTROIDS, STATISTICS],
        policy={
            "digest": recipe.policy.digest,
            "raw_store": raw.digest,
            "thresholds": {e.name: e.threshold for e in recipe.policy.entries},
            "rules": recipe.rules.evidence if recipe.rules else None,
            **_certificate(recipe.policy),
        },
    )
    return statistics


def _certificate(policy: ThresholdPolicy) -> dict[str, Any]:
    """The certificate behind a policy and the classes that it covers, {} where there is none."""
    classes = [entry.name for entry in policy.entries if entry.status == "certified"]
    return {"certificate": {**policy.evidence.get("certificate", {}), "classes": classes}} if classes else {}


class _ShardCounts:
    """What happened to the pixels of one shard."""

    def __init__(self, num_classes: int) -> None:
        self.c = num_classes
        self.raw, self.passed = np.zeros((2, num_classes), np.int64)
        self.sources = np.zeros((len(SOURCES), num_classes), np.int64)
        self.conflicts = np.zeros((num_classes, num_classes), np.int64)
        self.cities: dict[str, list[int]] = {}
        self.centroids: list[tuple[str, list[list[int]]]] = []

    def add(
        self, city: str, label: Labels, passed: Labels, human: Labels | None, final: Labels, source: Labels
    ) -> None:
        """Count one image."""
        self.raw += np.bincount(label.reshape(-1), minlength=256)[: self.c]
        self.passed += np.bincount(passed.reshape(-1), minlength=256)[: self.c]
        key = (source.astype(np.uint16) << 8) | final
        self.sources += np.bincount(key.reshape(-1), minlength=len(SOURCES) * 256).reshape(-1, 256)[:, : self.c]
        if human is not None:
            both = (human < self.c) & (passed < self.c) & (human != passed)
            pair = human[both].astype(np.int64) * self.c + passed[both]
            self.conflicts += np.bincount(pair, minlength=self.c**2).reshape(self.c, self.c)
        images, pixels, labelled = self.cities.get(city, [0, 0, 0])
        self.cities[city] = [images + 1, pixels + final.size, labelled + int(np.count_nonzero(final != IGNORE))]

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


def _summarise(notes: Sequence[Mapping[str, Any]], entries: Sequence[ClassPolicy]) -> dict[str, Any]:
    """Statistics of a thresholded store from the notes in its receipts."""
    c, names = len(entries), [e.name for e in entries]
    given, passed, sources = (
        np.array([note[key] for note in notes], np.int64).reshape(-1, *shape).sum(axis=0)
        for key, shape in (("raw", (c,)), ("passed", (c,)), ("sources", (len(SOURCES), c)))
    )
    conflicts: Counter[tuple[int, int]] = Counter()
    cities: dict[str, NDArray[np.int64]] = {}
    for note in notes:
        for human, teacher, pixels in note["conflicts"]:
            conflicts[human, teacher] += pixels
        for city, sums in note["cities"].items():
            cities[city] = cities.get(city, 0) + np.array(sums, np.int64)
    images, pixels, labelled = sum(cities.values(), np.zeros(3, np.int64)).tolist()
    return {
        "images": images,
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
                "from_alike": int(sources[SOURCES["alike"], i]),
                "final": int(sources[:, i].sum()),
            }
            for i, e in enumerate(entries)
        ],
        "conflicts": [{"human": names[h], "teacher": names[t], "pixels": n} for (h, t), n in sorted(conflicts.items())],
        "cities": {
            city: {"images": sums[0], "pixels": sums[1], "labelled_share": sums[2] / sums[1]}
            for city, sums in ((city, cities[city].tolist()) for city in sorted(cities))
        },
    }


def measured_masks(truths: Iterable[Labels], void_share: float, min_images: int) -> dict[tuple[int, int], Mask]:
    """Static masks (True = ignored) by image size: pixels that are void in more than a share of the fine labels.

    The hood and the border of rectification are data of a camera. Labels (uint8 HxW, 255 = void) of another size are
    of another camera; a size with fewer than `min_images` labels gets no mask.
    """
    void: dict[tuple[int, int], NDArray[np.int64]] = {}
    images: Counter[tuple[int, int]] = Counter()
    for truth in truths:
        size = (truth.shape[0], truth.shape[1])
        images[size] += 1
        void[size] = void.get(size, np.zeros(size, np.int64)) + (truth == IGNORE)
    masks = {size: count > void_share * images[size] for size, count in void.items() if images[size] >= min_images}
    return {size: mask for size, mask in masks.items() if mask.any()}


def read_mask(path: str | Path) -> Mask:
    """Read a mask PNG: 8-bit grey, 0 = ignored, anything else = used; returns True where ignored."""
    where = Path(path)
    if not where.is_file():
        raise InputError(f"{where}: mask not found")
    image = cv2.imread(str(where), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 2 or image.dtype != np.uint8:
        raise InputError(f"{where}: a mask must be an 8-bit grey PNG (0 = ignored)")
    return np.asarray(image == 0)
