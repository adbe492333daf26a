"""The morning page's content: what happened tonight, as one JSON-ready object. `morning_page` draws it.

The page must be readable in a minute by somebody who was asleep: a verdict in a sentence, what differs from
yesterday, where images went, what can be trusted, what to look at, what it cost, and what to type.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from hmsa_core.data.index import Index, read_quarantine
from hmsa_core.io import atomic
from hmsa_core.io.errors import HmsaError
from hmsa_core.labels import LabelStore, StoreStatistics, ThresholdPolicy
from hmsa_core.labels.review import ReviewFile
from pipeline.disk import disk_need
from pipeline.nightly import history
from pipeline.nightly.cost import cost_of
from pipeline.nightly.gatekeeper import aa_file
from pipeline.nightly.ranking import expected_loss
from pipeline.render import points
from pipeline.stages.auto_infer import told_of_self_taught
from pipeline.stages.precision import used_policy
from pipeline.workspace import Workspace

Used = tuple[ThresholdPolicy, dict[str, dict[str, Any]]]  # the policy in use, and its figures by class

__all__ = ["INSPECTOR", "PAGE", "Tonight", "as_markdown", "collect", "tables"]

PAGE = "work/nightly/morning.html"
INSPECTOR = "http://127.0.0.1:8733/"  # `autolabel serve` with its own port
_QUEUE = 20  # images: a minute each
_CHOSEN, _RANDOM = 12, 3  # pictures: by expected loss, and at random
_LISTED = 50  # images behind a number


@dataclass(frozen=True)
class Tonight:
    """What the flow itself knows of this night."""

    arrived: Mapping[str, Any]  # what `discover` found
    verdict: Mapping[str, Any] = field(default_factory=dict)  # what the gate said; {} when nobody was judged
    overrides: Mapping[str, Any] = field(default_factory=dict)  # parameters of this run
    seconds: Mapping[str, float] = field(default_factory=dict)  # of the stages that had something to do
    failed: str = ""  # why the night ended early
    tail: tuple[str, ...] = ()  # last lines of the stage that failed
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the run, but `overrides`, where not the usual ones


def collect(ws: Workspace, tonight: Tonight) -> dict[str, Any]:
    """Read tonight's outputs, compare them with last night's, and remember the night."""
    night = history.describe(ws, tonight.overrides)
    statistics = _json(ws, "labels/final/statistics.json")
    before = (history.nights(ws) or [{}])[-1]
    used = _used(ws)
    counts, links = _counts(ws, tonight.arrived, statistics)
    if tonight.failed:  # DVC empties a stage's output before it runs: what the stage did not make is not gone
        counts |= _kept_counts(ws, before.get("counts", {}))
    verdict = dict(tonight.verdict)
    page = {
        "arguments": dict(tonight.arguments),
        "kind": _kind(tonight),
        "sentence": _sentence(tonight),
        "decision": verdict.get("decision", ""),
        "tail": list(tonight.tail),
        "night": night,
        "differs": history.differs(ws, night),
        "funnel": _funnel(counts, before.get("counts", {}), links, tonight.arrived),
        "trust": _trust(ws, used, statistics, before.get("coverage", {})),
        "drift": _drift(ws),
        "verdict": verdict,
        "cost": cost_of(ws, tonight.seconds, statistics),
        "health": _health(ws, tonight),
        **_worth_a_look(ws, used),
    }
    page["lines"] = history.remember(ws, _line(page, statistics, counts))
    return page


def _json(ws: Workspace, relative: str) -> dict[str, Any]:
    path = ws.path(relative)
    return atomic.read_json(path) if path.exists() else {}


def _kind(tonight: Tonight) -> str:
    """One word for the badge."""
    if tonight.failed:
        return "failed"
    if not tonight.verdict:
        return "not judged"
    return "promoted" if tonight.verdict.get("promoted") else "kept"


def _sentence(tonight: Tonight) -> str:
    if tonight.failed:
        return f"The night ended early: {tonight.failed}"
    return str(tonight.verdict.get("sentence") or "Nobody was judged tonight.")


# -- from arrived to corrected ----------------------------------------------------------------------


def _counts(
    ws: Workspace, arrived: Mapping[str, Any], statistics: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, list[list[str]]]]:
    """How many images (pixels, per cent) are at each step, and [name, link] of the first of them."""
    table = ws.path("data/index/quarantine.parquet")
    rows = [row for row in read_quarantine(table) if row.root == "target"] if table.exists() else []
    copies = [row for row in rows if row.reason.startswith("duplicate")]
    refused = [row for row in rows if not row.reason.startswith("duplicate")]
    index = ws.path("data/index/target.parquet")
    has_store = ws.path("labels/raw/manifest.json").exists()
    rows_of_store = list(LabelStore.open(ws.path("labels/raw")).rows()) if has_store else []
    names = [row["name"] for row in rows_of_store]
    pictures = {row["name"]: row["image_sha256"] for row in rows_of_store}
    marks = ReviewFile(ws.path("labels/raw"), pictures).marks()
    known = {sample.name for sample in Index.load(index).samples} if index.exists() else set()
    # A label without an image is no image, and one whose image is used is counted with it.
    out = {row.name for row in rows if row.part == "image" or row.reason != "unpaired"}
    counts = {
        "arrived": len(known | out),
        "duplicate": len(copies),
        "quarantined": len(refused),
        "labelled": len(names),
        "kept": round(100 * statistics.get("labelled_share", 0.0), 2),
        "conflicts": sum(row["pixels"] for row in statistics.get("conflicts", [])),
        "corrected": len({mark.name for mark in marks}),
    }
    examples = arrived.get("examples", {})
    links = {
        "arrived": [[name, _file(ws, path)] for name, path in examples.get("arrived", [])],
        "duplicate": [[f"{row.name} ({row.detail or row.reason})", _file(ws, row.path)] for row in copies[:_LISTED]],
        "quarantined": [[f"{row.name}: {row.reason}", _file(ws, row.path)] for row in refused[:_LISTED]],
        "labelled": [["all of them in the inspector", INSPECTOR]] if names else [],
        "kept": [["those that keep least first", _inspect(sort="coverage")]] if names else [],
        "conflicts": [["those with most conflicts first", _inspect(sort="conflict")]] if names else [],
        "corrected": [[name, _inspect(image=name)] for name in sorted({mark.name for mark in marks})[:_LISTED]],
    }
    near = [[f"{name} is like {twin}", _file(ws, path)] for name, twin, path in examples.get("near", [])]
    links["arrived"] = [*near, *links["arrived"]][:_LISTED]
    return counts, links


def _kept_counts(ws: Workspace, before: Mapping[str, float]) -> dict[str, float]:
    """Counts of the night before, of what this one has no output for."""
    stores = {"labels/raw": ("labelled",), "labels/final": ("kept", "conflicts")}
    gone = [key for store, keys in stores.items() if not ws.path(f"{store}/manifest.json").exists() for key in keys]
    return {key: before[key] for key in gone if key in before}


_STEPS = {
    "arrived": "images arrived",
    "duplicate": "copies of known images",
    "quarantined": "quarantined",
    "labelled": "labelled by the teacher",
    "kept": "pixels kept, %",
    "conflicts": "pixels against a human's label",
    "corrected": "corrected in review",
}


def _funnel(
    counts: Mapping[str, float],
    before: Mapping[str, float],
    links: Mapping[str, list[list[str]]],
    arrived: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A row a step: what this night added, and where things stand. Images of `links` hang on the numbers."""
    added = {key: round(value - before.get(key, 0.0), 2) for key, value in counts.items()}
    added["arrived"] = arrived.get("arrived", 0)
    return [
        {"step": words, "tonight": added[key], "in all": counts[key], "images": links[key]}
        for key, words in _STEPS.items()
    ]


def _file(ws: Workspace, path: str) -> str:
    """Relative address, from the page, of a file of the target root."""
    return quote(Path(os.path.relpath(ws.roots["target"] / path, ws.path(PAGE).parent)).as_posix())


def _inspect(**query: str) -> str:
    return f"{INSPECTOR}?{urlencode(query)}"


# -- what can be trusted ----------------------------------------------------------------------------


def _trust(
    ws: Workspace, used: Used | None, statistics: Mapping[str, Any], before: Mapping[str, float]
) -> list[dict[str, Any]]:
    if used is None or not used[1]:
        return []
    policy, figures = used
    now = {row["name"]: row for row in statistics.get("classes", [])}
    judged = _json(ws, "evaluation/per_class.json")
    rows = []
    for entry in policy.entries:
        own, row = figures.get(entry.name, {}), now.get(entry.name, {})
        report = judged.get(entry.name, {}).get("kept", {})
        coverage, old = row.get("coverage"), before.get(entry.name)
        rows.append(
            {
                "class": entry.name,
                "status": row.get("status", entry.status),
                "threshold": row.get("threshold", entry.threshold) or "–",
                "precision": points(own.get("precision")),
                "blocks": own.get("blocks", 0),
                "report set": points(report.get("precision")),
                "marginal": points(own.get("marginal")),
                "coverage": points(coverage),
                "change": "" if old is None or coverage is None else _signed(100 * (coverage - old)),
                "on void": points(own.get("void")),
            }
        )
    return rows


def _used(ws: Workspace) -> Used | None:
    """Policy in use and its figures; None where there are no labels, or none that it fits."""
    try:
        return used_policy(ws, LabelStore.open(ws.path("labels/raw")))
    except HmsaError:  # a night that failed half-way: labels of one teacher, a policy of another
        return None


def _signed(value: float) -> str:
    return f"{value:+.1f}" if abs(value) >= 0.05 else "="


def _drift(ws: Workspace) -> list[dict[str, Any]]:
    """Classes whose evidence does not cover a city (drive, camera), worst first."""
    cities = _json(ws, "labels/shift.json").get("cities", {})
    rows = [
        {
            "where": where,
            "class": row["name"],
            "status": row["status"],
            "pixels": row["pixels"],
            "precision": points(row.get("adjusted")),
            "usual": points(row.get("usual")),
        }
        for where, classes in cities.items()
        for row in classes
        if row["status"] not in ("covered", "nothing kept")
    ]
    return sorted(rows, key=lambda row: -int(row["pixels"]))


# -- what to look at --------------------------------------------------------------------------------


def _worth_a_look(ws: Workspace, used: Used | None) -> dict[str, Any]:
    """Pictures by expected loss and at random, and twenty minutes of review."""
    if used is None:
        return {"chosen": [], "random": [], "queue": []}
    raw = ws.path("labels/raw")
    statistics = StoreStatistics.open(raw)
    loss = expected_loss(statistics, used[0])
    statistics.close()
    order = (-loss).argsort(kind="stable")
    ranked = [statistics.names[i] for i in order]
    # "At random", and yet the same on a re-run: drawn by the store's own digest.
    seed = statistics.manifest["digest"]
    rest = sorted(ranked[_CHOSEN:], key=lambda name: atomic.digest([seed, name]))
    queue = [
        {"name": statistics.names[i], "loss": points(float(loss[i])), "link": _inspect(image=statistics.names[i])}
        for i in order[:_QUEUE]
    ]
    chosen = [[row["name"], f"{row['loss']} %"] for row in queue[:_CHOSEN]]
    return {"chosen": chosen, "random": [[name, "at random"] for name in rest[:_RANDOM]], "queue": queue}


# -- health -----------------------------------------------------------------------------------------


def _health(ws: Workspace, tonight: Tonight) -> dict[str, Any]:
    need = disk_need(ws)
    gate, verdict = ws.params.evaluate.gate, tonight.verdict
    runs = len(_json(ws, str(aa_file(ws).relative_to(ws.root))).get("mean_iou", []))
    every = _json(ws, "labels/final/statistics.json").get("skipped", [])
    skipped = [row for row in every if row.get("reason") != "flagged in review"]  # that was a person's word
    warnings = list(verdict.get("notes", []))
    if need.free < 2 * need.total:
        warnings.append("less than twice the disk that a night needs is free: `dvc gc --workspace`")
    if gate.seed_sd is None and runs < gate.min_aa_runs:
        warnings.append(
            f"{runs} of {gate.min_aa_runs} A/A trainings are there: nothing can be promoted until "
            "`autolabel models aa` has run"
        )
    if skipped:
        warnings.append(f"{len(skipped)} images could not be labelled, the first: {skipped[0]['name']}")
    labelled = _json(ws, "metrics/auto-infer.json")
    if labelled.get("self_taught"):
        warnings.append(told_of_self_taught(labelled["self_taught"], labelled["images"]))
    if tonight.arrived.get("gone"):
        warnings.append(f"{tonight.arrived['gone']} images of the last index are gone from the folder")
    return {
        "free_gib": round(need.free / 2**30, 1),
        "needed_gib": round(need.total / 2**30, 1),
        "aa_runs": runs,
        "look": verdict.get("look"),
        "alpha": verdict.get("alpha"),
        "warnings": warnings,
    }


def _line(page: Mapping[str, Any], statistics: Mapping[str, Any], counts: Mapping[str, float]) -> dict[str, Any]:
    """What the next nights need to know of this one."""
    gain = page["verdict"].get("gain", {})
    return {
        "night": page["night"],
        "kind": page["kind"],
        "candidate": gain.get("candidate"),
        "gain": gain.get("value"),
        "kept": statistics.get("labelled_share"),
        "promoted": page["verdict"].get("promoted"),
        "images": statistics.get("images"),
        "hours": page["cost"]["hours"],
        "counts": dict(counts),
        "coverage": {row["name"]: row["coverage"] for row in statistics.get("classes", [])},
    }


# -- Prefect's artifacts ----------------------------------------------------------------------------


def as_markdown(page: Mapping[str, Any], path: Path) -> str:
    """The page's head as Markdown."""
    lines = [f"## {page['sentence']}", page["decision"], *(f"- {line}" for line in page["differs"])]
    if page["tail"]:
        lines.append("```\n" + "\n".join(page["tail"][-15:]) + "\n```")
    lines += [f"- **{warning}**" for warning in page["health"]["warnings"]]
    return "\n\n".join(line for line in [*lines, f"Whole page: `{path}`"] if line) + "\n"


def tables(page: Mapping[str, Any]) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Artifact key -> (description, rows of plain values)."""
    cost = page["cost"]
    verdict = [
        {k: row[k] for k in ("name", "candidate", "incumbent", "gain", "verdict", "why")}
        for row in page["verdict"].get("classes", [])
    ]
    found = {
        "auto-label-funnel": (
            "From arrived to corrected",
            [{k: v for k, v in row.items() if k != "images"} for row in page["funnel"]],
        ),
        "auto-label-trust": ("Thresholds and precision per class", page["trust"]),
        "auto-label-verdict": ("Candidate against incumbent, class by class", verdict),
        "auto-label-cost": (
            "Seconds of each stage that had something to do",
            [{"stage": stage, "seconds": s} for stage, s in cost["stages"].items()],
        ),
        "auto-label-queue": ("Your twenty minutes", page["queue"]),
    }
    return {key: value for key, value in found.items() if value[1]}
