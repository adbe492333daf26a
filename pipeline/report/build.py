"""The report: one self-contained HTML page of a workspace, readable without a network or a server."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import cv2
import numpy as np

from hmsa_core import __version__
from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index, Sample, read_quarantine
from hmsa_core.io import atomic
from hmsa_core.labels import ThresholdPolicy
from hmsa_core.labels.thresholds.curves import Curves
from pipeline.jobs.measure import judged_curves
from pipeline.jobs.support import speed_file
from pipeline.report import quality, sections
from pipeline.report.advice import advise
from pipeline.report.baseline import colour_position_baseline
from pipeline.report.render import esc
from pipeline.report.results import diet, json_of
from pipeline.report.strips import Strip, choose, strips
from pipeline.workspace.table import STAGES
from pipeline.workspace.workspace import Workspace

_MODELS = ("pretrain", "teacher", "student", "control")
_BASELINE_SIDE, _BASELINE_IMAGES = 256, 200  # the baseline looks at single pixels: smaller images tell the same


def build(ws: Workspace) -> None:
    """Write report/index.html of a workspace whose other stages are done."""
    drawn = strips(ws, choose(ws, ws.params.report.pictures))
    report = ws.params.report
    page = render(gather(ws), drawn, title=report.title, profile=ws.params.profile)
    atomic.write_text(ws.path("report/index.html"), page)


def gather(ws: Workspace) -> sections.Facts:
    """Read what the stages before `report` wrote."""
    policy, curves = ws.path("calibration/policy.json"), judged_curves(ws, "calibration")
    index = Index.load(ws.path("data/index/target.parquet"))
    metrics = json_of(ws, "evaluation/metrics.json")
    return sections.Facts(
        classes=index.classes,
        summary=json_of(ws, "data/index/summary.json"),
        quarantine=read_quarantine(ws.path("data/index/quarantine.parquet")),
        metrics=metrics,
        verdict=json_of(ws, "evaluation/verdict.json"),
        statistics=json_of(ws, "labels/final/statistics.json"),
        policy=ThresholdPolicy.load(policy) if policy.exists() else None,
        curves=Curves.load(curves) if curves.exists() else None,
        diet=diet(ws, index.classes.colours),
        advice=advise(ws) if curves.exists() else None,
        quality=quality.read_quality(ws.path("evaluation"), index.classes, metrics.get("main_setting", "")),
        baseline=_baseline(ws, index),
        # Without the report's own time: a page that is made again has to be the same page.
        times=[t for s in STAGES if s != "report" and (t := json_of(ws, f"work/times/{s}.json"))],
        trainings={s: t for s in STAGES if (p := speed_file(ws, s)).exists() and (t := atomic.read_json(p))},
        models={m: j for m in _MODELS if (j := json_of(ws, f"models/{m}/model.json"))},
        stores={s: j for s in ("raw", "final") if (j := json_of(ws, f"labels/{s}/manifest.json"))},
        policy_digest=str(json_of(ws, "calibration/policy.json").get("digest", "")),
        settings=ws.params.model_dump(mode="json"),
    )


def _baseline(ws: Workspace, index: Index) -> float | None:
    """Mean IoU of a per-pixel colour and position classifier, learn images -> report images."""
    learn, report = (index.select(roles=(role,), kinds=("fine",)) for role in ("learn", "report"))
    if not learn or not report:
        return None
    root = ws.roots[index.root]

    def load(samples: Sequence[Sample]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        images, labels = [], []
        for sample in samples[:_BASELINE_IMAGES]:
            size = (_BASELINE_SIDE, max(1, round(_BASELINE_SIDE * sample.height / sample.width)))
            images.append(cv2.resize(read_image(root / sample.image), size, interpolation=cv2.INTER_AREA))
            label = read_label(root / sample.label, index.classes)
            labels.append(cv2.resize(label, size, interpolation=cv2.INTER_NEAREST))
        return images, labels

    return colour_position_baseline(*load(learn), *load(report), num_classes=index.classes.num_classes)


def render(facts: sections.Facts, drawn: Sequence[Strip], *, title: str, profile: str) -> str:
    """The whole page as text."""
    parts = [
        ("pictures", "What the labels look like", sections.pictures(facts, drawn)),
        ("results", "Teacher, student, control", sections.evaluation(facts)),
        (
            "quality",
            "Categories, boundaries, cities, confidences, confusions",
            quality.section(facts.quality, facts.classes.classes),
        ),
        ("thresholds", "Measured thresholds", sections.thresholds(facts)),
        ("advice", "Which classes to label by hand", sections.to_label(facts)),
        ("data", "Data", sections.data(facts)),
        ("times", "Time and memory", sections.times(facts)),
        ("lineage", "Lineage", sections.lineage(facts)),
        ("settings", "Settings", sections.settings(facts)),
    ]
    links = "".join(f"<a href='#{key}'>{esc(name)}</a>" for key, name, _ in parts)
    body = "".join(f"<section id='{key}'><h2>{esc(name)}</h2>{html}</section>" for key, name, html in parts)
    return page(
        title,
        f"<h1>{esc(title)}</h1><p class='soft'>profile {esc(profile)} · version {__version__}</p>"
        f"{sections.headline(facts)}<nav>{links}</nav>{body}",
    )


def page(title: str, body: str) -> str:
    """A self-contained page in the report's style."""
    style = resources.files("pipeline.report").joinpath("style.css").read_text("utf-8")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{esc(title)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )
