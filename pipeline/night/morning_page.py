"""Draw the morning page: one self-contained HTML file that fits on one screen (1500 x 940), lists folded away."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import read_image
from hmsa_core.data.index import Index
from hmsa_core.io import atomic
from hmsa_core.io.errors import DecodeError
from hmsa_core.labels import LabelStore
from hmsa_core.taxonomy import IGNORE
from pipeline.jobs.measure import policy_file
from pipeline.night.morning import PAGE, inspect
from pipeline.report.render import Raw, Table, data_uri, esc, number
from pipeline.workspace.workspace import Workspace

_WIDTH = 200  # pixels of a picture
_DRIFT_SHOWN = 6
_PAYS_SHOWN = 5
_LEGEND = "a dot marks the last night, a promotion (green) or a failed night (red)"
_SERIES = (
    ("student mIoU", "candidate", 100.0, 2),
    ("gain", "gain", 100.0, 2),
    ("kept %", "kept", 100.0, 1),
    ("images", "images", 1.0, 0),
    ("device hours", "hours", 1.0, 2),
)


def write(ws: Workspace, page: Mapping[str, Any]) -> Path:
    """Write the page; return its path."""
    path = ws.path(PAGE)
    atomic.write_text(path, _html(ws, page))
    return path


def _html(ws: Workspace, page: Mapping[str, Any]) -> str:
    folder = resources.files("pipeline.report")
    style = "".join(folder.joinpath(name).read_text("utf-8") for name in ("style.css", "morning.css"))
    columns = ["".join(_section(*part) for part in column) for column in _columns(ws, page)]
    body = "".join(f"<div>{column}</div>" for column in columns if column)
    told = f"Night of {page['began']}. {page['decision']}"
    tail = f"<pre>{esc(chr(10).join(page['tail'][-12:]))}</pre>" if page["tail"] else ""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>auto-label: {esc(page['kind'])}</title><style>{style}</style></head><body><main><header>"
        f"<span class='badge {esc(page['kind'].replace(' ', '-'))}'>{esc(page['kind'])}</span>"
        f"<p class='lead'>{esc(page['sentence'])}</p><p class='soft'>{esc(told)}{tail}</p></header>"
        f"<div class='columns'>{body}</div></main></body></html>\n"
    )


def _columns(ws: Workspace, page: Mapping[str, Any]) -> list[list[tuple[str, str, str]]]:
    """Sections by column: title, note, content. What a failed night could not read has none."""
    health = _list(page.get("health", [])) + _list(page["warnings"], " class='warning'")
    first = [("Health", "", health)] if health else []
    first.append(("What to type", "", _commands(ws, page)))
    lines = page.get("lines", [])
    last = [("The last 30 nights", f"{len(lines)} so far", _lines(lines))] if lines else []
    if "funnel" not in page:
        return [first, last]
    shown = f"training labels: {len(page['chosen'])} by expected loss, {len(page['random'])} at random"
    return [
        [
            ("What differs from last night", "", _list(page["differs"])),
            ("From arrived to corrected", "click a number for the images", _funnel(page["funnel"])),
            ("Cost", "", _cost(page["cost"])),
            *first,
        ],
        [
            (
                "Trust, class by class",
                "per cent; precision on calibration images (blocks) and on the report set",
                page["trust"].html()
                if page["trust"].rows
                else _soft("no policy: calibrate has not run, or the threshold is a plain number"),
            ),
            ("What the student learns from", "thresholds of both policies, share of each class by source", _diet(page)),
            ("Drift", "where the evidence does not cover a class", _drift(page["drift"])),
        ],
        [
            ("Pictures", shown, _pictures(ws, {**page["chosen"], **page["random"]})),
            ("Your twenty minutes", "regions by kept pixels expected to be wrong", _queue(ws, page["queue"])),
            ("Where the next 50 answers pay", "kept pixels of a class", _pays(page["pays"])),
            *last,
        ],
    ]


def _section(title: str, note: str, content: str) -> str:
    small = f" <small>{esc(note)}</small>" if note else ""
    return f"<section><h2>{esc(title)}{small}</h2>{content}</section>"


def _list(lines: Sequence[str], kind: str = "") -> str:
    return f"<ul{kind}>{''.join(f'<li>{esc(line)}</li>' for line in lines)}</ul>" if lines else ""


def _soft(text: str) -> str:
    return f"<p class='soft'>{esc(text)}</p>"


def _funnel(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for row in rows:
        links = "".join(f"<li><a href='{esc(link)}'>{esc(name)}</a></li>" for name, link in row["images"])
        total, new = _count(row["in all"]), row["tonight"]
        change = f"{'+' if new > 0 else '−'}{_count(abs(new))}" if new else "–"
        shown = f"<details><summary>{total}</summary><ul>{links}</ul></details>" if links else total
        cells.append([row["step"], change, Raw(shown)])
    return Table(["", "tonight", "in all"], cells).html()


def _count(value: float) -> str:
    return f"{value:,.2f}" if isinstance(value, float) and value != int(value) else f"{int(value):,}"


def _cost(cost: Mapping[str, Any]) -> str:
    spent = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in cost["stages"].items())
    rows = [
        ["tonight", number(cost["hours"], 3)],
        ["labels of 1,000 images", number(cost["per_1000_images"], 3)],
        ["a million kept pixels", number(cost["per_million_kept"], 4)],
    ]
    return Table(["", cost["unit"]], rows).html() + _soft(spent or "no stage had anything to do")


def _commands(ws: Workspace, page: Mapping[str, Any]) -> str:
    given, again, repro = page["overrides"], ["prefect", "deployment", "run", "auto-label/nightly"], ["dvc", "repro"]
    for name, value in page["arguments"].items():
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
    return f"<p>in <code>{esc(ws.root)}</code>:</p><ul>{items}</ul>"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _diet(page: Mapping[str, Any]) -> str:
    """Folded away: it changes little from night to night."""
    if not page["diet"].rows:
        return _soft("no training labels were made")
    return f"<details><summary>{len(page['diet'].rows) - 1} classes</summary>{page['diet'].html()}</details>"


def _drift(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return _soft("every city's classes are covered by the calibration images")
    keys = ("where", "class", "status", "precision", "usual")
    shown = Table([*keys[:3], "expected", "usual"], [[row[key] for key in keys] for row in rows[:_DRIFT_SHOWN]])
    more = len(rows) - _DRIFT_SHOWN
    return shown.html() + (_soft(f"and {more} more, in labels/shift.json") if more > 0 else "")


def _pictures(ws: Workspace, captions: Mapping[str, str]) -> str:
    if not captions:
        return _soft("nothing was labelled")
    if not ws.path("labels/final/manifest.json").exists():
        return _soft("no training labels were made")
    if not ws.path("data/index/target.parquet").exists():
        return _soft("no images were indexed")
    index, final = Index.load(ws.path("data/index/target.parquet")), LabelStore.open(ws.path("labels/final"))
    samples = {sample.name: sample for sample in index.select(names=list(captions))}
    palette, root = index.classes.palette(), ws.roots[index.root]
    cells = []
    for name, caption in captions.items():
        if name not in samples or name not in final:
            continue
        try:
            image = read_image(root / samples[name].image)
        except (DecodeError, FileNotFoundError):
            continue  # `prepare` names it tomorrow
        shown = f"<img src='{_overlay(image, final.read(name)[0], palette)}' alt='{esc(name)}'>{esc(caption)}"
        cells.append(f"<a href='{esc(inspect(image=name))}' title='{esc(name)}'>{shown}</a>")
    return f"<div class='thumbs'>{''.join(cells)}</div>"


def _overlay(image: NDArray[np.uint8], label: NDArray[np.uint8], palette: NDArray[np.uint8]) -> str:
    """The picture as a data address: colours where there is a training label, dark where it is ignored."""
    size = (_WIDTH, max(1, round(_WIDTH * image.shape[0] / image.shape[1])))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    ids = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    colours, kept = palette[ids].astype(np.float32), (ids != IGNORE)[..., None]
    mixed = np.where(kept, 0.45 * small + 0.55 * colours, 0.45 * small)
    _, data = cv2.imencode(".jpg", mixed.astype(np.uint8)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return data_uri(data.tobytes(), "image/jpeg")


def _queue(ws: Workspace, rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return _soft("nothing to review")
    items = "".join(
        f"<li><a href='{esc(row['link'])}' title='{esc(row['name'])}'>"
        f"{row['wrong']:,} px {esc(row['class'])} in {esc(row['name'])}</a></li>"
        for row in rows
    )
    file, command = policy_file(ws), ["autolabel", "serve", "labels/raw"]
    if file is not None and file.is_file():
        command += ["--policy", str(file.relative_to(ws.root) if file.is_relative_to(ws.root) else file)]
    return (
        f"<p>First <code>{esc(shlex.join(command))}</code>, then accept or flag; "
        f"flagged pixels are ignored from the next night on.</p><ul class='queue'>{items}</ul>"
    )


def _pays(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return _soft("no class is certified sooner by more answers")
    keys = ("class", "answers", "confirm", "bring")
    head = ["class", "answers to a certificate", "50 confirm", "50 bring"]
    shown = [[f"{row[key]:,}" if isinstance(row[key], int) else row[key] for key in keys] for row in rows[:_PAYS_SHOWN]]
    return Table(head, shown).html() + "<p class='soft'>Answer: <code>autolabel serve labels/raw</code>, then u.</p>"


def _lines(nights: Sequence[Mapping[str, Any]]) -> str:
    kinds, cells = [str(night.get("kind", "")) for night in nights], []
    for title, key, scale, digits in _SERIES:
        values = [None if night.get(key) is None else scale * float(night[key]) for night in nights]
        last = next((v for v in reversed(values) if v is not None), None)
        cells.append(f"<div><span>{esc(title)}</span><b>{number(last, digits)}</b>{_spark(values, kinds)}</div>")
    return f"<div class='sparks'>{''.join(cells)}</div>{_soft(_LEGEND)}"


def _spark(values: Sequence[float | None], kinds: Sequence[str]) -> str:
    """A line over the nights; gaps where a night has no value."""
    known = [v for v in values if v is not None]
    if not known:
        return "<svg viewBox='0 0 100 34'></svg>"
    low, span = min(known), (max(known) - min(known)) or 1.0
    step = 92 / max(1, len(values) - 1)
    path, pen, dots = "", "M", ""
    for i, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        x, y = 4 + i * step, 29 - 24 * (value - low) / span
        path, pen = f"{path}{pen}{x:.1f},{y:.1f}", "L"
        if kinds[i] in ("promoted", "failed") or i == len(values) - 1:
            dots += f"<circle class='dot {esc(kinds[i])}' cx='{x:.1f}' cy='{y:.1f}' r='2.5'/>"
    return f"<svg viewBox='0 0 100 34' preserveAspectRatio='none'><path class='line' d='{path}'/>{dots}</svg>"
