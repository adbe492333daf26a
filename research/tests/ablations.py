"""Workspaces without data, made-up counts, and jobs that write them in no time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hmsa_core.io import atomic
from pipeline.workspace.dvc_yaml import render_dvc_yaml
from pipeline.workspace.params import Params
from pipeline.workspace.settings import profile_text
from pipeline.workspace.workspace import Workspace
from research.ablation import jobs, run
from research.ablation.intervals import Counts
from research.ablation.jobs import Evaluated, Trained
from research.ablation.labels import MadeLabels

CLASSES = ("road", "car", "pole")
SHA = "ab" * 32


def bare_workspace(folder: Path, profile: str = "demo") -> Workspace:
    """params.yaml and dvc.yaml of a profile, nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(profile_text(profile))
    (folder / "dvc.yaml").write_text(render_dvc_yaml(Params.of_profile(profile).data))
    return Workspace(folder)


HALF = {"value": 0.5, "low": 0.4, "high": 0.6, "blocks": 12, "classes": {n: [0.5, 0.4, 0.6] for n in CLASSES}}
GAIN = HALF | {"value": 0.012, "low": -0.003, "high": 0.02}


def finished_workspace(folder: Path, profile: str = "demo"):
    ws = bare_workspace(folder, profile)
    kept = {"precision": 0.97, "coverage": 0.8, "threshold": "policy"}
    kept["classes"] = {
        n: {"status": "measured", "threshold": "0.9", "precision": 0.98, "coverage": None} for n in CLASSES
    }
    model = {"weights_sha256": SHA, "settings": {"multi": HALF, "single": HALF}}
    metrics = {
        "main_setting": "multi",
        "models": dict.fromkeys(("teacher", "student", "control"), model),
        "kept": kept,
        "judgement": {"judged": 204, "left_out": 1},
        "differences": {"student - control": GAIN},
    }
    atomic.write_json(ws.path("evaluation/metrics.json"), metrics)
    for stage, seconds in (("prepare", 3.0), ("teacher-train", 600.0)):
        atomic.write_json(ws.path(f"work/times/{stage}.json"), {"seconds": seconds})
    return ws


def confusions(quality: float, *, images: int = 24, seed: int = 0, pixels: int = 400) -> np.ndarray:
    """Per-image counts (N, C, C) of a model that is right with probability `quality`, some images harder than others."""
    rng = np.random.default_rng(seed)
    c = len(CLASSES)
    result = np.zeros((images, c, c), np.int64)
    for i in range(images):
        right = np.clip(quality + 0.1 * np.sin(i // 3), 0.02, 0.98)
        for k in range(c):
            total = pixels // (1 + 3 * k)
            hits = rng.binomial(total, right)
            result[i, k, k] = hits
            result[i, k, (k + 1) % c] = total - hits
    return result


def counts_of(quality: float, **options: Any) -> Counts:
    found = confusions(quality, **options)
    n = len(found)
    hits, union = np.diagonal(found, axis1=1, axis2=2), found.sum(2) + found.sum(1)
    regions = np.stack([hits, union - hits], axis=1)
    boundaries = np.stack([hits, found.sum(2) + 5], axis=1)
    names, blocks = (tuple(f"{what}{i // some}" for i in range(n)) for what, some in (("berlin_", 1), ("block", 3)))
    return Counts(names, blocks, CLASSES, regions, boundaries)


@dataclass
class FakeJobs:
    """Stands for `research.ablation.jobs` and `labels`: writes what the jobs would have written, and counts them."""

    folder: Path
    quality: dict[str, float] = field(default_factory=dict)
    trained: list[tuple[str, int]] = field(default_factory=list)
    evaluated: list[list[str]] = field(default_factory=list)
    labelled: list[Any] = field(default_factory=list)
    die_before_evaluation: int | None = None

    def train(self, ws, training, config, labels, seed):
        self.trained.append((config.model.kind, seed))
        return Trained(self.folder / "model", config.epochs * 10, 8.0)

    def evaluate(self, ws, name, checkpoint, settings, runtime):
        if self.die_before_evaluation == len(self.evaluated):
            raise KeyboardInterrupt
        self.evaluated.append([s.name for s in settings])
        folder = self.folder / f"evaluated{len(self.evaluated)}"
        folder.mkdir(parents=True)
        summaries = {}
        for setting in settings:
            counts = confusions(self.quality.get(setting.name, 0.7))
            n, c = len(counts), len(CLASSES)
            weights = np.zeros((n, len(setting.scales), c, 2))
            weights[:, 0] = np.stack([counts.sum(2) - 10, np.full((n, c), 10)], axis=-1)
            np.savez(
                folder / f"{setting.name}.npz",
                confusions=counts,
                names=[f"i{i}" for i in range(n)],
                blocks=[f"b{i // 3}" for i in range(n)],
                classes=CLASSES,
                weights=weights,
                band_confusions=np.tile(np.eye(c, dtype=np.int64) * 10, (n, 1, 1)),
                boundary=np.stack([counts.sum(2) - 5, counts.sum(2)], axis=1),
            )
            each = dict.fromkeys(CLASSES, 0.5)
            summaries[setting.name] = {
                "mean_iou": 0.5,
                "iou": each,
                "pixel_accuracy": 0.6,
                "ece": 0.1,
                "boundary": {"mean_iou": 0.3, "iou": each},
            }
        atomic.write_json(folder / "summary.json", {"settings": summaries})
        return Evaluated(folder, 24, 2.0)

    def count_macs(self, ws, model, crop, settings):
        cost = {"single": 10**9, "hierarchical": 2 * 10**9, "explicit": 6 * 10**9}[model.kind]
        return cost, {s.name: 10**9 for s in settings}

    def make_labels(self, ws, labels):
        self.labelled.append(labels)
        figures = {"labelled_share": 0.6, "classes": dict.fromkeys(CLASSES, 0.2)}
        return MadeLabels(None, figures)

    def install(self, monkeypatch) -> FakeJobs:
        for name in ("train", "evaluate", "count_macs"):
            monkeypatch.setattr(jobs, name, getattr(self, name))
        monkeypatch.setattr(jobs, "own_teacher", lambda ws: self.folder / "teacher")
        monkeypatch.setattr(run, "make_labels", self.make_labels)
        return self
