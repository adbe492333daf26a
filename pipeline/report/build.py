"""Put the page together and write it."""

from __future__ import annotations

import json
from importlib import resources

import cv2
import numpy as np

from hmsa_core import __version__
from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index, Sample
from hmsa_core.io import atomic
from pipeline.report import quality, sections
from pipeline.report.baseline import colour_position_baseline
from pipeline.report.facts import Facts, gather
from pipeline.report.html import Raw, esc, swatch
from pipeline.report.pictures import Strip, choose, strips
from pipeline.workspace import Workspace

__all__ = ["baseline_mean_iou", "build", "render"]

_BASELINE_SIDE = 256  # pixels; the classifier sees single pixels, so smaller images tell the same


def build(ws: Workspace) -> None:
    """Write report/index.html of a workspace whose other stages are done."""
    facts = gather(ws)
    facts.baseline = baseline_mean_iou(ws)
    drawn = strips(ws, choose(ws, ws.params.report.pictures))
    atomic.write_text(ws.path("report/index.html"), render(facts, drawn))


def baseline_mean_iou(ws: Workspace) -> float | None:
    """Mean IoU of a per-pixel colour + position classifier, learn images -> report images."""
    index = Index.load(ws.path("data/index/target.parquet"))
    learn = index.select(roles=("learn",), kinds=("fine",))
    report = index.select(roles=("report",), kinds=("fine",))
    if not learn or not report:
        return None
    root = ws.roots[index.root]

    def load(samples: list[Sample]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        images, labels = [], []
        for sample in samples[:200]:
            size = (_BASELINE_SIDE, max(1, round(_BASELINE_SIDE * sample.height / sample.width)))
            images.append(cv2.resize(read_image(root / sample.image), size, interpolation=cv2.INTER_AREA))
            label = read_label(root / sample.label, index.classes)
            labels.append(cv2.resize(label, size, interpolation=cv2.INTER_NEAREST))
        return images, labels

    result = colour_position_baseline(*load(learn), *load(report), num_classes=index.classes.num_classes)
    return float(result.mean_iou)


def render(facts: Facts, drawn: list[Strip]) -> str:
    """The whole page as text."""
    parts = [
        ("pictures", "What the labels look like", _pictures(facts, drawn)),
        ("results", "Teacher, student, control", sections.results(facts)),
        (
            "quality",
            "Categories, boundaries, cities, confidences, confusions",
            quality.section(facts.quality, facts.classes.classes),
        ),
        ("thresholds", "Measured thresholds", sections.thresholds(facts)),
        ("data", "Data", sections.data(facts)),
        ("times", "Time and memory", sections.times(facts)),
        ("lineage", "Lineage", sections.lineage(facts)),
        ("settings", "Settings", _settings(facts)),
    ]
    links = "".join(f"<a href='#{key}'>{esc(title)}</a>" for key, title, _ in parts)
    body = "".join(f"<section id='{key}'><h2>{esc(title)}</h2>{html}</section>" for key, title, html in parts)
    style = resources.files(__package__).joinpath("style.css").read_text("utf-8")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{esc(facts.title)}</title><style>{style}</style></head><body><main>"
        f"<h1>{esc(facts.title)}</h1><p class='soft'>profile {esc(facts.profile)} · version {__version__}</p>"
        f"{sections.headline(facts)}<nav>{links}</nav>{body}</main></body></html>\n"
    )


def _pictures(facts: Facts, drawn: list[Strip]) -> Raw:
    if not drawn:
        return Raw("<p>No picture was asked for (report.pictures).</p>")
    legend = "".join(
        f"<span>{swatch(colour)}{esc(name)}</span>"
        for name, colour in zip(facts.classes.classes, facts.classes.colours, strict=True)
    )
    return Raw(
        "<p>Every so-many-th image that was labelled automatically; nobody picked them.</p>"
        f"<div class='legend'>{legend}</div><div class='pictures'>{''.join(s.html() for s in drawn)}</div>"
    )


def _settings(facts: Facts) -> Raw:
    text = json.dumps(facts.settings, indent=1, sort_keys=True)
    return Raw(f"<details><summary>params.yaml as it was read</summary><pre>{esc(text)}</pre></details>")
