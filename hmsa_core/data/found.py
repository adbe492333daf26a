"""Images that a layout reader found, and files that are not used (no file is opened)."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from hmsa_core.taxonomy import ClassTable


@dataclass(frozen=True)
class Found:
    """One image that a layout reader found; paths are relative to the root, "" = none."""

    name: str
    image: str
    label: str = ""
    coarse: str = ""
    split: str = ""
    city: str = ""
    sequence: str = ""
    frame: int = -1
    role: str = ""  # only if the data set defines roles


@dataclass(frozen=True)
class Refused:
    """One quarantine row: a file that is not used, and the reason."""

    name: str
    path: str
    part: str  # image | label | coarse
    split: str
    reason: str
    detail: str


@dataclass
class Scan:
    """Outcome of reading a layout."""

    layout: str  # name of the layout that was found, for messages
    classes: ClassTable
    found: list[Found] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, name: str, path: str, part: str, split: str, reason: str, detail: str) -> None:
        """Add a file to the refused ones."""
        self.refused.append(Refused(name, path, part, split, reason, detail))

    def keep(self, files: Container[str]) -> None:
        """Keep only the images of these paths."""
        self.found = [found for found in self.found if found.image in files]
        self.refused = [row for row in self.refused if row.path in files]
