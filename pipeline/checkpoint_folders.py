"""Checkpoint folders as the registry sees them: whole or damaged, which weights, described how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hmsa_core.io import atomic, sealed
from hmsa_core.io.errors import HmsaError, IntegrityError, one_line
from hmsa_core.lineage import LINEAGE_FILE
from hmsa_core.taxonomy import ClassTable

_HISTORY = ("digest", "lineage", "extra")  # of model.json: how the weights came to be, not what they are


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint folder's files, or "": missing, unreadable, or not what their digests say."""
    weights, meta = checkpoint / "model.safetensors", checkpoint / "model.json"
    for path in (weights, meta):
        if not path.exists():
            return f"{path} is missing"
    try:
        value = sealed.read(meta)
        actual = atomic.sha256_file(weights)
    except HmsaError as error:
        return error.message
    except OSError as error:
        return one_line(error)
    recorded = value.get("weights_sha256")
    if actual != recorded:
        return f"{weights}: bytes differ from model.json's digest (sha256 is {actual}, recorded {recorded})"
    return _lineage_damage(checkpoint / LINEAGE_FILE, value.get("lineage"))


def _lineage_damage(path: Path, described: object) -> str:
    """The list of what a model learned from: without it nobody may be judged on any image."""
    expected = described.get("lineage_sha256") if isinstance(described, dict) else None
    if expected is None:
        return ""
    try:
        actual = atomic.sha256_file(path)
    except FileNotFoundError:
        return f"{path}: missing, though model.json refers to it"
    except OSError as error:
        return one_line(error)
    return "" if actual == expected else f"{path}: SHA-256 is not the one in model.json"


def knows_other_classes(checkpoint: Path, classes: ClassTable) -> bool:
    """Whether a checkpoint states other classes than these; False if it states none."""
    known = atomic.read_json(checkpoint / "model.json").get("class_table")
    return known is not None and ClassTable.from_json(known).classes != classes.classes


def version_damage(folder: Path) -> str:
    """What is wrong with a registered model: its checkpoint, or its record is torn (one without is not listed)."""
    record = folder / "record.json"
    try:
        if record.exists():
            read_record(record)
    except HmsaError as error:
        return error.message
    return damage(folder)


def read_record(path: Path) -> dict[str, Any]:
    """A version's record.json; one that is torn, or whose figures cannot be told, is an IntegrityError."""
    record = atomic.read_json(path)
    if not isinstance(record.get("number"), int):
        raise IntegrityError(f"{path}: number is {record.get('number')!r}, expected a whole number")
    if not isinstance(metrics := record.get("metrics", {}), dict):
        raise IntegrityError(f"{path}: metrics is {metrics!r}, expected an object")
    if (miou := metrics.get("mean_iou")) is not None and not (isinstance(miou, int | float) and 0 <= miou <= 1):
        raise IntegrityError(f"{path}: metrics.mean_iou is {miou!r}, expected a number from 0 to 1")
    return record


def _description(meta: dict[str, Any]) -> dict[str, Any]:
    """What model.json says of weights: other classes, inference or shape make another model of the same bytes."""
    return {key: value for key, value in meta.items() if key not in _HISTORY}


def describes(folder: Path, checkpoint: Path) -> bool:
    """Whether a version of the same weights is described as a checkpoint is, as far as its description can be read."""
    try:
        meta = sealed.read(folder / "model.json")
    except (HmsaError, OSError):
        return True
    return _description(meta) == _description(atomic.read_json(checkpoint / "model.json"))


def weights_by_name(folder: Path) -> str:
    """Digest of a version's weights by its model.json, "" where that cannot be read."""
    try:
        return str(atomic.read_json(folder / "model.json").get("weights_sha256", ""))
    except (HmsaError, OSError):
        return ""
