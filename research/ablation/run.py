"""Make the missing cells of an ablation: one training a group of rows, one evaluation, one file a row."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hmsa_core.config import ModelConfig
from hmsa_core.io import atomic
from pipeline.provenance import describe_run
from pipeline.workspace import Workspace
from research.ablation import freeze, jobs
from research.ablation.cells import Cell, Counts, State, cells_by_key, state_of, write_cell
from research.ablation.jobs import Evaluated, Trained
from research.ablation.labels import MadeLabels, make_labels
from research.ablation.material import Material, Scale, cell_material, train_config
from research.ablation.plan import Ablation, Labels, Row, Training

__all__ = ["Pending", "Request", "pending", "run_ablation"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What was asked for: which rows and seeds, how long, where the cells lie."""

    ablation: Ablation
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    results: Path  # research/cells
    scale: Scale = field(default_factory=Scale)

    @property
    def folder(self) -> Path:
        """Where this ablation's cells lie."""
        return self.results / self.ablation.name


@dataclass(frozen=True)
class Pending:
    """A cell that is asked for: its key's material, and whether it is there."""

    row: Row
    seed: int
    material: Material
    state: State


def pending(ws: Workspace, request: Request) -> list[Pending]:
    """All cells that are asked for, seed by seed; a row without a seed stands once, under seed 0."""
    cells: list[Pending] = []
    for seed in request.seeds:
        for row in request.rows:
            own = seed if row.is_seeded else 0
            if own != seed and any(c.row is row for c in cells):
                continue
            material = cell_material(ws.params, row, own, request.scale)
            cells.append(Pending(row, own, material, state_of(request.folder, row.name, own, material)))
    return cells


def run_ablation(ws: Workspace, request: Request) -> list[Cell]:
    """Make what is missing, and what was made with other settings or code; return the cells that were written.

    Raises:
        ConfigError: a confirming seed without a matching freeze; a stage that has not run.
    """
    cells = pending(ws, request)
    todo = [cell for cell in cells if cell.state.name != "finished"]
    freeze.check_seeds(ws.params, request, (cell.seed for cell in todo))
    _LOG.info("%s: %d of %d cells to make", request.ablation.name, len(todo), len(cells))
    written: list[Cell] = []
    for group in _groups(_without_twins(request, todo, written)):
        written += _make(ws, request, group)
    freeze.check_seeds(ws.params, request, (cell.seed for cell in written))
    return written


def _without_twins(request: Request, todo: Iterable[Pending], written: list[Cell]) -> list[Pending]:
    """Cells that another table holds under the same key are copied; the others remain."""
    left = []
    known = cells_by_key(request.results)
    for cell in todo:
        twin = known.get(cell.material.key)
        if twin is None:
            left.append(cell)
            continue
        origin = {"copied_from": f"{twin.record['ablation']}/{twin.path.name}"}
        record = {k: v for k, v in twin.record.items() if k not in ("format", "version", "counts_sha256")}
        counts = twin.path.with_suffix(".npz").read_bytes()
        written.append(write_cell(request.folder, record | _identity(request, cell) | origin, counts))
        _LOG.info("%s seed %d: the same as %s", cell.row.name, cell.seed, origin["copied_from"])
    return left


def _groups(cells: Sequence[Pending]) -> list[list[Pending]]:
    """Cells that share a checkpoint, in the order in which they were asked for."""
    groups: dict[tuple[Training | None, int], list[Pending]] = {}
    for cell in cells:
        groups.setdefault((cell.row.training, cell.seed), []).append(cell)
    return list(groups.values())


def _make(ws: Workspace, request: Request, cells: list[Pending]) -> list[Cell]:
    training, seed = cells[0].row.training, cells[0].seed
    _LOG.info("%s: seed %d, %s", request.ablation.name, seed, ", ".join(cell.row.name for cell in cells))
    settings = [cell.row.setting for cell in cells]
    name = atomic.digest(sorted(cell.row.name for cell in cells))[:8]
    labels: MadeLabels | None = None
    if training is None:
        model, crop = ws.params.teacher_train.model, ws.params.teacher_train.crop
        trained: Trained | None = None
        checkpoint = jobs.own_teacher(ws)
    else:
        labels = _labels(ws, training.labels)
        config = train_config(ws.params, training, seed, request.scale)
        trained = jobs.train(ws, training, config, labels, seed)
        model, crop, checkpoint = config.model, config.crop, trained.checkpoint
    runtime = request.scale.of_machine(ws.params.evaluate.runtime)
    found = jobs.evaluate(ws, f"{request.ablation.name}-{name}-seed{seed}", checkpoint, settings, runtime)
    macs = jobs.count_macs(ws, model, crop, settings)
    made = _Made(trained, found, labels, macs)
    return [_write(request, cell, made) for cell in cells]


def _labels(ws: Workspace, labels: Labels | None) -> MadeLabels | None:
    return None if labels is None else make_labels(ws, labels)


@dataclass(frozen=True)
class _Made:
    """What the cells of a group have in common."""

    trained: Trained | None
    found: Evaluated
    labels: MadeLabels | None
    macs: dict[str, Any]


def _write(request: Request, cell: Pending, made: _Made) -> Cell:
    source = made.found.folder / f"{cell.row.name}.npz"
    counts = Counts.of(source)
    record = (
        _identity(request, cell)
        | _figures(cell, made)
        | {
            "confusions_sha256": atomic.sha256_file(source),
            "command": _command(request, cell),
            **describe_run(sorted(cell.material.code)),
        }
    )
    written = write_cell(request.folder, record, counts.to_bytes())
    _LOG.info("%s seed %d: mIoU %.2f", cell.row.name, cell.seed, 100 * record["mean_iou"])
    return written


def _identity(request: Request, cell: Pending) -> dict[str, Any]:
    return {
        "ablation": request.ablation.name,
        "row": cell.row.name,
        "title": cell.row.title,
        "seed": cell.seed,
        "key": cell.material.key,
        "settings_digest": cell.material.settings_digest,
        "settings": cell.material.settings,
        "code": cell.material.code,
        "epochs_scale": request.scale.epochs,
    }


def _figures(cell: Pending, made: _Made) -> dict[str, Any]:
    told = atomic.read_json(made.found.folder / "summary.json")["settings"][cell.row.name]
    trained = made.trained.figures if made.trained else None
    per_crop, per_image = made.macs["train_per_crop"], made.macs["inference"][cell.row.name]
    return {
        "mean_iou": told["mean_iou"],
        "iou": told["iou"],
        "pixel_accuracy": told["pixel_accuracy"],
        "details": {k: told[k] for k in ("band", "boundary", "ece", "weights") if k in told}
        | {"mean_weights": _mean_weights(made.found.folder / f"{cell.row.name}.npz", cell.row)},
        "training": trained,
        "images_seen": trained["images_seen"] if trained else 0,
        "macs": {
            "train_per_crop": per_crop,
            "image": made.macs["image"],
            "inference_per_image": per_image,
            "train_total": per_crop * trained["images_seen"] if trained else 0,
        },
        "evaluation": made.found.figures,
        "labels": made.labels.figures if made.labels else None,
        "seconds": {"train": trained["seconds"] if trained else 0.0, "evaluate": made.found.figures["seconds"]},
    }


def _mean_weights(path: Path, row: Row) -> dict[str, dict[str, float | None]] | None:
    """Mean weight of each scale over all labelled pixels away from boundaries and inside their band."""
    with np.load(path) as file:
        if "weights" not in file.files:
            return None
        sums = file["weights"].sum(axis=(0, 2))  # scales x (away, in band)
        band = float(file["band_confusions"].sum())
        pixels = (float(file["confusions"].sum()) - band, band)
    scales = sorted(row.setting.scales)
    return {
        f"{scale:g}": {
            place: float(sums[i, at] / pixels[at]) if pixels[at] else None
            for at, place in enumerate(("interior", "band"))
        }
        for i, scale in enumerate(scales)
    }


def _command(request: Request, cell: Pending) -> str:
    name = request.ablation.command.removeprefix("make ").removeprefix("ablation-")
    scaled = f" --epochs-scale {request.scale.epochs:g}" if request.scale.epochs != 1.0 else ""
    return f"autolabel ablate {name} --rows {cell.row.name} --seeds {cell.seed}{scaled}"


def model_of(ws: Workspace, row: Row, scale: Scale) -> tuple[ModelConfig, tuple[int, int]]:
    """Network and training crop of a row."""
    if row.training is None:
        return ws.params.teacher_train.model, ws.params.teacher_train.crop
    config = train_config(ws.params, row.training, 0, scale)
    return config.model, config.crop
