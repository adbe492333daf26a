"""What the doctor looks at in models/: who teaches, the reference champion, every checkpoint's bytes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hmsa_core.io import atomic
from hmsa_core.io.atomic import is_temp
from hmsa_core.io.errors import HmsaError
from pipeline.checkpoint_folders import damage, version_damage
from pipeline.doctor import dvc as doctor_dvc
from pipeline.doctor.finding import Finding
from pipeline.nightly.registry import Registry
from pipeline.workspace import Workspace

__all__ = ["examine"]

_FILES = ("model.safetensors", "model.json")


def examine(ws: Workspace) -> Iterator[Finding]:
    """All of it."""
    yield from _teacher(ws)
    yield from _champion(ws)
    yield from _checkpoints(ws)


def _teacher(ws: Workspace) -> Iterator[Finding]:
    """Whether models/current.json names a model that is there (the stage's own may be untrained yet)."""
    try:
        if ws.is_promoted():
            ws.teacher()
    except HmsaError as error:
        yield Finding("teacher", "broken", error.message, "autolabel models rollback")


def _champion(ws: Workspace) -> Iterator[Finding]:
    """Whether models/registry/champion.json names a version that is there: evaluate and the gate read it."""
    path = ws.path("models/registry/champion.json")
    if path.exists() and not _champion_folder(ws):
        text = f"{path}: names no registered model: evaluate and the gate stop at it"
        yield Finding("champion", "broken", text, f"rm {path.relative_to(ws.root)}")


def _champion_folder(ws: Workspace) -> Path | None:
    with suppress(HmsaError, FileNotFoundError):  # damaged is a finding of its own, and none at all is fine
        name = str(atomic.read_json(ws.path("models/registry/champion.json")).get("version"))
        folder = ws.path("models/registry") / name
        return folder if (folder / "record.json").exists() else None
    return None


def _checkpoints(ws: Workspace) -> Iterator[Finding]:
    outs, registry = doctor_dvc.outputs(ws), ws.path("models/registry")
    found = {path.parent for name in _FILES for path in ws.path("models").rglob(name)}
    for folder in sorted(found | {path.parent for path in registry.glob("v*/record.json")}):
        if is_temp(folder.name):
            continue  # told as a leftover
        name = folder.relative_to(ws.root).as_posix()
        wrong = version_damage(folder) if folder.parent == registry else damage(folder)
        if not wrong:
            yield Finding(name, "ok", "weights match their digest")
        elif folder.parent == registry:
            yield Finding(name, "broken", wrong, _mend_version(ws, folder))
        elif name in outs:
            yield Finding(name, "broken", wrong, doctor_dvc.restore(name))
        else:
            files = " ".join(shlex.quote(f"{name}/{file}") for file in _FILES)
            yield Finding(name, "broken", wrong, f"rm -f {files}  # then import it again: DVC has no copy of it")


def _mend_version(ws: Workspace, folder: Path) -> str:
    """Make a damaged registered model whole, from its twin if need be; without one: nobody names it, and it goes."""
    if not damage(folder):  # the record alone
        return f"autolabel models register {folder.relative_to(ws.root).as_posix()}"
    twin = _twin(ws, folder)
    if twin:
        return f"autolabel models register {twin}"
    registry, name = Registry(ws.root), folder.relative_to(ws.root).as_posix()
    commands = []
    with suppress(HmsaError):  # a finding of its own
        # Without model.json the teacher is one, too, and two rollbacks would be one too many.
        if registry.current() == name and (folder / "model.json").exists():
            commands.append("autolabel models rollback")
    if _champion_folder(ws) == folder:
        commands.append("rm models/registry/champion.json")  # the next promotion pins another reference
    return " && ".join([*commands, f"rm -r {name}"])


def _twin(ws: Workspace, version: Path) -> str | None:
    """A whole checkpoint with the weights that a version should have."""
    with suppress(HmsaError, FileNotFoundError):
        weights = atomic.read_json(version / "record.json").get("weights_sha256")
        for meta in sorted(ws.path("models").glob("*/model.json")):
            if not damage(meta.parent) and atomic.read_json(meta).get("weights_sha256") == weights:
                return meta.parent.relative_to(ws.root).as_posix()
    return None
