"""Estimate the disk space of a run from the estimates of its stages, before their input files exist."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hmsa_core.data.decode import read_header
from hmsa_core.data.found import Found
from hmsa_core.data.index import ROLES, Index, Sample
from hmsa_core.data.layouts import scan
from hmsa_core.data.roles import assign_roles
from hmsa_core.io.errors import ConfigError, DecodeError, HmsaError, InputError, NoSpaceError, translate_os_error
from hmsa_core.io.locks import probe_locks
from pipeline.jobs.machine import memory_gib, reinstall, torch_pair, versions
from pipeline.jobs.support import INDEX
from pipeline.stages import module_of
from pipeline.stages.runner import free_space
from pipeline.workspace.table import STAGES
from pipeline.workspace.workspace import Workspace

RESERVE = 512 << 20  # bytes that stay free: a full system disk breaks more than this run
_HEADERS = 256  # new images whose size is read; the others are assumed to have the same mean size


@dataclass(frozen=True)
class Need:
    """Disk space of a run in bytes: at most (`total`, and by stage), at least to begin (`least`), and free.

    A stage that ran before has most of its files already; the size of new ones is unknown. When it starts, a stage
    requires its full estimate, so the largest estimate must fit.
    """

    total: int
    least: int
    parts: dict[str, int]
    free: int
    place: Path  # the place that has `free` bytes: the workspace or DVC's cache
    unknown: str = ""  # text: what is not counted, and why

    def __str__(self) -> str:
        free, total = (f"{size / 2**30:.1f} GiB" for size in (self.free, self.total))
        return f"{free} free in {self.place}, at most {total} needed by a full run"

    @property
    def fits(self) -> bool:
        """Whether the run can begin."""
        return self.least + RESERVE <= self.free

    @property
    def is_tight(self) -> bool:
        """Whether the run can begin, but may have to stop for lack of space."""
        return self.fits and self.total + RESERVE > self.free


class _Foreseen(Workspace):
    """A workspace with another index: the one that `prepare` will write."""

    def __init__(self, root: Path, index: Path) -> None:
        super().__init__(root)
        self._index = index

    def path(self, relative: str) -> Path:
        """Absolute path of something in the workspace; paths of the index lie in the other index's folder."""
        inside = relative.removeprefix(f"{INDEX}/")
        return super().path(relative) if inside == relative else self._index / inside


def disk_need(ws: Workspace, stages: Collection[str] = STAGES) -> Need:
    """Disk space that these stages need: each begins with the space that the stages before it left.

    The estimates depend on the index and on the raw labels. Both lack new images, and before the first run both are
    missing. So the stages read the index that `prepare` would write from the data set's folder now.
    """
    parts: dict[str, int] = {}
    refused: dict[str, str] = {}  # stage -> why it has no estimate
    with tempfile.TemporaryDirectory(prefix="autolabel-") as folder:
        seen, why = _foreseen(ws, Path(folder)) if "prepare" in stages else (ws, "")
        for stage in (s for s in STAGES if s in stages):
            try:
                parts[stage] = int(module_of(stage).disk_estimate(seen))
            except HmsaError as error:
                refused[stage] = why or error.message
    if "pseudo-label" in parts and "auto-infer" in stages:
        # Final labels are at most as large as the raw labels, which auto-infer has yet to write.
        parts["pseudo-label"] = max(parts["pseudo-label"], parts.get("auto-infer", 0))
        if not parts["pseudo-label"] and "auto-infer" in refused:
            refused["pseudo-label"] = refused["auto-infer"]
    unknown = f"without images that are new: {why}" if why else ""
    if refused:
        unknown = f"without {', '.join(refused)}: {next(iter(refused.values()))}"
    new = sum(size for stage, size in parts.items() if not ws.path(f"metrics/{stage}.json").exists())
    least = max(new, *parts.values(), 0)
    return Need(sum(parts.values()), least, parts, *free_space(ws), unknown)


def _foreseen(ws: Workspace, folder: Path) -> tuple[Workspace, str]:
    """The workspace with a new index in `folder`; or the unchanged workspace, and why no index could be made."""
    try:
        _write_indexes(ws, folder)
    except HmsaError as error:
        return ws, error.message
    except OSError as error:
        return ws, translate_os_error(error, "looking at the data set").message
    return _Foreseen(ws.root, folder), ""


def _write_indexes(ws: Workspace, folder: Path) -> None:
    """Write an index for each role: names, roles and sizes of the images in the data set's folder; no pixel is read."""
    source = ws.source("target")
    scanned = scan(source)
    found = list({f.name: f for f in scanned.found}.values())
    roles = dict(zip((f.name for f in found), assign_roles(found, ws.params.data.roles), strict=True))
    sizes = _sizes(ws, Path(source.root), found)
    for role in ROLES:
        samples = [_sample(f, role, sizes[f.name]) for f in found if roles[f.name] == role]
        Index.write(folder / f"{role}.parquet", samples, scanned.classes, source.name)


def _sample(f: Found, role: str, size: tuple[int, int]) -> Sample:
    kind = "fine" if f.label else "coarse" if f.coarse else "unlabelled"
    where = f.split, role, f.city, f.sequence, f.frame, ""
    return Sample(f.name, f.image, f.label, f.coarse, kind, *where, *size, "", "", "", "")


def _sizes(ws: Workspace, root: Path, found: Sequence[Found]) -> dict[str, tuple[int, int]]:
    """Height and width of each image: from the last index, else from its header, else as many pixels as the others."""
    path = ws.path(f"{INDEX}/target.parquet")
    sizes = {s.name: (s.height, s.width) for s in Index.load(path).samples} if path.exists() else {}
    new = [f for f in found if f.name not in sizes]
    read = []
    for one in new[:: max(1, len(new) // _HEADERS)]:
        with suppress(DecodeError):  # `prepare` leaves this image out
            header = read_header(root / one.image)
            sizes[one.name] = (header.height, header.width)
            read.append(header.height * header.width)
    if new and not sizes:
        raise InputError(f"{root}: the size of no image could be read")
    like = read or [height * width for height, width in sizes.values()]
    usual = (1, sum(like) // max(1, len(like)))
    return {f.name: sizes.get(f.name, usual) for f in found}


def check_machine(ws: Workspace, stages: Collection[str] = STAGES) -> list[str]:
    """Refuse a run that cannot finish; return what was found, one line each.

    Args:
        ws: workspace of the run.
        stages: stages that have something to do.

    Raises:
        ConfigError: torch and torchvision do not fit, or locks do not work here.
        NoSpaceError: the run's estimate exceeds the free space.
    """
    if wrong := torch_pair():
        raise ConfigError(wrong, hint=reinstall())
    probe_locks(ws.path("work/locks"))
    need = disk_need(ws, stages)
    if not need.fits:
        raise NoSpaceError(
            f"{need.place}: at least {need.least / 2**30:.1f} GiB are needed, {need.free / 2**30:.1f} GiB are free",
            hint="free some space, or `dvc gc --workspace` to drop old label stores",
        )
    text = str(need)
    text += f" ({need.unknown})" if need.unknown else ""
    text += ": it may have to stop on the way" if need.is_tight else ""
    have = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    return [f"{os.cpu_count()} processors, {memory_gib():.0f} GiB memory, {text}", have]
