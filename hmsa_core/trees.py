"""Folders that change as a whole: the old one or the new one is there, nothing between."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hmsa_core import atomic
from hmsa_core.atomic import is_temp, make_folder, publish_file, remove_if_dead, remove_tree, sweep_temps, temp_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["new_tree", "publish_tree"]

# Nothing to swap with or no way to: a mount point, another file system below, a kernel or file system without it.
_CANNOT_SWAP = {errno.EXDEV, errno.EBUSY, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def new_tree(target: str | os.PathLike[str], *, last: tuple[str, ...] = (), keep: bool = False) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` in one step when the block ends without an error.

    Until then, and after any failure, the old `target` is there as it was. Where folders cannot be swapped (a mount
    point), the files are replaced one by one: those named in `last`, the commit points, go first and come last.

    Args:
        target: a folder, there or not.
        last: names of files without which the folder means nothing.
        keep: take along what `target` holds and the new folder lacks.
    """
    target = Path(os.path.realpath(target))
    make_folder(target.parent)
    for path in target.parent.iterdir():
        if path.name.startswith(f".{target.name}."):
            remove_if_dead(path)
    folder = temp_name(target)
    atomic.ops.mkdir(folder)
    try:
        yield folder
        if keep:
            for relative in _files_below(target):
                if not (folder / relative).exists():
                    publish_file(target / relative, folder / relative)
        _put_in_place(folder, target, last)
    finally:
        remove_tree(folder)  # the old tree, or what was written before the failure


def _put_in_place(folder: Path, target: Path, last: tuple[str, ...]) -> None:
    try:
        if target.is_dir():
            shutil.copymode(target, folder)
            atomic.ops.exchange(folder, target)
        else:
            atomic.ops.rename(folder, target)
    except OSError as error:
        if error.errno not in _CANNOT_SWAP or not target.is_dir():
            raise
        _mirror(folder, target, last)
    atomic.ops.fsync_dir(target.parent)


def _mirror(source: Path, target: Path, last: tuple[str, ...]) -> None:
    """Make the files of `target` those of `source`, one by one."""
    sweep_temps(target)
    wanted = _files_below(source)
    there = _files_below(target)
    for relative in sorted(there, key=lambda p: (p.name not in last, p)):
        if relative.name in last or relative not in wanted:
            atomic.ops.unlink(target / relative)
    for relative in sorted(wanted, key=lambda p: (p.name in last, p)):
        publish_file(source / relative, target / relative)


def _files_below(folder: Path) -> set[Path]:
    """Relative paths of all files, without those that are being written."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {p for p in found if not any(is_temp(part) for part in p.parts)}


def publish_tree(
    source: Path, target: Path, *, last: tuple[str, ...] = (), only: Collection[str] | None = None
) -> None:
    """Make `target` a mirror of `source` by hard links, in one step (see `new_tree` for `last`).

    Args:
        only: relative paths of the files that are meant; default: all.
    """
    wanted = _files_below(source) if only is None else {Path(name) for name in only}
    with new_tree(target, last=last) as folder:
        for relative in sorted(wanted, key=lambda p: (p.name in last, p)):
            publish_file(source / relative, folder / relative)
