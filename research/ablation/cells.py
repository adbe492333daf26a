"""The committed files of a finished cell: `<row>-seed<k>.json` (figures) and `.npz` (counts of each image).

The counts are hits, true and predicted pixels of each image and class: all that IoU and its bootstrap need, so that
intervals can be made again from a clone alone. The JSON is written last and names the digest of the other.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io import atomic
from hmsa_core.io.errors import IntegrityError
from research.ablation.code import changed_files
from research.ablation.material import Material

__all__ = [
    "FORMAT",
    "TRIED",
    "Cell",
    "Counts",
    "State",
    "cell_path",
    "cells_by_key",
    "cells_of",
    "changes",
    "state_of",
    "write_cell",
]

FORMAT = "hmsa-ablation-cell"
VERSION = 1
_NEEDED = {
    "ablation",
    "code",
    "command",
    "commit",
    "counts_sha256",
    "evaluation",
    "images_seen",
    "iou",
    "key",
    "machine",
    "macs",
    "mean_iou",
    "row",
    "seconds",
    "seed",
    "settings",
    "settings_digest",
    "title",
    "training",
    "uncommitted",
    "versions",
}
TRIED = "tried.jsonl"  # one line a result that a later variant replaced
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Counts of N images and C classes; `boundary` are intersections and unions of boundary IoU, (N, 2, C)."""

    names: tuple[str, ...]
    blocks: tuple[str, ...]
    hits: Ints
    truth: Ints
    predicted: Ints
    boundary: Ints | None = None

    @classmethod
    def of(cls, path: Path) -> Counts:
        """From an evaluate job's file."""
        with np.load(path) as file:
            confusions = file["confusions"]
            return cls(
                tuple(file["names"].tolist()),
                tuple(file["blocks"].tolist()),
                np.diagonal(confusions, axis1=1, axis2=2).astype(np.int64),
                confusions.sum(2),
                confusions.sum(1),
                file["boundary"] if "boundary" in file.files else None,
            )

    @classmethod
    def load(cls, path: Path) -> Counts:
        """From a cell's committed file."""
        with np.load(path) as file:
            hits, truth, predicted = (file[k].astype(np.int64) for k in ("hits", "truth", "predicted"))
            boundary = file["boundary"].astype(np.int64) if "boundary" in file.files else None
            names, blocks = tuple(file["names"].tolist()), tuple(file["blocks"].tolist())
            return cls(names, blocks, hits, truth, predicted, boundary)

    def to_bytes(self) -> bytes:
        """As a compressed .npz: equal counts give equal bytes."""
        arrays: dict[str, NDArray[Any]] = {
            "names": np.array(self.names, str),
            "blocks": np.array(self.blocks, str),
            **{k: getattr(self, k).astype(np.uint32) for k in ("hits", "truth", "predicted")},
        }
        if self.boundary is not None:
            arrays["boundary"] = self.boundary.astype(np.uint32)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    def of_images(self, names: tuple[str, ...]) -> Counts:
        """The counts of some of the images, in the given order."""
        at = {name: i for i, name in enumerate(self.names)}
        rows = [at[name] for name in names]
        boundary = None if self.boundary is None else self.boundary[rows]
        blocks = tuple(self.blocks[i] for i in rows)
        return Counts(names, blocks, self.hits[rows], self.truth[rows], self.predicted[rows], boundary)

    def confusions(self, *, at_boundaries: bool = False) -> Ints:
        """Counts in the shape that the bootstrap takes, (N, C, C + 1), with the same IoU of any sum of images.

        What is neither hit stands in the last column ("no answer"): hits on the diagonal, union - hits beside them.
        """
        if at_boundaries:
            if self.boundary is None:
                raise IntegrityError("the cell holds no counts at boundaries", hint="run the cell again")
            hits, union = self.boundary[:, 0], self.boundary[:, 1]
        else:
            hits, union = self.hits, self.truth + self.predicted - self.hits
        classes = hits.shape[1]
        result = np.zeros((len(hits), classes, classes + 1), np.int64)
        diagonal = np.arange(classes)
        result[:, diagonal, diagonal] = hits
        result[:, :, classes] = union - hits
        return result


@dataclass(frozen=True)
class Cell:
    """A finished cell."""

    path: Path  # of the JSON
    record: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Cell:
        """Read a cell; a file of another kind, or one that lacks something, is an IntegrityError."""
        record = atomic.read_json(path)
        if record.get("format") != FORMAT or record.get("version") != VERSION:
            raise IntegrityError(f"{path}: not a cell of version {VERSION}", hint="delete it and run the cell again")
        if lacking := sorted(_NEEDED - record.keys()):
            raise IntegrityError(f"{path}: has no {lacking[0]!r}", hint="restore it from git, or run the cell again")
        return cls(path, record)

    @property
    def row(self) -> str:
        """Name of its row."""
        return str(self.record["row"])

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.record["seed"])

    def class_names(self, counts: Counts) -> tuple[str, ...]:
        """Names of the classes in the order of `counts`, found by the IoU that both files hold; () if that fails.

        The record's own order is that of sorted keys.
        """
        hits, union = counts.hits.sum(0), (counts.truth + counts.predicted - counts.hits).sum(0)
        own = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
        told = [(name, iou) for name, iou in self.record["iou"].items() if iou is not None]
        found = [[name for name, iou in told if abs(iou - value) < 1e-12] for value in own]
        if any(len(names) != 1 for names, value in zip(found, own, strict=True) if not np.isnan(value)):
            return ()
        return tuple(names[0] if names else "" for names in found)

    def counts(self) -> Counts:
        """The counts of each image, checked against the recorded digest."""
        path = self.path.with_suffix(".npz")
        if not path.exists() or atomic.sha256_file(path) != self.record["counts_sha256"]:
            raise IntegrityError(
                f"{path}: missing, or not the file that {self.path.name} names",
                hint="restore both from git, or delete both and run the cell again",
            )
        return Counts.load(path)


def cell_path(folder: Path, row: str, seed: int) -> Path:
    """The JSON of a cell."""
    return folder / f"{row}-seed{seed}.json"


def cells_of(folder: Path) -> Iterator[Cell]:
    """All cells of an ablation, in the order of their names."""
    for path in sorted(folder.glob("*-seed*.json")):
        yield Cell.load(path)


@dataclass(frozen=True)
class State:
    """Whether a cell is there: "missing", "finished", "settings" or "code" (made with others), and what differs."""

    name: str
    cell: Cell | None = None
    differs: tuple[str, ...] = ()


def state_of(folder: Path, row: str, seed: int, material: Material) -> State:
    """Compare a cell's file with what it should have been made of."""
    path = cell_path(folder, row, seed)
    if not path.exists():
        return State("missing")
    cell = Cell.load(path)
    if cell.record["key"] == material.key:
        return State("finished", cell)
    settings = changes(cell.record["settings"], material.settings)
    if settings:
        return State("settings", cell, tuple(settings))
    return State("code", cell, tuple(changed_files(cell.record["code"], material.code)))


def changes(old: Any, new: Any, where: str = "") -> list[str]:
    """Dotted keys whose values differ: "+key" was added, "-key" is gone."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [where or "(all)"]
    found = []
    for key in sorted({*old, *new}):
        name = f"{where}.{key}" if where else str(key)
        if key not in old:
            found.append(f"+{name}")
        elif key not in new:
            found.append(f"-{name}")
        else:
            found += changes(old[key], new[key], name)
    return found


def write_cell(folder: Path, record: dict[str, Any], counts: bytes) -> Cell:
    """Write both files; what they replace is remembered in `tried.jsonl` (one line a variant that was tried)."""
    path = cell_path(folder, record["row"], record["seed"])
    if path.exists():
        _remember(folder, Cell.load(path), record)
        atomic.ops.unlink(path)  # killed between the two files, the cell is missing and not a mixture
    sha = atomic.write_bytes(path.with_suffix(".npz"), counts)
    whole = {"format": FORMAT, "version": VERSION, **record, "counts_sha256": sha}
    atomic.write_json(path, whole)
    return Cell(path, whole)


def _remember(folder: Path, old: Cell, record: Mapping[str, Any]) -> None:
    if old.record["settings_digest"] == record["settings_digest"] and old.record["code"] == record["code"]:
        return
    line = {k: old.record.get(k) for k in ("row", "seed", "settings_digest", "key", "mean_iou", "commit")}
    atomic.append_line(folder / TRIED, json.dumps(line, sort_keys=True))


def cells_by_key(results: Path) -> dict[str, Cell]:
    """The cells of all ablations by key: rows that stand in two tables are computed once."""
    found: dict[str, Cell] = {}
    for path in sorted(results.glob("*/*-seed*.json")):
        cell = Cell.load(path)
        found.setdefault(str(cell.record["key"]), cell)
    return found
