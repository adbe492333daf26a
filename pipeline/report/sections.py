"""Sections of the results page; each is a pure function of the facts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hmsa_core.labels import ThresholdPolicy
from hmsa_core.labels.thresholds.policy import PROMISES
from pipeline.report import advice, results
from pipeline.report.charts import curve_grid
from pipeline.report.facts import Facts
from pipeline.report.meanings import MEANINGS
from pipeline.report.render import Raw, Share, Status, Table, esc, number, points, titled
from pipeline.report.strips import Strip

_DRIFT_SHOWN = 6


def tiles(facts: Facts) -> Raw:
    """Tiles with the main figures: mIoU, gains, precision and coverage of the kept pixels."""
    models, main = facts.metrics.get("models", {}), facts.metrics.get("main_setting", "")
    found = []
    for name in ("teacher", "student", "control"):
        if name in models:
            judged = models[name]["settings"][main]
            found.append(_tile(Share(judged["value"]), f"mIoU of the {name}, interval {_ends(judged)}", name))
    for other in ("teacher", "control"):
        if gain := facts.metrics.get("differences", {}).get(f"student - {other}"):
            text = f"points, student against {other}, interval {_ends(gain, '+')}"
            found.append(_tile(Share(gain["value"], sign="+"), text, "difference"))
    if kept := facts.metrics.get("kept", {}):
        found.append(_tile(Share(kept["precision"], digits=2), "% of kept pixels right, on report images", "right"))
        found.append(_tile(Share(kept["coverage"]), "% of pixels kept, on report images", "kept"))
    return Raw(f"<div class='tiles'>{''.join(found)}</div>" if found else "")


def _tile(value: Share, text: str, name: str) -> str:
    return f"<div class='tile'{titled(name)}><b>{esc(value)}</b><span>{esc(text)}</span></div>"


def _ends(found: Mapping[str, Any], sign: str = "") -> str:
    return f"{points(found['low'], sign=sign)} to {points(found['high'], sign=sign)}"


def pictures(facts: Facts, drawn: Sequence[Strip]) -> Raw:
    """Rows of pictures under a legend of the classes' colours."""
    if not drawn:
        return Raw("<p>No picture was drawn (report.pictures).</p>")
    legend = "".join(f"<span>{name.html()}</span>" for name in facts.names)
    return Raw(
        "<p>Auto-labelled images at equal distances in their list; nobody picked them.</p>"
        f"<div class='legend'>{legend}</div><div class='pictures'>{''.join(s.html() for s in drawn)}</div>"
    )


def gate(verdict: Mapping[str, Any]) -> Raw:
    """Sentence, reasons and notes of the gate's verdict, and a table of the classes."""
    sentence = verdict.get("sentence", "")
    against = [f"Against it: {reason}." for reason in verdict.get("reasons", []) if reason != sentence]
    columns = ("candidate", "incumbent", "gain")
    rows = [
        [row["name"], *(Share(row[key], sign="+" * (key == "gain")) for key in columns), row["verdict"], row["why"]]
        for row in verdict.get("classes", [])
    ]
    head = ["class", "student", str(verdict.get("incumbent", "teacher")), "gain", "verdict", "why"]
    lines = [sentence, *against, *verdict.get("notes", [])]
    if champion := verdict.get("champion"):
        lines.append(f"Reference (champion) {champion['name']}: {points(champion['mean_iou'])} mIoU.")
    text = "".join(f"<p>{esc(line)}</p>" for line in lines if line)
    return Raw(text + (Table(head, rows).html() if rows else ""))


def evaluation(facts: Facts) -> Raw:
    """IoU per class of every model with intervals, and the differences between models."""
    metrics = facts.metrics
    if metrics.get("unverified") or not metrics.get("models"):
        return Raw(f"<p>{esc(metrics.get('unverified', 'nothing was judged'))}</p>")
    first = next(iter(next(iter(metrics["models"].values()))["settings"].values()))
    left_out = metrics.get("judgement", {}).get("left_out", 0)
    note = f" {left_out} images were left out because a model had learned from them." if left_out else ""
    described = ", ".join(f"{s['name']} = scales {results.how_run(s)}" for s in metrics["settings"])
    return Raw(
        f"<p class='soft'>IoU in percent points with {100 * first['level']:.0f} % intervals from "
        f"{first['draws']} draws of {first['blocks']} blocks.{note} {esc(described)}.</p>"
        f"{results.iou_by_class(metrics, facts.names).html()}"
        f"<h3>Differences, paired on the same blocks</h3>{results.differences(metrics).html()}"
    )


def trust(facts: Facts, before: Mapping[str, float] | None = None) -> Table:
    """Table of the thresholds in use, a row per class; no rows without labels or without calibration images.

    Args:
        facts: the data of the workspace.
        before: coverage of each class last night; None = no column for the change.
    """
    if facts.used is None or not facts.used[1]:
        return Table([], [])
    policy, figures = facts.used
    labels = {row["name"]: row for row in facts.statistics.get("classes", [])}
    report = facts.metrics.get("kept", {}).get("classes", {})
    rows: list[dict[str, object]] = []
    for name, entry in zip(facts.names, policy.entries, strict=True):
        measured, judged = figures[entry.name], report.get(entry.name, {})
        coverage, old = labels.get(entry.name, {}).get("coverage"), (before or {}).get(entry.name)
        change = "" if old is None or coverage is None else _change(coverage - old)
        ends = Share(judged.get("precision"), judged.get("lower"), judged.get("upper"))
        row = {
            "class": name,
            "status": Status(entry.status),
            "threshold": entry.threshold or "–",
            # Without a threshold no pixel is kept, so no block holds kept pixels.
            "blocks": number(measured.get("effective_blocks") if entry.threshold else None, 0),
            "precision": Share(measured.get("precision"), digits=2),
            "lower bound": Share(measured.get("lower"), digits=2),
            "marginal": Share(measured.get("marginal")),
            "report set": Share(ends.value, digits=2),
            "report set 95 %": ends.interval if ends.high is not None else "–",
            "coverage": Share(coverage),
        }
        row |= {} if before is None else {"change": change}
        rows.append(row | {"on void": Share(measured.get("void")), "why": str(entry.evidence.get("reason", ""))})
    return Table(list(rows[0]), [list(row.values()) for row in rows])


def _change(value: float) -> str:
    return points(value, sign="+") if abs(value) >= 0.0005 else "="


def thresholds(facts: Facts, before: Mapping[str, float] | None) -> Raw:
    """Section on the thresholds in use, their evidence, and the cities where the evidence does not cover a class."""
    policy, kept = facts.policy, facts.metrics.get("kept", {})
    if policy is None or facts.curves is None:
        return Raw("<p>No calibration images: the threshold was given, not measured.</p>")
    target, table = float(policy.evidence["target"]), trust(facts, before)
    used = esc(facts.settings["pseudo_label"]["threshold"])
    shown = table.html() if table.rows else "<p>No labels that fit the thresholds are there yet.</p>"
    statuses = dict.fromkeys(entry.status for entry in policy.entries)
    promises = "; ".join(f"<b>{status}</b>: {esc(PROMISES[status])}" for status in statuses)
    return Raw(
        f"<p>Thresholds in use (<code>{used}</code>, pseudo_label.threshold){_where(kept)}. Blocks are those of the "
        f"kept pixels on calibration images; the report set is the check on images that chose no threshold.</p>{shown}"
        f"{_drift(facts)}<h3>What calibration measured</h3><p>Each class keeps pixels from the confidence "
        f"on {_chosen(policy, target)}. What each status promises: {promises}.</p><h3>Precision (up) over "
        "coverage (right) on the calibration images; dashed: the target</h3>"
        f"{curve_grid(facts.curves, policy, target)}{_against_global(kept)}"
    )


def _against_global(kept: Mapping[str, Any]) -> str:
    """The policy and one threshold for all classes, side by side on the report images."""
    table = results.against_global(kept) if "beside" in kept else None
    if table is None:
        return ""
    names = esc(", ".join(kept["beside"]["classes"]))
    return f"<h3>One threshold for all instead, on {names}</h3>{table.html()}"


def _drift(facts: Facts) -> str:
    """Classes whose evidence does not cover a city (drive, camera), those with most pixels first."""
    rows = [
        [where, row["name"], row["status"], points(row.get("adjusted")), points(row.get("precision")), row["pixels"]]
        for where, classes in facts.shift.get("cities", {}).items()
        for row in classes
        if row["status"] not in ("covered", "nothing kept")
    ]
    if not rows:
        return ""
    rows.sort(key=lambda row: -int(row[-1]))
    shown = Table(["where", "class", "status", "expected", "precision"], [row[:-1] for row in rows[:_DRIFT_SHOWN]])
    more = f"<p class='soft'>and {len(rows) - _DRIFT_SHOWN} more, in labels/shift.json</p>"
    return f"<h3>Drift: where the evidence does not cover a class</h3>{shown.html()}{more * (len(rows) > _DRIFT_SHOWN)}"


def _chosen(policy: ThresholdPolicy, target: float) -> str:
    """Clause that says how the thresholds were chosen."""
    rule, unseen = policy.settings["rule"], "on images that the teacher never saw"
    if rule != "promise":
        return f"that the rule {esc(rule)} (calibrate.rule) chose {unseen}, with target {points(target)} %"
    best = policy.evidence["ceiling"]
    missed = f" (all classes together reach at most {points(best)} %, whatever the confidence)" if best < target else ""
    return (
        f"at which the lower bound of its precision reaches {points(target)} %{missed} "
        f"{unseen}, and at which the marginal pixels are still right often enough"
    )


def _where(kept: Mapping[str, Any]) -> str:
    if not results.region(kept):
        return ""
    return (
        " (counted outside of human polygons, where merged labels take the teacher's word; of all kept pixels "
        f"{points(kept['all_pixels']['precision'], 2)} % are right)"
    )


def _lines(counts: Mapping[str, int]) -> Raw:
    return Raw("<br>".join(esc(f"{n} {name}") for name, n in counts.items()))  # a single wide line would leave the page


def data(facts: Facts) -> Raw:
    """Counts by role, quarantine with reasons, near-duplicates, training labels."""
    counted = ("by_role", "by_split", "blocks")
    sets = {root: p for root, p in facts.summary.items() if isinstance(p, dict) and p.get("images")}
    rows = [
        [root, p["layout"], p["images"], *(_lines(p.get(k, {})) for k in counted), p["refused_images"]]
        for root, p in sets.items()
    ]
    near_pairs = [f"{kind}: {n}" for part in sets.values() for kind, n in part.get("near_duplicates", {}).items()]
    files = [[row.root, row.path, row.reason, row.detail] for row in facts.quarantine]
    quarantine = Table(["set", "file", "reason", "detail"], files).html() if files else "<p>No file was refused.</p>"
    return Raw(
        Table(["set", "layout", "images", "roles", "splits", "blocks", "refused"], rows).html()
        + f"<p class='soft'>Near-duplicate pairs by roles: {esc('; '.join(near_pairs) or 'none')}.</p>"
        + f"<h3>Quarantine: {len(files)} files, and why</h3>{quarantine}"
    )


def to_label(facts: Facts) -> Raw:
    """The advice of `autolabel advise` as HTML."""
    if facts.advice is None:
        return Raw("<p>No calibration images: nothing can be said.</p>")
    sentences = "".join(f"<p>{esc(line)}</p>" for line in facts.advice.sentences)
    return Raw(sentences + advice.table(facts.advice).html())


def labels(facts: Facts) -> Raw:
    """Section on the training labels: thresholds of both policies, classes of each source of labels, pixel counts."""
    statistics, used = facts.statistics, esc(facts.settings["pseudo_label"]["threshold"])
    if not statistics:
        return Raw("<p>No training labels were made.</p>")
    counts = ["teacher_gave", "passed", "from_teacher", "from_human", "both", "from_alike", "final"]
    if not results.has_alike(statistics["classes"]):
        counts.remove("from_alike")
    by_class = {row["name"]: row for row in statistics["classes"]}
    rows = []
    for name in facts.names:
        row = by_class.get(name.text, {})
        cells = [f"{row[key]:,}" if key in row else "–" for key in counts]
        rows.append([name, row.get("threshold") or "–", *cells[:2], Share(row.get("coverage")), *cells[2:]])
    heads = [key.replace("_", " ") for key in counts]
    shown = Table(["class", "threshold", *heads[:2], "coverage %", *heads[2:]], rows)
    return Raw(
        f"<p>Thresholds of both policies (these labels were made with <code>{used}</code>), and the share of each "
        "class in a source of labels. Crops show rare classes more often than that (student_train.sampling).</p>"
        f"{facts.diet.html()}<h3>Training labels of {statistics['images']} auto-labelled images: "
        f"{points(statistics['labelled_share'])} % of {statistics['pixels']:,} pixels carry one</h3>"
        f"{shown.html()}"
    )


_PIXELS = ("labelled", "corrected", "ignored")
_PRICE = ("answers", "minutes", *(f"pixels {what}" for what in _PIXELS), "right before %", "right after %")


def answers(facts: Facts) -> Raw:
    """Section on answers about regions: a table and a sentence for each set of questions; nothing without answers."""
    if not facts.answers:
        return Raw("")
    return Raw(
        "<p class='soft'>Answers about regions of labels/raw. Shares of right labels are those of all its pixels, "
        "weighted by the draws; wrong pixels at borders of regions are not seen.</p>"
        + "".join(f"{_price(found).html()}<p>{esc(found['words'])}.</p>" for found in facts.answers)
    )


def _price(found: Mapping[str, Any]) -> Table:
    rows: list[list[object]] = [
        [
            row["answers"],
            number(row["minutes"], 1),
            *(f"{row[what]:,}" for what in _PIXELS),
            *(Share(*row[key]) for key in ("before", "after")),
        ]
        for row in found["price"]
    ]
    return Table(_PRICE, rows)


def times(facts: Facts) -> Raw:
    """Seconds and memory of each stage, speed of each training."""
    rows = [[t["stage"], number(t["seconds"], 1), number(t["peak_memory_bytes"] / 2**20, 0)] for t in facts.times]
    rows.append(["all", number(sum(t["seconds"] for t in facts.times), 1), ""])
    shown = Table(["stage", "seconds", "peak MiB of one process"], rows, last_is_sum=True).html()
    runs = [(f"{stage}: {name}", run) for stage, named in facts.trainings.items() for name, run in named.items() if run]
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
    """Tables of the models with their parents, and of the label stores with their teacher and policy."""
    rows = []
    for name, meta in facts.models.items():
        line = meta.get("lineage", {})
        images = line.get("images")
        count = len(images) if isinstance(images, dict | list) else line.get("num_images", images)
        parents = ", ".join(facts.versions.get(str(p), str(p)[:12]) for p in line.get("parents", [])) or "none"
        shape = [meta.get("kind", ""), meta.get("trunk", ""), "–" if count is None else count]
        rows.append(
            ["pretraining" if name == "pretrain" else name, str(meta.get("weights_sha256", ""))[:16], parents, *shape]
        )
    made = [_store(f"labels/{name}", manifest, facts.versions) for name, manifest in facts.stores.items()]
    head = ["file", "digest (SHA-256)", "teacher's weights", "inference", "policy", "images"]
    return Raw(
        Table(["model", "weights (SHA-256)", "parents", "kind", "trunk", "images learned from"], rows).html()
        + (Table(head, made).html() if made else "")
        + "<p class='soft'>Every checkpoint lists the hashes of all images it learned from, through pseudo labels and "
        "parents; images found there are never used to judge it.</p>"
    )


def _store(name: str, manifest: Mapping[str, Any], versions: Mapping[str, str]) -> list[object]:
    line = manifest.get("lineage", {})
    scales = ", ".join(f"{scale:g}" for scale in line.get("scales") or [])
    inference = f"{{{scales}}}{' + flip' if line.get('flip') else ''}" if scales else "as the teacher's file says"
    inference += f", {line.get('precision', '')}"
    policy_meta = manifest.get("policy") or {}
    policy = str(policy_meta.get("digest") or "–")[:16]
    if proof := policy_meta.get("certificate"):
        policy += f"; certificate {str(proof.get('digest', ''))[:16]}: {', '.join(proof['classes'])}"
    teacher = str(line.get("teacher", ""))
    digests = [str(manifest.get("digest", ""))[:16], versions.get(teacher, teacher[:16])]
    return [name, *digests, inference, policy, manifest.get("images", "–")]


def names() -> Raw:
    """All explanations that stand at the mouse, in alphabetical order."""
    rows = sorted(MEANINGS.items(), key=lambda row: row[0].lower())
    return Raw(f"<dl>{''.join(f'<dt>{esc(name)}</dt><dd>{esc(text)}</dd>' for name, text in rows)}</dl>")


def settings(facts: Facts) -> Raw:
    """All parameters as JSON."""
    return Raw(f"<pre>{esc(json.dumps(facts.settings, indent=1, sort_keys=True))}</pre>")
