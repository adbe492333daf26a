"""The table of the chain's stages: dvc.yaml, the command line and docs/stages.md follow from it.

A stage is a row of `TABLE` and a module of `pipeline.stages`. This file imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Stage:
    """A stage's row of the table: description, inputs, outputs and settings (paths relative to the workspace)."""

    name: str
    description: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    plots: tuple[str, ...]
    params: tuple[str, ...] = ()  # settings outside of the stage's section that the stage reads
    version: int = 1  # raised when its results change for the same parameters and inputs: the stage then runs again
    # Settings of a stage whose section no class of `params` describes: name -> (default, description).
    settings: Mapping[str, tuple[Any, str]] = field(default_factory=dict)

    @property
    def section(self) -> str:
        """The stage's section of params.yaml, and the name of its module."""
        return section_of(self.name)

    @property
    def watched(self) -> tuple[str, ...]:
        """Keys of settings.yaml whose changes make the stage run again."""
        return (f"versions.{self.section}", self.section, *self.params)

    @property
    def metrics(self) -> str:
        """The file that `dvc metrics` reads."""
        return f"metrics/{self.name}.json"


TARGET_ROOT = "${data.target.root}"  # or the folders below it that are read
PRETRAIN_ROOT = "${data.pretrain.root}"  # a dependency only where there is a pretraining set
CURRENT = "models/current.json"  # names the teacher
_MODELS = ("models/teacher", "models/student", "models/control")


def _index(*names: str) -> tuple[str, ...]:
    return tuple(f"data/index/{name}.parquet" for name in names)


TABLE = (
    Stage(
        "prepare",
        "index the data sets, quarantine bad files, find class centroids",
        deps=(TARGET_ROOT, PRETRAIN_ROOT),
        outs=("data/index",),
        plots=("plots/prepare-classes.png",),
        params=(
            "data",
            "teacher_pretrain.sampling.tile",
            "teacher_pretrain.sampling.min_pixels",
            "teacher_train.sampling.tile",
            "teacher_train.sampling.min_pixels",
        ),
        version=3,
    ),
    Stage(
        "teacher-pretrain",
        "train on the pretraining set, single scale, no attention (skipped without data.pretrain)",
        deps=_index("pretrain", "centroids-pretrain"),
        outs=("models/pretrain",),
        plots=("plots/teacher-pretrain-loss.png",),
    ),
    Stage(
        "teacher-train",
        "train the teacher on fine labels of role `learn`, with hierarchical attention",
        deps=(*_index("learn", "calibrate", "centroids-target"), "models/pretrain"),
        outs=("models/teacher",),
        plots=("plots/teacher-train-loss.png",),
    ),
    Stage(
        "calibrate",
        "measure precision per class and confidence on images the teacher never saw; choose thresholds",
        deps=(*_index("calibrate"), "models/teacher", CURRENT),
        outs=("calibration",),
        plots=("plots/calibrate-curves.png",),
        params=("auto_infer", "evaluate.max_leaked", "evaluate.max_gap", "evaluate.max_distance"),
        version=2,
    ),
    Stage(
        "auto-infer",
        "label coarse and unlabelled images with the current teacher, only new ones (calibrate labels so, too)",
        deps=(*_index("unlabelled"), "models/teacher", CURRENT),
        outs=("labels/raw",),
        plots=("plots/auto-infer-confidence.png",),
    ),
    Stage(
        "pseudo-label",
        "apply the thresholds, merge with human coarse labels",
        deps=(
            *_index("learn", "calibrate", "unlabelled"),
            "labels/raw",
            "labels/raw.review.jsonl",
            "calibration",
            "policies",
        ),
        outs=("labels/final", "labels/shift.json"),
        plots=("plots/pseudo-label-coverage.png",),
        params=(
            "calibrate.confidence",
            "calibrate.shift_limit",
            "student_train.sampling.tile",
            "student_train.sampling.min_pixels",
        ),
        version=2,
    ),
    Stage(
        "student-train",
        "train the student on half fine, half auto-labelled images (and the control on fine ones alone)",
        deps=(
            *_index("learn", "calibrate", "unlabelled", "centroids-target"),
            "labels/final",
            "models/teacher",
            CURRENT,
        ),
        outs=("models/student", "models/control"),
        plots=("plots/student-train-loss.png",),
    ),
    Stage(
        "evaluate",
        "score teacher, student, control and incumbent on images in nobody's lineage; judge the student",
        deps=(*_index("report"), "policies", *_MODELS, CURRENT, "calibration"),
        outs=("evaluation",),
        plots=("plots/evaluate-iou.png", "plots/evaluate-confusion.png"),
        params=("auto_infer", "calibrate", "pseudo_label.threshold"),
        version=3,
    ),
    Stage(
        "report",
        "one self-contained page about all of it",
        deps=(
            "data/index",
            "models/pretrain",
            *_MODELS,
            "calibration",
            "labels/raw",
            "labels/raw.review.jsonl",  # changes with the answers; the file of questions need not exist
            "labels/final",
            "labels/shift.json",
            "evaluation",
        ),
        outs=("report",),
        plots=(),
    ),
)

STAGES: tuple[str, ...] = tuple(row.name for row in TABLE)  # in the order of the chain
# The same numbers stand in settings.yaml (`versions`), where DVC sees them: raising one re-runs that stage everywhere.
VERSIONS: dict[str, int] = {row.name: row.version for row in TABLE}


def row_of(stage: str) -> Stage:
    """The row of a stage."""
    return TABLE[STAGES.index(stage)]


def section_of(stage: str) -> str:
    """The stage's section of params.yaml: its name with underscores."""
    return stage.replace("-", "_")
