"""Check files and folders that params.yaml names before the first stage runs, not when a stage needs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hmsa_core.inference.teachers.sources import parse
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.io.remote import is_url, local_path
from pipeline.workspace.params import Params
from pipeline.workspace.table import STAGES, TABLE
from pipeline.workspace.workspace import Workspace


def missing_files(root: Path, params: Params) -> Iterator[tuple[str, str, str]]:
    """Yield (key, path as written, last stage that reads the path) for each path that does not exist."""
    pretrain, teacher, student = params.teacher_pretrain, params.teacher_train, params.student_train
    init, has_pretrain = student.init, params.data.pretrain is not None
    fresh = (  # trainings that may start from a published trunk
        ("teacher_pretrain", pretrain, has_pretrain and not pretrain.init_from),
        ("teacher_train", teacher, not has_pretrain and not teacher.init_from),
        ("student_train", student, init == "pretrained"),
    )
    for key, value, reader, needed in (
        ("teacher_pretrain.init_from", pretrain.init_from, "teacher-pretrain", "model.json"),
        ("teacher_train.init_from", teacher.init_from, "teacher-train", "model.json"),
        ("student_train.init", None if init in ("teacher", "pretrained") else init, "student-train", "model.json"),
        *(
            (f"{section}.model.trunk_weights", config.model.trunk_file, section.replace("_", "-"), "")
            for section, config, is_read in fresh
            if is_read
        ),
        ("pseudo_label.threshold", params.pseudo_label.given_policy, "pseudo-label", ""),
        ("pseudo_label.merge.mask", params.pseudo_label.merge.mask, "pseudo-label", ""),
    ):
        if value is not None and not (root / Path(value).expanduser() / needed).is_file():
            yield key, value, reader
    for given in student.stores:  # another run may be making the store now: only its parent folder must exist
        if not (root / local_path(given.store).expanduser()).parent.is_dir():
            yield "student_train.stores", given.store, "student-train"
    made = {root / out for row in TABLE for out in row.outs}  # the chain makes these before a stage reads them
    for text in params.auto_infer.teacher or ():
        paths = [] if is_url(text) else [path for one in parse(text) for path in (one.path, one.map) if path]
        places = {root / path.expanduser() for path in paths} - made
        if not all(place.exists() for place in places):
            yield "auto_infer.teacher", text, "evaluate"


def hint_of_root(ws: Workspace, name: str) -> str:
    """Advice where the folder of a data set ("target" or "pretrain") is missing, or holds another layout."""
    if ws.roots[name].is_relative_to(ws.path("data/demo")):
        return "autolabel demo-data"
    keys = f"data.{name}.root or data.{name}.kind" if ws.roots[name].is_dir() else f"data.{name}.root"
    return f"correct {keys} in params.yaml"


def check_roots(ws: Workspace) -> None:
    """Raise an InputError where the folder of a data set is missing."""
    for name, root in ws.roots.items():
        if not root.is_dir():
            raise InputError(f"{root}: data set folder not found", hint=hint_of_root(ws, name))


def check_named_files(root: Path, params: Params, stage: str = STAGES[0]) -> None:
    """Raise a ConfigError for a missing file that this or a later stage reads, and for trunks that do not fit."""
    for key, value, reader in missing_files(root, params):
        if STAGES.index(stage) <= STAGES.index(reader):
            what = "no checkpoint folder" if "init" in key else "no such file or folder"
            raise ConfigError(
                f"params.yaml: {key}: {value}: {what} (it is needed until stage {reader} is done)",
                hint="correct it; paths are relative to the workspace",
            )
    _check_trunks(root, params, stage)


def _check_trunks(root: Path, params: Params, stage: str) -> None:
    """Refuse a start network of another trunk now, not after the trainings before it."""
    starts = []
    if params.data.pretrain is not None and not params.teacher_train.init_from:
        starts.append(("teacher_train", "teacher_pretrain", "name a checkpoint in teacher_train.init_from"))
    if params.student_train.init == "teacher":
        starts.append(("student_train", "teacher_train", "write student_train.init: pretrained"))
    for section, parent, otherwise in starts:
        net, parent_net = (getattr(params, name).model.trunk for name in (section, parent))
        is_over = STAGES.index(stage) > STAGES.index(section.replace("_", "-"))
        if net != parent_net and not is_over and not (parent == "teacher_train" and Workspace(root).is_promoted()):
            raise ConfigError(
                f"params.yaml: {section}.model.trunk is {net}, but it starts from the network of {parent}, whose trunk "
                f"is {parent_net}",
                hint=f"write the same trunk, or {otherwise}",
            )
