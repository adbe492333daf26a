"""Every state of the disk that losing power may legally leave, from a record of file operations.

After ALICE (Pillai et al., OSDI 2014): a kernel may keep what was not synced, lose it, or keep a part, and may
apply changes of a folder that was not synced in any order. What is promised: the bytes of a file at its last fsync,
and the entries of a folder at its last fsync.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hmsa_core import atomic

__all__ = ["Recorder", "legal_states"]


@dataclass(frozen=True)
class _Entry:
    """A change of a folder: `new` becomes a name of the file, `old` is no name any more."""

    file: int
    new: Path | None
    old: Path | None
    is_folder: bool = False

    def folders(self) -> set[Path]:
        return {path.parent for path in (self.new, self.old) if path is not None}


class Recorder(atomic.FileOps):
    """Carries the operations out and writes them down; `note` adds the caller's own marks."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []
        self._names: dict[Path, int] = {}
        self._count = itertools.count()

    def note(self, what: object) -> None:
        self.log.append(("note", what))

    def open_new(self, path: Path) -> IO[bytes]:
        file = super().open_new(path)
        self._names[path] = next(self._count)
        self.log.append(("entry", _Entry(self._names[path], path, None)))
        return file

    def write(self, file: IO[bytes], data: bytes | memoryview) -> int:
        self.log.append(("write", (self._names[Path(file.name)], bytes(data))))
        return super().write(file, data)

    def fsync(self, file: IO[bytes]) -> None:
        super().fsync(file)
        self.log.append(("sync", self._names[Path(file.name)]))

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._names[target] = self._names.pop(source)
        self.log.append(("entry", _Entry(self._names[target], target, source)))

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        self._names[target] = self._names[source]
        self.log.append(("entry", _Entry(self._names[target], target, None)))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.log.append(("entry", _Entry(self._names.pop(path), None, path)))

    def mkdir(self, path: Path) -> None:
        missing = [p for p in (path, *path.parents) if not p.is_dir()]
        super().mkdir(path)
        self.log += [("entry", _Entry(next(self._count), p, None, is_folder=True)) for p in reversed(missing)]

    def fsync_dir(self, path: Path) -> None:
        super().fsync_dir(path)
        self.log.append(("sync folder", path))


def legal_states(log: list[tuple[str, Any]], root: Path, where: Path) -> Iterator[tuple[Path, list[object], str]]:
    """Write each state below `where`, as if `root` lay there; yield (folder, notes before the crash, words)."""
    number = itertools.count()
    for crash in range(len(log) + 1):
        happened = log[:crash]
        notes = [what for kind, what in happened if kind == "note"]
        durable, pending = _entries(happened)
        for chosen in _subsets(pending):
            names = _apply([*durable, *chosen])
            for tail in ("lost", "half", "zeros", "kept"):
                folder = where / str(next(number))
                _materialise(happened, names, root, folder, tail)
                yield folder, notes, f"crash after {crash} of {len(log)}, {len(chosen)} unsynced entries, tails {tail}"
                if not _has_tail(happened, names):
                    break  # the other ways to treat unsynced bytes give the same


def _entries(log: list[tuple[str, Any]]) -> tuple[list[_Entry], list[_Entry]]:
    """Changes of folders that must have survived, and those that may have."""
    durable, pending = [], []
    for at, (kind, entry) in enumerate(log):
        if kind == "entry":
            later = {path for k, path in log[at + 1 :] if k == "sync folder"}
            (durable if entry.folders() <= later else pending).append(entry)
    return durable, pending


def _subsets(pending: list[_Entry]) -> Iterator[list[_Entry]]:
    """All subsets of few changes; of many, none, all, each alone and all but each; in order and reversed."""
    if len(pending) <= 3:
        chosen = [list(c) for n in range(len(pending) + 1) for c in itertools.combinations(pending, n)]
    else:
        chosen = [[], pending, *([entry] for entry in pending), *([e for e in pending if e is not x] for x in pending)]
    for some in chosen:
        yield some
        if len(some) > 1:
            yield some[::-1]


def _apply(entries: list[_Entry]) -> dict[Path, _Entry]:
    names: dict[Path, _Entry] = {}
    for entry in entries:
        if entry.old is not None:
            names.pop(entry.old, None)
        if entry.new is not None:
            names[entry.new] = entry
    return names


def _contents(log: list[tuple[str, Any]]) -> dict[int, tuple[bytes, bytes]]:
    """File -> (bytes at its last fsync, bytes written since)."""
    found: dict[int, tuple[bytes, bytes]] = {}
    for kind, value in log:
        if kind == "write":
            synced, tail = found.get(value[0], (b"", b""))
            found[value[0]] = synced, tail + value[1]
        elif kind == "sync":
            synced, tail = found.get(value, (b"", b""))
            found[value] = synced + tail, b""
    return found


def _has_tail(log: list[tuple[str, Any]], names: dict[Path, _Entry]) -> bool:
    contents = _contents(log)
    return any(contents.get(entry.file, (b"", b""))[1] for entry in names.values())


def _materialise(log: list[tuple[str, Any]], names: dict[Path, _Entry], root: Path, folder: Path, tail: str) -> None:
    folder.mkdir(parents=True)
    contents, inodes = _contents(log), dict[int, Path]()
    for path in sorted(names):
        if not path.is_relative_to(root) or any(p.is_relative_to(root) and p not in names for p in path.parents
                                                if p != root and root in p.parents):  # fmt: skip
            continue  # its folder was lost
        target, entry = folder / path.relative_to(root), names[path]
        if entry.is_folder:
            target.mkdir(parents=True, exist_ok=True)
        elif entry.file in inodes:
            os.link(inodes[entry.file], target)
        else:
            synced, rest = contents.get(entry.file, (b"", b""))
            kept = {"lost": b"", "half": rest[: len(rest) // 2], "zeros": bytes(len(rest)), "kept": rest}[tail]
            target.write_bytes(synced + kept)
            inodes[entry.file] = target
