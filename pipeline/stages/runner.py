"""Run a stage: clean up after a killed run, check the disk, measure time and memory."""

from __future__ import annotations

import configparser
import hashlib
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from hmsa_core.io import atomic
from hmsa_core.io.atomic import is_temp
from hmsa_core.io.errors import ConfigError, NoSpaceError, one_line
from hmsa_core.io.remote import is_url
from hmsa_core.labels.review import ReviewFile
from pipeline.stages import module_of
from pipeline.stages.time_left import seconds_left
from pipeline.workspace.named_files import check_named_files
from pipeline.workspace.params import stages_of_chain
from pipeline.workspace.registry import Registry
from pipeline.workspace.settings import write_resolved
from pipeline.workspace.table import CURRENT, Stage, row_of
from pipeline.workspace.work import in_words
from pipeline.workspace.workspace import SETTINGS, Workspace
from pipeline.workspace.yaml_text import read_yaml

_LOG = logging.getLogger(__name__)
_REVIEW = "labels/raw.review.jsonl"
_ROUNDS = 4  # runs of a stage whose marks or policies change meanwhile
_RESERVE = 64 << 20  # bytes that stay free: logs, locks, DVC's files


def run_stage(ws: Workspace, stage: str) -> None:
    """Run one stage in this process; its lock is held by the caller.

    Seconds and peak memory go to `work/times/<stage>.json`, not to an output of DVC: outputs must be the same
    bytes for the same parameters.
    """
    started = time.monotonic()
    module = module_of(stage)
    row = row_of(stage)
    write_resolved(ws)  # a mistake in params.yaml is reported before anything is touched
    before = _inputs(ws, row)
    check_named_files(ws.root, ws.params, stage)
    check_space(ws, stage, int(module.disk_estimate(ws)))
    atomic.sweep_temps(ws.work(stage))
    for turn in range(_ROUNDS):
        # The last round locks the review file, or people might never pause (the page keeps what they draw until then).
        is_held = turn == _ROUNDS - 1 and _REVIEW in row.deps
        with ReviewFile(ws.path("labels/raw")).lock() if is_held else nullcontext():
            saved, files = _saved_by_people(ws, row), _data_files(ws, row)
            module.run(ws)
            saved_meanwhile, files_meanwhile = _saved_by_people(ws, row), _data_files(ws, row)
            if (saved, files) == (saved_meanwhile, files_meanwhile):
                break
        _LOG.info("%s: marks, a policy or files of a data set came meanwhile: once more, for what they change", stage)
    _check_inputs(stage, before | saved, _inputs(ws, row) | saved_meanwhile)
    for root in (root for root in files if files[root] != files_meanwhile[root]):
        message = "%s: files in %s go on changing. What came last waits for the next change there, or `dvc repro -f %s`"
        _LOG.warning(message, stage, root, stage)
    record = {
        "stage": stage,
        "seconds": round(time.monotonic() - started, 2),
        "peak_memory_bytes": _peak_memory(),
        "cores": os.cpu_count(),
    }
    atomic.write_json(ws.path(f"work/times/{stage}.json"), record)
    left = seconds_left(ws, stage)
    ahead = f"; about {in_words(left)} left for the chain" if left else ""
    chain = [one.name for one in stages_of_chain(ws.params.data)]
    place = f"stage {chain.index(stage) + 1} of {len(chain)}" if stage in chain else "not part of this chain"
    _LOG.info("%s: done in %.1f s (%s)%s", stage, record["seconds"], place, ahead)


def _inputs(ws: Workspace, row: Stage) -> dict[str, Any]:
    """{path: value} of what people can change and DVC records when the stage has ended."""
    values = read_yaml(ws.path(SETTINGS)).values
    found: dict[str, Any] = {}
    for dotted in row.watched:
        here: Any = values
        for part in dotted.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        found[f"{SETTINGS}: {dotted}"] = here
    if CURRENT in row.deps:
        found[CURRENT] = Registry(ws.root).current()
    return found


def _saved_by_people(ws: Workspace, row: Stage) -> dict[str, Any]:
    """{path: SHA-256} of marks and policies, which people save in the page at any time; a change re-runs the stage."""
    paths = [ws.path(_REVIEW)] if _REVIEW in row.deps else []
    if "policies" in row.deps:
        paths += sorted(p for p in ws.path("policies").rglob("*") if not is_temp(p.name))
    return {str(path.relative_to(ws.root)): atomic.sha256_file(path) for path in paths if path.is_file()}


def _data_files(ws: Workspace, row: Stage) -> dict[Path, str]:
    """Fingerprints of the folders that a stage reads: DVC counts files that arrive meanwhile as read."""
    sources = (ws.params.data.target, ws.params.data.pretrain) if row.name == "prepare" else ()
    local = [source for source in sources if source and not is_url(source.root)]
    # The root of plain folders is whatever lies around them: this workspace, too.
    folders = [ws.resolve(source.root) / folder for source in local for folder in source.folders or ("",)]
    return {folder: _fingerprint(folder) for folder in folders}


def _fingerprint(root: Path) -> str:
    """Digest that changes when a file below a folder comes, goes or is written again; no file is opened."""
    found = hashlib.sha256()
    for folder, below, names in os.walk(root):
        below.sort()
        for path in (f"{folder}/{name}" for name in sorted(names)):
            with suppress(OSError):  # the file was removed a moment ago, or is a broken link
                status = os.stat(path)  # noqa: PTH116 - a Path each would take twice the time
                found.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


def _check_inputs(stage: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Refuse changed parameters: DVC reads them when a stage has ended, and would record new ones for old results."""
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if changed:
        raise ConfigError(
            f"{changed[0]} was changed while {stage} ran: what it made belongs to the old value",
            hint=f"run the same command again; with the old value back, {stage} is found finished in work/{stage}",
        )


def check_space(ws: Workspace, stage: str, needed: int) -> None:
    """Raise a NoSpaceError where a stage's estimate (work/, outputs, DVC's cache) exceeds the free space."""
    free, place = free_space(ws)
    wanted = needed + _RESERVE
    if free < wanted:
        raise NoSpaceError(
            f"{stage} needs about {_gib(wanted)} in {place}, {_gib(free)} are free",
            hint="free some space, or delete old progress in work/ and `dvc gc --workspace`",
        )


def free_space(ws: Workspace) -> tuple[int, Path]:
    """Free bytes and their place: the disk of the workspace or that of DVC's cache, whichever has less."""
    settings = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        settings.read((ws.path(".dvc/config"), ws.path(".dvc/config.local")))
    except configparser.Error as error:
        raise ConfigError(f"DVC's settings: {one_line(error)}", hint="correct .dvc/config") from error
    cache = ws.path(".dvc") / settings.get("cache", "dir", fallback="cache")
    while not cache.exists():
        cache = cache.parent
    try:
        tempfile.TemporaryFile(dir=cache).close()
    except OSError as error:  # DVC would find it when the stage has ended
        raise ConfigError(
            f"DVC's cache cannot be written: {cache}: {error.strerror}",
            hint="let this user write it, or name another: dvc cache dir --local PATH",
        ) from error
    return min((shutil.disk_usage(place).free, place) for place in (ws.root, cache))


def _peak_memory() -> int:
    """Peak memory in bytes of the stage's largest process (jobs included; the sum over ranks is not known)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
