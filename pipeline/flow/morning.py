"""The morning page: what happened tonight, on one screen, with links and exact commands.

`work/nightly/history.jsonl` keeps one line a night; it is what "yesterday" and the 30-night lines are read from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from hmsa_core import __version__, atomic
from hmsa_core.data.index import read_quarantine
from hmsa_core.labels import LabelStore, StoreStatistics, ThresholdPolicy
from pipeline.inspector.review import ReviewFile, review_path
from pipeline.machine import disk_need
from pipeline.registry import Registry
from pipeline.report.html import Raw, esc, points, table
from pipeline.report.pictures import strips
from pipeline.workspace import Workspace

__all__ = ["as_markdown", "collect", "write"]

PAGE = "work/nightly/morning.html"
HISTORY = "work/nightly/history.jsonl"
_NIGHTS = 30
_CHOSEN, _RANDOM = 12, 3  # pictures: by loss of coverage, and at random


def collect(
    ws: Workspace, arrived: dict[str, Any], verdict: dict[str, Any], changes: dict[str, Any]
) -> dict[str, Any]:
    """Read tonight's outputs into one JSON-ready object.

    Args:
        ws: the workspace.
        arrived: what `discover` found.
        verdict: what the gate said ({} when nobody was judged tonight).
        changes: parameters that were given for this run.
    """
    night = {
        "data": _digest(ws, "data/index/target.parquet"), "params": _digest(ws, "params.yaml"),
        "code": __version__, "teacher": Registry(ws.root).current(), "overrides": changes,
    }  # fmt: skip
    statistics = _json(ws, "labels/final/statistics.json")
    page = {
        "sentence": verdict.get("sentence") or "Nobody was judged tonight.",
        "decision": verdict.get("decision", ""),
        "arrived": arrived, "night": night, "differs": _differs(ws, night),
        "funnel": _funnel(ws, arrived, statistics), "trust": _trust(ws, statistics), "drift": _drift(ws),
        "queue": _queue(ws), "cost": _cost(ws, statistics), "health": _health(ws), "verdict": verdict,
    }  # fmt: skip
    page["lines"] = _remember(ws, page, statistics)
    return page


def _json(ws: Workspace, relative: str) -> dict[str, Any]:
    path = ws.path(relative)
    return atomic.read_json(path) if path.exists() else {}


def _digest(ws: Workspace, relative: str) -> str:
    path = ws.path(relative)
    return atomic.sha256_file(path)[:12] if path.exists() else ""


def _nights(ws: Workspace) -> list[dict[str, Any]]:
    path = ws.path(HISTORY)
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


def _differs(ws: Workspace, night: dict[str, Any]) -> list[str]:
    nights = _nights(ws)
    if not nights:
        return ["this is the first night"]
    before = nights[-1]["night"]
    words = {"data": "the images", "params": "params.yaml", "code": "the program", "teacher": "the teacher"}
    changed = [k for k in words if before.get(k) != night[k]]
    found = [f"{words[k]}: {before.get(k) or 'none'} → {night[k]}" for k in changed]
    if night["overrides"]:
        found.append(f"for this run only: {json.dumps(night['overrides'], sort_keys=True)}")
    return found or ["nothing differs from last night"]


def _funnel(ws: Workspace, arrived: dict[str, Any], statistics: dict[str, Any]) -> list[dict[str, Any]]:
    path = ws.path("data/index/quarantine.parquet")
    rows = read_quarantine(path) if path.exists() else []
    copies = [r for r in rows if r.reason.startswith("duplicate")]
    raw = ws.path("labels/raw/manifest.json")
    store = LabelStore.open(ws.path("labels/raw")) if raw.exists() else None
    marks = list(ReviewFile(review_path(ws.path("labels/raw"))).marks()) if store else []
    conflicts = sum(row["pixels"] for row in statistics.get("conflicts", []))
    return [
        {"step": "arrived tonight", "count": arrived.get("arrived", 0)},
        {"step": "copies of known images", "count": len(copies)},
        {"step": "quarantined", "count": len(rows) - len(copies)},
        {"step": "labelled", "count": len(store.names()) if store else 0},
        {"step": "pixels with a label, %", "count": round(100 * statistics.get("labelled_share", 0.0), 2)},
        {"step": "pixels in conflict with a human", "count": conflicts},
        {"step": "corrected by review", "count": len(marks)},
    ]


def _trust(ws: Workspace, statistics: dict[str, Any]) -> list[dict[str, Any]]:
    path = ws.path("calibration/policy.json")
    if not path.exists():
        return []
    before = {}
    nights = _nights(ws)
    if nights:
        before = nights[-1].get("coverage", {})
    now = {row["name"]: row for row in statistics.get("classes", [])}
    rows = []
    for entry in ThresholdPolicy.load(path).entries:
        own, kept = entry.evidence, now.get(entry.name, {})
        coverage, old = kept.get("coverage"), before.get(entry.name)
        rows.append({
            "class": entry.name, "status": entry.status, "threshold": entry.threshold or "withheld",
            "precision": points(own.get("precision"), 2), "source": "calibration",
            "marginal": points(own.get("marginal")), "coverage": points(coverage),
            "change": "" if old is None or coverage is None else f"{100 * (coverage - old):+.1f}",
            "on void": points(own.get("void"), 2),
        })  # fmt: skip
    return rows


def _drift(ws: Workspace) -> list[dict[str, Any]]:
    cities = _json(ws, "labels/shift.json").get("cities", {})
    rows = [{"where": where, **row} for where, classes in cities.items() for row in classes]
    return [row for row in rows if row["status"] not in ("covered", "nothing kept")][:40]


def _queue(ws: Workspace) -> list[dict[str, str]]:
    """Images for twenty minutes of a person's eyes: the least certain ones, as links into the inspector."""
    raw = ws.path("labels/raw/manifest.json")
    policy = ws.path("calibration/policy.json")
    if not raw.exists() or not policy.exists():
        return []
    statistics = StoreStatistics.open(ws.path("labels/raw"))
    kept = statistics.kept(ThresholdPolicy.load(policy).codes()).sum(axis=1) / statistics.pixels
    order = kept.argsort(kind="stable")[:20]
    return [
        {
            "name": statistics.names[i], "kept": points(float(kept[i])),
            "link": "http://127.0.0.1:8765/?" + urlencode({"image": statistics.names[i]}),
        }
        for i in order
    ]  # fmt: skip


def _cost(ws: Workspace, statistics: dict[str, Any]) -> dict[str, Any]:
    times = [_json(ws, f"work/times/{path.name}") for path in sorted(ws.path("work/times").glob("*.json"))]
    seconds = sum(float(t.get("seconds", 0.0)) for t in times)
    images, kept = statistics.get("images", 0), statistics.get("labelled", 0)
    return {
        "hours": round(seconds / 3600, 3),
        "seconds_per_1000_images": round(1000 * seconds / images, 1) if images else None,
        "seconds_per_million_kept_pixels": round(1e6 * seconds / kept, 2) if kept else None,
        "stages": {t["stage"]: t["seconds"] for t in times if t},
    }


def _health(ws: Workspace) -> dict[str, Any]:
    need = disk_need(ws)
    return {"free_gib": round(need.free / 2**30, 1), "needed_gib": round(need.total / 2**30, 1)}


def _remember(ws: Workspace, page: dict[str, Any], statistics: dict[str, Any]) -> list[dict[str, Any]]:
    gain = page["verdict"].get("gain", {})
    line = {
        "night": page["night"], "candidate": gain.get("candidate"), "gain": gain.get("value"),
        "kept": statistics.get("labelled_share"), "promoted": page["verdict"].get("promoted"),
        "images": statistics.get("images"), "hours": page["cost"]["hours"],
        "coverage": {row["name"]: row["coverage"] for row in statistics.get("classes", [])},
    }  # fmt: skip
    nights = _nights(ws)
    atomic.append_line(ws.path(HISTORY), json.dumps(line, sort_keys=True))
    return [*nights, line][-_NIGHTS:]


def write(ws: Workspace, page: dict[str, Any]) -> Path:
    """Write the page; return its path."""
    path = ws.path(PAGE)
    atomic.write_text(path, _html(ws, page))
    return path


def _html(ws: Workspace, page: dict[str, Any]) -> str:
    style = resources.files("pipeline.report").joinpath("style.css").read_text("utf-8")
    differs = "".join(f"<li>{esc(line)}</li>" for line in page["differs"])
    sections = [
        ("What differs from last night", Raw(f"<ul>{differs}</ul>")),
        ("From arrived to kept", _rows(page["funnel"])),
        ("Trust, class by class", _rows(page["trust"])),
        ("Drift by city or drive", _rows(page["drift"]) if page["drift"] else Raw("<p>Covered by the evidence.</p>")),
        ("Pictures", _pictures(ws, page)),
        ("Your twenty minutes", _queue_html(page["queue"])),
        ("Cost", _rows([page["cost"] | {"stages": _stage_seconds(page["cost"]["stages"])}])),
        (f"Last {len(page['lines'])} nights", _lines(page["lines"])),
        ("If something is wrong", _commands(ws, page)),
    ]
    body = "".join(f"<h2>{esc(title)}</h2>{html}" for title, html in sections)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>auto-label</title><style>{style}</style></head><body><main><h1>auto-label, last night</h1>"
        f"<p class='lead'>{esc(page['sentence'])}</p><p class='soft'>{esc(page['decision'])}</p>{body}</main></body>"
        "</html>\n"
    )


def _stage_seconds(stages: dict[str, float]) -> str:
    return ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in stages.items())


def _rows(rows: Sequence[dict[str, Any]]) -> Raw:
    if not rows:
        return Raw("<p class='soft'>nothing to show</p>")
    return table(list(rows[0]), [["–" if v is None else v for v in row.values()] for row in rows])


def _pictures(ws: Workspace, page: dict[str, Any]) -> Raw:
    from hmsa_core.data.index import Index

    chosen = [row["name"] for row in page["queue"][:_CHOSEN]]
    if not chosen:
        return Raw("<p class='soft'>nothing was labelled</p>")
    store = LabelStore.open(ws.path("labels/raw"))
    others = [n for n in store.names() if n not in chosen]
    # "At random", and yet the same on a re-run: drawn by the store's own digest.
    others.sort(key=lambda name: atomic.digest([store.digest, name]))
    samples = Index.load(ws.path("data/index/target.parquet")).select(names=[*chosen[:_CHOSEN], *others[:_RANDOM]])
    return Raw(f"<div class='pictures'>{''.join(s.html() for s in strips(ws, samples))}</div>")


def _queue_html(queue: list[dict[str, str]]) -> Raw:
    if not queue:
        return Raw("<p class='soft'>nothing to review</p>")
    rows = [[Raw(f"<a href='{esc(row['link'])}'>{esc(row['name'])}</a>"), row["kept"]] for row in queue]
    return Raw(
        "<p>Start the inspector with <code>autolabel serve labels/raw --policy calibration/policy.json --port 8765"
        f"</code>, then follow a link; these images keep least.</p>{table(['image', 'kept %'], rows)}"
    )


def _lines(nights: list[dict[str, Any]]) -> Raw:
    rows = [
        [i, points(n["candidate"], 2), points(n["gain"], 2), points(n["kept"]), n["images"] or 0, n["promoted"] or ""]
        for i, n in enumerate(nights, 1)
    ]
    return table(["night", "student mIoU", "gain", "kept %", "images", "promoted"], rows)


def _commands(ws: Workspace, page: dict[str, Any]) -> Raw:
    disk = page["health"]
    lines = [
        ("go back to the teacher before", "autolabel models rollback"),
        ("run the night again", "prefect deployment run auto-label/nightly"),
        ("reproduce without Prefect", f"cd {ws.root} && dvc repro"),
        ("what is broken", "autolabel doctor"),
    ]
    items = "".join(f"<li>{esc(what)}: <code>{esc(command)}</code></li>" for what, command in lines)
    return Raw(f"<p>{disk['free_gib']} GiB free, about {disk['needed_gib']} GiB needed.</p><ul>{items}</ul>")


def as_markdown(page: dict[str, Any], path: Path) -> str:
    """The page's head as Markdown, for Prefect's artifact."""
    differs = "\n".join(f"- {line}" for line in page["differs"])
    return f"## {page['sentence']}\n\n{page['decision']}\n\n{differs}\n\nWhole page: `{path}`\n"
