"""Markdown of where a number of the results page was made: command, seed, machine, versions, commit, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from research.results.tables import folded, points, table

__all__ = ["cells_lines", "minutes_line", "provenance_lines"]

_Record = Mapping[str, Any]


def provenance_lines(records: Sequence[_Record]) -> list[str]:
    """Machines, versions and commits of some records, each named once."""
    machines = sorted({_machine(r) for r in records})
    versions = sorted({", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in records})
    commits = sorted({_commit(r) for r in records})
    return [f"Machine: {'; '.join(machines)}. {'; '.join(versions)}. Commit: {', '.join(commits)}."]


def cells_lines(records: Sequence[_Record], workspace: str) -> list[str]:
    """One line a cell, folded: its figure, and the command, machine and commit that made it.

    Args:
        records: of a table's cells.
        workspace: where its commands run ("" = the checkout's own).
    """
    at = f" --workspace {workspace}" if workspace else ""
    header = ("row", "seed", "mIoU", "training, s", "evaluation, s", "command", "commit", "machine")
    rows = [
        (
            r["row"],
            str(r["seed"]),
            points(r["mean_iou"]),
            _seconds(r, "train"),
            _seconds(r, "evaluate"),
            f"`{r['command']}{at}`",
            _commit(r),
            _machine(r) + _origin(r),
        )
        for r in records
    ]
    told = "Rows that share a training show its whole time, and their part of the evaluation's."
    return folded("Where each number was made", [told, "", *table(header, rows)])


def minutes_line(records: Sequence[_Record]) -> list[str]:
    """Minutes of training and evaluation of each seed; a training that rows share counts once, a copied cell never."""
    own = [r for r in records if "copied_from" not in r and r["training"]]
    trained: dict[int, dict[str, float]] = {}
    for r in own:
        of_seed, weights = trained.setdefault(r["seed"], {}), r["training"]["weights_sha256"]
        of_seed[weights] = max(of_seed.get(weights, 0.0), r["seconds"]["train"] or 0.0)
    told = []
    for seed, parts in sorted(trained.items()):
        evaluated = sum(r["seconds"]["evaluate"] or 0.0 for r in own if r["seed"] == seed)
        told.append(f"{seed}: {(sum(parts.values()) + evaluated) / 60:.0f}")
    if not told:
        return []
    copied = sum("copied_from" in r for r in records)
    without = f" (without {copied} copied cell{'s' * (copied != 1)})" if copied else ""
    return [f"Minutes of training and evaluation by seed{without}: {', '.join(told)}."]


def _seconds(record: _Record, part: str) -> str:
    value = record["seconds"][part]
    return f"{value:.0f}" if value else "-"


def _origin(record: _Record) -> str:
    return f" (copied from {record['copied_from']})" if "copied_from" in record else ""


def _commit(record: _Record) -> str:
    return (record["commit"] or "no git")[:12] + (" + changes" if record["uncommitted"] else "")


def _machine(record: _Record) -> str:
    machine = record["machine"]
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ""
    family = ", ".join(f"{k.removeprefix('cpu ')} {v}" for k, v in machine.get("family", {}).items())
    return f"{machine['processor']}{f' ({family})' if family else ''}, {machine['cores']} cores{gpus}"
