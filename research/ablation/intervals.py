"""Intervals of rows and of their differences, from the counts of each image.

Images of one block (a drive, a run of frames) are drawn together; how seeds differ counts by Student's t
(`hmsa_core.metrics.bootstrap`). Two rows are compared on the seeds and images that both have, on the same draws.

Counts lie in the workspace that made them, `work/ablation/counts/TABLE/ROW-seedK.npz`: too large to be committed, they
are needed only to compute intervals anew when seeds are added. The intervals themselves are lines of the table.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io import atomic
from hmsa_core.io.errors import InputError
from hmsa_core.metrics import Interval, bootstrap_difference, bootstrap_iou, iou_of, mean_iou_of
from hmsa_core.metrics.bootstrap import Blocks, Draws, Runs, as_runs, difference_of, interval_of
from research.ablation.plan import Ablation
from research.figures import CONFIRMING, EXPLORING, Figure, Made

FIRST_CONFIRMING = 100  # seeds from here on run only after the recipe was frozen
TRAININGS = "(two trainings of one row)"  # row that says how far they lie apart
DRAWS = 2000
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Counts of N images and C classes: `regions` and `boundaries` are intersections and unions, (N, 2, C)."""

    names: tuple[str, ...]
    blocks: tuple[str, ...]
    classes: tuple[str, ...]
    regions: Ints
    boundaries: Ints

    @classmethod
    def of_job(cls, path: Path) -> Counts:
        """From the file of an evaluate job."""
        with np.load(path) as file:
            confusions = file["confusions"].astype(np.int64)
            hits = np.diagonal(confusions, axis1=1, axis2=2)
            union = confusions.sum(2) + confusions[:, :, : hits.shape[1]].sum(1) - hits
            names, blocks, classes = (tuple(file[k].tolist()) for k in ("names", "blocks", "classes"))
            return cls(names, blocks, classes, np.stack([hits, union], axis=1), file["boundary"].astype(np.int64))

    @classmethod
    def load(cls, path: Path) -> Counts:
        """Read what `save` wrote."""
        with np.load(path) as file:
            names, blocks, classes = (tuple(file[k].tolist()) for k in ("names", "blocks", "classes"))
            return cls(names, blocks, classes, file["regions"], file["boundaries"])

    def save(self, path: Path) -> None:
        """Write a compressed .npz in one step."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{k: np.asarray(v) for k, v in vars(self).items()})
        atomic.make_folder(path.parent)
        atomic.write_bytes(path, buffer.getvalue())

    def of_images(self, names: Sequence[str]) -> Counts:
        """The counts of some of the images, in the given order."""
        at = {name: i for i, name in enumerate(self.names)}
        rows = [at[name] for name in names]
        blocks = tuple(self.blocks[i] for i in rows)
        return Counts(tuple(names), blocks, self.classes, self.regions[rows], self.boundaries[rows])

    def confusions(self, *, at_boundaries: bool = False) -> Ints:
        """In the shape that the bootstrap takes, (N, C, C + 1), with the same IoU of any sum of images.

        Hits stand on the diagonal, and what else the union holds in the last column ("no answer").
        """
        hits, union = (self.boundaries if at_boundaries else self.regions).transpose(1, 0, 2)
        classes = hits.shape[1]
        result = np.zeros((len(hits), classes, classes + 1), np.int64)
        diagonal = np.arange(classes)
        result[:, diagonal, diagonal] = hits
        result[:, :, classes] = union - hits
        return result


Cells = Mapping[str, Mapping[int, Counts]]  # row -> seed -> counts


def kind_of(seed: int) -> str:
    """Whether a seed explores or confirms."""
    return CONFIRMING if seed >= FIRST_CONFIRMING else EXPLORING


def load_counts(folder: Path) -> dict[str, dict[int, Counts]]:
    """All counts of a table in a workspace, by row and seed."""
    found: dict[str, dict[int, Counts]] = {}
    for path in sorted(folder.glob("*-seed*.npz")):
        row, _, seed = path.stem.rpartition("-seed")
        found.setdefault(row, {})[int(seed)] = Counts.load(path)
    return found


def summarise(ablation: Ablation, cells: Cells, kind: str, made: Made) -> list[Figure]:
    """Lines of the intervals of all rows, differences and trainings for one kind of seeds."""
    fixed = {row.name for row in ablation.rows if not row.is_seeded}
    mine = {
        row: {k: c for k, c in by_seed.items() if row in fixed or kind_of(k) == kind} for row, by_seed in cells.items()
    }
    if not any(by_seed for row, by_seed in mine.items() if row not in fixed):
        return []
    lines: list[Figure] = []
    for row in ablation.rows:
        if mine.get(row.name):
            lines += _lines_of_row(_Teller(ablation.name, row.name, kind, made), mine[row.name])
    for row_name, baseline in ablation.differences:
        tell = _Teller(ablation.name, f"{row_name} - {baseline}", kind, made)
        pairs = _pairs(mine, row_name, baseline, fixed)
        lines += _lines_of_difference(tell, pairs)
        if ablation.ceiling not in (None, row_name, baseline):
            lines += _lines_of_share(tell, pairs, mine.get(str(ablation.ceiling), {}))
    lines += _lines_of_trainings(_Teller(ablation.name, TRAININGS, kind, made), ablation, mine)
    return lines


@dataclass(frozen=True)
class _Teller:
    """Writes the lines of one row."""

    table: str
    row: str
    kind: str
    made: Made

    def line(self, metric: str, value: float | None, *, seed: int | None = None, name: str = "") -> Figure:
        known = None if value is None or np.isnan(value) else float(value)
        return self.made.figure(self.table, self.row, metric, known, seed=seed, setting=self.kind, name=name)

    def interval(self, metric: str, found: Interval, seeds: Iterable[int]) -> Iterator[Figure]:
        """Value and ends, and each seed's own value."""
        for end, value in (("", found.value), ("_low", found.low), ("_high", found.high)):
            yield self.line(f"{metric}{end}", value)
        for seed, value in zip(seeds, found.run_values, strict=True):
            yield self.line(metric, value, seed=seed)

    def classes(self, metric: str, found: Interval, classes: Sequence[str]) -> Iterator[Figure]:
        """Value and ends of each class."""
        for end, values in (("", found.class_value), ("_low", found.class_low), ("_high", found.class_high)):
            for name, value in zip(classes, values, strict=True):
                yield self.line(f"{metric}{end}", value, name=name)


def _lines_of_row(tell: _Teller, by_seed: Mapping[int, Counts]) -> Iterator[Figure]:
    seeds = sorted(by_seed)
    counts = [by_seed[k] for k in seeds]
    for metric, at_boundaries in (("mean_iou", False), ("boundary_iou", True)):
        confusions = [c.confusions(at_boundaries=at_boundaries) for c in counts]
        yield from tell.interval(metric, bootstrap_iou(confusions, [c.blocks for c in counts], draws=DRAWS), seeds)
    yield tell.line("images", min(len(c.names) for c in counts))


def _lines_of_difference(tell: _Teller, pairs: Mapping[int, tuple[Counts, Counts]]) -> Iterator[Figure]:
    if not pairs:
        return
    both = [_common(a, b, tell.row) for a, b in pairs.values()]
    blocks = [ours.blocks for ours, _ in both]
    for metric, at_boundaries in (("difference", False), ("boundary_difference", True)):
        sides = [
            [side.confusions(at_boundaries=at_boundaries) for side in of_row] for of_row in zip(*both, strict=True)
        ]
        found = bootstrap_difference(sides[0], sides[1], blocks, draws=DRAWS)
        yield from tell.interval(metric, found, pairs)
        if not at_boundaries:
            yield tell.line("chance", _chance(found))
            yield tell.line("blocks", found.blocks)
            yield tell.line("images", min(len(ours.names) for ours, _ in both))
            yield from tell.classes(metric, found, both[0][0].classes)


def _lines_of_share(
    tell: _Teller, pairs: Mapping[int, tuple[Counts, Counts]], most: Mapping[int, Counts]
) -> Iterator[Figure]:
    """The part of the possible gain (row `most` less the baseline) that was reached, on the seeds that all have."""
    of_seed = [(*pairs[k], most[k]) for k in sorted(pairs.keys() & most.keys())]
    if not of_seed:
        return
    names = [sorted({*a.names} & {*b.names} & {*c.names}) for a, b, c in of_seed]
    sides = [[one.of_images(n) for one, n in zip(side, names, strict=True)] for side in zip(*of_seed, strict=True)]
    counts = [[one.confusions() for one in side] for side in sides]
    found = bootstrap_share(counts[0], counts[1], counts[2], [one.blocks for one in sides[0]])
    for end, value in zip(("", "_low", "_high"), found, strict=True):
        yield tell.line(f"recovered{end}", value)


def bootstrap_share(confusions: Runs, baseline: Runs, ceiling: Runs, blocks: Blocks) -> tuple[float, float, float]:
    """Value and interval of (mean IoU - baseline) / (ceiling - baseline): the part of a possible gain that was reached.

    The interval holds each share s at which the gain less s times the possible gain may be zero (Fieller 1954), to two
    digits from -2 to 3. It is NaN where the possible gain itself is not shown: its own interval reaches zero or below.
    """
    runs, ids = as_runs(confusions, blocks)
    plan = Draws(ids, DRAWS, 0)
    showing = plan.showing(runs)
    ours, low, top = (plan.scores(as_runs(c, blocks)[0]) for c in (runs, baseline, ceiling))
    gain, possible = ([difference_of(a, b) for a, b in zip(one, low, strict=True)] for one in (ours, top))

    def less(share: float) -> Interval:
        whole, drawn = (g - share * p for g, p in zip(gain, possible, strict=True))
        return interval_of(plan, (whole, drawn), 0.95, lowest=-np.inf, showing=showing)

    whole = interval_of(plan, (possible[0], possible[1]), 0.95, lowest=-1.0, showing=showing)
    value = less(0.0).value / whole.value if whole.value else float("nan")
    if not whole.low > 0:
        return value, float("nan"), float("nan")
    fitting = [s for s in np.round(np.arange(-2.0, 3.005, 0.01), 2) if not less(float(s)).excludes_zero]
    return value, float(min(fitting, default=np.nan)), float(max(fitting, default=np.nan))


def _chance(found: Interval) -> float:
    """How often a difference this large is seen where there is none (two-sided); 1 where nothing differs.

    The draws of one run can tell no less than one of them.
    """
    if np.isnan(found.above_zero):
        return 1.0
    finest = 1 / found.draws if found.runs == 1 else 0.0
    return min(1.0, max(2 * min(found.above_zero, 1 - found.above_zero), finest))


def _pairs(
    cells: Mapping[str, Mapping[int, Counts]], row: str, baseline: str, fixed: set[str]
) -> dict[int, tuple[Counts, Counts]]:
    """Counts of the same seed; a row without seeds is compared with every seed of the other."""
    ours, theirs = cells.get(row, {}), cells.get(baseline, {})
    if baseline in fixed and theirs:
        theirs = dict.fromkeys(ours, next(iter(theirs.values())))
    return {k: (ours[k], theirs[k]) for k in sorted(ours.keys() & theirs.keys())}


def _common(a: Counts, b: Counts, what: str) -> tuple[Counts, Counts]:
    known = set(b.names)
    names = [name for name in a.names if name in known]
    if not names:
        raise InputError(f"{what}: the two rows share no image: they cannot be compared")
    return a.of_images(names), b.of_images(names)


def _lines_of_trainings(
    tell: _Teller, ablation: Ablation, cells: Mapping[str, Mapping[int, Counts]]
) -> Iterator[Figure]:
    """How far two trainings of one recipe with other seeds lie apart in mean IoU: root mean square, largest, pairs.

    Rows that run the same weights in several ways are one training: a pair counts once, with the mean of its squares.
    """
    apart: dict[Any, list[float]] = {}
    for row in ablation.rows:
        counts = cells.get(row.name, {})
        scores = {seed: float(mean_iou_of(iou_of(c.confusions().sum(0)))) for seed, c in counts.items()}
        for a, b in combinations(sorted(scores), 2):
            apart.setdefault((row.training, a, b), []).append(scores[a] - scores[b])
    if apart:
        squares = [float(np.mean(np.square(values))) for values in apart.values()]
        yield tell.line("apart", float(np.sqrt(np.mean(squares))))
        yield tell.line("apart_most", max(abs(v) for values in apart.values() for v in values))
        yield tell.line("pairs", len(apart))
