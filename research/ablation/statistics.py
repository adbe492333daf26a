"""Tables from the committed cells alone: mean over seeds with its interval, and paired comparisons.

Images of one block (drive, run of frames) are drawn together; how seeds differ counts by Student's t
(hmsa_core.metrics.bootstrap). Two rows are compared on the seeds and images that both have, on the same draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hmsa_core.io.errors import InputError
from hmsa_core.metrics import Interval, bootstrap_difference, bootstrap_iou, holm
from research.ablation.cells import Cell, Counts, cells_of
from research.ablation.freeze import is_confirming
from research.ablation.plan import Comparison

__all__ = ["Compared", "RowSummary", "Table", "after_holm", "between_trainings", "compare", "load_cells", "summarise"]

Cells = dict[str, dict[int, Cell]]  # row -> seed -> cell


@dataclass(frozen=True)
class RowSummary:
    """One row: its cells by seed, and the interval of its mean IoU."""

    row: str
    title: str
    cells: Mapping[int, Cell]
    interval: Interval
    boundary: Interval | None

    @property
    def first(self) -> dict[str, Any]:
        """Record of the first seed: what all seeds have in common."""
        return self.cells[min(self.cells)].record


@dataclass(frozen=True)
class Compared:
    """A comparison with the interval of (row - baseline), and the seeds that both have."""

    comparison: Comparison
    seeds: tuple[int, ...]
    images: int
    interval: Interval
    boundary: Interval | None

    @property
    def single(self) -> bool:
        """Each side was trained once: the interval covers the images, not how trainings differ.

        This holds for two fusions of one training, too: their difference moves from training to training.
        """
        return len(self.seeds) == 1

    @property
    def chance(self) -> float:
        """How often a difference this large would be seen where there is none (two-sided); 1 where nothing differs.

        Of one seed the draws tell it, to one in as many as there are.
        """
        above = self.interval.above_zero
        if above != above:
            return 1.0
        finest = 1 / self.interval.draws if self.single else 0.0
        return min(1.0, max(2 * min(above, 1 - above), finest))

    @property
    def verdict(self) -> str:
        """In words: "shown", "not shown" (zero is inside) or "contradicted" (the other way round, without zero).

        A claim of no harm is about its allowance in place of zero.
        """
        sign = -1 if self.comparison.hurts else 1
        low, high = sorted((sign * self.interval.low, sign * self.interval.high))
        bar = -self.comparison.allowed
        if low <= bar <= high:
            return "not shown"
        return "shown" if low > bar else "contradicted"


@dataclass(frozen=True)
class Table:
    """All that is known of an ablation for one kind of seeds (exploring or confirming)."""

    rows: tuple[RowSummary, ...]
    compared: tuple[Compared, ...]
    unequal: tuple[str, ...]  # rows that saw another number of images than most
    mixed: tuple[str, ...]  # settings that differ between seeds of a row: they cannot be averaged
    classes: tuple[str, ...]  # of all intervals, in their order; "" what is not scored; () where they are not known


def load_cells(folder: Path, *, confirming: bool) -> Cells:
    """Cells of an ablation by row and seed; rows without a seed of their own belong to both kinds."""
    cells: Cells = {}
    for cell in cells_of(folder):
        if cell.record["training"] is None or is_confirming(cell.seed) == confirming:
            cells.setdefault(cell.row, {})[cell.seed] = cell
    if all(cell.record["training"] is None for by_seed in cells.values() for cell in by_seed.values()):
        return {}
    return cells


def summarise(cells: Cells, comparisons: Iterable[Comparison], order: Sequence[str], *, draws: int, seed: int) -> Table:
    """Rows in the given order (others after them), and the comparisons whose two rows share a seed."""
    names = [n for n in order if n in cells] + sorted(set(cells) - set(order))
    rows = tuple(_row(name, cells[name], draws, seed) for name in names)
    found = (compare(cells, c, draws=draws, seed=seed) for c in comparisons)
    compared = tuple(c for c in found if c is not None)
    return Table(rows, compared, _unequal(rows), _mixed(rows), _classes(rows))


def _row(name: str, by_seed: Mapping[int, Cell], draws: int, seed: int) -> RowSummary:
    counts = [by_seed[k].counts() for k in sorted(by_seed)]
    blocks = [c.blocks for c in counts]
    interval = bootstrap_iou([c.confusions() for c in counts], blocks, draws=draws, seed=seed)
    boundary = None
    if all(c.boundary is not None for c in counts):
        at_boundaries = [c.confusions(at_boundaries=True) for c in counts]
        boundary = bootstrap_iou(at_boundaries, blocks, draws=draws, seed=seed)
    return RowSummary(name, str(by_seed[min(by_seed)].record["title"]), by_seed, interval, boundary)


def compare(cells: Cells, comparison: Comparison, *, draws: int, seed: int) -> Compared | None:
    """Interval of (row - baseline) on the seeds and images that both have; None without a common seed."""
    pairs = _pairs(cells.get(comparison.row, {}), cells.get(comparison.baseline, {}))
    if not pairs:
        return None
    ours, theirs = [], []
    for a, b in pairs.values():
        both = _common(a, b)
        ours.append(both[0])
        theirs.append(both[1])
    blocks = [c.blocks for c in ours]

    def interval(*, at_boundaries: bool) -> Interval:
        sides = [[c.confusions(at_boundaries=at_boundaries) for c in side] for side in (ours, theirs)]
        return bootstrap_difference(sides[0], sides[1], blocks, draws=draws, seed=seed)

    has_boundary = all(c.boundary is not None for c in (*ours, *theirs))
    return Compared(
        comparison,
        tuple(pairs),
        min(len(c.names) for c in ours),
        interval(at_boundaries=False),
        interval(at_boundaries=True) if has_boundary else None,
    )


def after_holm(compared: Iterable[Compared], level: float = 0.95) -> tuple[int, tuple[Compared, ...]]:
    """How many differences of a table are held against zero, and which exclude it alone but not all taken together.

    A difference that two claims speak of counts once.
    """
    family = {(c.comparison.row, c.comparison.baseline): c for c in compared if not c.comparison.allowed}
    ordered = sorted(family.values(), key=lambda c: c.chance)
    stands = holm([c.chance for c in ordered], 1 - level)
    return len(ordered), tuple(
        c for c, kept in zip(ordered, stands, strict=True) if not kept and c.interval.excludes_zero
    )


def between_trainings(cells: Cells) -> tuple[float, float, int] | None:
    """How far two trainings with other seeds lie apart: (root mean square, largest, pairs) of differences in mIoU.

    Rows that run the same weights in several ways are one training: a pair counts once, with the mean of its squares.
    """
    apart: dict[tuple[str, str], list[float]] = {}
    for by_seed in cells.values():
        for a, b in combinations([by_seed[k].record for k in sorted(by_seed)], 2):
            pair = a["training"]["weights_sha256"], b["training"]["weights_sha256"]
            apart.setdefault(pair, []).append(a["mean_iou"] - b["mean_iou"])
    if not apart:
        return None
    squares = [float(np.mean(np.square(values))) for values in apart.values()]
    return float(np.sqrt(np.mean(squares))), max(abs(v) for values in apart.values() for v in values), len(apart)


def _pairs(ours: Mapping[int, Cell], theirs: Mapping[int, Cell]) -> dict[int, tuple[Cell, Cell]]:
    """Cells of the same seed; a row without seeds stands beside every seed of the other."""
    fixed = [next(iter(side.values())) if _is_fixed(side) else None for side in (ours, theirs)]
    if fixed[0] is not None and fixed[1] is not None:
        return {0: (fixed[0], fixed[1])}
    if fixed[1] is not None:
        return {k: (ours[k], fixed[1]) for k in sorted(ours)}
    if fixed[0] is not None:
        return {k: (fixed[0], theirs[k]) for k in sorted(theirs)}
    return {k: (ours[k], theirs[k]) for k in sorted(ours.keys() & theirs.keys())}


def _is_fixed(side: Mapping[int, Cell]) -> bool:
    return bool(side) and all(cell.record["training"] is None for cell in side.values())


def _common(a: Cell, b: Cell) -> tuple[Counts, Counts]:
    ours, theirs = a.counts(), b.counts()
    known = set(theirs.names)
    names = tuple(name for name in ours.names if name in known)
    if not names:
        raise InputError(f"{a.path} and {b.path} share no image: they cannot be compared")
    return ours.of_images(names), theirs.of_images(names)


def _unequal(rows: Sequence[RowSummary]) -> tuple[str, ...]:
    """Rows with another number of images seen than most (untrained rows aside; of two as usual the larger counts)."""
    seen = {row.row: row.first["images_seen"] for row in rows if row.first["training"] is not None}
    usual = max(((n, images) for images, n in Counter(seen.values()).items()), default=(0, 0))[1]
    return tuple(name for name, images in seen.items() if images != usual)


def _classes(rows: Sequence[RowSummary]) -> tuple[str, ...]:
    """Names of the classes, from the first cell that tells all of them: a table is of one class list."""
    found = (cell.class_names(cell.counts()) for row in rows for cell in row.cells.values())
    return next((names for names in found if names), ())


def _mixed(rows: Sequence[RowSummary]) -> tuple[str, ...]:
    """Rows whose seeds were made with different settings or code (the seed itself aside)."""
    return tuple(row.row for row in rows if len({_variant(c.record) for c in row.cells.values()}) > 1)


def _variant(record: Mapping[str, Any]) -> str:
    settings = dict(record["settings"])
    if settings.get("training"):
        settings["training"] = {k: v for k, v in settings["training"].items() if k != "seed"}
    return repr((sorted(settings.items(), key=lambda item: item[0]), sorted(record["code"].items())))
