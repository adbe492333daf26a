"""Folders that are replaced as a whole: at any time either the old or the new folder exists."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hmsa_core.io import atomic
from hmsa_core.io.atomic import is_left_over, is_temp, make_folder, publish_file, remove_tree, sweep_temps, temp_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_LOG = logging.getLogger(__name__)
# Errors where folders cannot be swapped: a mount point, another file system below, or no support by the kernel.
_CANNOT_SWAP = {errno.EXDEV, errno.EBUSY, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_PARENT_REFUSES = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def new_tree(target: str | os.PathLike[str], *, last: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` in one step when the block ends without an error.

    Until then, and after any failure, the old `target` is there as it was. Where folders cannot be swapped (a mount
    point), the files are replaced one by one: files named in `last`, the commit points, are removed first, added last.

    Args:
        target: a folder, there or not.
        last: names of files without which the folder means nothing.
    """
    target = Path(os.path.realpath(target))
    make_folder(target.parent)
    for path in target.parent.iterdir():
        if is_temp(path.name, of=target.name) and is_left_over(path.name):
            _discard(path)
    folder = _make_next_to(target)
    try:
        yield folder
        _put_in_place(folder, target, last)
    finally:
        _discard(folder)  # the old tree, or the files written before the failure


def _make_next_to(target: Path) -> Path:
    folder = temp_name(target)
    try:
        atomic.ops.mkdir(folder)
    except OSError as error:
        if error.errno not in _PARENT_REFUSES or not target.is_dir():
            raise
        folder = temp_name(target / target.name)  # a mount point whose parent folder belongs to another user
        atomic.ops.mkdir(folder)
    return folder


def _discard(folder: Path) -> None:
    """Remove a folder that is not needed any more. The new tree is in place, so errors here are ignored."""
    if not folder.exists():
        return
    try:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)  # a user may have made the old results read-only
        remove_tree(folder)
    except OSError as error:
        _LOG.warning("%s: an old folder could not be removed (%s)", folder, error.strerror)


def _put_in_place(folder: Path, target: Path, last: tuple[str, ...]) -> None:
    try:
        if not target.is_dir():
            try:
                atomic.ops.rename(folder, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        if folder.is_dir():  # there is an old tree, or one that another writer has just made
            shutil.copymode(target, folder)
            atomic.ops.exchange(folder, target)
    except OSError as error:
        if error.errno not in _CANNOT_SWAP or not target.is_dir():
            raise
        _mirror(folder, target, last)
    atomic.ops.fsync_dir(target.parent)


def _mirror(source: Path, target: Path, last: tuple[str, ...]) -> None:
    """Replace the files of `target` by the files of `source`, one by one."""
    sweep_temps(target)
    wanted = _files_below(source)
    there = _files_below(target)
    for relative in sorted(there, key=lambda p: (p.name not in last, p)):
        if relative.name in last or relative not in wanted:
            atomic.ops.unlink(target / relative)
    link_tree(source, target, last=last, only=wanted)


def _files_below(folder: Path) -> set[Path]:
    """Relative paths of all files, without temporary files of running writers."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {p for p in found if not any(is_temp(part) for part in p.parts)}


def link_tree(
    source: Path, folder: Path, *, last: tuple[str, ...] = (), only: Collection[str | Path] | None = None
) -> None:
    """Put the files of `source` into `folder` by hard links, one by one.

    Args:
        last: names of files that come after all others.
        only: relative paths of the files to link; default: all.
    """
    files = _files_below(source) if only is None else {Path(name) for name in only}
    for relative in sorted(files, key=lambda p: (p.name in last, p)):
        publish_file(source / relative, folder / relative)


def publish_tree(
    source: Path, target: Path, *, last: tuple[str, ...] = (), only: Collection[str] | None = None
) -> None:
    """Make `target` a mirror of `source` by hard links, in one step (see `new_tree` for `last`).

    Args:
        only: relative paths of the files to link; default: all.
    """
    with new_tree(target, last=last) as folder:
        link_tree(source, folder, last=last, only=only)
