"""Markdown of where a number of the results page was made: command, seed, machine, versions, commit, time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.results.tables import folded, points, table

__all__ = ["cells_lines", "minutes_line", "provenance_lines"]

_Record = Mapping[str, Any]


def provenance_lines(records: Sequence[_Record]) -> list[str]:
    """Machines, versions and commits of some records, each named once."""
    machines = sorted({_machine(r) for r in records})
    versions = sorted({", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in records})
    commits = sorted({_commit(r) for r in records})
    return [f"Machine: {'; '.join(machines)}. {'; '.join(versions)}. Commit: {', '.join(commits)}."]


def cells_lines(records: Iterable[_Record]) -> list[str]:
    """One line a cell, folded: its figure, and the command, machine and commit that made it."""
    header = ("row", "seed", "mIoU", "training, s", "evaluation, s", "command", "commit", "machine")
    rows = [
        (r["row"], str(r["seed"]), points(r["mean_iou"]), _seconds(r, "train"), _seconds(r, "evaluate"),
         f"`{r['command']}`", _commit(r), _machine(r) + _origin(r))
        for r in records
    ]  # fmt: skip
    return folded("Where each number was made", table(header, rows))


def minutes_line(records: Iterable[_Record]) -> list[str]:
    """Minutes of training and evaluation of each seed; what several rows share is counted once, a copied cell never."""
    spent: dict[int, dict[str, float]] = {}
    for r in records:
        if "copied_from" not in r:
            once = r["training"]["weights_sha256"] if r["training"] else r["row"]
            spent.setdefault(r["seed"], {})[once] = r["seconds"]["train"] + r["seconds"]["evaluate"]
    told = [f"{seed}: {sum(parts.values()) / 60:.0f}" for seed, parts in sorted(spent.items())]
    return [f"Minutes of training and evaluation by seed, all its rows: {', '.join(told)}."] if told else []


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
