"""Write the page of a night, which compares its outputs with last night's, and append the night to the history."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from hmsa_core.data.index import Index, read_quarantine
from hmsa_core.io import atomic, records
from hmsa_core.io.errors import HmsaError, one_line
from hmsa_core.labels import LabelStore, StoreStatistics, ThresholdPolicy
from hmsa_core.labels.review import ReviewFile
from pipeline.jobs.measure import policy_file
from pipeline.night import history
from pipeline.night.figures import cost_of, expected_loss, precision_alarms, table_of, wrong_regions
from pipeline.night.gatekeeper import measured_aa
from pipeline.report.build import write_night
from pipeline.report.facts import Facts, Used, collect, policy_in_use
from pipeline.report.render import points
from pipeline.report.results import json_of
from pipeline.report.since import Since, Tonight, now
from pipeline.report.strips import thumbnails
from pipeline.report.verdict import of_night
from pipeline.review.audit import Audit
from pipeline.review.certificate import Certificate
from pipeline.review.spot_check import SpotFile
from pipeline.review.view import StoreView
from pipeline.stages.auto_infer import self_taught_warning
from pipeline.stages.disk import disk_need
from pipeline.workspace.workspace import Workspace

PAGE = "work/nightly/morning.html"
_INSPECTOR = "http://127.0.0.1:8733/"  # `autolabel serve` on its default port
_QUEUE = 20  # regions to review, about a minute each
_CHOSEN, _RANDOM = 12, 3  # pictures: by expected loss, and at random
_LISTED = 50  # most images that a count links to
_STEPS = {
    "arrived": "images arrived",
    "duplicate": "copies of known images",
    "quarantined": "quarantined",
    "labelled": "labelled by the teacher",
    "kept": "pixels with a training label, %",
    "conflicts": "pixels against a human's label",
    "corrected": "corrected in review",
}


def publish(ws: Workspace, tonight: Tonight) -> tuple[Since, Facts | None]:
    """Write the page of a night and append the night to the history.

    A night may have failed on a file that the page needs, such as params.yaml. The page then says why the
    night failed and what to type, and lacks the parts that were not read.
    """
    try:
        facts, hindered = _report(ws, tonight)
        since, line = _whole(ws, tonight, hindered)
    except (HmsaError, OSError) as error:
        if not tonight.failed:
            raise
        facts, (since, line) = None, _least(ws, tonight, error)
    with records.saving(ws.path(PAGE)):
        write_night(ws.path(PAGE), ws.root, since, facts)
    if line:
        history.remember(ws, line)
    history.end(ws, tonight.began)
    return since, facts


def _known(ws: Workspace, tonight: Tonight) -> Since:
    """What every night's page has, even that of a night that could read no file."""
    is_judged = bool(tonight.verdict) and not tonight.failed
    metrics = json_of(ws, "evaluation/metrics.json") if is_judged else {}
    statistics = json_of(ws, "labels/final/statistics.json") if is_judged else {}
    spread = ws.path("models/registry/aa.json").exists()
    return Since(
        **vars(tonight),
        sentences=tuple(of_night(tonight.verdict, tonight.failed, metrics, statistics, spread_is_measured=spread)),
        ended=now(),
        may_roll_back=ws.path("models/registry/history.jsonl").exists(),
    )


def _report(ws: Workspace, tonight: Tonight) -> tuple[Facts | None, list[str]]:
    """Data of the report, or a warning why it is missing; a failed night may leave files that do not fit."""
    if not ws.path("data/index/target.parquet").exists():  # DVC removes it before `prepare` runs
        return None, []
    try:
        return collect(ws), []
    except (HmsaError, OSError) as error:
        if not tonight.failed:
            raise
        return None, [f"the report is missing: {reason_of(error)}"]


def reason_of(error: HmsaError | OSError) -> str:
    """What went wrong, in one line."""
    return error.message if isinstance(error, HmsaError) else one_line(f"{type(error).__name__}: {error}")


def _whole(ws: Workspace, tonight: Tonight, hindered: list[str]) -> tuple[Since, dict[str, Any]]:
    """The page's data, and the night as the history keeps it."""
    night = history.describe(ws, tonight.overrides, tonight.teacher)
    statistics = json_of(ws, "labels/final/statistics.json")
    nights = history.nights(ws)
    before = nights[-1] if nights else {}
    counts, links = _counts(ws, tonight.arrived, statistics)
    if tonight.failed:  # DVC removes a stage's output before the stage runs, so a missing output is no loss
        counts |= _kept_counts(ws, before.get("counts", {}))
    added = {key: round(value - before.get("counts", {}).get(key, 0.0), 2) for key, value in counts.items()}
    cost = cost_of(ws, tonight.seconds, statistics)
    looks = _worth_a_look(ws, policy_in_use(ws))
    health, warnings = _health(ws, tonight)
    gain, known = tonight.verdict.get("gain", {}), _known(ws, tonight)
    line = {
        "night": night,
        **_outcome(known),
        "candidate": gain.get("candidate"),
        "gain": gain.get("value"),
        "kept": statistics.get("labelled_share"),
        "promoted": tonight.verdict.get("promoted"),
        "images": statistics.get("images"),
        "hours": cost["hours"],
        "counts": counts,
        "coverage": {row["name"]: row["coverage"] for row in statistics.get("classes", [])},
    }
    since = replace(
        known,
        differs=tuple(history.differs(ws, night)),
        warnings=(*filter(None, [tonight.before]), *hindered, *looks.pop("alarms"), *warnings),
        health=health,
        funnel=tuple(
            {"step": words, "tonight": added[key], "in all": counts[key], "images": links[key]}
            for key, words in _STEPS.items()
        ),
        cost=cost,
        serve=_serve(ws),
        coverage=before.get("coverage", {}),
        nights=(*nights, line)[-history.NIGHTS :],
        **looks,
    )
    return since, line


def _outcome(known: Since) -> dict[str, Any]:
    """How the night ended, as the history keeps it."""
    why = {"why": known.failed} if known.failed else {}
    return {"kind": known.kind, "began": known.began, "ended": known.ended} | why


def _least(ws: Workspace, tonight: Tonight, hindered: HmsaError | OSError) -> tuple[Since, dict[str, Any]]:
    """The same of a failed night whose files cannot be read; no line where the history cannot be read either."""
    why, known = reason_of(hindered), _known(ws, tonight)
    warnings = [line for line in (tonight.before,) if line]
    warnings += [] if why in tonight.failed else [f"the rest of this page is missing: {why}"]
    try:
        nights = history.nights(ws)
    except HmsaError as error:
        warnings += [] if error.message in (why, tonight.failed) else [error.message]
        return replace(known, warnings=tuple(warnings)), {}
    line = history.carried(ws, tonight.overrides) | _outcome(known)
    return replace(known, warnings=tuple(warnings), nights=(*nights, line)[-history.NIGHTS :]), line


# -- from arrived to corrected -----------------------------------------------------------------------


def _counts(
    ws: Workspace, arrived: Mapping[str, Any], statistics: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, list[list[str]]]]:
    """Number of images (pixels, per cent) at each step, and [name, link] of the first images."""
    table, index = ws.path("data/index/quarantine.parquet"), ws.path("data/index/target.parquet")
    rows = [row for row in read_quarantine(table) if row.root == "target"] if table.exists() else []
    copies = [row for row in rows if row.reason.startswith("duplicate")]
    refused = [row for row in rows if not row.reason.startswith("duplicate")]
    raw = ws.path("labels/raw")
    stored = LabelStore.open(raw).pictures() if (raw / "manifest.json").exists() else {}
    marked = sorted({m.name for m in ReviewFile(raw, stored).marks()})
    known = set(Index.load(index).samples.values("name")) if index.exists() else set()
    # A label without an image does not count. A refused label whose image is used has the name of that image.
    refused_names = {row.name for row in rows if row.part == "image" or row.reason != "unpaired"}
    counts = {
        "arrived": len(known | refused_names),
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
    """Counts of the night before for the outputs that this night does not have."""
    files = {
        "data/index/target.parquet": ("arrived", "duplicate", "quarantined"),
        "labels/raw/manifest.json": ("labelled",),
        "labels/final/manifest.json": ("kept", "conflicts"),
    }
    missing = [key for file, keys in files.items() if not ws.path(file).exists() for key in keys]
    return {key: before[key] for key in missing if key in before}


def _file(ws: Workspace, path: str) -> str:
    """Relative link from the page to a file of the target root."""
    return quote(Path(os.path.relpath(ws.roots["target"] / path, ws.path(PAGE).parent)).as_posix())


def inspect(**query: str) -> str:
    """Address of a view of the inspector."""
    return f"{_INSPECTOR}?{urlencode(query)}"


# -- what to look at ---------------------------------------------------------------------------------


def _serve(ws: Workspace) -> str:
    """The command that shows the links of the page."""
    file, command = policy_file(ws), ["autolabel", "serve", "labels/raw"]
    if file is not None and file.is_file():
        command += ["--policy", str(file.relative_to(ws.root) if file.is_relative_to(ws.root) else file)]
    return shlex.join(command)


def _worth_a_look(ws: Workspace, used: Used | None) -> dict[str, Any]:
    """Fields of `Since`: pictures by expected loss and at random, regions to review, classes where answers pay."""
    if used is None:
        return {"alarms": []}
    policy = used[0]
    view = StoreView(ws.path("labels/raw"))
    certificate, why = SpotFile(Certificate, view).usable()
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
    # The pictures "at random" are the same on a re-run, since the store's digest is the seed.
    seed = statistics.manifest["digest"]
    rest = sorted((name for name, _ in ranked[_CHOSEN:]), key=lambda name: atomic.digest([seed, name]))
    captions = {name: f"{share} %" for name, share in ranked[:_CHOSEN]}
    captions |= dict.fromkeys(rest[:_RANDOM], "at random")
    return {
        "thumbnails": thumbnails(ws, captions, lambda name: inspect(image=name)),
        "queue": tuple(
            {
                "name": row["image"],
                "class": row["class"],
                "wrong": round(row["wrong"]),
                "link": inspect(image=row["image"], view=f"2,{row['x']},{row['y']}"),
            }
            for row in regions[:_QUEUE]
            if row["wrong"] >= 0.5
        ),
        "pays": tuple(certificate.pays(view, policy.codes())),
        "alarms": _alarms(view, policy, why),
    }


def _alarms(view: StoreView, policy: ThresholdPolicy, why: str) -> list[str]:
    """Warnings of classes whose audits contradict the measured precision, and of answers that cannot be read.

    `why`: why the certificate of the store does not count; "" = the certificate counts, or there is none.
    """
    least = {e.name: e.evidence["lower"] for e in policy.entries if e.evidence.get("lower") is not None}
    codes = {e.name: int(code) for e, code in zip(policy.entries, policy.codes(), strict=True)}
    lines = [f"the certificate of labels/raw {why}"] if why.startswith("does not count") else []
    try:
        audits = SpotFile(Audit, view).every()
        of_teacher = [audit for audit in audits if audit.value.get("teacher") == view.lineage.get("teacher")]
        return lines + precision_alarms(of_teacher, least, codes)
    except HmsaError as error:
        return [*lines, f"no alarm over the audits: {error.message}"]


def _health(ws: Workspace, tonight: Tonight) -> tuple[tuple[str, ...], list[str]]:
    """Lines on disk space and evidence, and warnings of problems that somebody should fix."""
    need, gate, verdict = disk_need(ws), ws.params.evaluate.gate, tonight.verdict
    runs = len(measured_aa(ws).get("mean_iou", []))
    all_skipped = json_of(ws, "labels/final/statistics.json").get("skipped", [])
    skipped = [row for row in all_skipped if row.get("reason") != "flagged in review"]  # a person excluded it
    labelled = json_of(ws, "metrics/auto-infer.json")
    lines = [str(need)]
    lines += [f"seed variance from {runs} A/A trainings"] if runs else []
    if verdict.get("look"):
        lines.append(f"look {verdict['look']} at this report set, {100 * verdict['alpha']:.2f} % of error spent on it")
    warnings = list(verdict.get("notes", []))
    if need.free < 2 * need.total:
        warnings.append("less than twice the disk that a night needs is free: `dvc gc --workspace`")
    if gate.seed_sd is None and runs < gate.min_aa_runs:
        warnings.append(
            "nothing can be promoted until `autolabel models aa` has measured how much seeds differ "
            f"({runs} of {gate.min_aa_runs} trainings are there)"
        )
    if skipped:
        warnings.append(f"{len(skipped)} images could not be labelled, the first: {skipped[0]['name']}")
    if labelled.get("self_taught"):
        warnings.append(self_taught_warning(labelled["self_taught"], labelled["images"]))
    if tonight.arrived.get("gone"):
        warnings.append(f"{tonight.arrived['gone']} images of the last index are gone from the folder")
    return tuple(lines), warnings
