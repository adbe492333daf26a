"""Content of the morning page: what happened tonight, as one object that `morning_page` and Prefect's artifacts show.

Somebody who was asleep must be able to read the page in a minute. It has a verdict in a sentence, what differs from
yesterday, where images went and what can be trusted. It also says what to look at, what it cost, and what to type.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from hmsa_core.data.index import Index, read_quarantine
from hmsa_core.io import atomic
from hmsa_core.io.errors import HmsaError, one_line
from hmsa_core.labels import LabelStore, StoreStatistics, ThresholdPolicy
from hmsa_core.labels.review import ReviewFile
from hmsa_core.labels.thresholds.certificate import Certificate
from pipeline.jobs.measure import used_policy
from pipeline.night import history
from pipeline.night.figures import cost_of, expected_loss, precision_alarms, table_of, wrong_regions
from pipeline.night.gatekeeper import measured_aa
from pipeline.report.render import Table, points
from pipeline.report.results import class_rows, class_table, diet, json_of
from pipeline.review.audit import AuditFile, audit_path
from pipeline.review.certify import CertificateFile
from pipeline.review.view import StoreView
from pipeline.stages.auto_infer import told_of_self_taught
from pipeline.stages.disk import disk_need
from pipeline.workspace.workspace import Workspace

Used = tuple[ThresholdPolicy, dict[str, dict[str, Any]]]  # the policy in use, and its figures by class

PAGE = "work/nightly/morning.html"
_INSPECTOR = "http://127.0.0.1:8733/"  # `autolabel serve` with its own port
_QUEUE = 20  # regions: a minute each
_CHOSEN, _RANDOM = 12, 3  # pictures: by expected loss, and at random
_LISTED = 50  # images behind a number
_CARRIED = ("counts", "coverage")  # what the next night compares its own with
_STEPS = {
    "arrived": "images arrived",
    "duplicate": "copies of known images",
    "quarantined": "quarantined",
    "labelled": "labelled by the teacher",
    "kept": "pixels kept, %",
    "conflicts": "pixels against a human's label",
    "corrected": "corrected in review",
}
_TRUST = {
    "class": "class",
    "status": "status",
    "threshold": "threshold",
    "precision": "precision",
    "blocks": "blocks",
    "report precision": "report set",
    "marginal": "marginal",
    "labels coverage": "coverage",
    "change": "change",
    "void": "on void",
}


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
    began: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")

    @property
    def kind(self) -> str:
        """The night in one or two words."""
        if self.failed or not self.verdict:
            return "failed" if self.failed else "not judged"
        return "promoted" if self.verdict.get("promoted") else "kept"

    def head(self) -> dict[str, Any]:
        """What a page says of any night."""
        sentence = f"The night ended early: {self.failed}" if self.failed else self.verdict.get("sentence")
        return {
            "kind": self.kind,
            "sentence": str(sentence or "Nobody was judged tonight."),
            "began": self.began,
            "decision": self.verdict.get("decision", ""),
            "tail": list(self.tail),
            "overrides": dict(self.overrides),
            "arguments": dict(self.arguments),
            "verdict": dict(self.verdict),
            "stages": {stage: round(s, 1) for stage, s in self.seconds.items()},
            "differs": [],
            "warnings": [],
        }


def collect(ws: Workspace, tonight: Tonight) -> dict[str, Any]:
    """Read tonight's outputs, compare them with last night's, and remember the night.

    A night may have failed on a file that the whole page needs, such as params.yaml. Its page then holds why it
    failed and what to type, and lacks the parts that were not read.
    """
    try:
        return _whole(ws, tonight)
    except (HmsaError, OSError) as error:
        if not tonight.failed:
            raise
        return _least(ws, tonight, error)


def _whole(ws: Workspace, tonight: Tonight) -> dict[str, Any]:
    night = history.describe(ws, tonight.overrides)
    statistics = json_of(ws, "labels/final/statistics.json")
    before = (history.nights(ws) or [{}])[-1]
    used = _used(ws)
    counts, links = _counts(ws, tonight.arrived, statistics)
    if tonight.failed:  # DVC empties a stage's output before it runs: what the stage did not make is not gone
        counts |= _kept_counts(ws, before.get("counts", {}))
    added = {key: round(value - before.get("counts", {}).get(key, 0.0), 2) for key, value in counts.items()}
    added["arrived"] = tonight.arrived.get("arrived", 0)
    page = tonight.head() | {
        "differs": history.differs(ws, night),
        "funnel": [
            {"step": words, "tonight": added[key], "in all": counts[key], "images": links[key]}
            for key, words in _STEPS.items()
        ],
        "trust": _trust(ws, used, statistics, before.get("coverage", {})),
        "diet": diet(ws),
        "drift": _drift(ws),
        "cost": cost_of(ws, tonight.seconds, statistics),
        **_health(ws, tonight),
        **_worth_a_look(ws, used),
    }
    page["warnings"] = [*page.pop("alarms"), *page["warnings"]]
    gain = tonight.verdict.get("gain", {})
    line = {
        "night": night,
        "kind": tonight.kind,
        "candidate": gain.get("candidate"),
        "gain": gain.get("value"),
        "kept": statistics.get("labelled_share"),
        "promoted": tonight.verdict.get("promoted"),
        "images": statistics.get("images"),
        "hours": page["cost"]["hours"],
        "counts": counts,
        "coverage": {row["name"]: row["coverage"] for row in statistics.get("classes", [])},
    }
    return page | {"lines": history.remember(ws, line)}


def _least(ws: Workspace, tonight: Tonight, hindered: HmsaError | OSError) -> dict[str, Any]:
    why = hindered.message if isinstance(hindered, HmsaError) else one_line(f"{type(hindered).__name__}: {hindered}")
    page = tonight.head()
    page["warnings"] = [] if why in tonight.failed else [f"the rest of this page is missing: {why}"]
    try:
        before = (history.nights(ws) or [{}])[-1]
    except HmsaError as error:
        page["warnings"] += [] if error.message in (why, tonight.failed) else [error.message]
        return page
    # What this night was made with is not known: the next one is compared with the last of which it is.
    night = {**before.get("night", {}), "overrides": page["overrides"]}
    line = {key: before[key] for key in _CARRIED if key in before}
    return page | {"lines": history.remember(ws, {**line, "night": night, "kind": "failed"})}


# -- from arrived to corrected -----------------------------------------------------------------------


def _counts(
    ws: Workspace, arrived: Mapping[str, Any], statistics: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, list[list[str]]]]:
    """How many images (pixels, per cent) are at each step, and [name, link] of the first of them."""
    table, index = ws.path("data/index/quarantine.parquet"), ws.path("data/index/target.parquet")
    rows = [row for row in read_quarantine(table) if row.root == "target"] if table.exists() else []
    copies = [row for row in rows if row.reason.startswith("duplicate")]
    refused = [row for row in rows if not row.reason.startswith("duplicate")]
    raw = ws.path("labels/raw")
    stored = LabelStore.open(raw).pictures() if (raw / "manifest.json").exists() else {}
    marked = sorted({m.name for m in ReviewFile(raw, stored).marks()})
    known = set(Index.load(index).samples.values("name")) if index.exists() else set()
    # A label without an image is no image, and one whose image is used is counted with it.
    out = {row.name for row in rows if row.part == "image" or row.reason != "unpaired"}
    counts = {
        "arrived": len(known | out),
        "duplicate": len(copies),
        "quarantined": len(refused),
        "labelled": len(stored),
        "kept": round(100 * statistics.get("labelled_share", 0.0), 2),
        "conflicts": sum(row["pixels"] for row in statistics.get("conflicts", [])),
        "corrected": len(marked),
    }
    examples = arrived.get("examples", {})
    near = [[f"{name} is like {twin}", _file(ws, path)] for name, twin, path in examples.get("near", [])]
    new = [[name, _file(ws, path)] for name, path in examples.get("arrived", [])]
    links = {
        "arrived": [*near, *new][:_LISTED],
        "duplicate": [[f"{row.name} ({row.detail or row.reason})", _file(ws, row.path)] for row in copies[:_LISTED]],
        "quarantined": [[f"{row.name}: {row.reason}", _file(ws, row.path)] for row in refused[:_LISTED]],
        "labelled": [["all of them in the inspector", _INSPECTOR]] if stored else [],
        "kept": [["those that keep least first", inspect(sort="coverage")]] if stored else [],
        "conflicts": [["those with most conflicts first", inspect(sort="conflict")]] if stored else [],
        "corrected": [[name, inspect(image=name)] for name in marked[:_LISTED]],
    }
    return counts, links


def _kept_counts(ws: Workspace, before: Mapping[str, float]) -> dict[str, float]:
    """Counts of the night before, of what this one has no output for."""
    files = {
        "data/index/target.parquet": ("arrived", "duplicate", "quarantined"),
        "labels/raw/manifest.json": ("labelled",),
        "labels/final/manifest.json": ("kept", "conflicts"),
    }
    gone = [key for file, keys in files.items() if not ws.path(file).exists() for key in keys]
    return {key: before[key] for key in gone if key in before}


def _file(ws: Workspace, path: str) -> str:
    """Relative address, from the page, of a file of the target root."""
    return quote(Path(os.path.relpath(ws.roots["target"] / path, ws.path(PAGE).parent)).as_posix())


def inspect(**query: str) -> str:
    """Address of a view of the inspector."""
    return f"{_INSPECTOR}?{urlencode(query)}"


# -- what can be trusted, what to look at ------------------------------------------------------------


def _used(ws: Workspace) -> Used | None:
    """Policy in use and its figures; None where there are no labels, or none that it fits."""
    try:
        return used_policy(ws, LabelStore.open(ws.path("labels/raw")))
    except HmsaError:  # a night that failed half-way: labels of one teacher, a policy of another
        return None


def _trust(ws: Workspace, used: Used | None, statistics: Mapping[str, Any], before: Mapping[str, float]) -> Table:
    if used is None or not used[1]:
        return Table([], [])
    policy, figures = used
    measured = {e.name: {"status": e.status, "threshold": e.threshold, **figures[e.name]} for e in policy.entries}
    labels = {row["name"]: row for row in statistics.get("classes", [])}
    report = {name: row["kept"] for name, row in json_of(ws, "evaluation/per_class.json").items()}
    rows = class_rows(list(measured), measured=measured, report=report, labels=labels)
    for row in rows:
        coverage, old = labels.get(str(row["class"]), {}).get("coverage"), before.get(str(row["class"]))
        row["change"] = "" if old is None or coverage is None else _change(coverage - old)
    return class_table(rows, _TRUST)


def _change(value: float) -> str:
    return points(value, sign="+") if abs(value) >= 0.0005 else "="


def _drift(ws: Workspace) -> list[dict[str, Any]]:
    """Classes whose evidence does not cover a city (drive, camera), worst first."""
    rows = [
        {
            "where": where,
            "class": row["name"],
            "status": row["status"],
            "pixels": row["pixels"],
            "precision": points(row.get("adjusted")),
            "usual": points(row.get("usual")),
        }
        for where, classes in json_of(ws, "labels/shift.json").get("cities", {}).items()
        for row in classes
        if row["status"] not in ("covered", "nothing kept")
    ]
    return sorted(rows, key=lambda row: -int(row["pixels"]))


def _worth_a_look(ws: Workspace, used: Used | None) -> dict[str, Any]:
    """Pictures by expected loss and at random ({name: caption}), twenty minutes of review, and where answers pay."""
    if used is None:
        return {"chosen": {}, "random": {}, "queue": [], "pays": [], "alarms": []}
    policy = used[0]
    view = StoreView(ws.path("labels/raw"))
    certificate, why = CertificateFile(view).usable()
    target = float(policy.evidence.get("target", policy.settings.get("target", ws.params.calibrate.target)))
    if certificate is None:
        certificate = Certificate.plan(view, target=min(max(target, 0.5), 0.999), table=policy.table)
    right = certificate.refined(view, table_of(policy, view.classes.num_classes))
    statistics = StoreStatistics.open(ws.path("labels/raw"))
    loss = expected_loss(statistics, policy)
    statistics.close()
    ranked = [(statistics.names[i], points(float(loss[i]))) for i in (-loss).argsort(kind="stable")]
    looked_at = [name for name, _ in ranked[: 2 * _QUEUE]]
    regions = wrong_regions(LabelStore.open(ws.path("labels/raw")), policy.codes(), right, looked_at)
    # "At random", and yet the same on a re-run: drawn by the store's own digest.
    seed = statistics.manifest["digest"]
    rest = sorted((name for name, _ in ranked[_CHOSEN:]), key=lambda name: atomic.digest([seed, name]))
    return {
        "chosen": {name: f"{share} %" for name, share in ranked[:_CHOSEN]},
        "random": dict.fromkeys(rest[:_RANDOM], "at random"),
        "queue": [
            {
                "name": row["image"],
                "class": row["class"],
                "wrong": round(row["wrong"]),
                "link": inspect(image=row["image"], view=f"2,{row['x']},{row['y']}"),
            }
            for row in regions[:_QUEUE]
            if row["wrong"] >= 0.5
        ],
        "pays": certificate.pays(view, policy.codes()),
        "alarms": _alarms(view, policy, why),
    }


def _alarms(view: StoreView, policy: ThresholdPolicy, why: str) -> list[str]:
    """Classes that several nights' audits found less right than measured, and answers that cannot be read.

    `why`: the certificate of the store does not count; "" = it does, or there is none.
    """
    least = {e.name: e.evidence["lower"] for e in policy.entries if e.evidence.get("lower") is not None}
    cuts = {e.name: int(code) for e, code in zip(policy.entries, policy.codes(), strict=True)}
    told = [f"the certificate of labels/raw {why}"] if why.startswith("does not count") else []
    try:
        audits = AuditFile(audit_path(view.path.resolve()), view).every()
        ours = [audit for audit in audits if audit.value.get("teacher") == view.lineage.get("teacher")]
        return told + precision_alarms(ours, least, cuts)
    except HmsaError as error:
        return [*told, f"no alarm over the audits: {error.message}"]


def _health(ws: Workspace, tonight: Tonight) -> dict[str, Any]:
    """`health`: lines on disk and evidence; `warnings`: what somebody should do something about."""
    need, gate, verdict = disk_need(ws), ws.params.evaluate.gate, tonight.verdict
    runs = len(measured_aa(ws).get("mean_iou", []))
    every = json_of(ws, "labels/final/statistics.json").get("skipped", [])
    skipped = [row for row in every if row.get("reason") != "flagged in review"]  # a person decided that
    labelled = json_of(ws, "metrics/auto-infer.json")
    told = [str(need)]
    told += [f"seed variance from {runs} A/A trainings"] if runs else []
    if verdict.get("look"):
        told.append(f"look {verdict['look']} at this report set, {100 * verdict['alpha']:.2f} % of error spent on it")
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
    if labelled.get("self_taught"):
        warnings.append(told_of_self_taught(labelled["self_taught"], labelled["images"]))
    if tonight.arrived.get("gone"):
        warnings.append(f"{tonight.arrived['gone']} images of the last index are gone from the folder")
    return {"health": told, "warnings": warnings}


# -- Prefect's artifacts -----------------------------------------------------------------------------


def as_markdown(page: Mapping[str, Any], path: Path) -> str:
    """The page's head as Markdown."""
    lines = [
        f"## {page['sentence']}",
        f"Night of {page['began']}",
        page["decision"],
        *(f"- {line}" for line in page["differs"]),
    ]
    if page["tail"]:
        lines.append("```\n" + "\n".join(page["tail"][-15:]) + "\n```")
    lines += [f"- **{warning}**" for warning in page["warnings"]]
    return "\n\n".join(line for line in [*lines, f"Whole page: `{path}`"] if line) + "\n"


def tables(page: Mapping[str, Any]) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Artifact key -> (description, rows of plain values); a table without rows is left out."""
    verdict = ("name", "candidate", "incumbent", "gain", "verdict", "why")
    trust = page.get("trust", Table([], []))
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {
        ("funnel", "From arrived to corrected"): [
            {k: v for k, v in row.items() if k != "images"} for row in page.get("funnel", [])
        ],
        ("trust", "Thresholds and precision per class"): [
            dict(zip(trust.head, map(str, row), strict=True)) for row in trust.rows
        ],
        ("verdict", "Candidate against incumbent, class by class"): [
            {k: row[k] for k in verdict} for row in page["verdict"].get("classes", [])
        ],
        ("cost", "Seconds of each stage that had something to do"): [
            {"stage": stage, "seconds": s} for stage, s in page["stages"].items()
        ],
        ("queue", "Your twenty minutes"): page.get("queue", []),
        ("pays", "Where the next 50 answers pay"): page.get("pays", []),
    }
    return {f"auto-label-{key}": (description, found) for (key, description), found in rows.items() if found}
