"""The section "Since last night" of a night's page: its data, its HTML, and the artifacts for Prefect."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.report.render import Raw, Table, esc, number, titled

_PAYS_SHOWN = 5
_SERIES = (
    ("student mIoU", "candidate", 100.0, 2),
    ("gain", "gain", 100.0, 2),
    ("labelled %", "kept", 100.0, 1),
    ("images", "images", 1.0, 0),
    ("device hours", "hours", 1.0, 2),
)


def now() -> str:
    """The time as a page and the history have it."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True)
class Tonight:
    """Facts of a night that its flow knows."""

    arrived: Mapping[str, Any]  # result of `discover`
    verdict: Mapping[str, Any] = field(default_factory=dict)  # verdict of the gate; {} when no student was judged
    overrides: Mapping[str, Any] = field(default_factory=dict)  # parameters of this run
    seconds: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds, for stages that had to run
    failed: str = ""  # why the night ended early
    tail: tuple[str, ...] = ()  # last lines of the stage that failed
    arguments: Mapping[str, Any] = field(default_factory=dict)  # other arguments of the run that are not defaults
    began: str = field(default_factory=now)
    hint: str = ""  # how to fix why the night ended early
    teacher: str = ""  # that taught this night; "" = the one that teaches now
    before: str = ""  # of an earlier night that ended without a page, in words

    @property
    def kind(self) -> str:
        """Outcome of the night: promoted, kept, not judged or failed."""
        if self.failed or not self.verdict:
            return "failed" if self.failed else "not judged"
        return "promoted" if self.verdict.get("promoted") else "kept"


@dataclass(frozen=True)
class Since(Tonight):
    """All data of a night's page; a field that a failed night could not read is empty."""

    sentences: tuple[str, ...] = ()
    ended: str = ""
    may_roll_back: bool = False
    differs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # problems that somebody should fix
    health: tuple[str, ...] = ()
    funnel: tuple[Mapping[str, Any], ...] = ()  # {"step", "tonight", "in all", "images": [[name, link]]}
    cost: Mapping[str, Any] = field(default_factory=dict)
    thumbnails: Raw | None = None
    queue: tuple[Mapping[str, Any], ...] = ()  # {"name", "class", "wrong": pixels, "link"}
    serve: str = ""  # command that shows the links
    pays: tuple[Mapping[str, Any], ...] = ()
    coverage: Mapping[str, float] = field(default_factory=dict)  # class -> coverage of the night before
    nights: tuple[Mapping[str, Any], ...] = ()  # lines of the history; tonight's is the last


def section(since: Since, folder: str) -> Raw:
    """The section as HTML; `folder` is the folder in which the reader types the commands."""
    tail = f"<pre>{esc(chr(10).join(since.tail[-12:]))}</pre>" if since.tail else ""
    warnings = "".join(f"<li class='warning'>{esc(line)}</li>" for line in since.warnings)
    parts = [
        ("Look at this", f"<ul>{warnings}</ul>" if warnings else ""),
        ("What differs from last night", _list(since.differs)),
        ("From arrived to corrected", _funnel(since.funnel)),
        ("Your twenty minutes", _queue(since)),
        ("Where the next 50 answers pay", _pays(since.pays)),
        ("The last 30 nights", _nights(since.nights)),
        ("Cost", _cost(since)),
        ("Health", _list(since.health)),
        ("What to type", _commands(since, folder)),
    ]
    cards = "".join(f"<div class='card'><h3>{esc(title)}</h3>{html}</div>" for title, html in parts if html)
    hint = f"<p><b>How to fix it:</b> {esc(since.hint)}</p>" if since.hint else ""
    head = f"<p class='soft'>{esc(_decision(since))}</p>{hint}{tail}"
    shown = f"<h3>Pictures: most pixels that are kept and expected to be wrong</h3>{since.thumbnails or ''}"
    shown *= since.thumbnails is not None
    return Raw(f"<section><h2>Since last night</h2>{head}<div class='cards'>{cards}</div>{shown}</section>")


def _decision(since: Since) -> str:
    """The gate's decision in words."""
    return str(since.verdict.get("decision", ""))


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{esc(line)}</li>' for line in lines)}</ul>" if lines else ""


def _funnel(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for row in rows:
        links = "".join(f"<li><a href='{esc(link)}'>{esc(name)}</a></li>" for name, link in row["images"])
        total, new = _count(row["in all"]), row["tonight"]
        change = f"{'+' if new > 0 else '−'}{_count(abs(new))}" if new else "–"
        shown = f"<details><summary>{total}</summary><ul>{links}</ul></details>" if links else total
        cells.append([row["step"], change, Raw(shown)])
    return Table(["", "tonight", "in all"], cells).html() if cells else ""


def _count(value: float) -> str:
    return f"{value:,.2f}" if isinstance(value, float) and value != int(value) else f"{int(value):,}"


def _cost(since: Since) -> str:
    cost = since.cost
    if not cost:
        return ""
    spent = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in cost["stages"].items())
    rows = [
        ["tonight", number(cost["hours"], 3)],
        ["labels of 1,000 images", number(cost["per_1000_images"], 3)],
        ["a million kept pixels", number(cost["per_million_kept"], 4)],
    ]
    none = "it ended before a stage was done" if since.kind == "failed" else "no stage had anything to do"
    soft = f"<p class='soft'>{esc(spent or none)}</p>"
    return Table(["", cost["unit"]], rows).html() + soft


def _commands(since: Since, folder: str) -> str:
    again, repro = ["prefect", "deployment", "run", "auto-label/nightly"], ["dvc", "repro"]
    for name, value in since.arguments.items():
        again += ["-p", f"{name}={value if isinstance(value, str) else _json(value)}"]
    if since.overrides:
        again += ["-p", f"params={_json(since.overrides)}"]
        given = (("-S", f"++{key}={_json(value)}") for key, value in since.overrides.items())  # also if not written
        repro = ["dvc", "exp", "run", *(part for pair in given for part in pair)]
    lines = [("run the night again", again), ("reproduce without Prefect", repro)]
    lines.insert(0 if since.kind == "failed" else 2, ("what is broken", ["autolabel", "doctor"]))
    lines += [("roll back", ["autolabel", "models", "rollback"])] * since.may_roll_back
    items = "".join(f"<li>{esc(purpose)}: <code>{esc(shlex.join(command))}</code></li>" for purpose, command in lines)
    return f"<p>in <code>{esc(folder)}</code>:</p><ul>{items}</ul>"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _queue(since: Since) -> str:
    if not since.queue:
        return ""
    items = "".join(
        f"<li><a href='{esc(row['link'])}' title='{esc(row['name'])}'>"
        f"{row['wrong']:,} px {esc(row['class'])} in {esc(row['name'])}</a></li>"
        for row in since.queue
    )
    return (
        f"<p>First <code>{esc(since.serve)}</code>, then accept or flag these regions, which hold most pixels that are "
        f"kept and expected to be wrong. Flagged pixels are ignored from the next night on.</p><ul>{items}</ul>"
    )


def _pays(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    keys = ("class", "answers", "confirm", "bring")
    head = ["class", "answers to a certificate", "50 confirm", "50 bring"]
    shown = [[f"{row[key]:,}" if isinstance(row[key], int) else row[key] for key in keys] for row in rows[:_PAYS_SHOWN]]
    return Table(head, shown).html() + "<p class='soft'>Answer: <code>autolabel serve labels/raw</code>, then u.</p>"


def _nights(nights: Sequence[Mapping[str, Any]]) -> str:
    if not nights:
        return ""
    kinds, cells = [str(night.get("kind", "")) for night in nights], []
    for title, key, scale, digits in _SERIES:
        values = [None if night.get(key) is None else scale * float(night[key]) for night in nights]
        last = next((v for v in reversed(values) if v is not None), None)
        shown = f"<span>{esc(title)}</span><b>{number(last, digits)}</b>{_spark(values, kinds)}"
        cells.append(f"<div{titled(title)}>{shown}</div>")
    legend = f"{len(nights)} so far; a dot marks the last night, a promotion (green) or a failed night (red)"
    rows = [[night.get("began", "–"), night.get("kind", ""), night.get("why", "")] for night in reversed(nights)]
    listed = f"<details><summary>each night</summary>{Table(['began', 'outcome', 'why'], rows).html()}</details>"
    return f"<div class='sparks'>{''.join(cells)}</div><p class='soft'>{legend}</p>{listed}"


def _spark(values: Sequence[float | None], kinds: Sequence[str]) -> str:
    """SVG line over the nights, with a gap where a night has no value."""
    known = [v for v in values if v is not None]
    low, span = min(known, default=0.0), (max(known, default=0.0) - min(known, default=0.0)) or 1.0
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


# -- Prefect's artifacts -----------------------------------------------------------------------------


def as_markdown(since: Since, page: str) -> str:
    """The head of the page as Markdown; `page` is the path of the page."""
    lines = [f"## {' '.join(since.sentences)}", f"Night of {since.began} to {since.ended}", _decision(since)]
    lines += [f"How to fix it: {since.hint}"] if since.hint else []
    lines += [str(since.verdict.get("sentence", "")), *(f"- {line}" for line in since.differs)]
    if since.tail:
        lines.append("```\n" + "\n".join(since.tail[-15:]) + "\n```")
    lines += [f"- **{warning}**" for warning in since.warnings]
    return "\n\n".join(line for line in [*lines, f"Whole page: `{page}`"] if line) + "\n"


def artifacts(since: Since, trust: Table) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Artifact key -> (description, rows of plain values); a table without rows is left out."""
    verdict = ("name", "candidate", "incumbent", "gain", "verdict", "why")
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {
        ("funnel", "From arrived to corrected"): [{k: v for k, v in r.items() if k != "images"} for r in since.funnel],
        ("trust", "Thresholds and precision per class"): [
            dict(zip(map(str, trust.head), map(str, row), strict=True)) for row in trust.rows
        ],
        ("verdict", "Candidate against incumbent, class by class"): [
            {k: row[k] for k in verdict} for row in since.verdict.get("classes", [])
        ],
        ("cost", "Seconds of each stage that had something to do"): [
            {"stage": stage, "seconds": round(s, 1)} for stage, s in since.seconds.items()
        ],
        ("queue", "Your twenty minutes"): [dict(row) for row in since.queue],
        ("pays", "Where the next 50 answers pay"): [dict(row) for row in since.pays],
    }
    return {f"auto-label-{key}": (description, found) for (key, description), found in rows.items() if found}
