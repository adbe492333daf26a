"""What is wrong with this machine or workspace, and the exact command that mends it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hmsa_core import atomic
from hmsa_core.errors import HmsaError
from hmsa_core.locks import probe_locks
from pipeline.devices import visible_devices
from pipeline.machine import disk_need, memory_gib, torch_pair, torch_works, versions
from pipeline.workspace import Workspace

__all__ = ["Finding", "examine", "repair_dvc_lock"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ok, warning or broken, in a line, with what mends it."""

    name: str
    state: str  # "ok" | "warning" | "broken"
    text: str
    mend: str = ""

    def to_json(self) -> dict[str, str]:
        """As a JSON object."""
        return asdict(self)


def examine(root: Path, *, deep: bool = True) -> list[Finding]:
    """Look at everything; never raises for what it finds.

    Args:
        root: workspace (a folder without dvc.yaml gets the machine's part only).
        deep: also verify every byte of the label stores.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [_machine, _python, lambda: _packages(deep=deep)]
    if (root / "dvc.yaml").exists():
        ws = Workspace(root)
        checks += [
            lambda: _params(ws), lambda: _pretrain_dependency(ws), lambda: _locks(ws), lambda: _disk(ws),
            lambda: _dvc_lock(ws), lambda: _lock_file(ws), lambda: _leftovers(ws),
            lambda: _teacher(ws), lambda: _checkpoints(ws), lambda: _stores(ws, deep=deep),
        ]  # fmt: skip
    else:
        checks.append(lambda: _no_workspace(root))
    found = []
    for check in checks:
        try:
            found += list(check())
        except HmsaError as error:
            found.append(Finding("check", "broken", error.message, error.hint))
    return found


def _no_workspace(root: Path) -> Iterator[Finding]:
    what = "not a workspace (no dvc.yaml)" if root.is_dir() else "no such folder"
    mend = "run it in a workspace, give --workspace DIR, or make one with `autolabel init DIR --profile tiny`"
    yield Finding("workspace", "warning", f"{root}: {what}; only the machine was looked at", mend)


def _machine() -> Iterator[Finding]:
    gpus = len(visible_devices())
    text = f"{os.cpu_count()} processors, {memory_gib():.0f} GiB memory, {gpus or 'no'} GPU{'s' * (gpus != 1)}"
    yield Finding("machine", "ok", text)


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if good else "broken", version, "" if good else "install Python 3.11 or newer")


def _packages(*, deep: bool) -> Iterator[Finding]:
    wrong = torch_pair() or (torch_works() if deep else None)
    have = versions()
    text = ", ".join(f"{k} {v}" for k, v in have.items() if v)
    yield Finding("packages", "broken" if wrong else "ok", wrong or text, "make setup" if wrong else "")
    missing = [k for k, v in have.items() if not v]
    if missing:
        yield Finding("packages", "warning", f"not installed: {', '.join(missing)}", "make setup")


def _params(ws: Workspace) -> Iterator[Finding]:
    params = ws.params
    yield Finding("params.yaml", "ok", f"profile {params.profile}")
    for name, path in ws.roots.items():
        if path.is_dir():
            yield Finding(f"data {name}", "ok", str(path))
        else:
            generated = path.is_relative_to(ws.path("data/demo"))
            mend = "autolabel demo-data" if generated else f"correct data.{name}.root in params.yaml"
            yield Finding(f"data {name}", "broken", f"{path}: no such folder", mend)


def _pretrain_dependency(ws: Workspace) -> Iterator[Finding]:
    """DVC reads the root of the pretraining set from params.yaml: one without the other is an error of DVC's own."""
    named = "${data.pretrain.root}" in ws.path("dvc.yaml").read_text("utf-8")
    if named and ws.params.data.pretrain is None:
        yield Finding("dvc.yaml", "broken", "stage prepare depends on data.pretrain.root, params.yaml has none",
                      "sed -i '/data.pretrain.root/d' dvc.yaml")  # fmt: skip
    if not named and ws.params.data.pretrain is not None:
        yield Finding("dvc.yaml", "warning", "stage prepare does not depend on data.pretrain.root: changes go unseen",
                      "add `- ${data.pretrain.root}` to the deps of prepare in dvc.yaml")  # fmt: skip


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
    text = f"{need.free / 2**30:.1f} GiB free, about {need.total / 2**30:.1f} GiB needed by a full run"
    good = need.free > need.total + (512 << 20)
    yield Finding("disk", "ok" if good else "broken", text, "" if good else "free space, or `dvc gc --workspace`")


def _rwlock(ws: Workspace) -> Path:
    return ws.path(".dvc/tmp/rwlock")


def _dvc_lock(ws: Workspace) -> Iterator[Finding]:
    path = _rwlock(ws)
    if not path.exists():
        yield Finding("dvc lock", "ok", "free")
        return
    data = path.read_bytes()
    try:
        entries = json.loads(data)
    except ValueError:
        # DVC rewrites this file in place: a kill or a full disk in between leaves it torn, and every
        # later `dvc repro` fails until it is gone (dvc issue 7615).
        text = "is empty" if not data else "is torn"
        if _dvc_is_running(ws):
            yield Finding("dvc lock", "warning", f"{path} {text}, but a dvc process is at work", "wait for it")
        else:
            yield Finding("dvc lock", "broken", f"{path} {text}: every dvc repro fails", "autolabel doctor --fix")
        return
    dead = sorted({pid for pid in _pids(entries) if not _lives(pid)})
    living = sorted({pid for pid in _pids(entries) if _lives(pid)})
    if living:
        yield Finding("dvc lock", "warning", f"held by process {living[0]}", "wait for it, or stop that process")
    elif dead:
        yield Finding("dvc lock", "ok", f"names dead process {dead[0]}: dvc drops it by itself at the next run")
    else:
        yield Finding("dvc lock", "ok", "free")


def _pids(entries: object) -> Iterator[int]:
    if isinstance(entries, dict):
        for key, value in entries.items():
            if key == "pid" and isinstance(value, int):
                yield value
            else:
                yield from _pids(value)
    elif isinstance(entries, list):
        for value in entries:
            yield from _pids(value)


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _dvc_is_running(ws: Workspace) -> bool:
    """Whether somebody holds DVC's own lock file (a kernel lock, so a dead holder holds nothing)."""
    path = ws.path(".dvc/tmp/lock")
    if not path.exists():
        return False
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def repair_dvc_lock(ws: Workspace) -> str | None:
    """Remove a torn DVC lock file when no dvc process and no stage is at work; say what was done."""
    findings = list(_dvc_lock(ws))
    if not any(f.state == "broken" for f in findings):
        return None
    for path in ws.path("work/locks").glob("*.lock"):
        if not ws.lock(path.stem).is_free():
            return None
    _rwlock(ws).unlink()
    return f"removed {_rwlock(ws)}"


def _lock_file(ws: Workspace) -> Iterator[Finding]:
    """Whether dvc.lock can be read: a merge of two branches leaves both versions in it, a kill half of one."""
    import yaml

    path = ws.path("dvc.lock")
    if not path.exists():
        return
    text = path.read_text("utf-8", errors="replace")
    try:
        is_whole = isinstance(yaml.safe_load(text), dict) and not re.search(r"^(<{7}|>{7}) ", text, re.MULTILINE)
    except yaml.YAMLError:
        is_whole = False
    if is_whole:
        yield Finding("dvc.lock", "ok", "can be read")
    else:
        what = "holds a merge conflict" if "<<<<<<< " in text else "is torn"
        # Written anew from params.yaml and the run cache: what ran before with the same inputs does not run again.
        yield Finding("dvc.lock", "broken", f"{path} {what}: every dvc repro fails", "rm dvc.lock && dvc repro")


def _leftovers(ws: Workspace) -> Iterator[Finding]:
    if ws.path("work/nightly/params.saved.yaml").exists() and ws.lock("nightly").is_free():
        yield Finding(
            "params.yaml", "warning", "a killed nightly run left its own parameters in params.yaml",
            "autolabel doctor --fix",
        )  # fmt: skip
    temps = list(ws.path("work").rglob(".*.tmp")) if ws.path("work").exists() else []
    if temps:
        size = sum(p.stat().st_size for p in temps)
        text = f"{len(temps)} temporary files of killed writers, {size} bytes, swept at the next run"
        yield Finding("leftovers", "ok", text)


def _teacher(ws: Workspace) -> Iterator[Finding]:
    """Whether models/current.json names a model that is there (the stage's own may be untrained yet)."""
    try:
        if ws.is_promoted():
            ws.teacher()
    except HmsaError as error:
        yield Finding("teacher", "broken", error.message, "autolabel models rollback")


def _checkpoints(ws: Workspace) -> Iterator[Finding]:
    for folder in sorted({path.parent for path in ws.path("models").rglob("model.*")}):
        name = folder.relative_to(ws.root).as_posix()
        wrong = _wrong_with(folder)
        if wrong:
            yield Finding(name, "broken", wrong, _restore_hint(name))
        else:
            yield Finding(name, "ok", "weights match their digest")


def _wrong_with(checkpoint: Path) -> str:
    weights, meta = checkpoint / "model.safetensors", checkpoint / "model.json"
    for path in (weights, meta):
        if not path.exists():
            return f"{path} is missing"
    try:
        recorded = atomic.read_json(meta).get("weights_sha256")
    except HmsaError as error:
        return error.message
    return "" if atomic.sha256_file(weights) == recorded else f"{weights}: bytes differ from model.json's digest"


def _restore_hint(name: str) -> str:
    if "registry" in name:
        return "autolabel models rollback"
    return f"rm -r {name} && dvc checkout {name}"


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
            yield Finding(name, "broken", problem, _restore_hint(name))
        if not problems:
            text = "every shard matches its digest" if deep else "manifest is whole, no file is missing"
            yield Finding(name, "ok", text)
