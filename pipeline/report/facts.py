"""Collect the files that the stages wrote, once for the results page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hmsa_core.data.index import Index, QuarantineRow, read_quarantine
from hmsa_core.io import atomic
from hmsa_core.io.errors import HmsaError
from hmsa_core.labels import LabelStore, ThresholdPolicy
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.taxonomy import ClassTable
from pipeline.jobs.measure import judged_curves, used_policy
from pipeline.jobs.support import speed_file
from pipeline.report.advice import Advice, advise
from pipeline.report.quality import Quality, read_quality
from pipeline.report.render import Name, Table
from pipeline.report.results import diet, json_of
from pipeline.review.price import price
from pipeline.review.questions import Questions
from pipeline.review.spot_check import SpotFile
from pipeline.review.view import StoreView
from pipeline.workspace.registry import Registry
from pipeline.workspace.table import STAGES
from pipeline.workspace.workspace import Workspace

_MODELS = ("pretrain", "teacher", "student", "control")
Used = tuple[ThresholdPolicy, dict[str, dict[str, Any]]]  # the policy in use, and its figures by class


@dataclass(frozen=True)
class Facts:
    """Data of the results page; a missing file leaves its field empty."""

    classes: ClassTable
    summary: dict[str, Any]  # data/index/summary.json
    quarantine: list[QuarantineRow]
    metrics: dict[str, Any]
    verdict: dict[str, Any]
    statistics: dict[str, Any]  # of labels/final
    shift: dict[str, Any]  # labels/shift.json
    used: Used | None
    policy: ThresholdPolicy | None  # the policy that `calibrate` measured
    curves: Curves | None
    diet: Table  # the labels that the student learns from
    answers: list[dict[str, Any]]  # `price` of each set of questions about labels/raw that has answers
    advice: Advice | None  # None without calibration images
    quality: dict[str, Quality]
    times: list[dict[str, Any]]
    trainings: dict[str, dict[str, Any]]  # stage -> run -> speed, waiting, memory
    models: dict[str, dict[str, Any]]
    stores: dict[str, dict[str, Any]]  # manifests of labels/raw and labels/final
    versions: dict[str, str]  # digest of weights -> name of the registered model
    settings: dict[str, Any]

    @property
    def names(self) -> list[Name]:
        """The classes with their colours."""
        return [Name(name, colour) for name, colour in zip(self.classes.classes, self.classes.colours, strict=True)]


def collect(ws: Workspace) -> Facts:
    """Read the files that the stages before `report` wrote."""
    policy, curves = ws.path("calibration/policy.json"), judged_curves(ws)
    index = Index.load(ws.path("data/index/target.parquet"))
    metrics = json_of(ws, "evaluation/metrics.json")
    return Facts(
        classes=index.classes,
        summary=json_of(ws, "data/index/summary.json"),
        quarantine=read_quarantine(ws.path("data/index/quarantine.parquet")),
        metrics=metrics,
        verdict=json_of(ws, "evaluation/verdict.json"),
        statistics=json_of(ws, "labels/final/statistics.json"),
        shift=json_of(ws, "labels/shift.json"),
        used=policy_in_use(ws),
        policy=ThresholdPolicy.load(policy) if policy.exists() else None,
        curves=Curves.load(curves) if curves.exists() else None,
        diet=diet(ws, index.classes.colours),
        answers=_answers(ws),
        advice=advise(ws) if curves.exists() else None,
        quality=read_quality(ws.path("evaluation"), index.classes, metrics.get("main_setting", "")),
        # The time of `report` itself is left out, so that a second run of `report` gives the same page.
        times=[t for s in STAGES if s != "report" and (t := json_of(ws, f"work/times/{s}.json"))],
        trainings={s: t for s in STAGES if (p := speed_file(ws, s)).exists() and (t := atomic.read_json(p))},
        models={m: j for m in _MODELS if (j := json_of(ws, f"models/{m}/model.json"))},
        stores={s: j for s in ("raw", "final") if (j := json_of(ws, f"labels/{s}/manifest.json"))},
        versions={str(v.record.get("weights_sha256")): v.name for v in Registry(ws.root).versions()},
        settings=ws.params.model_dump(mode="json"),
    )


def policy_in_use(ws: Workspace) -> Used | None:
    """Policy in use and its figures; None without labels, or when the policy does not fit the labels."""
    if not ws.path("labels/raw/manifest.json").exists():
        return None
    try:
        return used_policy(ws, LabelStore.open(ws.path("labels/raw")))
    except HmsaError:  # a night that failed midway may leave labels of one teacher and a policy of another
        return None


def _answers(ws: Workspace) -> list[dict[str, Any]]:
    """`price` of each set of questions about the present labels that has answers, oldest set first."""
    if not ws.path("labels/raw/manifest.json").exists():
        return []
    view = StoreView(ws.path("labels/raw"))
    return [price(one, view) for one in SpotFile(Questions, view).every() if one.is_of(view) and one.is_begun]
