"""Whether a file is still the one that was read."""

from __future__ import annotations

from pathlib import Path

__all__ = ["stamp_of"]

Stamp = tuple[int, int]


def stamp_of(path: Path) -> Stamp | None:
    """What differs between two files of one name (each write makes a new file); None where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_ino
