"""What the report tells, read from the workspace's files; a file that is not there leaves its part out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hmsa_core.data.index import Index, QuarantineRow, read_quarantine
from hmsa_core.io.atomic import read_json
from hmsa_core.labels import ThresholdPolicy
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.taxonomy import ClassTable
from pipeline.report.quality import Quality, read_quality
from pipeline.stages import STAGES
from pipeline.stages.precision import judged_curves
from pipeline.stages.training import speed_file
from pipeline.workspace import Workspace

__all__ = ["MODELS", "Facts", "gather"]

MODELS = ("pretrain", "teacher", "student", "control")


@dataclass
class Facts:
    """Everything the page shows."""

    title: str
    profile: str
    classes: ClassTable
    summary: dict[str, Any]
    quarantine: list[QuarantineRow]
    metrics: dict[str, Any]
    verdict: dict[str, Any]
    per_class: dict[str, Any]
    statistics: dict[str, Any]
    policy: ThresholdPolicy | None
    curves: Curves | None
    report_curves: Curves | None
    quality: dict[str, Quality] = field(default_factory=dict)
    baseline: float | None = None
    times: list[dict[str, Any]] = field(default_factory=list)
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)  # stage -> run -> speed, waiting, memory
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    stores: dict[str, dict[str, Any]] = field(default_factory=dict)  # manifests of labels/raw and labels/final
    policy_digest: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def gather(ws: Workspace) -> Facts:
    """Read what the stages before `report` wrote."""
    policy, curves = ws.path("calibration/policy.json"), judged_curves(ws, "calibration")
    seen = judged_curves(ws, "evaluation")
    classes = Index.load(ws.path("data/index/target.parquet")).classes
    metrics = _json(ws.path("evaluation/metrics.json"))
    return Facts(
        title=ws.params.report.title,
        profile=ws.params.profile,
        classes=classes,
        summary=_json(ws.path("data/index/summary.json")),
        quarantine=read_quarantine(ws.path("data/index/quarantine.parquet")),
        metrics=metrics,
        verdict=_json(ws.path("evaluation/verdict.json")),
        per_class=_json(ws.path("evaluation/per_class.json")),
        statistics=_json(ws.path("labels/final/statistics.json")),
        policy=ThresholdPolicy.load(policy) if policy.exists() else None,
        curves=Curves.load(curves) if curves.exists() else None,
        report_curves=Curves.load(seen) if seen.exists() else None,
        quality=read_quality(ws.path("evaluation"), classes, metrics.get("main_setting", "")),
        # Not the report's own: a page that is made again has to be the same page.
        times=[t for s in STAGES if s != "report" and (t := _json(ws.path(f"work/times/{s}.json")))],
        trainings={s: t for s in STAGES if (t := _json(speed_file(ws, s)))},
        models={m: j for m in MODELS if (j := _json(ws.path(f"models/{m}/model.json")))},
        stores={s: j for s in ("raw", "final") if (j := _json(ws.path(f"labels/{s}/manifest.json")))},
        policy_digest=str(_json(policy).get("digest", "")),
        settings=ws.params.model_dump(mode="json"),
    )


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
