"""The sections of the page, each a pure function of the facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.quality import how_run
from pipeline.report.curves import curve_grid
from pipeline.report.facts import Facts
from pipeline.report.html import Raw, esc, number, points, span_of, swatch, table

__all__ = ["data", "headline", "lineage", "results", "thresholds", "times"]

_WORDS = {"pretrain": "pretraining", "teacher": "teacher", "student": "student", "control": "control"}


def headline(facts: Facts) -> Raw:
    """Verdict in a sentence and the numbers that matter."""
    models = facts.metrics.get("models", {})
    main = facts.metrics.get("main_setting", "")
    tiles = []
    for name in ("teacher", "student", "control"):
        if name in models and isinstance(models[name], dict):
            found = models[name]["settings"][main]
            text = f"mIoU {name}, {points(found['low'])} to {points(found['high'])}"
            tiles.append(_tile(points(found["value"]), text))
    for name, label in (("student - control", "student − control"), ("student - teacher", "student − teacher")):
        gain = facts.metrics.get("differences", {}).get(name)
        if gain:
            text = f"points {label}, {_signed(gain['low'])} to {_signed(gain['high'])}"
            tiles.append(_tile(_signed(gain["value"]), text))
    kept = facts.metrics.get("kept", {})
    if kept:
        tiles.append(_tile(points(kept["precision"], 2), "% of kept pixels right on report images"))
        tiles.append(_tile(points(kept["coverage"]), "% of pixels kept"))
    if facts.baseline is not None:
        tiles.append(_tile(points(facts.baseline), "mIoU of colour + position alone"))
    sentence = facts.verdict.get("sentence", "")
    reasons = [reason for reason in facts.verdict.get("reasons", []) if reason != sentence]
    why = f"<p class='soft'>Why: {esc('; '.join(reasons))}.</p>" if reasons else ""
    why += "".join(f"<p class='soft'>{esc(note)}</p>" for note in facts.verdict.get("notes", []))
    return Raw(f"<p class='lead'>{esc(sentence)}</p>{why}<div class='tiles'>{''.join(tiles)}</div>")


def _tile(value: str, text: str) -> str:
    return f"<div class='tile'><b>{esc(value)}</b><span>{esc(text)}</span></div>"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


def results(facts: Facts) -> Raw:
    """IoU per class of every model with intervals."""
    models = facts.metrics.get("models", {})
    if facts.metrics.get("unverified") or not models:
        return Raw(f"<p>{esc(facts.metrics.get('unverified', 'nothing was judged'))}</p>")
    main = facts.metrics["main_setting"]
    columns = [(f"{m} · {s}", found) for m, v in models.items() for s, found in v["settings"].items()]
    columns = [c for c in columns if c[0].endswith(main) or c[0].startswith("teacher")]
    order = {"teacher": 0, "student": 1, "control": 2}
    columns.sort(key=lambda c: order.get(c[0].split(" ")[0], 3))
    rows: list[Sequence[object]] = []
    for name, colour in zip(facts.classes.classes, facts.classes.colours, strict=True):
        rows.append([_class(name, colour), *(span_of(found["classes"].get(name)) for _, found in columns)])
    rows.append(["mean", *(span_of([f["value"], f["low"], f["high"]]) for _, f in columns)])
    first = columns[0][1]
    out = facts.metrics.get("judgement", {}).get("left_out", 0)
    left = f" {out} images were left out because a model had learned from them." if out else ""
    settings = ", ".join(f"{s['name']} = scales {how_run(s)}" for s in facts.metrics["settings"])
    gains = [
        [
            name,
            _signed(d["value"]),
            f"{_signed(d['low'])} … {_signed(d['high'])}",
            "yes" if (d["low"] or 0) > 0 or (d["high"] or 0) < 0 else "no",
        ]
        for name, d in facts.metrics.get("differences", {}).items()
    ]
    return Raw(
        f"<p class='soft'>IoU in percent points with {100 * first['level']:.0f} % intervals from "
        f"{first['draws']} draws of {first['blocks']} blocks.{left} {esc(settings)}.</p>"
        + table(["class", *(c for c, _ in columns)], rows, last_is_sum=True)
        + "<h3>Differences, paired on the same blocks</h3>"
        + table(["comparison", "points", "interval", "excludes zero"], gains)
    )


def _class(name: str, colour: Sequence[int]) -> Raw:
    return Raw(f"{swatch(colour)}{esc(name)}")


def thresholds(facts: Facts) -> Raw:
    """What was measured on the calibration images, what it does on the report images."""
    if facts.policy is None or facts.curves is None:
        return Raw("<p>No calibration images: the threshold was given, not measured.</p>")
    wanted = float(facts.policy.settings.get("target", facts.settings["calibrate"]["target"]))
    target = float(facts.policy.evidence.get("target", wanted))
    lowered = (
        ""
        if target >= wanted
        else (
            f" (calibrate.target is {points(wanted)} %, but no confidence is right more often on these images, by "
            "errors of the teacher or of the labels)"
        )
    )
    report = facts.metrics.get("kept", {}).get("classes", {})
    rows = []
    for entry, colour in zip(facts.policy.entries, facts.classes.colours, strict=True):
        own, seen = entry.evidence, report.get(entry.name, {})
        kept = entry.threshold is not None  # else the counts are of nothing
        rows.append(
            [
                _class(entry.name, colour),
                _status(entry.status),
                entry.threshold or "–",
                number(own.get("effective_blocks") if kept else None, 0),
                number(own.get("components") if kept else None, 0),
                points(own.get("precision"), 2),
                points(own.get("lower"), 2),
                points(own.get("marginal"), 1),
                points(own.get("coverage")),
                points(seen.get("precision"), 2),
                _ends(seen),
                points(seen.get("coverage")),
                points(seen.get("void"), 2),
            ]
        )
    head = [
        "class",
        "status",
        "cut",
        "blocks",
        "pieces",
        "precision",
        "lower bound",
        "marginal",
        "coverage",
        "precision, report",
        "its 95 %",
        "coverage, report",
        "on void",
    ]
    used = facts.settings["pseudo_label"]["threshold"]
    other = (
        ""
        if used == "policy"
        else (
            f"<p><b>The labels of this run were not cut by this policy but by <code>{esc(used)}</code></b> "
            f"(pseudo_label.threshold): what the report images say, on the right, is about that.</p>"
        )
    )
    return Raw(
        f"{other}<p>Each class keeps pixels from the confidence on at which the lower bound of its precision reaches "
        f"{points(target)} %{lowered} on images that the teacher never saw, and at which the marginal pixels are still "
        f"right often enough{_where(facts)}. <b>measured</b>: a promise; <b>estimate</b>: a figure, no promise; "
        f"<b>pooled</b>: shrunk to its class group; <b>withheld</b>: no cut is good enough, its pixels are ignored. "
        f"Blocks and pieces are those of the pixels that the cut keeps; the columns on the right are the check on "
        f"report images.</p>{table(head, rows)}<h3>Why each class has its status</h3>{_why(facts)}"
        f"<h3>Precision (up) over coverage (right) on the calibration images; "
        f"dashed: the target</h3>{curve_grid(facts.curves, facts.policy, target)}{_beside(facts)}{_sampled(facts)}"
    )


def _status(status: str) -> Raw:
    return Raw(f"<span class='chip {status}'>{status}</span>")


def _why(facts: Facts) -> Raw:
    assert facts.policy is not None  # noqa: S101 - for the type checker: `thresholds` looked
    lines = [
        f"<tr><td>{_class(e.name, colour)}</td><td class='left'>{_status(e.status)}</td>"
        f"<td class='wrap'>{esc(e.evidence.get('reason', '') or 'the bound reaches the target')}</td></tr>"
        for e, colour in zip(facts.policy.entries, facts.classes.colours, strict=True)
    ]
    return Raw(f"<details><summary>{len(lines)} classes</summary><table>{''.join(lines)}</table></details>")


def _where(facts: Facts) -> str:
    if facts.metrics.get("kept", {}).get("region", "all") == "all":
        return ""
    everywhere = facts.metrics["kept"]["all_pixels"]["precision"]
    return (
        " (counted outside of human polygons, where merged labels take the teacher's word; of all kept pixels "
        f"{points(everywhere, 2)} % are right)"
    )


def _ends(row: Mapping[str, Any]) -> str:
    return "–" if row.get("upper") is None else f"{points(row['lower'], 1)} … {points(row['upper'], 1)}"


def _beside(facts: Facts) -> Raw:
    kept = facts.metrics.get("kept", {})
    beside = kept.get("all_pixels", kept).get("beside", {})
    if not beside.get("classes"):
        return Raw("")
    rows = [
        [row["name"], points(row["worst_precision"], 2), row["worst_class"], points(row["class_mean_coverage"])]
        for row in beside["rows"]
    ]
    return Raw(
        "<h3>One threshold for all classes instead, on the report images</h3><p>Classes with a measured or estimated "
        f"threshold: {esc(', '.join(beside['classes']))}. The global rival was chosen on these very images, the policy "
        f"was not.</p>{table(['', 'worst precision %', 'of class', 'class-mean coverage %'], rows)}"
    )


def _sampled(facts: Facts) -> Raw:
    found = facts.metrics.get("kept", {}).get("sampled", {})
    if not found.get("crops"):
        return Raw("")
    rows = [
        [
            name,
            row["crops"],
            points(row["plain_share"], 2),
            points(row["share"], 2),
            points(row["plain_precision"], 2),
            points(row["precision"], 2),
        ]
        for name, row in found["classes"].items()
        if row["plain_share"]
    ]
    head = ["class", "crops drawn for it", "share of kept pixels %", "... in crops", "precision %", "... in crops"]
    rows.append(["all", found["crops"], "", "", points(found["plain_precision"], 2), points(found["precision"], 2)])
    return Raw(
        "<h3>What class-uniform sampling makes of it, on the report images</h3><p>Kept pixels as the student's sampler "
        "would show them: a rare class is drawn far more often than it occurs, where the teacher says that it is.</p>"
        + table(head, rows, last_is_sum=True)
    )


def _lines(counts: Mapping[str, int]) -> Raw:
    return Raw("<br>".join(esc(f"{n} {name}") for name, n in counts.items()))  # one wide line leaves the page


def data(facts: Facts) -> Raw:
    """Counts by role, quarantine with reasons, near-duplicates."""
    parts = []
    for root, part in facts.summary.items():
        if not isinstance(part, dict) or not part.get("images"):
            continue
        roles, splits, blocks = (_lines(part.get(key, {})) for key in ("by_role", "by_split", "blocks"))
        parts.append([root, part["layout"], part["images"], roles, splits, blocks, part["refused_images"]])
    near = [
        f"{kind}: {n}"
        for part in facts.summary.values()
        if isinstance(part, dict)
        for kind, n in part.get("near_duplicates", {}).items()
    ]
    refused = [
        [bad.root, bad.path, bad.reason, Raw(f"<span class='wrap'>{esc(bad.detail)}</span>")]
        for bad in facts.quarantine
    ]
    return Raw(
        table(["set", "layout", "images", "roles", "splits", "blocks", "refused"], parts)
        + f"<p class='soft'>Near-duplicate pairs by roles: {esc('; '.join(near) or 'none')}.</p>"
        + f"<h3>Quarantine: {len(refused)} files, and why</h3>"
        + (table(["set", "file", "reason", "detail"], refused) if refused else Raw("<p>No file was refused.</p>"))
        + _kept_table(facts)
    )


def _kept_table(facts: Facts) -> Raw:
    own = facts.statistics
    if not own:
        return Raw("")
    rows = []
    for row, colour in zip(own["classes"], facts.classes.colours, strict=True):
        rows.append(
            [
                _class(row["name"], colour),
                row["threshold"] or "–",
                f"{row['teacher_gave']:,}",
                f"{row['passed']:,}",
                points(row["coverage"]),
                f"{row['from_teacher']:,}",
                f"{row['from_human']:,}",
                f"{row['both']:,}",
                f"{row['final']:,}",
            ]
        )
    head = ["class", "cut", "teacher gave", "passed", "coverage %", "from teacher", "from human", "both", "final"]
    return Raw(
        f"<h3>Training labels of {own['images']} auto-labelled images: {points(own['labelled_share'])} % of "
        f"{own['pixels']:,} pixels carry one</h3>{table(head, rows)}"
    )


def times(facts: Facts) -> Raw:
    """Seconds and memory of each stage."""
    rows = [[t["stage"], number(t["seconds"], 1), number(t["peak_memory_bytes"] / 2**20, 0)] for t in facts.times]
    total = sum(t["seconds"] for t in facts.times)
    rows.append(["all", number(total, 1), ""])
    speeds = [
        [
            f"{stage}: {name}",
            number(run["images_per_s"], 1),
            points(run["data_wait"]),
            points(run["data_wait_most"]),
            number(run["memory_mb"], 0),
        ]
        for stage, runs in facts.trainings.items()
        for name, run in runs.items()
        if run
    ]
    head = ["training", "crops a second", "waiting for the loader, % of the time", "... at most", "peak MB of a rank"]
    return Raw(
        table(["stage", "seconds", "peak MiB of one process"], rows, last_is_sum=True)
        + (table(head, speeds) if speeds else "")
    )


def _stores(facts: Facts) -> Raw:
    """Which teacher made which labels, and by which policy they were kept."""
    rows = []
    for name, manifest in facts.stores.items():
        line = manifest.get("lineage", {})
        scales = ", ".join(f"{scale:g}" for scale in line.get("scales", []))
        policy = (manifest.get("policy") or {}).get("digest")
        rows.append(
            [
                f"labels/{name}",
                str(manifest.get("digest", ""))[:16],
                str(line.get("teacher", ""))[:16],
                f"{{{scales}}}{' + flip' if line.get('flip') else ''}, {line.get('precision', '')}",
                str(policy or "–")[:16],
                manifest.get("images", "–"),
            ]
        )
    if facts.policy_digest:
        rows.append(["calibration/policy.json", facts.policy_digest[:16], "", "", "", ""])
    if not rows:
        return Raw("")
    return table(["file", "digest (SHA-256)", "teacher's weights", "inference", "policy", "images"], rows)


def lineage(facts: Facts) -> Raw:
    """Who descends from whom."""
    rows = []
    for name, meta in facts.models.items():
        line = meta.get("lineage", {}) if isinstance(meta.get("lineage"), dict) else {}
        parents = ", ".join(str(p)[:12] for p in line.get("parents", [])) or "none"
        images = line.get("images")
        count = len(images) if isinstance(images, dict | list) else line.get("num_images", images)
        rows.append(
            [
                _WORDS[name],
                str(meta.get("weights_sha256", ""))[:16],
                parents,
                meta.get("kind", ""),
                meta.get("trunk", ""),
                "–" if count is None else count,
            ]
        )
    return Raw(
        table(["model", "weights (SHA-256)", "parents", "kind", "trunk", "images learned from"], rows)
        + _stores(facts)
        + "<p class='soft'>Every checkpoint lists the hashes of all images it learned from, through pseudo labels and "
        "parents; images found there are never used to judge it.</p>"
    )
