"""The sections of the page, each a pure function of the facts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hmsa_core.data.index import QuarantineRow
from hmsa_core.labels import ThresholdPolicy
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.policy import PROMISES
from hmsa_core.taxonomy import ClassTable
from pipeline.report import advice, results
from pipeline.report.charts import curve_grid
from pipeline.report.quality import Quality
from pipeline.report.render import Name, Raw, Share, Status, Table, esc, number, points
from pipeline.report.strips import Strip

_WORDS = {"pretrain": "pretraining", "teacher": "teacher", "student": "student", "control": "control"}


@dataclass(frozen=True)
class Facts:
    """Everything that the page shows; a file that does not exist leaves its part empty."""

    classes: ClassTable
    summary: dict[str, Any]  # data/index/summary.json
    quarantine: list[QuarantineRow]
    metrics: dict[str, Any]
    verdict: dict[str, Any]
    statistics: dict[str, Any]  # of labels/final
    policy: ThresholdPolicy | None
    curves: Curves | None
    diet: Table = field(default_factory=lambda: Table([], []))  # what the student learns from
    advice: advice.Advice | None = None  # None without calibration images
    quality: dict[str, Quality] = field(default_factory=dict)
    baseline: float | None = None  # mean IoU of colour and position alone
    times: list[dict[str, Any]] = field(default_factory=list)
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)  # stage -> run -> speed, waiting, memory
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    stores: dict[str, dict[str, Any]] = field(default_factory=dict)  # manifests of labels/raw and labels/final
    policy_digest: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[Name]:
        """The classes with their colours."""
        return [Name(name, colour) for name, colour in zip(self.classes.classes, self.classes.colours, strict=True)]


def headline(facts: Facts) -> Raw:
    """Verdict in a sentence and the numbers that matter."""
    models, main = facts.metrics.get("models", {}), facts.metrics.get("main_setting", "")
    tiles = []
    for name in ("teacher", "student", "control"):
        if name in models:
            found = models[name]["settings"][main]
            tiles.append(_tile(Share(found["value"]), f"mIoU {name}, {_ends(found)}"))
    for other in ("control", "teacher"):
        gain = facts.metrics.get("differences", {}).get(f"student - {other}")
        if gain:
            tiles.append(_tile(Share(gain["value"], sign="+"), f"points student − {other}, {_ends(gain, '+')}"))
    kept = facts.metrics.get("kept", {})
    if kept:
        tiles.append(_tile(Share(kept["precision"], digits=2), "% of kept pixels right on report images"))
        tiles.append(_tile(Share(kept["coverage"]), "% of pixels kept"))
    if facts.baseline is not None:
        tiles.append(_tile(Share(facts.baseline), "mIoU of colour + position alone"))
    sentence, reasons, notes = results.verdict_lines(facts.verdict)
    lines = [f"Why: {'; '.join(reasons)}."] if reasons else []
    why = "".join(f"<p class='soft'>{esc(line)}</p>" for line in [*lines, *notes])
    return Raw(f"<p class='lead'>{esc(sentence)}</p>{why}<div class='tiles'>{''.join(tiles)}</div>")


def _tile(value: Share, text: str) -> str:
    return f"<div class='tile'><b>{esc(value)}</b><span>{esc(text)}</span></div>"


def _ends(found: Mapping[str, Any], sign: str = "") -> str:
    return f"{points(found['low'], sign=sign)} to {points(found['high'], sign=sign)}"


def pictures(facts: Facts, drawn: Sequence[Strip]) -> Raw:
    """Rows of pictures under a legend of the classes' colours."""
    if not drawn:
        return Raw("<p>No picture was asked for (report.pictures).</p>")
    legend = "".join(f"<span>{name.html()}</span>" for name in facts.names)
    return Raw(
        "<p>Every so-many-th image that was labelled automatically; nobody picked them.</p>"
        f"<div class='legend'>{legend}</div><div class='pictures'>{''.join(s.html() for s in drawn)}</div>"
    )


def evaluation(facts: Facts) -> Raw:
    """IoU per class of every model with intervals, and the differences between models."""
    metrics = facts.metrics
    if metrics.get("unverified") or not metrics.get("models"):
        return Raw(f"<p>{esc(metrics.get('unverified', 'nothing was judged'))}</p>")
    first = next(iter(next(iter(metrics["models"].values()))["settings"].values()))
    out = metrics.get("judgement", {}).get("left_out", 0)
    left = f" {out} images were left out because a model had learned from them." if out else ""
    told = ", ".join(f"{s['name']} = scales {results.how_run(s)}" for s in metrics["settings"])
    return Raw(
        f"<p class='soft'>IoU in percent points with {100 * first['level']:.0f} % intervals from "
        f"{first['draws']} draws of {first['blocks']} blocks.{left} {esc(told)}.</p>"
        f"{results.iou_by_class(metrics, facts.names).html()}"
        f"<h3>Differences, paired on the same blocks</h3>{results.differences(metrics).html()}"
    )


_MEASURED = {key: key for key in ("class", "status", "threshold", "blocks", "pieces", "precision", "lower bound")}
_MEASURED |= {"marginal": "marginal", "coverage": "coverage", "report precision": "precision, report"}
_MEASURED |= {"report 95 %": "its 95 %", "report coverage": "coverage, report", "report void": "on void, report"}


def thresholds(facts: Facts) -> Raw:
    """What was measured on the calibration images, and what it does on the report images."""
    policy, kept = facts.policy, facts.metrics.get("kept", {})
    if policy is None or facts.curves is None:
        return Raw("<p>No calibration images: the threshold was given, not measured.</p>")
    target = float(policy.evidence["target"])
    measured = {e.name: {"status": e.status, "threshold": e.threshold, **e.evidence} for e in policy.entries}
    rows = results.class_rows(facts.names, measured=measured, report=kept.get("classes"))
    used, other = facts.settings["pseudo_label"]["threshold"], ""
    if used != "policy":
        other = (
            f"<p><b>The labels of this run were not made with this policy but with <code>{esc(used)}</code></b> "
            "(pseudo_label.threshold): the columns about the report images, on the right, describe that one.</p>"
        )
    return Raw(
        f"{other}<p>Each class keeps pixels from the confidence on {_chosen(policy, target)}{_where(kept)}. "
        f"{_promises(policy)} Blocks and pieces are those of the kept pixels; the columns on the right are the check "
        f"on report images.</p>{results.class_table(rows, _MEASURED).html()}<h3>Why each class has its status</h3>"
        f"{_why(facts.names, policy)}<h3>Precision (up) over coverage (right) on the calibration images; "
        f"dashed: the target</h3>{curve_grid(facts.curves, policy, target)}{_beside(kept)}{_sampled(kept)}"
    )


def _promises(policy: ThresholdPolicy) -> str:
    statuses = dict.fromkeys(entry.status for entry in policy.entries)
    told = "; ".join(f"<b>{status}</b>: {esc(PROMISES[status])}" for status in statuses)
    return f"What each status promises: {told}."


def _chosen(policy: ThresholdPolicy, target: float) -> str:
    """How the thresholds were chosen, for the middle of a sentence."""
    rule, unseen = policy.settings["rule"], "on images that the teacher never saw"
    if rule != "promise":
        return f"that the rule {esc(rule)} (calibrate.rule) chose {unseen}, with target {points(target)} %"
    best = policy.evidence["ceiling"]
    missed = f" (all classes together reach at most {points(best)} %, whatever the confidence)" if best < target else ""
    return (
        f"at which the lower bound of its precision reaches {points(target)} %{missed} "
        f"{unseen}, and at which the marginal pixels are still right often enough"
    )


def _why(names: Sequence[Name], policy: ThresholdPolicy) -> str:
    lines = [
        f"<tr><td>{name.html()}</td><td class='left'>{Status(entry.status).html()}</td>"
        f"<td class='wrap'>{esc(entry.evidence.get('reason', '') or 'the bound reaches the target')}</td></tr>"
        for name, entry in zip(names, policy.entries, strict=True)
    ]
    return f"<details><summary>{len(lines)} classes</summary><table>{''.join(lines)}</table></details>"


def _where(kept: Mapping[str, Any]) -> str:
    if not results.region(kept):
        return ""
    return (
        " (counted outside of human polygons, where merged labels take the teacher's word; of all kept pixels "
        f"{points(kept['all_pixels']['precision'], 2)} % are right)"
    )


def _beside(kept: Mapping[str, Any]) -> str:
    kept = kept.get("all_pixels", kept)
    shown = results.beside(kept) if kept else None
    if shown is None:
        return ""
    return (
        "<h3>One threshold for all classes instead, on the report images</h3><p>Classes with a measured or estimated "
        f"threshold: {esc(', '.join(kept['beside']['classes']))}. The global rival was chosen on these very images, "
        f"the policy was not.</p>{shown.html()}"
    )


def _sampled(kept: Mapping[str, Any]) -> str:
    found = kept.get("sampled", {})
    if not found.get("crops"):
        return ""
    columns = ("plain_share", "share", "plain_precision", "precision")
    rows = [
        [name, row["crops"], *(Share(row[key], digits=2) for key in columns)]
        for name, row in found["classes"].items()
        if row["plain_share"]
    ]
    head = ["class", "crops drawn for it", "share of kept pixels %", "... in crops", "precision %", "... in crops"]
    rows.append(["all", found["crops"], "", "", *(Share(found[key], digits=2) for key in columns[2:])])
    return (
        "<h3>What class-uniform sampling makes of it, on the report images</h3><p>Kept pixels as the student's sampler "
        "would show them: a rare class is drawn far more often than it occurs, where the teacher says that it is.</p>"
        + Table(head, rows, last_is_sum=True).html()
    )


def _lines(counts: Mapping[str, int]) -> Raw:
    return Raw("<br>".join(esc(f"{n} {name}") for name, n in counts.items()))  # one wide line leaves the page


_LABELS = {key: key for key in ("class", "threshold", "teacher gave", "passed")} | {"labels coverage": "coverage %"}
_LABELS |= {key: key for key in ("from teacher", "from human", "both", "final")}


def data(facts: Facts) -> Raw:
    """Counts by role, quarantine with reasons, near-duplicates, training labels."""
    counted = ("by_role", "by_split", "blocks")
    sets = {root: p for root, p in facts.summary.items() if isinstance(p, dict) and p.get("images")}
    rows = [
        [root, p["layout"], p["images"], *(_lines(p.get(k, {})) for k in counted), p["refused_images"]]
        for root, p in sets.items()
    ]
    near = [f"{kind}: {n}" for part in sets.values() for kind, n in part.get("near_duplicates", {}).items()]
    bad = [
        [row.root, row.path, row.reason, Raw(f"<span class='wrap'>{esc(row.detail)}</span>")]
        for row in facts.quarantine
    ]
    quarantine = Table(["set", "file", "reason", "detail"], bad).html() if bad else "<p>No file was refused.</p>"
    labels = ""
    if made := facts.statistics:
        found = results.class_rows(facts.names, labels={row["name"]: row for row in made["classes"]})
        labels = (
            f"<h3>Training labels of {made['images']} auto-labelled images: {points(made['labelled_share'])} % of "
            f"{made['pixels']:,} pixels carry one</h3>{results.class_table(found, _LABELS).html()}"
        )
        labels += _diet(facts)
    return Raw(
        Table(["set", "layout", "images", "roles", "splits", "blocks", "refused"], rows).html()
        + f"<p class='soft'>Near-duplicate pairs by roles: {esc('; '.join(near) or 'none')}.</p>"
        + f"<h3>Quarantine: {len(bad)} files, and why</h3>{quarantine}{labels}"
    )


def to_label(facts: Facts) -> Raw:
    """The words of `autolabel advise`."""
    if facts.advice is None:
        return Raw("<p>No calibration images: nothing can be said.</p>")
    sentences = "".join(f"<p>{esc(line)}</p>" for line in facts.advice.sentences)
    return Raw(sentences + advice.table(facts.advice).html())


def _diet(facts: Facts) -> str:
    """Both policies, and of what each source of labels consists."""
    used = esc(facts.settings["pseudo_label"]["threshold"])
    return (
        "<h3>What the student learns from</h3><p>Thresholds of both policies (these labels were made with "
        f"<code>{used}</code>), and the share of each class in the labelled pixels of a source. Crops show rare "
        f"classes more often than that (student_train.sampling).</p>{facts.diet.html()}"
    )


def times(facts: Facts) -> Raw:
    """Seconds and memory of each stage, speed of each training."""
    rows = [[t["stage"], number(t["seconds"], 1), number(t["peak_memory_bytes"] / 2**20, 0)] for t in facts.times]
    rows.append(["all", number(sum(t["seconds"] for t in facts.times), 1), ""])
    shown = Table(["stage", "seconds", "peak MiB of one process"], rows, last_is_sum=True).html()
    runs = [(f"{stage}: {name}", run) for stage, of in facts.trainings.items() for name, run in of.items() if run]
    speeds = [
        [
            name,
            number(r["images_per_s"], 1),
            Share(r["data_wait"]),
            Share(r["data_wait_most"]),
            number(r["memory_mb"], 0),
        ]
        for name, r in runs
    ]
    head = ["training", "crops a second", "waiting for the loader, % of the time", "... at most", "peak MB of a rank"]
    return Raw(shown + (Table(head, speeds).html() if speeds else ""))


def lineage(facts: Facts) -> Raw:
    """Who descends from whom, which teacher made which labels, and by which policy they were kept."""
    rows = []
    for name, meta in facts.models.items():
        line = meta.get("lineage", {})
        images = line.get("images")
        count = len(images) if isinstance(images, dict | list) else line.get("num_images", images)
        parents = ", ".join(str(p)[:12] for p in line.get("parents", [])) or "none"
        shape = [meta.get("kind", ""), meta.get("trunk", ""), "–" if count is None else count]
        rows.append([_WORDS[name], str(meta.get("weights_sha256", ""))[:16], parents, *shape])
    made = [_store(f"labels/{name}", manifest) for name, manifest in facts.stores.items()]
    if facts.policy_digest:
        made.append(["calibration/policy.json", facts.policy_digest[:16], "", "", "", ""])
    head = ["file", "digest (SHA-256)", "teacher's weights", "inference", "policy", "images"]
    return Raw(
        Table(["model", "weights (SHA-256)", "parents", "kind", "trunk", "images learned from"], rows).html()
        + (Table(head, made).html() if made else "")
        + "<p class='soft'>Every checkpoint lists the hashes of all images it learned from, through pseudo labels and "
        "parents; images found there are never used to judge it.</p>"
    )


def _store(name: str, manifest: Mapping[str, Any]) -> list[object]:
    line = manifest.get("lineage", {})
    scales = ", ".join(f"{scale:g}" for scale in line.get("scales", []))
    how = f"{{{scales}}}{' + flip' if line.get('flip') else ''}, {line.get('precision', '')}"
    made_by = manifest.get("policy") or {}
    policy = str(made_by.get("digest") or "–")[:16]
    if proof := made_by.get("certificate"):
        policy += f"; certificate {str(proof.get('digest', ''))[:16]}: {', '.join(proof['classes'])}"
    digests = [str(manifest.get("digest", ""))[:16], str(line.get("teacher", ""))[:16]]
    return [name, *digests, how, policy, manifest.get("images", "–")]


def settings(facts: Facts) -> Raw:
    """All parameters."""
    text = json.dumps(facts.settings, indent=1, sort_keys=True)
    return Raw(f"<details><summary>params.yaml as it was read</summary><pre>{esc(text)}</pre></details>")
