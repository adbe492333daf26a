"""Put the figures of a finished workspace into `tables/workspaces.parquet`: scores, thresholds, times of the stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmsa_core.io import atomic
from hmsa_core.io.errors import InputError
from hmsa_core.models import read_meta
from pipeline.jobs.provenance import describe_run
from pipeline.workspace.workspace import Workspace
from research.figures import Figure, Made, replace

WORKSPACES = "workspaces"
_TRAININGS = ("teacher-pretrain", "teacher-train", "student-train")


def collect(ws: Workspace, tables: Path, name: str | None) -> Path:
    """Write the workspace's figures under a name (default: its profile), in place of older ones; return the table.

    Raises:
        InputError: `evaluate` has not run, or judged other checkpoints than the workspace holds now.
    """
    path = ws.path("evaluation/metrics.json")
    if not path.exists():
        raise InputError(f"{path}: not there", hint="run `dvc repro` first")
    metrics = atomic.read_json(path)
    if "unverified" in metrics:
        raise InputError(f"{path}: nobody was judged ({metrics['unverified']})")
    _check_models(ws, metrics)
    seconds = {p.stem: p for p in sorted(ws.path("work/times").glob("*.json"))}
    record = metrics | {
        "target": ws.params.calibrate.target,
        "judged": metrics["judgement"]["judged"],
        "stage_seconds": {k: float(atomic.read_json(p)["seconds"]) for k, p in seconds.items() if "training" not in k},
        "speed": {k: atomic.read_json(seconds[f"{k}-training"]) for k in _TRAININGS if f"{k}-training" in seconds},
    }
    called = name or ws.params.profile
    out = tables / f"{WORKSPACES}.parquet"
    made = Made.of(describe_run(("hmsa_core", "pipeline")))
    replace(out, list(workspace_lines(made, called, record)), lambda line: line.table == called)
    return out


def _check_models(ws: Workspace, metrics: Mapping[str, Any]) -> None:
    for name, judged in metrics["models"].items():
        folder = ws.path(f"models/{name}")
        if (folder / "model.json").exists() and str(read_meta(folder)["weights_sha256"]) != judged["weights_sha256"]:
            raise InputError(f"{folder}: other weights than were judged", hint="run `dvc repro evaluate`")


@dataclass(frozen=True)
class _Lines:
    """Makes the lines of one workspace."""

    made: Made
    name: str

    def line(self, row: str, metric: str, value: float | None, setting: str = "", of: str = "") -> Figure:
        return self.made.figure(self.name, row, metric, value, setting=setting, name=of)

    def interval(self, row: str, metric: str, found: Mapping[str, Any], setting: str) -> Iterator[Figure]:
        """Value and ends, of all classes together and of each."""
        yield self.line(row, "blocks", found["blocks"], setting)
        whole = tuple(found[key] for key in ("value", "low", "high"))
        for of, ends in {"": whole, **found["classes"]}.items():
            for end, value in zip(("", "_low", "_high"), ends, strict=True):
                yield self.line(row, f"{metric}{end}", value, setting, of)

    def kept(self, kept: Mapping[str, Any], region: str) -> Iterator[Figure]:
        """What the policy keeps of the pixels of a region, against one threshold for all classes."""
        for metric in ("precision", "coverage", "class_mean_precision", "class_mean_coverage"):
            if metric in kept:
                yield self.line("policy", metric, kept[metric], region)
        for other in kept.get("beside", {}).get("rows", []):
            row = f"threshold {other['name']}"
            yield self.line(row, "class_mean_coverage", other["class_mean_coverage"], region)
            yield self.line(row, "worst_precision", other["worst_precision"], region, other["worst_class"])

    def thresholds(self, classes: Mapping[str, Any]) -> Iterator[Figure]:
        """Threshold, precision and coverage of each class; the setting is the threshold's status."""
        for of, row in classes.items():
            threshold = None if row["threshold"] is None else float(row["threshold"])
            ends = {"precision_low": row.get("lower"), "precision_high": row.get("upper")}
            known = {"threshold": threshold, "precision": row["precision"], **ends, "coverage": row["coverage"]}
            for metric, value in known.items():
                yield self.line("policy", metric, value, str(row["status"]), of)


def workspace_lines(made: Made, name: str, record: Mapping[str, Any]) -> Iterator[Figure]:
    """All lines of a workspace, from what `evaluate` wrote and what stands next to it."""
    tell = _Lines(made, name)
    yield tell.line("evaluation", "images", record["judged"])
    yield tell.line("policy", "target", record["target"])
    for model, found in record["models"].items():
        for setting, one in found["settings"].items():
            yield from tell.interval(model, "mean_iou", one, setting)
    for row, one in record["differences"].items():
        yield from tell.interval(row, "difference", one, record["main_setting"])
    yield from tell.kept(record["kept"], "")
    yield from tell.kept(record["kept"].get("all_pixels", {}), "all pixels")
    yield from tell.thresholds(record["kept"]["classes"])
    for stage, seconds in record["stage_seconds"].items():
        yield tell.line(stage, "seconds", seconds)
    speeds = [(stage, run, speed) for stage, runs in record["speed"].items() for run, speed in runs.items() if speed]
    for stage, run, speed in speeds:
        for metric, value in speed.items():
            yield tell.line(stage, metric, value, run)
