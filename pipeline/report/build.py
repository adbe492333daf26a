"""Write the results page of a workspace or of a night: one HTML file that needs no network and no server."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from hmsa_core import __version__
from hmsa_core.io import atomic
from pipeline.report import quality, sections
from pipeline.report.facts import Facts, collect
from pipeline.report.render import Raw, esc
from pipeline.report.since import Since, section
from pipeline.report.strips import Strip, strips
from pipeline.report.verdict import sentences
from pipeline.workspace.workspace import Workspace


def build(ws: Workspace) -> None:
    """Write report/index.html of a workspace whose other stages are done."""
    drawn = strips(ws, ws.params.report.pictures)
    atomic.write_text(ws.path("report/index.html"), render(collect(ws), drawn, title=ws.params.report.title))


def render(facts: Facts, drawn: Sequence[Strip], *, title: str) -> str:
    """Results page of a workspace as HTML."""
    summary = sentences(facts.metrics, facts.statistics, spread_is_measured=False)
    parts = _results(facts)
    parts.insert(0, _fold("What the labels look like", sections.pictures(facts, drawn), is_open=True))
    return page(title, "".join([_head(title, summary), sections.tiles(facts), *parts]))


def write_night(path: Path, folder: Path, since: Since, facts: Facts | None) -> None:
    """Write a night's page: the report and the section "Since last night"; facts None = no report could be read."""
    title = f"auto-label: {since.kind}"
    badge = Raw(f"<span class='badge {esc(since.kind.replace(' ', '-'))}'>{esc(since.kind)}</span>")
    parts = [badge, _head(f"night of {since.began} to {since.ended}", since.sentences), section(since, str(folder))]
    if facts is not None:
        tiles = sections.tiles(facts)
        whose = "<p class='soft'>Figures of the last night that was judged:</p>" * bool(since.failed and tiles)
        parts[2:2] = [Raw(whose), tiles]
        parts += _results(facts, since)
    atomic.write_text(path, page(title, "".join(parts)))


def _results(facts: Facts, since: Since | None = None) -> list[Raw]:
    verdict, coverage = (since.verdict, since.coverage) if since else (facts.verdict, None)
    parts = [
        ("Teacher, student, control", sections.evaluation(facts)),
        ("May the student teach? The gate, class by class", sections.gate(verdict)),
        ("Categories, boundaries, cities, confusions", quality.section(facts.quality, facts.classes.classes)),
        ("Thresholds, and how far to trust them", sections.thresholds(facts, coverage)),
        ("What the student learns from", sections.labels(facts)),
        ("Answers", sections.answers(facts)),
        ("Which classes to label by hand", sections.to_label(facts)),
        ("Images, and those that were refused", sections.data(facts)),
        ("Time and memory", sections.times(facts)),
        ("Lineage", sections.lineage(facts)),
        ("Settings", sections.settings(facts)),
        ("What the names mean", sections.names()),
    ]
    return [_fold(name, html) for name, html in parts if html]


def _head(title: str, lines: Sequence[str]) -> Raw:
    lead, *more = [esc(line) for line in lines]
    return Raw(
        f"<p class='soft'>{esc(title)} · version {__version__}</p><h1>{lead}</h1><p class='lead'>{' '.join(more)}</p>"
    )


def _fold(name: str, html: Raw, *, is_open: bool = False) -> Raw:
    return Raw(f"<details{' open' * is_open}><summary><h2>{esc(name)}</h2></summary>{html}</details>")


def page(title: str, body: str) -> str:
    """A self-contained HTML page in the report's style."""
    style = resources.files("pipeline.report").joinpath("style.css").read_text("utf-8")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{esc(title)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )
