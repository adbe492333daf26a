"""Files and folders that params.yaml names: looked for at once, not by the stage that reads them after hours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hmsa_core.io.errors import ConfigError
from pipeline.params import Params
from pipeline.stages import STAGES
from pipeline.workspace import Workspace


def missing_files(root: Path, params: Params) -> Iterator[tuple[str, str, str]]:
    """(key, path as written, stage that reads it last) of everything that is not there."""
    for key, value, reader, needed in (
        ("teacher_pretrain.init_from", params.teacher_pretrain.init_from, "teacher-pretrain", "model.json"),
        ("teacher_train.init_from", params.teacher_train.init_from, "teacher-train", "model.json"),
        ("student_train.init", _checkpoint(params.student_train.init), "student-train", "model.json"),
        ("pseudo_label.threshold", params.pseudo_label.own_policy, "pseudo-label", ""),
        ("pseudo_label.merge.mask", params.pseudo_label.merge.mask, "pseudo-label", ""),
    ):
        if value is not None and not (root / Path(value).expanduser() / needed).is_file():
            yield key, value, reader


def _checkpoint(init: str) -> str | None:
    return None if init in ("teacher", "pretrained") else init


def mend_of_root(ws: Workspace, name: str) -> str:
    """What to do where the folder of a data set ("target" or "pretrain") is not there, or holds another layout."""
    if ws.roots[name].is_relative_to(ws.path("data/demo")):
        return "autolabel demo-data"
    keys = f"data.{name}.root or data.{name}.kind" if ws.roots[name].is_dir() else f"data.{name}.root"
    return f"correct {keys} in params.yaml"


def check_named_files(root: Path, params: Params, stage: str = STAGES[0]) -> None:
    """Raise a ConfigError for what this stage or a later one reads and nobody can."""
    for key, value, reader in missing_files(root, params):
        if STAGES.index(stage) <= STAGES.index(reader):
            what = "no checkpoint folder" if "init" in key else "no such file"
            raise ConfigError(
                f"params.yaml: {key}: {value}: {what} (stage {reader} reads it)",
                hint="correct it; paths are relative to the workspace",
            )
