"""Bring a workspace to where an ablation can start: its data, and the stages that come before."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, HmsaError
from hmsa_core.io.process import CHAIN_GRACE_S, run_child
from pipeline.workspace.new_workspace import GENERATED, InitRequest, generate_data, init_workspace
from pipeline.workspace.params import Params
from pipeline.workspace.workspace import Workspace
from research.ablation.plan import Ablation

_LOG = logging.getLogger(__name__)
_MARKS = {
    "teacher-pretrain": ("data/index/learn.parquet", "data/index/report.parquet"),
    "pseudo-label": (
        "data/index/learn.parquet",
        "data/index/report.parquet",
        "calibration/policy.json",
        "labels/raw/manifest.json",
    ),
}


def check_ready(ws: Workspace, ablation: Ablation) -> None:
    """Refuse to start where a stage has not run (ConfigError names it)."""
    marks = _MARKS[ablation.needs]
    if ablation.needs == "pseudo-label" and not ws.params.teacher_train.skip:
        marks = (*marks, "models/teacher/model.json")
    for mark in marks:
        if not ws.path(mark).exists():
            raise ConfigError(
                f"{ws.path(mark)}: not there; {ablation.name} starts after the stage {ablation.needs}",
                hint=f"run with --prepare, or `dvc repro {ablation.needs}` in {ws.root}",
            )


def run_stages(ws: Workspace, ablation: Ablation) -> None:
    """Generate a profile's scenes where they are missing, then `dvc repro` up to the stage that is needed."""
    profile = ws.params.profile
    if profile in GENERATED and not ws.resolve(ws.params.data.target.root).exists():
        generate_data(ws.path("data/demo"), profile)
    _LOG.info("%s: dvc repro %s", ws.root.name, ablation.needs)
    with ws.job():
        status = run_child(
            [sys.executable, "-m", "dvc", "repro", ablation.needs],
            stop=ws.stop,
            cwd=str(ws.root),
            env=_environment(),
            grace_s=CHAIN_GRACE_S,
        )
    if status != 0:
        raise HmsaError(f"`dvc repro {ablation.needs}` in {ws.root} ended with status {status}; its output is above")


def _environment() -> dict[str, str]:
    """DVC's stages call `autolabel`: the one next to this Python, whether or not its environment is active."""
    programs = Path(sys.executable).parent
    return dict(os.environ) | {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}


def make_camvid_workspace(
    folder: Path, variant: str, epochs: int | None, data: Path | None, settings: Mapping[str, Any] | None = None
) -> None:
    """Make a workspace of profile camvid for one variant of the splits; one that is there must be of that variant.

    Args:
        folder: of the workspace.
        variant: of CamVid's splits.
        epochs: of the teacher; the student's follow in proportion; None = the profile's.
        data: CamVid's folder.
        settings: values of params.yaml that are not the profile's, by dotted key.
    """
    from pipeline.night.parameters import set_keys
    from pipeline.workspace.yaml_text import read_yaml
    from research.ablation.catalogue import camvid_variant, named_variant

    changes = settings or {}
    if init_workspace(InitRequest(folder, "camvid", data=data)):
        document = read_yaml(folder / "params.yaml")
        set_keys(document.values, {"data.target.variant": variant} | ({} if epochs is None else _lengths(epochs)))
        set_keys(document.values, changes)
        atomic.write_text(folder / "params.yaml", json.dumps(document.values, indent=1))
    document = read_yaml(folder / "params.yaml")
    params = Params.parse(document)
    found = camvid_variant(params)
    wanted = named_variant(variant, epochs, is_adopted=params.teacher_train.skip)
    if found != wanted:
        raise ConfigError(f"{folder}: is a workspace of variant {found}, not {wanted}", hint="choose another folder")
    set_keys(document.values, changes)
    if Params.parse(document) != params:
        changed = ", ".join(f"{key}={value}" for key, value in changes.items())
        raise ConfigError(f"{folder}: is a workspace without {changed}", hint="choose another folder")


def _lengths(epochs: int) -> dict[str, int]:
    profile = Params.of_profile("camvid")
    student, times = profile.student_train, epochs / profile.teacher_train.epochs
    return {
        "teacher_train.epochs": epochs,
        "student_train.epochs": max(1, round(times * student.epochs)),
        "student_train.pseudo.fine_only_epochs": round(times * student.pseudo.fine_only_epochs),
    }
