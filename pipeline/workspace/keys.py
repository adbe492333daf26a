"""Work folders: named by the digest of everything that determines their result; the oldest folders are removed.

A key never holds a time, a path or a machine's name. `hmsa_core.config.key_material` selects the settings that count.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmsa_core.io import atomic

KEPT = 2  # work folders kept for each job of a stage: the one in use and the one before it


def work_key(material: Mapping[str, Any]) -> str:
    """Sixteen hex digits of the digest of `material` (JSON values only)."""
    return atomic.digest(dict(material))[:16]


def open_work(folder: Path, job: str, material: Mapping[str, Any]) -> Path:
    """Make or reopen `folder`/KEY for a job, and remove all but the last `KEPT` folders of this job.

    Args:
        folder: `work/<stage>` of a workspace (the stage's lock is held).
        job: name of one of the stage's jobs; each job has a separate list of keys.
        material: everything that determines the result; also written to `key.json` for people.
    """
    described = {"job": job, **material}
    key = work_key(described)
    work = folder / key
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "key.json").exists():
        atomic.write_json(work / "key.json", described)
    atomic.sweep_temps(work)
    ledger = _ledger(folder)
    order = [k for k in ledger.get(job, []) if k != key] + [key]
    if order != ledger.get(job):
        atomic.write_json(folder / "keys.json", ledger | {job: order[-KEPT:]})
    for old in order[:-KEPT]:
        atomic.remove_tree(folder / old)
    return work


def used(folder: Path, job: str) -> list[str]:
    """Keys of a job that are on disk, in order of use, the last used at the end."""
    return [key for key in _ledger(folder).get(job, []) if (folder / key / "key.json").exists()]


def _ledger(folder: Path) -> dict[str, Any]:
    # A file lists the keys in order of use: clocks jump, and restored folders carry any time.
    path = folder / "keys.json"
    found: dict[str, Any] = atomic.read_json(path) if path.exists() else {}
    return found
