"""Files that hold people's work: histories of one JSON object per line, and the error when one cannot be written."""

from __future__ import annotations

import errno
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hmsa_core.io.atomic import is_temp, write_bytes
from hmsa_core.io.errors import HmsaError, IntegrityError, NoSpaceError, hint_of


def read(path: Path, what: str, needed: Collection[str]) -> list[dict[str, Any]]:
    """All lines of a history, oldest first; [] when the file does not exist.

    Args:
        path: the file.
        what: what a line describes, in words, for the message.
        needed: keys that every line must have.

    Raises:
        IntegrityError: a line is torn, foreign or lacks a key. No line is skipped, not even the last one.
    """
    found = []
    # Not splitlines(): text that people write may hold the line breaks that only Unicode knows.
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.exists() else [], 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            wrong = "" if isinstance(value, dict) else f"expected an object, found {type(value).__name__}"
        except ValueError as error:
            value, wrong = {}, str(error)
        wrong = wrong or ", ".join(f"{key} is missing" for key in needed if key not in value)
        if wrong:
            raise IntegrityError(f"{path}: line {number} is not {what} ({wrong})", hint="correct or remove that line")
        found.append(value)
    return found


def append(path: Path, *values: Mapping[str, Any]) -> None:
    """Append JSON objects, one a line; a kill leaves all of them or none.

    The file is rewritten under a new name: an in-place append could leave half a line. A last line that a person
    repaired and left without a line break gets one.
    """
    old = path.read_bytes() if path.exists() else b""
    if old and not old.endswith(b"\n"):
        old += b"\n"
    new = "".join(json.dumps(dict(each), sort_keys=True, ensure_ascii=False) + "\n" for each in values)
    write_bytes(path, old + new.encode("utf-8"))


class SaveError(HmsaError):
    """A user's file could not be written; the file that was there before is intact."""


@contextmanager
def saving(path: Path, *, otherwise: str = "") -> Iterator[None]:
    """Turn an OSError of the block, which writes `path`, into one line for the user.

    Args:
        path: the file that the block writes.
        otherwise: another way to solve the problem, for the hint.

    Raises:
        NoSpaceError: the disk is full.
        SaveError: any other error of the operating system.
    """
    try:
        yield
    except OSError as error:
        # A temporary file's name does not help the user; the name of a lock file that belongs to another user does.
        other = Path(error.filename) if isinstance(error.filename, str | Path) else path
        where = f" ({other})" if other != path and not is_temp(other.name) and other.is_file() else ""
        said = f"{path}: not saved: {error.strerror or error}{where}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(said, hint="free space, then do it again") from error
        hint = hint_of(error) or f"let the user of this server write in {path.parent}, then do it again"
        raise SaveError(said, hint=f"{hint}; or {otherwise}" if otherwise else hint) from error


def stamp_of(path: Path) -> tuple[int, int] | None:
    """(modification time in ns, inode), which differs after every write of the file; None when there is no file."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_ino
