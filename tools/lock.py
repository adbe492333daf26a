"""Reading `requirements.lock`: names, versions, markers, hashes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LOCK", "Locked", "normal", "read_lock"]

REPO = Path(__file__).resolve().parents[1]
LOCK = REPO / "requirements.lock"
_ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)(?: *; *(?P<marker>[^\\]+?))?(?: *\\)?$")


@dataclass(frozen=True)
class Locked:
    """One entry: normal name, version, environment marker ("" = everywhere), number of SHA-256 hashes."""

    name: str
    version: str
    marker: str
    hashes: int


def normal(name: str) -> str:
    """Name of a distribution as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(path: Path = LOCK) -> list[Locked]:
    """All entries of a lock file; a line that is neither entry nor hash is a ValueError."""
    found: list[Locked] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("--hash=sha256:"):
            last = found[-1]
            found[-1] = Locked(last.name, last.version, last.marker, last.hashes + 1)
        elif entry := _ENTRY.match(text):
            found.append(Locked(normal(entry["name"]), entry["version"], (entry["marker"] or "").strip(), 0))
        else:
            raise ValueError(f"{path}:{number}: neither a package nor a hash: {text}")
    return found
