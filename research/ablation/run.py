"""Make the missing rows of an ablation: one training for rows that share it, one evaluation, lines in the table."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hmsa_core.io import atomic
from pipeline.jobs.provenance import describe_run
from pipeline.jobs.support import publish_checkpoint
from pipeline.workspace.workspace import Workspace
from research.ablation import freeze, jobs
from research.ablation.intervals import TRAININGS, Counts, kind_of, load_counts, summarise
from research.ablation.labels import WORK, make_labels
from research.ablation.plan import Ablation, Row, Training
from research.ablation.recipe import Scale, how_run, train_config
from research.figures import Figure, Made, figures, replace

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What was asked for: which rows and seeds, how long, in which folder the tables lie."""

    ablation: Ablation
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    tables: Path
    scale: Scale = field(default_factory=Scale)
    again: bool = False
    publish: Mapping[str, str] = field(default_factory=dict)  # row -> name of its model in the workspace's models/

    @property
    def path(self) -> Path:
        """The table's file."""
        return self.tables / f"{self.ablation.name}.parquet"


@dataclass(frozen=True)
class Pending:
    """A row and seed that are asked for, with their figures {metric: value} where they are in the table.

    `usual_s` are the mean seconds of this row's trainings and evaluations with any seed; None = never made.
    """

    row: Row
    seed: int
    found: Mapping[str, float | None]
    usual_s: tuple[float, float] | None


def pending(request: Request) -> list[Pending]:
    """All that is asked for, seed by seed; a row without a seed stands once, under seed 0."""
    known: dict[tuple[str, int, str], dict[str, float | None]] = {}
    for line in figures(request.path):
        if line.seed is not None and not line.name:
            known.setdefault((line.row, line.seed, line.setting), {})[line.metric] = line.value
    cells: dict[tuple[str, int], Pending] = {}
    for seed in request.seeds:
        for row in request.rows:
            own = seed if row.is_seeded else 0
            how = how_run(row.setting, request.scale)
            alike = [f for (name, _, setting), f in known.items() if (name, setting) == (row.name, how)]
            usual = (_mean(alike, "train_seconds"), _mean(alike, "evaluate_seconds")) if alike else None
            cells.setdefault((row.name, own), Pending(row, own, known.get((row.name, own, how), {}), usual))
    return list(cells.values())


def _mean(found: Sequence[Mapping[str, float | None]], metric: str) -> float:
    return statistics.fmean(one.get(metric) or 0.0 for one in found)


def run_ablation(ws: Workspace, request: Request) -> list[tuple[str, int]]:
    """Make what is missing (or all that is asked for, with `again`); return the rows and seeds that were written.

    Raises:
        ConfigError: a confirming seed whose recipe is not frozen; a stage that has not run.
    """
    cells = pending(request)
    todo = [cell for cell in cells if request.again or not cell.found or _lacks_model(ws, request, cell)]
    freeze.check_seeds(ws.params, request.ablation, request.scale, request.tables, (cell.seed for cell in todo))
    _LOG.info("%s: %d of %d rows and seeds to make", request.ablation.name, len(todo), len(cells))
    groups: dict[tuple[Training | None, int], list[Pending]] = {}
    for cell in todo:
        groups.setdefault((cell.row.training, cell.seed), []).append(cell)
    for group in groups.values():
        _make(ws, request, group)
        _write_intervals(ws, request, kind_of(group[0].seed))
    return [(cell.row.name, cell.seed) for cell in todo]


def _lacks_model(ws: Workspace, request: Request, cell: Pending) -> bool:
    """Whether the row's model is to be published and is not there: its figures may be another machine's."""
    name = request.publish.get(cell.row.name) if cell.seed == request.seeds[0] else None
    return name is not None and not ws.path(f"models/{name}/model.json").exists()


def _make(ws: Workspace, request: Request, cells: list[Pending]) -> None:
    name, training, seed = request.ablation.name, cells[0].row.training, cells[0].seed
    rows = [cell.row for cell in cells]
    _LOG.info("%s: seed %d, %s", name, seed, ", ".join(row.name for row in rows))
    labels = make_labels(ws, training.labels) if training and training.labels else None
    if training is None:
        teacher = ws.params.teacher_train
        model, crop, trained, checkpoint = teacher.model, teacher.crop, None, jobs.own_teacher(ws)
    else:
        config = train_config(ws.params, training, seed, request.scale)
        trained = jobs.train(ws, training, config, labels, seed)
        model, crop, checkpoint = config.model, config.crop, trained.checkpoint
    for row in rows:
        if row.name in request.publish and seed == request.seeds[0]:
            publish_checkpoint(ws, checkpoint, f"models/{request.publish[row.name]}")
    settings = [row.setting for row in rows]
    runtime = request.scale.of_machine(ws.params.evaluate.runtime)
    group = atomic.digest(sorted(row.name for row in rows))[:8]
    judged = jobs.evaluate(ws, f"{name}-{group}-seed{seed}", checkpoint, settings, runtime)
    per_crop, per_image = jobs.count_macs(ws, model, crop, settings)
    summaries = atomic.read_json(judged.folder / "summary.json")["settings"]
    made = Made.of(describe_run(("hmsa_core", "pipeline", "research")))
    lines: list[Figure] = []
    for row in rows:
        source = judged.folder / f"{row.name}.npz"
        Counts.of_job(source).save(_counts(ws, request) / f"{row.name}-seed{seed}.npz")
        images_seen = trained.images_seen if trained else 0
        record = summaries[row.name] | {
            "mean_weights": _mean_weights(source, row),
            "labels": labels.figures if labels else None,
            "images": judged.images,
            "images_seen": images_seen,
            "gmac_training": per_crop * images_seen / 1e9,
            "gmac_image": per_image[row.name] / 1e9,
            "train_seconds": trained.seconds if trained else 0.0,
            "evaluate_seconds": judged.seconds,
        }
        lines += cell_lines(made, name, row, seed, how_run(row.setting, request.scale), record)
        _LOG.info("%s seed %d: mIoU %.2f", row.name, seed, 100 * record["mean_iou"])
    written = {(line.row, line.seed, line.setting) for line in lines}
    replace(request.path, lines, lambda line: (line.row, line.seed, line.setting) in written)


def _counts(ws: Workspace, request: Request) -> Path:
    share = "" if request.scale.epochs == 1.0 else f"-{request.scale.epochs:g}"
    return ws.work(WORK) / "counts" / f"{request.ablation.name}{share}"


_PLAIN = ("images", "images_seen", "gmac_training", "gmac_image", "train_seconds", "evaluate_seconds")


def cell_lines(made: Made, table: str, row: Row, seed: int, how: str, record: Mapping[str, Any]) -> Iterator[Figure]:
    """The lines of one row and seed, from the summary of its evaluation and what was recorded next to it."""

    def line(metric: str, value: float | None, name: str = "") -> Figure:
        return made.figure(table, row.name, metric, value, seed=seed, setting=how, name=name)

    yield line("mean_iou", record["mean_iou"])
    yield line("boundary_iou", record["boundary"]["mean_iou"])
    yield line("pixel_accuracy", record["pixel_accuracy"])
    yield line("calibration_error", record["ece"])
    for metric in _PLAIN:
        yield line(metric, record[metric])
    for name, value in record["iou"].items():
        yield line("iou", value, name)
    for name, value in record["boundary"]["iou"].items():
        yield line("boundary_iou", value, name)
    for scale, places in (record["mean_weights"] or {}).items():
        for place, value in places.items():
            yield line(f"weight_of_{scale}x_{place}", value)
    if record["labels"]:
        yield line("labelled_share", record["labels"]["labelled_share"])
        for name, share in record["labels"]["classes"].items():
            yield line("labelled_share", share, name)


def _mean_weights(path: Path, row: Row) -> dict[str, dict[str, float | None]] | None:
    """Mean weight of each scale over all labelled pixels away from boundaries and inside their band."""
    with np.load(path) as file:
        if "weights" not in file.files:
            return None
        sums = file["weights"].sum(axis=(0, 2))  # scales x (away, in band)
        band = float(file["band_confusions"].sum())
        pixels = {"interior": float(file["confusions"].sum()) - band, "band": band}
    return {
        f"{scale:g}": {p: float(sums[i, at] / n) if n else None for at, (p, n) in enumerate(pixels.items())}
        for i, scale in enumerate(sorted(row.setting.scales))
    }


def _write_intervals(ws: Workspace, request: Request, kind: str) -> None:
    """Compute the intervals anew, as far as no seed of the ones in the table would be lost.

    A workspace holds the counts of the seeds that it made; the intervals of a table may rest on more.
    """
    if request.scale.epochs != 1.0:
        return  # intervals are of whole trainings
    cells = load_counts(_counts(ws, request))
    made = Made.of(describe_run(("hmsa_core", "pipeline", "research")))
    new = summarise(request.ablation, cells, kind, made)
    old = _seeds([line for line in figures(request.path) if line.setting == kind])
    mine = _seeds(new)
    kept = {row for row, seeds in old.items() if not seeds <= mine.get(row, set())}
    if stale := sorted(kept & mine.keys()):
        _LOG.warning("%s: intervals of %s stay as they are: not all counts are here", request.path, ", ".join(stale))
        kept.add(TRAININGS)
    replace(
        request.path,
        [line for line in new if line.row not in kept],
        lambda line: line.setting == kind and line.row in mine and line.row not in kept,
    )


def _seeds(lines: Sequence[Figure]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for line in lines:
        found.setdefault(line.row, set()).update(() if line.seed is None else (line.seed,))
    return found
