"""What every layout reader returns: images paired with their labels by name, and what could not be paired."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from hmsa_core.io.errors import LayoutError, is_plain_name, translate_os_error
from hmsa_core.taxonomy import ClassTable

__all__ = ["IMAGE_SUFFIXES", "Found", "Refused", "Scan", "list_files", "list_folders", "pair", "refuse_odd_names"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff")


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
    role: str = ""  # only where the data set itself brings roles


@dataclass(frozen=True)
class Refused:
    """One quarantine row: a file that is not used, and why."""

    name: str
    path: str
    part: str  # image | label | coarse
    split: str
    reason: str
    detail: str


@dataclass
class Scan:
    """Outcome of reading a layout."""

    layout: str  # which convention was found, for people
    classes: ClassTable
    found: list[Found] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def list_folders(folder: Path) -> list[str]:
    """Sorted names of the sub-folders; hidden ones are left out."""
    return _names(folder, folders=True)


def list_files(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """Sorted names of the files that end with one of `suffixes` (any case); hidden ones are left out."""
    return [name for name in _names(folder, folders=False) if name.lower().endswith(suffixes)]


def _names(folder: Path, *, folders: bool) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir() == folders)
    except FileNotFoundError as error:
        raise LayoutError(f"{folder}: folder not found") from error
    except OSError as error:
        raise translate_os_error(error, "listing") from error


def pair(images: dict[str, str], labels: dict[str, str]) -> tuple[list[str], list[str], list[str]]:
    """Match two {name: path}: (names in both, only images, only labels), each sorted."""
    both = sorted(images.keys() & labels.keys())
    return both, sorted(images.keys() - labels.keys()), sorted(labels.keys() - images.keys())


def refuse_odd_names(scan: Scan) -> None:
    """Move images whose names or folders no table can hold to the refused ones, all of which get names that one can."""
    detail = "a name on its path holds control characters or bytes that are no UTF-8"
    found, scan.found = scan.found, []
    for f in found:
        if all(map(is_plain_name, (f.name, f.image, f.label, f.coarse))):
            scan.found.append(f)
        else:
            scan.refused.append(Refused(f.name, f.image, "image", f.split, "bad-name", detail))
    scan.refused = [
        replace(r, name=_shown(r.name), path=_shown(r.path), split=_shown(r.split), detail=_shown(r.detail))
        for r in scan.refused
    ]


def _shown(text: str) -> str:
    return text if is_plain_name(text) else ascii(text)[1:-1]
