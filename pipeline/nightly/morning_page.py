"""Draw the morning page: one self-contained HTML file that fits on one screen (1500 x 940), lists folded away."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import cv2
import numpy as np

from hmsa_core.data.decode import read_image
from hmsa_core.data.index import Index
from hmsa_core.io import atomic
from hmsa_core.io.errors import DecodeError
from hmsa_core.labels import LabelStore
from hmsa_core.taxonomy import IGNORE
from pipeline.nightly.morning import INSPECTOR, PAGE
from pipeline.render import Raw, Status, Table, data_uri, esc, number
from pipeline.stages.precision import policy_file
from pipeline.workspace import Workspace

__all__ = ["write"]

_WIDTH = 200  # pixels of a picture
_DRIFT_SHOWN = 6


def write(ws: Workspace, page: Mapping[str, Any]) -> Path:
    """Write the page; return its path."""
    path = ws.path(PAGE)
    atomic.write_text(path, _html(ws, page))
    return path


def _html(ws: Workspace, page: Mapping[str, Any]) -> str:
    folder = resources.files("pipeline.report")
    style = "".join(folder.joinpath(name).read_text("utf-8") for name in ("style.css", "morning.css"))
    columns = _least(ws, page) if page.get("least") else _whole(ws, page)
    body = "".join(f"<div>{''.join(_section(*part) for part in column)}</div>" for column in columns)
    tail = f"<pre>{esc(chr(10).join(page['tail'][-12:]))}</pre>" if page["tail"] else ""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>auto-label: {esc(page['kind'])}</title><style>{style}</style></head><body><main><header>"
        f"<span class='badge {esc(page['kind'].replace(' ', '-'))}'>{esc(page['kind'])}</span>"
        f"<p class='lead'>{esc(page['sentence'])}</p><p class='soft'>{esc(page['decision'])}{tail}</p></header>"
        f"<div class='columns'>{body}</div></main></body></html>\n"
    )


def _whole(ws: Workspace, page: Mapping[str, Any]) -> list[list[tuple[str, str, Raw]]]:
    """Sections of a night whose outputs can be read, by column: title, note, content."""
    return [
        [
            ("What differs from last night", "", _list(page["differs"])),
            ("From arrived to corrected", "click a number for the images", _funnel(page["funnel"])),
            ("Cost", "", _cost(page["cost"])),
            ("Health", "", _health(page["health"])),
            ("What to type", "", _commands(ws, page)),
        ],
        [
            (
                "Trust, class by class",
                "per cent; precision on calibration images (blocks) and on the report set",
                _trust(page["trust"]),
            ),
            ("Drift", "where the evidence does not cover a class", _drift(page["drift"])),
        ],
        [
            (
                "Pictures",
                f"training labels: {len(page['chosen'])} by expected loss, {len(page['random'])} at random",
                _pictures(ws, page),
            ),
            ("Your twenty minutes", "% of pixels expected to teach something wrong", _queue(ws, page["queue"])),
            ("The last 30 nights", f"{len(page['lines'])} so far", _lines(page["lines"])),
        ],
    ]


def _least(ws: Workspace, page: Mapping[str, Any]) -> list[list[tuple[str, str, Raw]]]:
    """Sections that need neither parameters nor outputs: what is empty because it was not read is not shown."""
    warnings = page["health"]["warnings"]
    said = [("Health", "", _list(warnings, " class='warning'"))] if warnings else []
    told = [("What to type", "", _commands(ws, page)), *said]
    if not page["lines"]:
        return [told]
    return [told, [("The last 30 nights", f"{len(page['lines'])} so far", _lines(page["lines"]))]]


def _section(title: str, note: str, content: str) -> Raw:
    small = f" <small>{esc(note)}</small>" if note else ""
    return Raw(f"<section><h2>{esc(title)}{small}</h2>{content}</section>")


def _list(lines: Sequence[str], kind: str = "") -> Raw:
    return Raw(f"<ul{kind}>{''.join(f'<li>{esc(line)}</li>' for line in lines)}</ul>")


def _soft(text: str) -> Raw:
    return Raw(f"<p class='soft'>{esc(text)}</p>")


def _funnel(rows: Sequence[Mapping[str, Any]]) -> Raw:
    cells = []
    for row in rows:
        links = "".join(f"<li><a href='{esc(link)}'>{esc(name)}</a></li>" for name, link in row["images"])
        total = _count(row["in all"])
        shown = Raw(f"<details><summary>{total}</summary><ul>{links}</ul></details>") if links else Raw(total)
        cells.append([row["step"], _change(row["tonight"]), shown])
    return Table(["", "tonight", "in all"], cells).html()


def _count(value: float) -> str:
    return f"{value:,.2f}" if isinstance(value, float) and value != int(value) else f"{int(value):,}"


def _change(value: float) -> str:
    return "–" if not value else f"{'+' if value > 0 else '−'}{_count(abs(value))}"


def _cost(cost: Mapping[str, Any]) -> Raw:
    unit = cost["unit"]
    spent = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in cost["stages"].items())
    rows = [
        ["tonight", f"{number(cost['hours'], 3)} {unit}"],
        ["labels of 1,000 images", f"{number(cost['per_1000_images'], 3)} {unit}"],
        ["a million kept pixels", f"{number(cost['per_million_kept'], 4)} {unit}"],
    ]
    body = "".join(f"<tr><td>{esc(what)}</td><td>{esc(value)}</td></tr>" for what, value in rows)
    return Raw(f"<table>{body}</table>{_soft(spent or 'no stage had anything to do')}")


def _health(health: Mapping[str, Any]) -> Raw:
    told = [f"{health['free_gib']} GiB free, about {health['needed_gib']} GiB needed for a whole night"]
    if health["aa_runs"]:
        told.append(f"seed variance from {health['aa_runs']} A/A trainings")
    if health["look"]:
        told.append(f"look {health['look']} at this report set, {100 * health['alpha']:.2f} % of error spent on it")
    return Raw(_list(told) + _list(health["warnings"], " class='warning'"))


def _commands(ws: Workspace, page: Mapping[str, Any]) -> Raw:
    given = page["night"]["overrides"]
    again = ["prefect", "deployment", "run", "auto-label/nightly"]
    repro = ["dvc", "repro"]
    for name, value in page.get("arguments", {}).items():
        again += ["-p", f"{name}={value if isinstance(value, str) else _json(value)}"]
    if given:
        again += ["-p", f"params={_json(given)}"]
        repro = ["dvc", "exp", "run", *(part for k, v in given.items() for part in ("-S", f"{k}={_json(v)}"))]
    lines = [
        ("roll back", ["autolabel", "models", "rollback"]),
        ("run the night again", again),
        ("reproduce without Prefect", repro),
        ("what is broken", ["autolabel", "doctor"]),
    ]
    items = "".join(f"<li>{esc(what)}: <code>{esc(shlex.join(command))}</code></li>" for what, command in lines)
    return Raw(f"<p>in <code>{esc(ws.root)}</code>:</p><ul>{items}</ul>")


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _trust(rows: Sequence[Mapping[str, Any]]) -> Raw:
    if not rows:
        return _soft("no policy: calibrate has not run, or the threshold is a plain number")
    figures = ("threshold", "precision", "blocks", "report set", "marginal", "coverage", "change", "on void")
    shown = [[row["class"], Status(row["status"]), *(row[key] for key in figures)] for row in rows]
    head = ["class", "status", "threshold", "precision", "blocks", "on report", "marginal", "covers", "change", "void"]
    return Table(head, shown).html()


def _drift(rows: Sequence[Mapping[str, Any]]) -> Raw:
    if not rows:
        return _soft("every city's classes are covered by the calibration images")
    cells = [[r["where"], r["class"], r["status"], r["precision"], r["usual"]] for r in rows[:_DRIFT_SHOWN]]
    shown = Table(["where", "class", "status", "expected", "usual"], cells).html()
    more = f"and {len(rows) - _DRIFT_SHOWN} more, in labels/shift.json" if len(rows) > _DRIFT_SHOWN else ""
    return Raw(shown + (_soft(more) if more else ""))


def _pictures(ws: Workspace, page: Mapping[str, Any]) -> Raw:
    captions = dict([*page["chosen"], *page["random"]])
    if not captions:
        return _soft("nothing was labelled")
    index = Index.load(ws.path("data/index/target.parquet"))
    samples = {sample.name: sample for sample in index.select(names=list(captions))}
    if not ws.path("labels/final/manifest.json").exists():
        return _soft("no training labels were made")
    final = LabelStore.open(ws.path("labels/final"))
    palette, root = index.classes.palette(), ws.roots[index.root]
    cells = []
    for name, caption in captions.items():
        if name not in samples or name not in final:
            continue
        try:
            image = read_image(root / samples[name].image)
        except (DecodeError, FileNotFoundError):
            continue  # `prepare` names it tomorrow
        picture = _overlay(image, final.read(name)[0], palette)
        link = f"{INSPECTOR}?{urlencode({'image': name})}"
        shown = f"<img src='{picture}' alt='{esc(name)}'>{esc(caption)}"
        cells.append(f"<a href='{esc(link)}' title='{esc(name)}'>{shown}</a>")
    return Raw(f"<div class='thumbs'>{''.join(cells)}</div>")


def _overlay(
    image: np.ndarray[Any, np.dtype[np.uint8]],
    label: np.ndarray[Any, np.dtype[np.uint8]],
    palette: np.ndarray[Any, np.dtype[np.uint8]],
) -> str:
    """The picture as a data address: colours where there is a training label, dark where it is ignored."""
    size = (_WIDTH, max(1, round(_WIDTH * image.shape[0] / image.shape[1])))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    ids = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    colours = palette[ids].astype(np.float32)
    kept = (ids != IGNORE)[..., None]
    mixed = np.where(kept, 0.45 * small + 0.55 * colours, 0.45 * small)
    _, data = cv2.imencode(".jpg", mixed.astype(np.uint8)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return data_uri(data.tobytes(), "image/jpeg")


def _queue(ws: Workspace, rows: Sequence[Mapping[str, str]]) -> Raw:
    if not rows:
        return _soft("nothing to review")
    items = "".join(
        f"<li><a href='{esc(row['link'])}' title='{esc(row['name'])}'>{esc(row['loss'])} % {esc(row['name'])}</a></li>"
        for row in rows
    )
    file, command = policy_file(ws), ["autolabel", "serve", "labels/raw"]
    if file is not None and file.is_file():
        command += ["--policy", str(file.relative_to(ws.root) if file.is_relative_to(ws.root) else file)]
    return Raw(
        f"<p>First <code>{esc(shlex.join(command))}</code>, then accept or flag; "
        f"flagged pixels are ignored from the next night on.</p><ul class='queue'>{items}</ul>"
    )


# -- thirty nights ----------------------------------------------------------------------------------

_SERIES = (
    ("student mIoU", "candidate", 100.0, 2),
    ("gain", "gain", 100.0, 2),
    ("kept %", "kept", 100.0, 1),
    ("images", "images", 1.0, 0),
    ("device hours", "hours", 1.0, 2),
)


def _lines(nights: Sequence[Mapping[str, Any]]) -> Raw:
    cells = []
    for title, key, scale, digits in _SERIES:
        values = [None if night.get(key) is None else scale * float(night[key]) for night in nights]
        last = next((v for v in reversed(values) if v is not None), None)
        drawn = _spark(values, [str(night.get("kind", "")) for night in nights])
        cells.append(f"<div><span>{esc(title)}</span><b>{number(last, digits)}</b>{drawn}</div>")
    legend = _soft("a dot marks the last night, a promotion (green) or a failed night (red)")
    return Raw(f"<div class='sparks'>{''.join(cells)}</div>{legend}")


def _spark(values: Sequence[float | None], kinds: Sequence[str]) -> str:
    """A line over the nights; gaps where a night has no value."""
    known = [v for v in values if v is not None]
    if not known:
        return "<svg viewBox='0 0 100 34'></svg>"
    low, span = min(known), (max(known) - min(known)) or 1.0
    step = 92 / max(1, len(values) - 1)
    at = [None if v is None else (4 + i * step, 29 - 24 * (v - low) / span) for i, v in enumerate(values)]
    path, pen = "", "M"
    for point in at:
        path += "" if point is None else f"{pen}{point[0]:.1f},{point[1]:.1f}"
        pen = "M" if point is None else "L"
    marked = {i for i, kind in enumerate(kinds) if kind in ("promoted", "failed")} | {len(values) - 1}
    dots = "".join(
        f"<circle class='dot {esc(kinds[i])}' cx='{p[0]:.1f}' cy='{p[1]:.1f}' r='2.5'/>"
        for i, p in enumerate(at)
        if p is not None and i in marked
    )
    return f"<svg viewBox='0 0 100 34' preserveAspectRatio='none'><path class='line' d='{path}'/>{dots}</svg>"
