"""What is wrong with this machine or workspace, and the exact command that mends it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from hmsa_core.io.atomic import is_left_over
from hmsa_core.io.errors import HmsaError, mend_of, one_line
from hmsa_core.io.locks import probe_locks
from hmsa_core.models.options import ModelOptions
from pipeline.devices import visible_devices
from pipeline.disk import disk_need
from pipeline.doctor import dvc as doctor_dvc
from pipeline.doctor import kept as doctor_kept
from pipeline.doctor import models as doctor_models
from pipeline.doctor.finding import Finding
from pipeline.machine import memory_gib, reinstall, torch_pair, torch_works, versions
from pipeline.named_files import mend_of_root, missing_files
from pipeline.workspace import Workspace

__all__ = ["examine"]

_Check = Callable[[], Iterator[Finding]]


def examine(root: Path, *, deep: bool = True) -> list[Finding]:
    """Look at everything; never raises for what it finds.

    Args:
        root: workspace (a folder without dvc.yaml gets the machine's part only).
        deep: also verify every byte of the label stores.
    """
    gpus = len(visible_devices())
    checks: dict[str, _Check] = {
        "machine": lambda: _machine(gpus),
        "python": _python,
        "packages": lambda: _packages(deep=deep),
    }
    if (root / "dvc.yaml").exists():
        checks |= _of_workspace(Workspace(root), gpus, deep=deep)
    else:
        checks["workspace"] = lambda: _no_workspace(root)
    return [finding for name, check in checks.items() for finding in _findings(name, check)]


def _findings(name: str, check: _Check) -> Iterator[Finding]:
    """What a check finds; that it could not be done is a finding, too."""
    try:
        yield from check()
    except HmsaError as error:
        yield Finding("check", "broken", error.message, error.hint)
    except OSError as error:
        mend = mend_of(error) or "let this user read and write the workspace"
        yield Finding("check", "broken", one_line(error), mend)
    # The doctor is asked when things are broken: it promises never to raise, and the other checks still speak.
    except Exception as error:  # noqa: BLE001 - see above
        if os.environ.get("AUTOLABEL_TRACEBACK"):
            traceback.print_exception(error)
        text = f"the check of {name} ended early: {type(error).__name__}: {one_line(error)}"
        yield Finding(name, "broken", text, "AUTOLABEL_TRACEBACK=1 autolabel doctor  # says where: please report it")


def _of_workspace(ws: Workspace, gpus: int, *, deep: bool) -> dict[str, _Check]:
    try:
        _ = ws.params
    except HmsaError as error:  # nothing below can be looked at without
        mend = error.hint or "correct that line, then run doctor again: the rest needs params.yaml"
        unread = Finding("params.yaml", "broken", error.message, mend)
        return {"params.yaml": lambda: iter([unread])}
    return {
        "params.yaml": lambda: _params(ws),
        "devices": lambda: _devices(ws, gpus),
        "scales": lambda: _scales(ws),
        "dvc.yaml": lambda: _pretrain_dependency(ws),
        "locks": lambda: _locks(ws),
        "disk": lambda: _disk(ws),
        "dvc": lambda: doctor_dvc.examine(ws),
        "leftovers": lambda: _leftovers(ws),
        "models": lambda: doctor_models.examine(ws),
        "histories": lambda: doctor_kept.examine(ws),
        "stores": lambda: _stores(ws, deep=deep),
    }


def _no_workspace(root: Path) -> Iterator[Finding]:
    what = "not a workspace (no dvc.yaml)" if root.is_dir() else "no such folder"
    mend = "run it in a workspace, give --workspace DIR, or make one with `autolabel init DIR --profile tiny`"
    yield Finding("workspace", "warning", f"{root}: {what}; only the machine was looked at", mend)


def _machine(gpus: int) -> Iterator[Finding]:
    text = f"{os.cpu_count()} processors, {memory_gib():.0f} GiB memory, {gpus or 'no'} GPU{'s' * (gpus != 1)}"
    yield Finding("machine", "ok", text)


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if good else "broken", version, "" if good else "install Python 3.11 or newer")


def _packages(*, deep: bool) -> Iterator[Finding]:
    have = versions()
    if wrong := torch_pair():
        yield Finding("packages", "broken", wrong, reinstall())
    elif deep and (wrong := torch_works()):
        # The right versions, so that an installer would leave the damaged files as they are.
        yield Finding("packages", "broken", wrong, reinstall(anew=True))
    else:
        yield Finding("packages", "ok", ", ".join(f"{k} {v}" for k, v in have.items() if v))
    missing = [k for k, v in have.items() if not v]
    if missing:
        yield Finding("packages", "warning", f"not installed: {', '.join(missing)}", reinstall())


def _params(ws: Workspace) -> Iterator[Finding]:
    params = ws.params
    missing = [f"{key}: {value} is not there" for key, value, _ in missing_files(ws.root, params)]
    for text in missing:
        yield Finding("params.yaml", "broken", text, f"correct {text.split(':')[0]} in params.yaml")
    if not missing:
        yield Finding("params.yaml", "ok", f"profile {params.profile}")
    for name, path in ws.roots.items():
        if path.is_dir():
            yield Finding(f"data {name}", "ok", str(path))
        else:
            yield Finding(f"data {name}", "broken", f"{path}: no such folder", mend_of_root(ws, name))


def _devices(ws: Workspace, present: int) -> Iterator[Finding]:
    """Sections that ask for more GPUs than there are: their stage would refuse to start."""
    for name in ("teacher_pretrain", "teacher_train", "auto_infer", "student_train", "evaluate"):
        runtime = getattr(ws.params, name).runtime
        if runtime.device == "cuda" and not present:
            mend = f"set {name}.runtime.device to auto, mend the driver, or ask where the stages will run"
            yield Finding(f"{name}.runtime", "broken", "device is cuda, but no GPU is visible", mend)
        elif runtime.device != "cpu" and present and runtime.ranks > present:
            yield Finding(
                f"{name}.runtime",
                "broken",
                f"ranks is {runtime.ranks}, but {present} GPU(s) are visible",
                f"set {name}.runtime.ranks to at most {present}",
            )


def _scales(ws: Workspace) -> Iterator[Finding]:
    """Scales of inference that the teacher's training does not show: attention does not notice (docs/inference.md)."""
    recipe = ws.params.teacher_train
    shown = ModelOptions(**recipe.model.model_dump(), num_classes=1).training_scales  # of one pass
    low, high = recipe.augment.scale_min * min(shown), recipe.augment.scale_max * max(shown)
    strange = ", ".join(f"{s:g}" for s in ws.params.auto_infer.scales if not low <= s <= high)
    if strange:
        text = f"auto_infer.scales: {strange} not among what teacher_train shows ({low:g} to {high:g})"
        yield Finding("scales", "warning", text, "leave it out, or widen teacher_train.augment.scale_min / scale_max")


def _pretrain_dependency(ws: Workspace) -> Iterator[Finding]:
    """DVC reads the root of the pretraining set from params.yaml: one without the other is an error of DVC's own."""
    path = ws.path("dvc.yaml")
    try:
        named = "${data.pretrain.root}" in path.read_text("utf-8")
    except UnicodeDecodeError as error:
        mend = "write it as UTF-8, or take it from version control"
        yield Finding("dvc.yaml", "broken", f"{path}: no UTF-8 text: every dvc repro fails ({one_line(error)})", mend)
        return
    if named and ws.params.data.pretrain is None:
        yield Finding(
            "dvc.yaml",
            "broken",
            "stage prepare depends on data.pretrain.root, params.yaml has none",
            "sed -i '/data.pretrain.root/d' dvc.yaml",
        )
    if not named and ws.params.data.pretrain is not None:
        yield Finding(
            "dvc.yaml",
            "warning",
            "stage prepare does not depend on data.pretrain.root: changes go unseen",
            "add `- ${data.pretrain.root}` to the deps of prepare in dvc.yaml",
        )


def _locks(ws: Workspace) -> Iterator[Finding]:
    folder = ws.path("work/locks")
    folder.mkdir(parents=True, exist_ok=True)
    probe_locks(folder)
    yield Finding("file locks", "ok", "work on this file system")
    for path in sorted(folder.glob("*.lock")):
        stage = path.stem
        lock = ws.lock(stage)
        if not lock.is_free():
            yield Finding(f"lock {stage}", "warning", f"held by {lock.owner()}", "wait for it, or stop that process")


def _disk(ws: Workspace) -> Iterator[Finding]:
    need = disk_need(ws)
    text = f"{need.free / 2**30:.1f} GiB free, at most {need.total / 2**30:.1f} GiB needed by a full run"
    if not need.fits:
        yield Finding("disk", "broken", text, "free space, or `dvc gc --workspace`")
    elif need.is_tight:
        text += ": it may have to stop on the way"
        yield Finding("disk", "warning", text, "free space, or `dvc gc --workspace`")
    elif need.unknown:
        yield Finding("disk", "warning", f"{text}, {need.unknown}", "`autolabel stage prepare` tells what to correct")
    else:
        yield Finding("disk", "ok", text)


def _leftovers(ws: Workspace) -> Iterator[Finding]:
    places = [ws.root.glob(".*.tmp"), *(ws.path(name).rglob(".*.tmp") for name in ("work", "models", "labels"))]
    places.append(ws.path("data").glob(".*.tmp"))  # not below: data sets can be large
    with suppress(FileNotFoundError):  # a run that goes on meanwhile sweeps, too
        temps = {path for found in places for path in found if is_left_over(path.name)}
        files = {f for path in temps for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file()}
        size = sum(f.stat().st_size for f in files)
        text = f"{len(files)} temporary files of killed writers, {size} bytes, swept when their place is written next"
        if files:
            yield Finding("leftovers", "ok", text)


def _stores(ws: Workspace, *, deep: bool) -> Iterator[Finding]:
    from hmsa_core.labels import LabelStore

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
            yield Finding(name, "broken", problem, doctor_dvc.restore(name))
        if not problems:
            text = "every shard matches its digest" if deep else "manifest is whole, no file is missing"
            yield Finding(name, "ok", text)
