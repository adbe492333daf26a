"""Find the faults of this machine or workspace, each with the exact command that repairs it."""

from __future__ import annotations

import os
import platform
import re
import shlex
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from hmsa_core.data.layouts import scan
from hmsa_core.inference.teachers.sources import parse
from hmsa_core.io.atomic import is_left_over, is_temp, read_json
from hmsa_core.io.errors import HmsaError, hint_of, one_line
from hmsa_core.io.locks import probe_locks
from hmsa_core.labels import LabelStore
from hmsa_core.labels.review import ReviewFile
from pipeline.doctor import dvc as doctor_dvc
from pipeline.doctor.dvc import Finding
from pipeline.jobs.devices import visible_devices
from pipeline.jobs.machine import memory_gib, reinstall, torch_pair, torch_works, versions
from pipeline.jobs.support import labelling_teacher
from pipeline.night import history
from pipeline.night.gatekeeper import looks, measured_aa
from pipeline.stages.disk import disk_need
from pipeline.workspace.named_files import hint_of_root, missing_files
from pipeline.workspace.params import TRAININGS
from pipeline.workspace.registry import Registry, damage, version_damage
from pipeline.workspace.table import TABLE
from pipeline.workspace.workspace import Workspace

_SHM = Path("/dev/shm")  # noqa: S108 - what torch's loader processes use
_PASSES_AHEAD = 4  # passes that each loader process keeps ready (`prefetch_factor` of hmsa_core/training/data.py)
_CROP_BYTES = 4  # per pixel: RGB and label
_FILES = ("model.safetensors", "model.json")
# Path that `autolabel init` made and dvc.yaml names as input -> command that makes it again.
_MADE_BY_INIT = {
    "policies": "mkdir -p policies",
    "labels/raw.review.jsonl": (
        """mkdir -p labels && echo '{"id": "0", "name": "", "withdraws": ""}' > labels/raw.review.jsonl"""
        "  # or take it from your backup: it holds what people reviewed"
    ),
}

_Check = Callable[[], Iterator[Finding]]


def examine(root: Path, *, deep: bool = True) -> Iterator[Finding]:
    """Run one check after the other; a fault is a finding, never an exception.

    Args:
        root: workspace (without dvc.yaml only the machine is checked).
        deep: also verify every byte of the label stores.
    """
    gpus = len(visible_devices())
    checks: dict[str, _Check] = {"machine": lambda: _machine(gpus), "packages": lambda: _packages(deep=deep)}
    if (root / "dvc.yaml").exists():
        checks |= _of_workspace(Workspace(root), gpus, deep=deep)
    else:
        checks["workspace"] = lambda: _no_workspace(root)
    for name, check in checks.items():
        yield from _findings(name, check)


def _findings(name: str, check: _Check) -> Iterator[Finding]:
    """Findings of a check; a check that fails is a finding, too."""
    try:
        yield from check()
    except HmsaError as error:
        yield Finding("check", "broken", error.message, error.hint)
    except OSError as error:
        fix = hint_of(error) or "let this user read and write the workspace"
        yield Finding("check", "broken", one_line(error), fix)
    # People run the doctor when something is broken, so an exception in one check must not stop the others.
    except Exception as error:  # noqa: BLE001 - see above
        if os.environ.get("AUTOLABEL_TRACEBACK"):
            traceback.print_exception(error)
        text = f"the check of {name} ended early: {type(error).__name__}: {one_line(error)}"
        yield Finding(name, "broken", text, "AUTOLABEL_TRACEBACK=1 autolabel doctor  # says where: please report it")


def _of_workspace(ws: Workspace, gpus: int, *, deep: bool) -> dict[str, _Check]:
    try:
        _ = ws.params
    except HmsaError as error:  # the checks below need the parameters
        fix = error.hint or "correct that line, then run doctor again: the rest needs params.yaml"
        unread = Finding("params.yaml", "broken", error.message, fix)
        return {"params.yaml": lambda: iter([unread])}
    return {
        "params.yaml": lambda: _params(ws),
        "data": lambda: _data(ws),
        "devices": lambda: _devices(ws, gpus),
        "shared memory": lambda: _shared_memory(ws),
        "scales": lambda: _scales(ws),
        "dvc.yaml": lambda: doctor_dvc.examine_stages(ws),
        "locks": lambda: _locks(ws),
        "disk": lambda: _disk(ws),
        "dvc": lambda: doctor_dvc.examine(ws),
        "leftovers": lambda: _leftovers(ws),
        "teacher": lambda: _teacher(ws),
        "champion": lambda: _champion(ws),
        "models": lambda: _checkpoints(ws),
        "files of people": lambda: _made_by_init(ws),
        "histories": lambda: _histories(ws),
        "stores": lambda: _stores(ws, deep=deep),
    }


def _no_workspace(root: Path) -> Iterator[Finding]:
    text = "not a workspace (no dvc.yaml)" if root.is_dir() else "no such folder"
    fix = "run it in a workspace, give --workspace DIR, or make one with `autolabel init DIR --profile tiny`"
    yield Finding("workspace", "warning", f"{root}: {text}; only the machine was looked at", fix)


def _machine(gpus: int) -> Iterator[Finding]:
    text = f"{os.cpu_count()} processors, {memory_gib():.0f} GiB memory, {gpus or 'no'} GPU{'s' * (gpus != 1)}"
    yield Finding("machine", "ok", text)
    yield Finding("python", "ok", platform.python_version())


def _packages(*, deep: bool) -> Iterator[Finding]:
    installed = versions()
    if fault := torch_pair():
        yield Finding("packages", "broken", fault, reinstall())
    elif deep and (fault := torch_works()):
        # The versions are right, so a plain install would leave the damaged files as they are.
        yield Finding("packages", "broken", fault, reinstall(anew=True))
    else:
        yield Finding("packages", "ok", ", ".join(f"{k} {v}" for k, v in installed.items() if v))
    missing = [k for k, v in installed.items() if not v]
    if missing:
        yield Finding("packages", "warning", f"not installed: {', '.join(missing)}", reinstall())


def _params(ws: Workspace) -> Iterator[Finding]:
    named = missing_files(ws.root, ws.params)
    missing = [(key, value) for key, value, _ in named if key != "auto_infer.teacher"]  # see `_foreign_teacher`
    for key, value in missing:
        yield Finding("params.yaml", "broken", f"{key}: {value} is not there", f"correct {key} in params.yaml")
    if not missing:
        yield Finding("params.yaml", "ok", f"profile {ws.params.profile}")


def _data(ws: Workspace) -> Iterator[Finding]:
    """Check that the data sets exist, in the layouts that params.yaml states."""
    for name, path in ws.roots.items():
        try:
            scan(ws.source(name))
            yield Finding(f"data {name}", "ok", str(path))
        except HmsaError as error:  # prepare stops at it
            hint = f" ({error.hint})" if error.hint and path.is_dir() else ""
            classes = getattr(ws.params.data, name).classes
            is_of_classes = bool(classes) and Path(classes).name in error.message
            cure = f"correct {classes}" if is_of_classes else hint_of_root(ws, name)
            yield Finding(f"data {name}", "broken", f"{error.message}{hint}", cure)


def _devices(ws: Workspace, present: int) -> Iterator[Finding]:
    """Find sections that need more GPUs than there are: the stage of such a section would refuse to start."""
    for name in ("teacher_pretrain", "teacher_train", "auto_infer", "student_train", "evaluate"):
        runtime = getattr(ws.params, name).runtime
        if runtime.device == "cuda" and not present:
            fix = f"set {name}.runtime.device to auto, repair the driver, or ask where the stages will run"
            yield Finding(f"{name}.runtime", "broken", "device is cuda, but no GPU is visible", fix)
        elif runtime.device != "cpu" and present and runtime.ranks > present:
            text = f"ranks is {runtime.ranks}, but {present} GPU(s) are visible"
            yield Finding(f"{name}.runtime", "broken", text, f"set {name}.runtime.ranks to at most {present}")


def _shared_memory(ws: Workspace) -> Iterator[Finding]:
    """Check that /dev/shm can hold the crops that wait for this machine's ranks; else loaders die of a bus error.

    Containers have 64 MB of /dev/shm by default.
    """
    if not _SHM.is_dir():
        return
    stat = os.statvfs(_SHM)
    free = stat.f_bavail * stat.f_frsize
    for name in TRAININGS:
        section = getattr(ws.params, name)
        passes = section.runtime.ranks * section.runtime.workers * _PASSES_AHEAD
        need = passes * section.batch_per_rank * section.crop[0] * section.crop[1] * _CROP_BYTES
        if need > free:
            text = f"{_SHM} has {free / 1e6:.0f} MB free, the loader processes of {name} fill {need / 1e6:.0f} MB"
            flag = f"--shm-size={-(-need // 2**30)}g"
            fix = f"docker run {flag} (Kubernetes: an emptyDir of medium Memory at /dev/shm)"
            yield Finding("shared memory", "broken", text, f"{fix}, or lower {name}.runtime.workers")


def _scales(ws: Workspace) -> Iterator[Finding]:
    """Find inference scales outside the teacher's training; attention does not detect them (docs/inference.md)."""
    if ws.params.auto_infer.teacher is not None:
        yield from _foreign_teacher(ws)
        return
    recipe = ws.params.teacher_train
    shown = recipe.model.training_scales  # of one pass
    low, high = recipe.augment.scale_min * min(shown), recipe.augment.scale_max * max(shown)
    unseen = ", ".join(f"{s:g}" for s in ws.params.auto_infer.scales if not low <= s <= high)
    if unseen:
        text = f"auto_infer.scales: {unseen} not among what teacher_train shows ({low:g} to {high:g})"
        yield Finding("scales", "warning", text, "leave it out, or widen teacher_train.augment.scale_min / scale_max")


def _foreign_teacher(ws: Workspace) -> Iterator[Finding]:
    """Check that the files of `auto_infer.teacher` exist, and that the tables next to them can be read."""
    try:
        for source in parse(labelling_teacher(ws)):
            _ = source.names, source.files
    except HmsaError as error:
        yield Finding("auto_infer.teacher", "broken", error.message, error.hint or "correct it in params.yaml")


def _locks(ws: Workspace) -> Iterator[Finding]:
    folder = ws.path("work/locks")
    probe_locks(folder)
    yield Finding("file locks", "ok", "work on this file system")
    for path in sorted(folder.glob("*.lock")):
        stage = path.stem
        lock = ws.lock(stage)
        if not lock.is_free():
            yield Finding(f"lock {stage}", "warning", f"held by {lock.owner()}", "wait for it, or stop that process")


def _disk(ws: Workspace) -> Iterator[Finding]:
    need, room = disk_need(ws), "free space, or `dvc gc --workspace`"
    text = str(need)
    if not need.fits:
        yield Finding("disk", "broken", text, room)
    elif need.is_tight:
        yield Finding("disk", "warning", f"{text}: it may have to stop on the way", room)
    elif need.unknown:
        yield Finding("disk", "warning", f"{text}, {need.unknown}", "`autolabel stage prepare` tells what to correct")
    else:
        yield Finding("disk", "ok", text)


def _leftovers(ws: Workspace) -> Iterator[Finding]:
    places = [ws.root.glob(".*.tmp"), *(ws.path(name).rglob(".*.tmp") for name in ("work", "models", "labels"))]
    places.append(ws.path("data").glob(".*.tmp"))  # not below: data sets can be large
    with suppress(FileNotFoundError):  # a run that goes on meanwhile may remove a file
        temps = {path for found in places for path in found if is_left_over(path.name)}
        files = {f for path in temps for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file()}
        size = sum(f.stat().st_size for f in files)
        text = f"{len(files)} temporary files of killed writers, {size} bytes, swept when their place is written next"
        if files:
            yield Finding("leftovers", "ok", text)


def _stores(ws: Workspace, *, deep: bool) -> Iterator[Finding]:
    for name in ("labels/raw", "labels/final"):
        path = ws.path(name)
        if not (path / "manifest.json").exists():
            continue
        try:
            store = LabelStore.open(path)
            problems = [str(problem) for problem in (store.verify() if deep else store.problems)]
        except HmsaError as error:
            problems = [error.message]
        for problem in problems:
            yield Finding(name, "broken", problem, _restore(ws, name))
        if not problems:
            yield Finding(
                name, "ok", "every shard matches its digest" if deep else "manifest is whole, no file is missing"
            )


def _restore(ws: Workspace, name: str) -> str:
    """Command that restores an output of a stage: from DVC's cache, or without DVC by making it again.

    Without DVC the output is a hard link of the stage's work, so that both are damaged.
    """
    stage = next((row.name for row in TABLE if name in row.outs), None)
    if stage is None or ws.path("dvc.lock").exists():
        return f"rm -r {name} && dvc checkout {name}"
    return f"rm -r {name} work/{stage} && autolabel run --to {stage}"


# -- files that no stage makes again ---------------------------------------------------------------------


def _made_by_init(ws: Workspace) -> Iterator[Finding]:
    with suppress(HmsaError):  # another check reports a dvc.yaml that cannot be read
        for name in sorted(doctor_dvc.named(ws, "deps") & _MADE_BY_INIT.keys()):
            if not ws.path(name).exists():
                yield Finding(name, "broken", f"{ws.path(name)}: missing: dvc repro stops at it", _MADE_BY_INIT[name])


def _histories(ws: Workspace) -> Iterator[Finding]:
    """Check the files that hold one entry per line, since one damaged line stops every reader."""
    readers: dict[str, Callable[[], object]] = {
        history.HISTORY: partial(history.nights, ws),
        "models/registry/history.jsonl": Registry(ws.root).history,
        "models/registry/looks.jsonl": partial(looks, ws),
        "models/registry/aa.json": partial(measured_aa, ws),
    }
    for path in sorted(ws.path("labels").glob("*.review.jsonl")):
        name = path.relative_to(ws.root).as_posix()
        readers[name] = ReviewFile(path.with_name(path.name.removesuffix(".review.jsonl"))).marks
    for name, read in readers.items():
        try:
            read()
        except HmsaError as error:
            yield Finding(name, "broken", error.message, _fix_line(ws.path(name), name, error))


def _fix_line(path: Path, name: str, error: HmsaError) -> str:
    if path.suffix == ".json":
        return f"rm {shlex.quote(name)} && autolabel models aa"
    match = re.match(r": line (\d+) ", error.message.removeprefix(str(path)))
    return f"sed -i {match[1]}d {shlex.quote(name)}  # or correct that line" if match else error.hint


# -- models ----------------------------------------------------------------------------------------------


def _teacher(ws: Workspace) -> Iterator[Finding]:
    """Check that models/current.json names an existing model (models/teacher may be untrained yet)."""
    try:
        if ws.is_promoted():
            ws.teacher()
    except HmsaError as error:
        yield Finding("teacher", "broken", error.message, "autolabel models rollback")


def _champion(ws: Workspace) -> Iterator[Finding]:
    """Check that models/registry/champion.json, which evaluate and the gate read, names an existing version."""
    path = ws.path("models/registry/champion.json")
    if path.exists() and not _champion_folder(ws):
        text = f"{path}: names no registered model: evaluate and the gate stop at it"
        yield Finding("champion", "broken", text, f"rm {path.relative_to(ws.root)}")


def _champion_folder(ws: Workspace) -> Path | None:
    with suppress(HmsaError, FileNotFoundError):  # another check reports a damaged file, and a missing file is fine
        name = str(read_json(ws.path("models/registry/champion.json")).get("version"))
        folder = ws.path("models/registry") / name
        return folder if (folder / "record.json").exists() else None
    return None


def _checkpoints(ws: Workspace) -> Iterator[Finding]:
    outs, registry = doctor_dvc.named(ws, "outs"), ws.path("models/registry")
    found = {path.parent for name in _FILES for path in ws.path("models").rglob(name)}
    for folder in sorted(found | {path.parent for path in registry.glob("v*/record.json")}):
        if is_temp(folder.name):
            continue  # reported as a leftover
        name = folder.relative_to(ws.root).as_posix()
        fault = version_damage(folder) if folder.parent == registry else damage(folder)
        if not fault:
            yield Finding(name, "ok", "weights match their digest")
        elif folder.parent == registry:
            yield Finding(name, "broken", fault, _fix_version(ws, folder))
        elif name in outs:
            yield Finding(name, "broken", fault, _restore(ws, name))
        else:
            files = " ".join(shlex.quote(f"{name}/{file}") for file in _FILES)
            yield Finding(name, "broken", fault, f"rm -f {files}  # then import it again: DVC has no copy of it")


def _fix_version(ws: Workspace, folder: Path) -> str:
    """Command that repairs a damaged version, if needed from a checkpoint of the same weights, or else removes it."""
    if not damage(folder):  # only the record is damaged
        return f"autolabel models register {folder.relative_to(ws.root).as_posix()}"
    twin = _twin(ws, folder)
    if twin:
        return f"autolabel models register {twin}"
    registry, name = Registry(ws.root), folder.relative_to(ws.root).as_posix()
    commands = []
    with suppress(HmsaError):  # another check reports it
        # Without model.json the check of the teacher prints a rollback, too; two rollbacks would be one too many.
        if registry.current() == name and (folder / "model.json").exists():
            commands.append("autolabel models rollback")
    if _champion_folder(ws) == folder:
        commands.append("rm models/registry/champion.json")  # the next promotion pins another reference
    return " && ".join([*commands, f"rm -r {name}"])


def _twin(ws: Workspace, version: Path) -> str | None:
    """Undamaged checkpoint with the weights that a version should have, as a path in the workspace."""
    with suppress(HmsaError, FileNotFoundError):
        weights = read_json(version / "record.json").get("weights_sha256")
        for meta in sorted(ws.path("models").glob("*/model.json")):
            if not damage(meta.parent) and read_json(meta).get("weights_sha256") == weights:
                return meta.parent.relative_to(ws.root).as_posix()
    return None
