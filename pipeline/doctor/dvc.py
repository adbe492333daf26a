"""Check DVC's files: its lock, dvc.lock, dvc.yaml, and who may write the files that DVC unpickles."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hmsa_core.io.errors import ConfigError
from hmsa_core.io.locks import FileLock
from pipeline.workspace.dvc_yaml import check_dvc_yaml, renew_dvc_yaml, stages_of
from pipeline.workspace.new_workspace import GIVE_NAME, without_name
from pipeline.workspace.workspace import Workspace


@dataclass(frozen=True)
class Finding:
    """Result of one check: ok, warning or broken, one line of text, and the command that repairs the fault."""

    name: str
    state: str  # "ok" | "warning" | "broken"
    text: str
    fix: str = ""


def examine(ws: Workspace) -> Iterator[Finding]:
    """Check DVC's lock, dvc.lock and the site cache."""
    yield from _repository(ws)
    yield from _lock(ws)
    yield from _lock_file(ws)
    if fault := without_name():
        yield Finding("user", "broken", fault, GIVE_NAME)
    else:
        yield from _site_cache(ws)


def named(ws: Workspace, key: str) -> set[str]:
    """Paths that the stages of dvc.yaml name under `key` ("outs" or "deps"), as written there.

    Raises:
        ConfigError: dvc.yaml cannot be read.
    """
    found = [name for stage in stages_of(ws.path("dvc.yaml")).values() for name in stage.get(key, [])]
    return {name for one in found for name in (one if isinstance(one, dict) else [one])}


def examine_stages(ws: Workspace) -> Iterator[Finding]:
    """Check that dvc.yaml has the stages that this program and params.yaml need."""
    try:
        check_dvc_yaml(ws.path("dvc.yaml"), ws.params)
    except ConfigError as error:
        fix = "autolabel doctor --fix" if "doctor --fix" in error.hint else error.hint
        yield Finding("dvc.yaml", "broken", error.message, fix)


def renew_stages(ws: Workspace) -> str | None:
    """Rewrite the stages of dvc.yaml that differ from what this program and params.yaml need; return a line on it."""
    with suppress(ConfigError):  # the findings report a file that cannot be read
        if renewed := renew_dvc_yaml(ws.path("dvc.yaml"), ws.params):
            return f"written anew in {ws.path('dvc.yaml')}: {', '.join(renewed)}"
    return None


def _repository(ws: Workspace) -> Iterator[Finding]:
    """Check that DVC finds its repository and, unless it does without, one of git: a copy may lack hidden folders."""
    if importlib.util.find_spec("dvc") is None:
        return  # as another finding says
    fix = f"autolabel init . --profile {ws.params.profile}"
    home = next((path for path in (ws.root, *ws.root.parents) if (path / ".dvc").is_dir()), None)
    if home is None:
        yield Finding("dvc repository", "broken", "there is none here: no dvc command works", fix)
        return
    config = home / ".dvc" / "config"
    needs_git = not config.is_file() or not re.search(
        r"(?im)^\s*no_scm\s*=\s*(true|yes|on|1)\b", config.read_text("utf-8")
    )
    if needs_git and not any((path / ".git").exists() for path in (home, *home.parents)):
        yield Finding("dvc repository", "broken", "DVC expects a git repository, there is none", fix)
    else:
        yield Finding("dvc repository", "ok", str(home))


_RWLOCK = ".dvc/tmp/rwlock"


def _lock(ws: Workspace) -> Iterator[Finding]:
    path = ws.path(_RWLOCK)
    if not path.exists():
        yield Finding("dvc lock", "ok", "free")
        return
    data = path.read_bytes()
    try:
        json.loads(data)
    except ValueError:
        # DVC rewrites this file in place: a kill or a full disk in between leaves it torn, and every
        # later `dvc repro` fails until it is gone (dvc issue 7615).
        text = "is empty" if not data else "is torn"
        yield _blocking(ws, f"{path} {text}")
        return
    written = path.stat().st_mtime
    named = {int(pid) for pid in re.findall(rb'"pid": *(\d+)', data)}
    alive = {pid for pid in named if psutil.pid_exists(pid)}
    unrelated = sorted(pid for pid in alive if _is_stranger(pid, written))
    if holders := sorted(alive.difference(unrelated)):
        yield Finding("dvc lock", "warning", f"held by process {holders[0]}", "wait for it, or stop that process")
    elif unrelated:
        # DVC checks only whether a process with that number exists.
        yield _blocking(ws, f"{path} names process {unrelated[0]}, which began after it was written")
    elif named:
        yield Finding("dvc lock", "ok", f"names dead process {min(named)}: dvc drops it by itself at the next run")
    else:
        yield Finding("dvc lock", "ok", "free")


def _blocking(ws: Workspace, text: str) -> Finding:
    if not FileLock(ws.path(".dvc/tmp/lock")).is_free():
        return Finding("dvc lock", "warning", f"{text}, but a dvc process is at work", "wait for it")
    return Finding("dvc lock", "broken", f"{text}: every dvc repro fails", "autolabel doctor --fix")


def _is_stranger(pid: int, written: float) -> bool:
    """Whether a process reuses the number of a dead one: it began after the file was written, and is not dvc."""
    try:
        process = psutil.Process(pid)
        return process.create_time() > written + 1 and "dvc" not in map(os.path.basename, process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return False


def repair_lock(ws: Workspace) -> str | None:
    """Remove a torn or stale DVC lock file when no dvc process and no stage is at work; return a line on it."""
    is_broken = any(found.state == "broken" for found in _lock(ws))
    if not is_broken or not all(ws.lock(path.stem).is_free() for path in ws.path("work/locks").glob("*.lock")):
        return None
    ws.path(_RWLOCK).unlink()
    return f"removed {ws.path(_RWLOCK)}"


def _lock_file(ws: Workspace) -> Iterator[Finding]:
    """Check that dvc.lock can be read: a merge of branches may leave both versions in it, a kill half of one."""
    path = ws.path("dvc.lock")
    if not path.exists():
        return
    text = path.read_text("utf-8", errors="replace")
    try:
        is_whole = isinstance(YAML(typ="safe").load(text), dict) and not re.search(r"^(<{7}|>{7}) ", text, re.MULTILINE)
    except YAMLError:
        is_whole = False
    if is_whole:
        yield Finding("dvc.lock", "ok", "can be read")
    else:
        fault = "holds a merge conflict" if "<<<<<<< " in text else "is torn"
        # DVC writes it again from params.yaml and the run cache: a stage with known inputs does not run again.
        yield Finding("dvc.lock", "broken", f"{path} {fault}: every dvc repro fails", "rm dvc.lock && dvc repro")


def _site_cache(ws: Workspace) -> Iterator[Finding]:
    """Check whether other users can write the folder from which DVC unpickles (CVE-2025-69872, diskcache)."""
    try:
        from dvc.config import Config, ConfigError
        from dvc.dirs import site_cache_dir
    except ModuleNotFoundError:
        yield Finding("dvc", "broken", "not installed: `dvc repro` cannot run", "make setup")
        return
    try:
        configured = Config(dvc_dir=str(ws.path(".dvc")))["core"].get("site_cache_dir")
    except ConfigError as error:
        yield Finding("dvc config", "broken", f"{error}: every dvc repro fails", "correct .dvc/config")
        return
    folder = Path(site_cache_dir(configured)).resolve()
    if _others_can_write(folder / "repo"):
        yield Finding(
            "dvc site cache",
            "warning",
            f"{folder}: dvc unpickles what it finds there, and other users of this machine can write it",
            "mkdir -p -m 700 ~/.cache/dvc-site && dvc config --global core.site_cache_dir ~/.cache/dvc-site",
        )
    else:
        yield Finding("dvc site cache", "ok", f"{folder}: no other user can write it")


def _others_can_write(folder: Path) -> bool:
    """Whether users other than root and this one can change files in `folder`; DVC makes it as 0777 if missing."""
    is_open = False
    for part in (folder, *folder.parents):
        if not part.exists():
            is_open = True
            continue
        found = part.stat()
        if not found.st_mode & (stat.S_IXOTH | stat.S_IXGRP):
            return False  # no other user can enter this folder
        # A user's primary group counts as private to that user, as distributions create it.
        writers = stat.S_IWOTH if found.st_gid in (0, os.getgid()) else stat.S_IWOTH | stat.S_IWGRP
        is_sticky = bool(found.st_mode & stat.S_ISVTX) and part != folder
        is_open |= bool(found.st_mode & writers) and not is_sticky
        is_open |= found.st_uid not in (0, os.getuid())
    return is_open
