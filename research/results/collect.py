"""The figures of a finished workspace as one small file that can be committed: research/runs/NAME.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hmsa_core.config import key_material
from hmsa_core.io import atomic
from hmsa_core.io.errors import InputError
from hmsa_core.models import read_meta
from pipeline import keys
from pipeline.params import Params
from pipeline.provenance import describe_run
from pipeline.stages import STAGES, VERSIONS
from pipeline.stages.training import speed_file
from pipeline.workspace import Workspace
from research.ablation.catalogue import camvid_folder, camvid_variant
from research.ablation.material import without_roots

__all__ = ["FORMAT", "collect", "run_name"]

FORMAT = "hmsa-run"
_KEPT = (
    "precision",
    "coverage",
    "class_mean_precision",
    "class_mean_coverage",
    "threshold",
    "beside",
    "region",
    "all_pixels",
)
_SECTIONS = (
    "teacher_pretrain",
    "teacher_train",
    "calibrate",
    "auto_infer",
    "pseudo_label",
    "student_train",
    "evaluate",
)
_NAMED = 6  # settings: more are another recipe, which its digests tell apart
_COMMANDS = {"demo": "make demo", "camvid": "make camvid"}


def run_name(params: Params) -> str:
    """Name of a workspace's file: its profile, with CamVid's variant and its teacher's length where these differ."""
    return camvid_folder(camvid_variant(params)) if params.profile == "camvid" else params.profile


def collect(ws: Workspace, runs: Path) -> Path:
    """Write the workspace's figures into the folder `runs`; return the file.

    Raises:
        InputError: `evaluate` has not run, or judged other checkpoints than the workspace holds now, or params.yaml
            was edited since the trainings.
    """
    path = ws.path("evaluation/metrics.json")
    if not path.exists():
        raise InputError(f"{path}: not there", hint="run `dvc repro` first")
    metrics = atomic.read_json(path)
    if "unverified" in metrics:
        raise InputError(f"{path}: nobody was judged ({metrics['unverified']})")
    _check_models(ws, metrics)
    _check_recipes(ws)
    out = runs / f"{run_name(ws.params)}.json"
    atomic.write_json(out, _record(ws, metrics))
    return out


def _check_models(ws: Workspace, metrics: dict[str, Any]) -> None:
    for name in ("teacher", "student", "control"):
        folder = ws.path(f"models/{name}")
        judged = metrics["models"].get(name)
        if judged and (folder / "model.json").exists():
            there = str(read_meta(folder)["weights_sha256"])
            if there != judged["weights_sha256"]:
                raise InputError(f"{folder}: other weights than were judged", hint="run `dvc repro evaluate`")


def _check_recipes(ws: Workspace) -> None:
    """What stands beside the figures must be what they were made with, not what somebody tries next."""
    for section, job in (("teacher_pretrain", "pretrain"), ("teacher_train", "teacher"), ("student_train", "student")):
        folder = ws.work(section.replace("_", "-"))
        for key in keys.used(folder, job)[-1:]:
            made_with = atomic.read_json(folder / key / "key.json")["config"]
            if made_with != key_material(getattr(ws.params, section)):
                raise InputError(
                    f"{ws.path('params.yaml')}: {section} is not what the last {job} was trained with",
                    hint="set it back, or run `dvc repro`",
                )


def _record(ws: Workspace, metrics: dict[str, Any]) -> dict[str, Any]:
    params = ws.params
    trained = ("teacher_pretrain", "teacher_train", "student_train")
    return {
        "format": FORMAT,
        "version": 1,
        "name": run_name(params),
        "profile": params.profile,
        "command": _command(params),
        "classes": metrics["classes"],
        "settings": metrics["settings"],
        "main_setting": metrics["main_setting"],
        "target": params.calibrate.target,
        "judged": {k: metrics["judgement"][k] for k in ("judged", "left_out")},
        "models": metrics["models"],
        "differences": metrics["differences"],
        "kept": _kept(metrics["kept"]),
        "kept_classes": {
            name: {k: row.get(k) for k in ("status", "threshold", "precision", "lower", "upper", "coverage")}
            for name, row in metrics["kept"]["classes"].items()
        },
        "training": {name: _training(ws, name) for name in trained},
        "stage_seconds": _seconds(ws),
        "stage_versions": VERSIONS,
        "recipe": {name: keys.work_key(key_material(getattr(params, name))) for name in trained},
        **describe_run(("hmsa_core", "pipeline")),
    }


def _command(params: Params) -> str:
    """What makes such a workspace: the profile's own command, or its first lines where a recipe has other settings."""
    usual, mine = _recipes(Params.of_profile(params.profile)), _recipes(params)
    changed = [key for key in sorted({*usual, *mine}) if usual.get(key) != mine.get(key)]
    if not changed:
        return _COMMANDS.get(params.profile, "dvc repro")
    told = ", ".join(f"{key}: {_told(mine.get(key))}" for key in changed)
    if len(changed) > _NAMED:
        told = f"{len(changed)} settings of its own"
    return f"autolabel init DIR --profile {params.profile}; params.yaml: {told}; dvc repro"


def _recipes(params: Params) -> dict[str, Any]:
    """{dotted key: value} of what decides figures: no places on this machine, no speed, no titles."""
    data = without_roots(params.data.model_dump(mode="json"))
    sections = {}
    for name in _SECTIONS:
        section = getattr(params, name)
        sections[name] = key_material(section)
    return dict(_leaves({"data": data, **sections}, ""))


def _leaves(values: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, values


def _told(value: Any) -> str:
    """A value as YAML takes it; a path says nothing to anybody else."""
    return "a file or folder" if isinstance(value, str) and "/" in value else json.dumps(value)


def _kept(kept: dict[str, Any]) -> dict[str, Any]:
    return {k: _kept(kept[k]) if k == "all_pixels" else kept[k] for k in _KEPT if k in kept}


def _training(ws: Workspace, section: str) -> dict[str, Any]:
    """Seed, length and network of a training, and what its stage recorded."""
    config = getattr(ws.params, section)
    stage = section.replace("_", "-")
    recorded, speed = ws.path(f"metrics/{stage}.json"), speed_file(ws, stage)
    return {
        "seed": config.seed,
        "epochs": config.epochs,
        "global_batch": config.global_batch,
        "crop": list(config.crop),
        "trunk": config.model.trunk,
        "kind": config.model.kind,
        "loss": config.loss.main,
        "recorded": atomic.read_json(recorded) if recorded.exists() else None,
        "speed": atomic.read_json(speed) if speed.exists() else None,
    }


def _seconds(ws: Workspace) -> dict[str, float]:
    found = {}
    for stage in STAGES:
        path = ws.path(f"work/times/{stage}.json")
        if path.exists():
            found[stage] = float(atomic.read_json(path)["seconds"])
    return found
