"""Keys of work folders: the digest of everything that determines a result, and which old keys are kept.

A key never holds a time, a path or a machine's name. Values that only say how fast or where a job runs
(ranks, nodes, loader workers, how often it saves) are left out, so that an interrupted training can go on
with another number of GPUs; what changes the result (threads, precision, batch per rank) is in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmsa_core.config import InferConfig, RuntimeConfig, TrainConfig
from hmsa_core.io import atomic

__all__ = [
    "BESIDE",
    "KEPT",
    "infer_material",
    "open_work",
    "recipe_material",
    "runtime_material",
    "train_material",
    "used",
    "work_key",
]

KEPT = 2  # work folders kept for each job of a stage: the one in use and the one before it
BESIDE = {"runtime", "checkpoint_every", "keep_checkpoints", "validate_every"}  # of a section, not of its recipe
_SPEED_ONLY = {"ranks", "nodes", "workers"}


def work_key(material: Mapping[str, Any]) -> str:
    """Sixteen hex digits of the digest of `material` (JSON values only)."""
    return atomic.digest(dict(material))[:16]


def runtime_material(runtime: RuntimeConfig) -> dict[str, Any]:
    """What of the runtime changes a result: threads, device, precision, memory format, compile."""
    return runtime.model_dump(mode="json", exclude=_SPEED_ONLY)


def train_material(config: TrainConfig) -> dict[str, Any]:
    """What of a training configuration determines the weights."""
    values = config.model_dump(mode="json", exclude=BESIDE)
    return values | {"runtime": runtime_material(config.runtime)}


def recipe_material(config: TrainConfig) -> dict[str, Any]:
    """`train_material` where start weights are told apart by content.

    Whether a control is trained beside and from which path a run starts makes no other weights. Both get fixed
    values, so that keys of default settings stay as they are.
    """
    values = train_material(config)
    return values | {name: value for name, value in {"control": True, "init_from": None}.items() if name in values}


def infer_material(config: InferConfig) -> dict[str, Any]:
    """What of an inference configuration determines labels and codes, and the shards they lie in."""
    return config.model_dump(mode="json", exclude={"runtime"}) | {"runtime": runtime_material(config.runtime)}


def open_work(folder: Path, job: str, material: Mapping[str, Any], *, kept: int = KEPT) -> Path:
    """Make or reopen `folder`/KEY for a job and remove its keys before the last `kept`.

    Args:
        folder: `work/<stage>` of a workspace (the stage's lock is held).
        job: which of the stage's jobs; each keeps its own list of keys.
        material: what determines the result; written to `key.json` for people.
        kept: number of keys of this job that stay on disk.
    """
    key = work_key({"job": job} | dict(material))
    work = folder / key
    work.mkdir(parents=True, exist_ok=True)
    described = work / "key.json"
    if not described.exists():
        atomic.write_json(described, {"job": job} | dict(material))
    atomic.sweep_temps(work)
    _retain(folder, job, key, kept)
    return work


def used(folder: Path, job: str) -> list[str]:
    """Keys of a job that are on disk, the one used last at the end."""
    return [key for key in _ledger(folder).get(job, []) if (folder / key / "key.json").exists()]


def _ledger(folder: Path) -> dict[str, Any]:
    # Order of use is a list in a file: clocks jump, and restored folders carry any time.
    path = folder / "keys.json"
    found: dict[str, Any] = atomic.read_json(path) if path.exists() else {}
    return found


def _retain(folder: Path, job: str, key: str, kept: int) -> None:
    ledger = _ledger(folder)
    order = [k for k in ledger.get(job, []) if k != key] + [key]
    if order != ledger.get(job):
        atomic.write_json(folder / "keys.json", ledger | {job: order[-kept:]})
    for old in order[:-kept]:
        atomic.remove_tree(folder / old)
