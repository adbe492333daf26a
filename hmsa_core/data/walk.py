"""Listing of the files in a folder, and pairing of files by name, for all commands.

Hidden files, files of other endings, pipes and devices are not read; they are counted for the commands' messages.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from unicodedata import normalize

from hmsa_core.io.errors import LayoutError, translate_os_error

T = TypeVar("T")
LABEL_SUFFIXES = (".png", ".webp", ".tif", ".tiff")
IMAGE_SUFFIXES = (*LABEL_SUFFIXES, ".jpg", ".jpeg", ".jpe", ".jfif")
_HIDDEN, _NO_FILE = "hidden", "no files but pipes or devices"
_NAMED = 5  # kinds of files in a message


@dataclass
class Listing:
    """Contents of one folder; names are sorted."""

    folders: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    others: dict[str, list[str]] = field(default_factory=dict)  # by ending, or by the reason why they are not read


@dataclass
class Walk:
    """Contents of a folder and its sub-folders, which are posix paths relative to it; "" is the folder itself."""

    root: Path
    files: dict[str, list[str]] = field(default_factory=dict)  # by sub-folder, if it holds files
    others: dict[str, list[str]] = field(default_factory=dict)  # by kind as in `Listing`; paths, not names
    again: list[str] = field(default_factory=list)  # links to folders that were walked already

    def paths(self) -> Iterator[Path]:
        """All files, folder by folder."""
        return (self.root / folder / name for folder in sorted(self.files) for name in self.files[folder])

    def notes(self) -> list[str]:
        """Describe the files that were skipped."""
        words = [f"not looked at: files of other kinds ({kinds_of(self.others)})"] if self.others else []
        if self.again:
            words.append(f"links to folders that are looked at already, first {self.again[0]}: followed once")
        return words


def listing(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Listing:
    """Files that end with one of `suffixes` (any case) and visible sub-folders; LayoutError: no such folder."""
    found = Listing()
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                _add(found, entry, suffixes)
    except FileNotFoundError as error:
        raise LayoutError(f"{folder}: folder not found") from error
    except OSError as error:
        raise translate_os_error(error, "listing") from error
    return found


def _add(found: Listing, entry: os.DirEntry[str], suffixes: tuple[str, ...]) -> None:
    name, is_hidden = entry.name, entry.name.startswith(".")
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself, which is refused as unreadable
        is_folder = is_file = False
    if is_folder:
        found.folders += [] if is_hidden else [name]
    elif not name.lower().endswith(suffixes):
        if not is_hidden:
            found.others.setdefault(Path(name).suffix.lower() or "without ending", []).append(name)
    elif is_hidden:
        found.others.setdefault(_HIDDEN, []).append(name)
    elif not is_file and Path(entry.path).exists():
        found.others.setdefault(_NO_FILE, []).append(name)
    else:
        found.files.append(name)


def walk(root: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Walk:
    """All files below a folder, linked folders too, each folder once."""
    found, seen = Walk(root), set[str]()
    # Links come after real folders, so that a link which is added later renames no image; one may lead upwards.
    starts = [root]
    for start in starts:
        stack = [start]
        while stack:
            folder = stack.pop()
            place = "" if folder == root else folder.relative_to(root).as_posix()
            if (target := os.path.realpath(folder)) in seen:
                found.again.append(place)
                continue
            seen.add(target)
            here = listing(folder, suffixes)
            for kind, names in here.others.items():
                found.others.setdefault(kind, []).extend(f"{place}/{name}" if place else name for name in names)
            if here.files:
                found.files[place] = here.files
            below = [folder / name for name in here.folders]
            starts += [path for path in below if path.is_symlink()]
            stack += [path for path in reversed(below) if not path.is_symlink()]
    return found


def kinds_of(others: Mapping[str, list[str]]) -> str:
    """Kinds of files that are not read with their numbers: `.bmp 4, hidden 1 (.a.png)`."""
    most = sorted(others.items(), key=lambda item: -len(item[1]))
    words = [f"{kind} {len(names)}" + (f" ({names[0]})" if kind in (_HIDDEN, _NO_FILE) else "") for kind, names in most]
    more = [f"and {len(words) - _NAMED} more"] if len(words) > _NAMED else []
    return ", ".join(words[:_NAMED] + more)


def stem_of(file: str | Path) -> str:
    """Name of a file without its ending, in the one Unicode form (NFC) in which names are compared."""
    return normalize("NFC", Path(file).stem)


def is_empty(path: Path) -> bool:
    """Whether a file has no bytes: of two files of one name the other counts. False for a dangling link."""
    return path.exists() and path.stat().st_size == 0


def by_image(labels: dict[str, T], images: Collection[str]) -> tuple[dict[str, T], str]:
    """Return labels by the names of their images, and the ending that all label names add, such as `_mask`.

    The ending is removed if no label has the name of an image. It must not begin with a letter or digit.
    """
    if not labels or not labels.keys().isdisjoint(images):
        return labels, ""
    first = min(labels)
    ending = first.removeprefix(max((name for name in images if first.startswith(name)), key=len, default=first))
    if not ending or ending[0].isalnum() or not all(name.endswith(ending) for name in labels):
        return labels, ""
    return {name.removesuffix(ending): label for name, label in labels.items()}, ending
