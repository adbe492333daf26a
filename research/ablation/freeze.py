"""Hashes of generator, recipe and comparisons, written before the confirming seeds are opened and checked afterwards.

Seeds from `FIRST_CONFIRMING` on are for confirming only: they run when research/cells/<name>/freeze.json lists
them and its hashes are those of the code and params.yaml in use. Once such a cell is there, nothing is frozen anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, IntegrityError
from pipeline.params import Params
from pipeline.provenance import REPOSITORY, commit_of
from research.ablation.cells import TRIED, Cell, cells_of, changes
from research.ablation.code import changed_files, source_digests
from research.ablation.material import Material, recipe_material

if TYPE_CHECKING:
    from research.ablation.run import Request

__all__ = [
    "FIRST_CONFIRMING",
    "FREEZE",
    "check_seeds",
    "deviations",
    "differences",
    "is_confirming",
    "read_freeze",
    "write_freeze",
]

FIRST_CONFIRMING = 100
FREEZE = "freeze.json"
_FORMAT = "hmsa-ablation-freeze"


def is_confirming(seed: int) -> bool:
    """Whether a seed is kept for confirming."""
    return seed >= FIRST_CONFIRMING


def read_freeze(folder: Path) -> dict[str, Any] | None:
    """The freeze of an ablation, None without one."""
    path = folder / FREEZE
    if not path.exists():
        return None
    record = atomic.read_json(path)
    if record.get("format") != _FORMAT or record.get("version") != 1:
        raise IntegrityError(f"{path}: not a freeze of version 1")
    if record.get("digest") != _sealed({k: v for k, v in record.items() if k != "digest"}):
        raise IntegrityError(f"{path}: changed since it was written", hint="restore it from git")
    return record


def write_freeze(
    params: Params, request: Request, seeds: tuple[int, ...], *, variants: int, note: str
) -> dict[str, Any]:
    """Freeze generator, recipe and comparisons; `variants` is how many were tried before, besides the recorded ones.

    Raises:
        ConfigError: seeds that are no confirming ones, or one that was opened already.
    """
    wrong = [s for s in seeds if not is_confirming(s)]
    if wrong or not seeds:
        raise ConfigError(f"confirming seeds are {FIRST_CONFIRMING} or more, got {wrong[0] if wrong else 'none'}")
    opened = [c.seed for c in _cells(request.folder) if is_confirming(c.seed)]
    if opened:
        raise ConfigError(f"{request.folder}: seed {opened[0]} was opened already: what is confirmed stays as it is")
    if not note.strip():
        raise ConfigError("a freeze says how many variants were tried and how they were chosen", hint="--note TEXT")
    material = recipe_material(params, request.ablation.rows, request.scale)
    record = {
        "format": _FORMAT,
        "version": 1,
        "ablation": request.ablation.name,
        "confirming_seeds": sorted(seeds),
        "variants_tried": variants + _recorded_variants(request.folder),
        "note": note.strip(),
        "epochs_scale": request.scale.epochs,
        **_frozen(request, material),
        **commit_of(REPOSITORY, sorted(material.code)),
    }
    record["digest"] = _sealed(record)
    atomic.write_json(request.folder / FREEZE, record)
    return record


def _sealed(record: dict[str, Any]) -> str:
    return atomic.digest(record)


def _frozen(request: Request, material: Material) -> dict[str, Any]:
    return {
        "settings": material.settings,
        "settings_digest": material.settings_digest,
        "code": material.code,
        "generator": atomic.digest(source_digests(("scenes",)))[:16],
        "comparisons": [[c.row, c.baseline, c.claim, c.hurts, c.allowed] for c in request.ablation.comparisons],
    }


def _recorded_variants(folder: Path) -> int:
    """Results that were replaced by another variant: of the row and seed that was tried most often."""
    replaced = folder / TRIED
    if not replaced.exists():
        return 0
    tried: dict[tuple[str, int], set[str]] = {}
    for line in map(json.loads, replaced.read_text("utf-8").splitlines()):
        tried.setdefault((line["row"], line["seed"]), set()).add(line["settings_digest"])
    return max(len(digests) for digests in tried.values())


def _cells(folder: Path) -> list[Cell]:
    return list(cells_of(folder))


def differences(params: Params, request: Request, record: dict[str, Any]) -> list[str]:
    """What is no longer as it was frozen: settings, files, comparisons."""
    material = recipe_material(params, request.ablation.rows, request.scale)
    now = _frozen(request, material)
    found = changes(record["settings"], now["settings"]) + changed_files(record["code"], now["code"])
    if record["generator"] != now["generator"]:
        found.append("the scene generator")
    if record["comparisons"] != now["comparisons"]:
        found.append("the comparisons")
    return found


def deviations(record: dict[str, Any], cell: Cell) -> list[str]:
    """What of a confirming cell is not as the freeze says, the seed aside."""
    frozen, made = record["settings"].get(cell.row, {}), cell.record["settings"]
    found = [d for d in changes(frozen, made) if d != "training.seed"]
    code = {name: digest for name, digest in record["code"].items() if name in cell.record["code"]}
    found += changed_files(code, cell.record["code"])
    if cell.record["training"] is not None and cell.seed not in record["confirming_seeds"]:
        found.append(f"seed {cell.seed}")
    return found


def check_seeds(params: Params, request: Request, seeds: Iterable[int]) -> None:
    """Refuse confirming seeds that no freeze lists, or whose freeze is not of this code and these settings."""
    wanted = sorted({seed for seed in seeds if is_confirming(seed)})
    if not wanted:
        return
    record = read_freeze(request.folder)
    name = request.ablation.command.split()[1].removeprefix("ablation-")
    command = f"autolabel ablate {name} --freeze {','.join(map(str, wanted))} --variants N --note TEXT"
    if record is None or not set(wanted) <= set(record["confirming_seeds"]):
        raise ConfigError(f"seed {wanted[0]} is for confirming: freeze generator and recipe first", hint=command)
    found = differences(params, request, record)
    if found:
        raise ConfigError(
            f"{request.folder / FREEZE}: {len(found)} things changed since the freeze, first {found[0]}",
            hint="go back to the frozen commit, or withdraw the freeze before any confirming seed is opened",
        )
