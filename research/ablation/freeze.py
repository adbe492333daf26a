"""Confirming seeds: the recipe is frozen in `tables/frozen.json` before the first of them is opened.

Seeds from `FIRST_CONFIRMING` on run only when a freeze lists them and the recipe still has its digest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError
from pipeline.jobs.provenance import describe_run
from pipeline.workspace.params import Params
from research.ablation.intervals import FIRST_CONFIRMING
from research.ablation.plan import Ablation
from research.ablation.recipe import Scale, recipe_digest
from research.figures import Made, figures

_FILE = "frozen.json"


def read_freeze(tables: Path, name: str) -> dict[str, Any] | None:
    """Seeds, recipe digest, variants tried, note and commit of a table's freeze; None where nothing is frozen."""
    path = tables / _FILE
    found: dict[str, Any] | None = atomic.read_json(path).get(name) if path.exists() else None
    return found


def write_freeze(
    params: Params, ablation: Ablation, scale: Scale, tables: Path, seeds: tuple[int, ...], variants: int, note: str
) -> None:
    """Freeze recipe and comparisons of a table.

    Raises:
        ConfigError: seeds below `FIRST_CONFIRMING`, a confirming seed that was run before, or no note.
    """
    wrong = [s for s in seeds if s < FIRST_CONFIRMING]
    if wrong:
        raise ConfigError(f"confirming seeds are {FIRST_CONFIRMING} or more, got {wrong[0]}")
    lines = figures(tables / f"{ablation.name}.parquet")
    opened = sorted({line.seed for line in lines if line.seed is not None and line.seed >= FIRST_CONFIRMING})
    if opened:
        raise ConfigError(f"{ablation.name}: seed {opened[0]} was run before: what is confirmed stays as it is")
    if not note.strip():
        raise ConfigError("a freeze says how the recipe was chosen", hint="--note TEXT")
    path = tables / _FILE
    known = atomic.read_json(path) if path.exists() else {}
    frozen = {
        "seeds": sorted(seeds),
        "recipe": recipe_digest(params, ablation, scale),
        "variants_tried": variants,
        "note": note.strip(),
        "commit": Made.of(describe_run(("hmsa_core", "pipeline", "research"))).commit,
    }
    atomic.make_folder(tables)
    atomic.write_json(path, known | {ablation.name: frozen})


def check_seeds(params: Params, ablation: Ablation, scale: Scale, tables: Path, seeds: Iterable[int]) -> None:
    """Refuse confirming seeds that no freeze lists, or whose recipe was changed since (ConfigError)."""
    wanted = sorted({seed for seed in seeds if seed >= FIRST_CONFIRMING})
    if not wanted:
        return
    record = read_freeze(tables, ablation.name)
    if record is None or not set(wanted) <= set(record["seeds"]):
        raise ConfigError(
            f"seed {wanted[0]} is for confirming: freeze the recipe first",
            hint=f"--freeze {','.join(map(str, wanted))} --variants N --note TEXT",
        )
    if record["recipe"] != recipe_digest(params, ablation, scale):
        raise ConfigError(
            f"{ablation.name}: the recipe was changed since it was frozen at commit {record['commit']}",
            hint="go back to that commit, or freeze the recipe anew while no confirming seed has run",
        )
