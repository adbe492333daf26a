"""One measured table for a README, from the files of the results page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.params import Params
from research.ablation.catalogue import make_ablation
from research.results.ablations import tables_of
from research.results.page import RUNS, Sources, load_run
from research.results.tables import span, table

__all__ = ["readme_table"]

# Comparisons in the README's table: (row, baseline).
_HEADLINE = {
    "scales": (("hierarchical-0.5-1-2", "average-0.5-1-2"), ("hierarchical-0.5-1-2", "hierarchical-1")),
    "labels": (("both", "attention"), ("both-coarse", "coarse")),
}


def readme_table(sources: Sources) -> str:
    """One measured table for the README's first screen: models of both runs, and the headline comparisons."""
    rows: list[tuple[str, ...]] = []
    for name in RUNS:
        record = load_run(sources.runs / f"{name}.json")
        rows += _headline_run(name, record) if record else [(f"{name}: student - control", "not measured yet")]
    rows += _headline_claims(sources.ablations)
    return "\n".join(table(("measured, points of mean IoU", "value [95 % interval]"), rows)) + "\n"


def _headline_run(name: str, record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    main = record["main_setting"]
    rows: list[tuple[str, ...]] = [
        (f"{name}: {model}", span(record["models"][model]["settings"][main]))
        for model in ("teacher", "control", "student")
        if model in record["models"]
    ]
    gain = record["differences"].get("student - control")
    return [*rows, (f"{name}: student - control", span(gain, sign=True))] if gain else rows


def _headline_claims(folder: Path) -> list[tuple[str, ...]]:
    """The headline comparisons, on the confirming seeds where there are some."""
    rows: list[tuple[str, ...]] = []
    for name, wanted in _HEADLINE.items():
        ablation = make_ablation(name, Params.of_profile("demo"))
        found = tables_of(folder / ablation.name, ablation)
        chosen = found.get("confirming") or found.get("exploring")
        if chosen is None:
            rows.append((ablation.title.lower(), f"not measured yet: `{ablation.command}`"))
            continue
        rows += [
            (f"demo: {c.comparison.claim}", span(c.interval, sign=True))
            for c in chosen[1].compared
            if (c.comparison.row, c.comparison.baseline) in wanted
        ]
    return rows
