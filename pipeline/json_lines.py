"""Histories of one JSON object a line, only ever appended: a line that cannot be read is named, and none is skipped."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hmsa_core.io import atomic
from hmsa_core.io.errors import IntegrityError

__all__ = ["append", "read"]


def read(path: Path, what: str, needed: Collection[str]) -> list[dict[str, Any]]:
    """All lines of a history, oldest first; [] when there is none yet.

    Args:
        path: the file.
        what: what a line tells, in words, for the message.
        needed: keys that every line has.

    Raises:
        IntegrityError: a line is torn, foreign or lacks a key. The last one, too: a killed writer leaves no half line.
    """
    found = []
    # Not splitlines(): what people write may hold the line breaks that only Unicode knows.
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
            raise IntegrityError(f"{path}: line {number} is not {what} ({wrong})", hint="mend or remove that line")
        found.append(value)
    return found


def append(path: Path, value: Mapping[str, Any]) -> None:
    """Append a line."""
    atomic.append_line(path, json.dumps(dict(value), sort_keys=True, ensure_ascii=False))
