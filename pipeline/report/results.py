"""Tables of a workspace's results for the terminal, the report and a night's page; `render` formats them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hmsa_core.io.atomic import read_json
from hmsa_core.io.errors import InputError
from hmsa_core.labels import ThresholdPolicy
from pipeline.report.render import Name, Share, Table
from pipeline.report.verdict import is_known, sentences
from pipeline.workspace.counts import fine_pixels
from pipeline.workspace.workspace import Workspace

_ORDER = {"teacher": 0, "student": 1, "control": 2}


def json_of(ws: Workspace, relative: str) -> dict[str, Any]:
    """A JSON file of the workspace; {} when it does not exist."""
    path = ws.path(relative)
    return read_json(path) if path.exists() else {}


def differences(metrics: Mapping[str, Any]) -> Table:
    """Differences of mean IoU between models, paired on the same blocks."""
    rows = []
    for name, found in metrics["differences"].items():
        share = Share(found["value"], found["low"], found["high"], 2, "+")
        value = Share(found["value"], digits=2, sign="+")
        sure = "too few blocks"
        if is_known(metrics, found):
            sure = "yes" if found["low"] > 0 or found["high"] < 0 else "no"
        rows.append([name, value, share.interval, found["blocks"], sure])
    head = f"difference ({metrics['main_setting']} where none is named)"
    return Table([head, "points", "95 % interval", "blocks", "excludes zero"], rows)


def iou_by_class(metrics: Mapping[str, Any], names: Sequence[object]) -> Table:
    """Table of each class's IoU under the main setting (the teacher's under every setting); the last row is the mean.

    Args:
        metrics: evaluation/metrics.json.
        names: the classes as they are shown, in order.
    """
    main = metrics["main_setting"]
    columns = [
        (f"{model} · {setting}", found)
        for model, judged in metrics["models"].items()
        for setting, found in judged["settings"].items()
        if setting == main or model == "teacher"
    ]
    columns.sort(key=lambda c: _ORDER.get(c[0].split(" ")[0], 3))
    rows: list[list[object]] = [
        [name, *(Share(*(found["classes"].get(str(name)) or [None])[:3]) for _, found in columns)] for name in names
    ]
    rows.append(["mean", *(Share(found["value"], found["low"], found["high"]) for _, found in columns)])
    return Table(["class", *(name for name, _ in columns)], rows, last_is_sum=True)


def how_run(setting: Mapping[str, Any]) -> str:
    """Scales and flip of a setting as text, `{0.5, 1, 2} + flip`, with each option that is not the default."""
    text = f"{{{', '.join(f'{scale:g}' for scale in setting['scales'])}}}{' + flip' if setting['flip'] else ''}"
    if setting.get("mode", "model") != "model":
        text += f", fused by {setting['mode']}"
    if setting.get("long_edge"):
        text += f", long edge {setting['long_edge']}"
    return text if setting.get("score_at", "original") == "original" else f"{text}, scored at that size"


def has_alike(classes: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any training label is of the source alike; statistics.json of an older release does not count these."""
    return any(row.get("from_alike") for row in classes)


def diet(ws: Workspace, colours: Sequence[Sequence[int]] | None = None) -> Table:
    """Table of a student's labels: thresholds of both policies, share of each class in each source of labels.

    Before `pseudo-label` the table is empty. With `colours` (RGB of the classes) each name shows its colour.
    """
    rows_by_class = {row["name"]: row for row in json_of(ws, "labels/final/statistics.json").get("classes", [])}
    if not rows_by_class:
        return Table([], [])
    sources = {
        "fine labels %": fine_pixels(ws),
        "polygons, corrections %": {name: row["from_human"] + row["both"] for name, row in rows_by_class.items()},
        "teacher's labels %": {name: row["from_teacher"] for name, row in rows_by_class.items()},
    }
    if has_alike(rows_by_class.values()):
        sources["alike regions %"] = {name: row["from_alike"] for name, row in rows_by_class.items()}
    totals = [sum(source.values()) for source in sources.values()]
    thresholds = [_thresholds(ws.path(f"calibration/{name}.json")) for name in ("policy", "teach")]
    rows: list[list[object]] = []
    for c, name in enumerate(rows_by_class):
        shares = [
            Share(source.get(name, 0) / total if total else None, digits=2)
            for source, total in zip(sources.values(), totals, strict=True)
        ]
        rows.append([Name(name, colours[c]) if colours else name, *(t.get(name, "–") for t in thresholds), *shares])
    rows.append(["pixels", "", "", *(f"{total:,}" for total in totals)])
    return Table(["class", "promise", "teach", *sources], rows, last_is_sum=True)


def _thresholds(path: Path) -> dict[str, str]:
    """{class: its threshold as text}; {} without the policy file."""
    entries = ThresholdPolicy.load(path).entries if path.exists() else ()
    return {entry.name: entry.threshold or "withheld" for entry in entries}


def against_global(kept: Mapping[str, Any]) -> Table | None:
    """Compare the policy with one threshold for all classes; None if no class's threshold is measured or estimated."""
    found = kept["beside"]
    if not found["classes"]:
        return None
    rows = [
        [r["name"], Share(r["worst_precision"], digits=2), r["worst_class"], Share(r["class_mean_coverage"])]
        for r in found["rows"]
    ]
    return Table(["threshold", "worst precision %", "of class", "class-mean coverage %"], rows)


def region(kept: Mapping[str, Any]) -> str:
    """Suffix of a title that names the judged pixels; "" if all pixels were judged."""
    return "" if kept.get("region", "all") == "all" else ", outside of human polygons"


_NEXT = {
    "autolabel serve labels/raw": "the photographs, what is kept of them and how much is right",
    "report/index.html": "all figures, class by class",
    "autolabel advise": "which classes to label by hand next",
}


def summary_text(ws: Workspace) -> str:
    """Text of `autolabel stage --summary`, ten lines: what was learned, labelled, kept and gained; what is next.

    Raises:
        InputError: `evaluate` has not run yet.
    """
    metrics = json_of(ws, "evaluation/metrics.json")
    if not metrics:
        raise InputError(f"{ws.path('evaluation/metrics.json')}: not there", hint="run `dvc repro` first")
    if "unverified" in metrics:
        return f"{metrics['unverified']}\n"
    kept = metrics["kept"]
    roles = json_of(ws, "data/index/summary.json").get("target", {}).get("by_role", {})
    statistics = json_of(ws, "labels/final/statistics.json")
    lines = [
        ("learned", f"from {roles.get('learn', 0)} fine labels"),
        (
            "labelled",
            f"{statistics.get('images', 0)} images by a network of {Share(metrics['labels']['mean_iou'])} mIoU",
        ),
        (
            "kept",
            f"{Share(kept['coverage'])} % of the pixels (threshold: {kept['threshold']}){region(kept)}, "
            f"{Share(kept['precision'])} % of them right on {metrics['judgement']['judged']} images{_worst(kept)}",
        ),
        *zip(("gained", "", "", ""), sentences(metrics, statistics, spread_is_measured=False), strict=False),
        *zip(("next", "", ""), (f"{what:28}{why}" for what, why in _NEXT.items()), strict=True),
    ]
    return "".join(f"{name:10}{text}\n" for name, text in lines)


def _worst(kept: Mapping[str, Any]) -> str:
    """Clause that names the class with the lowest precision, if any class keeps pixels."""
    found = {name: row["precision"] for name, row in kept["classes"].items() if row.get("precision") is not None}
    worst = min(found, key=lambda name: float(found[name]), default=None)
    return "" if worst is None else f"; least right: {worst}, {Share(found[worst])} %"


def over(workspaces: Mapping[str, Workspace]) -> list[Table]:
    """Two tables over workspaces, of figures with verdicts and of thresholds; a missing value is a dash."""
    head = ["workspace", "images", "labelled", "kept %", "right %", "teacher", "student", "control", "gain", "its 95 %"]
    thresholds = {name: _thresholds(ws.path("calibration/policy.json")) for name, ws in workspaces.items()}
    classes = dict.fromkeys(c for by_class in thresholds.values() for c in by_class)
    rows = [[c, *(by_class.get(c, "–") for by_class in thresholds.values())] for c in classes]
    return [
        Table([*head, "gate"], [_summary(name, ws) for name, ws in workspaces.items()]),
        Table(["threshold", *workspaces], rows),
    ]


def _summary(name: str, ws: Workspace) -> list[object]:
    metrics, labels = json_of(ws, "evaluation/metrics.json"), json_of(ws, "labels/final/statistics.json")
    judged, kept = metrics.get("models", {}), metrics.get("kept", {})
    main, gains = metrics.get("main_setting"), metrics.get("differences", {})
    gain = gains.get("student - control") or gains.get("student - teacher") or {}
    means = [judged.get(model, {}).get("settings", {}).get(main, {}).get("value") for model in _ORDER]
    images = json_of(ws, "data/index/summary.json").get("target", {}).get("images", "–")
    return [
        name,
        images,
        labels.get("images", "–"),
        Share(labels.get("labelled_share")),
        Share(kept.get("precision"), digits=2),
        *map(Share, means),
        Share(gain.get("value"), sign="+"),
        Share(gain.get("value"), gain.get("low"), gain.get("high"), sign="+").interval or "–",
        json_of(ws, "evaluation/verdict.json").get("sentence", "–"),
    ]
