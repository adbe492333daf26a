"""Precision curves: what the teacher got right on calibration images, per class, code and block.

Counts only, no thresholds: a policy, a calibration table and merge rules are computed from them without
looking at a pixel again. Regions of an image (truth known in all but the last):
  whole      labelled pixels
  boundary   labelled pixels within 8 px (at 1024 lines, scaled) of a boundary of the truth
  interior   labelled pixels more than 2 px (scaled) from a boundary: where the label itself is exact
  void       pixels that the truth leaves out: keeping one is a second kind of error
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.io import sealed
from hmsa_core.io.errors import InputError
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.store.sidecar import cumulative
from hmsa_core.labels.thresholds.settings import CalibrateConfig
from hmsa_core.metrics import iou_of
from hmsa_core.metrics.boundary import boundary_band
from hmsa_core.taxonomy import IGNORE, ClassTable

FORMAT, VERSION = "hmsa-precision-curves", 1
_LINES = 1024  # image height for which widths in pixels are given
_REGIONS = ("", "boundary_", "interior_")
COUNTS = (*(f"{region}{what}" for region in _REGIONS for what in ("total", "correct")), "void", "components")
Counts = NDArray[np.int64]


class CalibrationImage(NamedTuple):
    """One image on which the teacher is judged; all maps uint8 HxW."""

    name: str
    block: str
    label: NDArray[np.uint8]  # the teacher's, trainIds or 255
    code: NDArray[np.uint8]
    truth: NDArray[np.uint8]  # fine label, trainIds or 255
    human: NDArray[np.uint8] | None = None  # coarse label, where there is one
    region: NDArray[np.bool_] | None = None  # pixels that count (None = all); conflicts are counted everywhere


def outside_coarse(images: Iterable[CalibrationImage]) -> Iterator[CalibrationImage]:
    """The images that have coarse labels, counted where those say nothing: there the teacher's label is used.

    Polygons lie in the middle of things, where the teacher is right most often; merged labels use the teacher near
    the outlines. The precision of all pixels together would be too high for these pixels.
    """
    for image in images:
        if image.human is not None:
            yield image._replace(region=image.human == IGNORE)


@dataclass(frozen=True)
class Conflicts:
    """Pixels where a human class meets another one of the teacher, sparse and sorted.

    outcome: 0 the truth is the human's, 1 the teacher's, 2 neither (void is left out). `same` pixels, where both
    agree, have teacher == human and outcome 0 (right) or 2 (both wrong).
    """

    block: NDArray[np.int64]
    human: NDArray[np.int64]
    teacher: NDArray[np.int64]
    outcome: NDArray[np.int64]
    code: NDArray[np.int64]
    pixels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Curves:
    """Counts over (block, class, code).

    "total" counts labelled pixels whose label is the class and whose code is exactly that. "correct" counts those with
    the same truth. "components" counts connected pieces of the class by their highest code.
    """

    classes: ClassTable
    blocks: Sequence[str]
    counts: Mapping[str, Counts]  # (B, C, 256) for each of COUNTS
    truth: Counts  # (B, C), labelled pixels of each true class
    joint: Counts  # (C, C, 256): truth, label, code, summed over blocks
    conflicts: Conflicts
    images: Sequence[tuple[str, str]] = ()  # (name, block) of each
    lineage: Mapping[str, Any] = field(default_factory=dict)  # the label store's
    _kept: dict[str, Counts] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def measure(
        cls,
        pairs: Iterable[CalibrationImage],
        classes: ClassTable,
        *,
        config: CalibrateConfig | None = None,
        lineage: Mapping[str, Any] | None = None,
    ) -> Curves:
        """Count over images that are in nobody's lineage; a policy is bound to `lineage`, the raw store's."""
        counter = _Counter(classes.num_classes, config or CalibrateConfig())
        for image in pairs:
            counter.add(image)
        if not counter.images:
            raise InputError("no calibration images: curves need at least one", hint="check the role `calibrate`")
        return counter.result(classes, lineage)

    def kept(self, name: str) -> Counts:
        """Counts of pixels with at least each code, (B, C, 256)."""
        if name not in self._kept:
            self._kept[name] = cumulative(self.counts[name])
        return self._kept[name]

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU of each class of the labels before any threshold, (C,); NaN for a class that the images do not show."""
        counts, truth = self.joint.sum(axis=2), self.truth.sum(axis=0)
        missed = truth - counts.sum(axis=1)  # pixels without a label
        return np.where(truth > 0, iou_of(np.column_stack([counts, missed])), np.nan)

    def subset(self, blocks: Sequence[int]) -> Curves:
        """The curves of some blocks; joint counts and conflicts remain those of all blocks."""
        counts = {name: array[list(blocks)] for name, array in self.counts.items()}
        names = tuple(self.blocks[i] for i in blocks)
        return replace(self, blocks=names, counts=counts, truth=self.truth[list(blocks)])

    def save(self, path: str | Path) -> str:
        """Write a sealed JSON file with sparse counts; return its digest."""
        block, class_id, code = np.nonzero(np.sum(list(self.counts.values()), axis=0))
        sparse: dict[str, Any] = {"block": block, "class": class_id, "code": code}
        sparse.update({name: array[block, class_id, code] for name, array in self.counts.items()})
        where = np.nonzero(self.joint)
        joint = {"truth": where[0], "label": where[1], "code": where[2], "pixels": self.joint[where]}
        return sealed.write(
            Path(path),
            {
                "format": FORMAT,
                "version": VERSION,
                "class_table": self.classes.to_json(),
                "blocks": list(self.blocks),
                "images": [list(i) for i in self.images],
                "lineage": dict(self.lineage),
                "counts": _lists(sparse),
                "truth": self.truth.tolist(),
                "joint": _lists(joint),
                "conflicts": _lists(vars(self.conflicts)),
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> Curves:
        """Read a curves file; a damaged one is a StoreError."""
        value = sealed.read_as(path, "a curves file", (FORMAT, VERSION))
        classes = ClassTable.from_json(value["class_table"])
        n, c = len(value["blocks"]), classes.num_classes
        sparse = _arrays(value["counts"])
        where = (sparse["block"], sparse["class"], sparse["code"])
        counts = {name: np.zeros((n, c, NUM_CODES), np.int64) for name in COUNTS}
        for name, array in counts.items():
            array[where] = sparse[name]
        joint = np.zeros((c, c, NUM_CODES), np.int64)
        cells = _arrays(value["joint"])
        joint[cells["truth"], cells["label"], cells["code"]] = cells["pixels"]
        return cls(
            classes,
            tuple(value["blocks"]),
            counts,
            np.array(value["truth"], np.int64).reshape(n, c),
            joint,
            Conflicts(**_arrays(value["conflicts"])),
            [(i[0], i[1]) for i in value["images"]],
            value["lineage"],
        )


def _lists(columns: Mapping[str, NDArray[Any]]) -> dict[str, list[int]]:
    return {name: [int(v) for v in column] for name, column in columns.items()}


def _arrays(columns: Mapping[str, list[int]]) -> dict[str, Counts]:
    return {name: np.array(column, np.int64) for name, column in columns.items()}


class _Counter:
    """Sums up images; memory grows with blocks and classes, not with images."""

    def __init__(self, num_classes: int, config: CalibrateConfig) -> None:
        self.c, self.config = num_classes, config
        self.images: list[tuple[str, str]] = []
        self._of_block: dict[str, dict[str, Counts]] = {}
        self._truth: dict[str, Counts] = {}
        self._joint = np.zeros((num_classes, num_classes, NUM_CODES), np.int64)
        self._conflicts: dict[str, Counter[int]] = defaultdict(Counter)  # pixels of each key of `_add_conflicts`

    def add(self, image: CalibrationImage) -> None:
        label, code, truth = image.label, image.code, image.truth
        self._check(image)
        empty = {name: np.zeros((self.c, NUM_CODES), np.int64) for name in COUNTS}
        counts = self._of_block.setdefault(image.block, empty)
        counted = np.ones(label.shape, np.bool_) if image.region is None else image.region
        known = (truth < self.c) & counted
        right = label == truth
        scale = label.shape[0] / _LINES
        near = boundary_band(truth, max(1.0, self.config.boundary_px * scale)) & known
        far = known & ~boundary_band(truth, max(1.0, self.config.ceiling_px * scale))
        for region, mask in zip(_REGIONS, (known, near, far), strict=True):
            counts[f"{region}total"] += self._count(label, code, mask)
            counts[f"{region}correct"] += self._count(label, code, mask & right)
        counts["void"] += self._count(label, code, (truth >= self.c) & counted)
        smallest = max(1, round(self.config.min_component_px * scale * scale))
        counts["components"] += _components(np.where(counted, label, IGNORE), code, self.c, smallest)
        self._truth.setdefault(image.block, np.zeros(self.c, np.int64))
        self._truth[image.block] += np.bincount(truth[counted], minlength=256)[: self.c]
        self._add_joint(label, code, truth, known)
        if image.human is not None:
            self._add_conflicts(image, image.human)
        self.images.append((image.name, image.block))

    def _check(self, image: CalibrationImage) -> None:
        maps = {"label": image.label, "code": image.code, "truth": image.truth, "human label": image.human}
        for what, values in maps.items():
            if values is None:
                continue
            if values.shape != image.label.shape:
                raise InputError(
                    f"{image.name}: the {what} is {values.shape}, the teacher's label {image.label.shape}",
                    hint="give maps of the image's size",
                )
            if values.dtype != np.uint8:
                raise InputError(f"{image.name}: the {what} is {values.dtype}, expected uint8")
            if what != "code" and (foreign := np.unique(values[(values >= self.c) & (values != IGNORE)])).size:
                raise InputError(
                    f"{image.name}: the {what} holds {', '.join(map(str, foreign[:5]))}, no class of {self.c}",
                    hint=f"give trainIds 0..{self.c - 1}, and {IGNORE} for pixels that do not count",
                )

    def _count(self, label: NDArray[np.uint8], code: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Counts:
        key = (label[mask].astype(np.int64) << 8) | code[mask]
        return np.bincount(key, minlength=256 * NUM_CODES).reshape(256, NUM_CODES)[: self.c]

    def _add_joint(
        self, label: NDArray[np.uint8], code: NDArray[np.uint8], truth: NDArray[np.uint8], known: NDArray[np.bool_]
    ) -> None:
        mask = known & (label < self.c)
        key = (truth[mask].astype(np.int64) * self.c + label[mask]) * NUM_CODES + code[mask]
        self._joint += np.bincount(key, minlength=self._joint.size).reshape(self._joint.shape)

    def _add_conflicts(self, image: CalibrationImage, human: NDArray[np.uint8]) -> None:
        mask = (human < self.c) & (image.label < self.c) & (image.truth < self.c)
        h, t, truth = (a[mask].astype(np.int64) for a in (human, image.label, image.truth))
        outcome = np.where(truth == h, 0, np.where(truth == t, 1, 2))
        key = ((h * self.c + t) * 3 + outcome) * NUM_CODES + image.code[mask]
        keys, pixels = np.unique(key, return_counts=True)
        self._conflicts[image.block].update(dict(zip(keys.tolist(), pixels.tolist(), strict=True)))

    def result(self, classes: ClassTable, lineage: Mapping[str, Any] | None) -> Curves:
        blocks = sorted(self._of_block)
        counts = {name: np.stack([self._of_block[b][name] for b in blocks]) for name in COUNTS}
        truth = np.stack([self._truth[b] for b in blocks])
        found = [(i, *cell) for i, block in enumerate(blocks) for cell in sorted(self._conflicts[block].items())]
        block, keys, pixels = np.array(found, np.int64).reshape(-1, 3).T
        cells = np.unravel_index(keys, (self.c, self.c, 3, NUM_CODES))
        human, teacher, outcome, code = (cell.astype(np.int64) for cell in cells)
        conflicts = Conflicts(block, human, teacher, outcome, code, pixels)
        return Curves(classes, tuple(blocks), counts, truth, self._joint, conflicts, self.images, dict(lineage or {}))


def _components(label: NDArray[np.uint8], code: NDArray[np.uint8], num_classes: int, smallest: int) -> Counts:
    """Connected pieces (8-neighbours) of each class of at least `smallest` pixels, by their highest code."""
    counts = np.zeros((num_classes, NUM_CODES), np.int64)
    for class_id in np.flatnonzero(np.bincount(label.reshape(-1), minlength=IGNORE + 1)[:num_classes]):
        mask = (label == class_id).astype(np.uint8)
        n, ids, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        highest = np.zeros(n, np.uint8)
        inside = mask.astype(bool)
        np.maximum.at(highest, ids[inside], code[inside])
        large = stats[1:, cv2.CC_STAT_AREA] >= smallest
        counts[class_id] = np.bincount(highest[1:][large], minlength=NUM_CODES)
    return counts
