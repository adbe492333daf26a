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

from hmsa_core.io import atomic
from hmsa_core.io.atomic import remove_tree as real_remove_tree


@dataclass(frozen=True)
class _Entry:
    """One change of folders, whole or not at all: (folder, name, the file or folder that it names now, or None)."""

    changes: tuple[tuple[int, str, int | None], ...]

    def folders(self) -> set[int]:
        return {folder for folder, _, _ in self.changes}


class Recorder(atomic.FileOps):
    """Carries the operations out and writes them down; `note` adds the caller's own marks.

    Files and folders are numbers, as they are for a file system: what is in a folder goes along when it gets
    another name.
    """

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []
        self.made: set[int] = set()  # folders
        self._ids: dict[Path, int] = {}
        self._count = itertools.count()

    def note(self, what: object) -> None:
        self.log.append(("note", what))

    def folder(self, path: Path) -> int:
        """The number of a folder; one that was there before gets its own now."""
        if path not in self._ids:
            self._ids[path] = self._new_folder()
        return self._ids[path]

    def open_new(self, path: Path) -> IO[bytes]:
        file = super().open_new(path)
        self._ids[path] = next(self._count)
        self._enter((path, self._ids[path]))
        return file

    def write(self, file: IO[bytes], data: bytes | memoryview) -> int:
        self.log.append(("write", (self._ids[Path(file.name)], bytes(data))))
        return super().write(file, data)

    def fsync(self, file: IO[bytes]) -> None:
        super().fsync(file)
        self.log.append(("sync", self._ids[Path(file.name)]))

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._enter((target, self._ids[source]), (source, None))
        self._move({source: target})

    def exchange(self, one: Path, other: Path) -> None:
        super().exchange(one, other)
        self._enter((one, self.folder(other)), (other, self.folder(one)))
        self._move({one: other, other: one})

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        self._ids[target] = self._ids[source]
        self._enter((target, self._ids[target]))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        del self._ids[path]
        self._enter((path, None))

    def remove_tree(self, path: Path) -> None:
        """In place of `atomic.remove_tree`, which asks no `ops`: what went before a change was durable must show."""
        if path.exists():
            known = [p for p in self._ids if p.is_relative_to(path)]
            real_remove_tree(path)
            for gone in sorted(known, key=lambda p: len(p.parts), reverse=True):
                self._enter((gone, None))
                del self._ids[gone]

    def mkdir(self, path: Path) -> None:
        missing = [p for p in (path, *path.parents) if not p.is_dir()]
        super().mkdir(path)
        for folder in reversed(missing):
            self._ids[folder] = self._new_folder()
            self._enter((folder, self._ids[folder]))

    def fsync_dir(self, path: Path) -> None:
        super().fsync_dir(path)
        self.log.append(("sync folder", self.folder(path)))

    def _new_folder(self) -> int:
        self.made.add(number := next(self._count))
        return number

    def _enter(self, *changes: tuple[Path, int | None]) -> None:
        entry = _Entry(tuple((self.folder(path.parent), path.name, number) for path, number in changes))
        self.log.append(("entry", entry))

    def _move(self, names: dict[Path, Path]) -> None:
        """Give everything in these folders, and them, its new path."""
        moved = {}
        for old, new in names.items():
            for path in [p for p in self._ids if p.is_relative_to(old)]:
                moved[new / path.relative_to(old)] = self._ids[path]
        self._ids = {p: i for p, i in self._ids.items() if not any(p.is_relative_to(old) for old in names)} | moved


def legal_states(recorder: Recorder, root: Path, where: Path) -> Iterator[tuple[Path, list[object], str]]:
    """Write each state below `where`, as if `root` lay there; yield (folder, notes before the crash, words).

    Args:
        recorder: what it wrote down; everything below `root` was made through it.
    """
    number, log, top = itertools.count(), recorder.log, recorder.folder(root)
    for crash in range(len(log) + 1):
        happened = log[:crash]
        notes = [what for kind, what in happened if kind == "note"]
        durable, pending = _entries(happened)
        for chosen in _subsets(pending):
            names = _apply([*durable, *chosen])
            for tail in ("lost", "half", "zeros", "kept"):
                folder = where / str(next(number))
                had_tail = _Disk(recorder, _contents(happened), names, tail).write(top, folder)
                yield folder, notes, f"crash after {crash} of {len(log)}, {len(chosen)} unsynced entries, tails {tail}"
                if not had_tail:
                    break  # the other ways to treat unsynced bytes give the same


def _entries(log: list[tuple[str, Any]]) -> tuple[list[_Entry], list[_Entry]]:
    """Changes of folders that must have survived, and those that may have."""
    durable, pending, synced = [], [], set[int]()
    for kind, what in reversed(log):
        if kind == "sync folder":
            synced.add(what)
        elif kind == "entry":
            (durable if what.folders() <= synced else pending).append(what)
    return durable[::-1], pending[::-1]


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


def _apply(entries: list[_Entry]) -> dict[int, dict[str, int]]:
    """Folder -> name -> file or folder."""
    names: dict[int, dict[str, int]] = {}
    for entry in entries:
        for folder, name, number in entry.changes:
            there = names.setdefault(folder, {})
            if number is None:
                there.pop(name, None)
            else:
                there[name] = number
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


class _Disk:
    """One state: what folders name, what files hold, and what became of bytes that were not synced."""

    def __init__(
        self, recorder: Recorder, contents: dict[int, tuple[bytes, bytes]], names: dict[int, dict[str, int]], tail: str
    ) -> None:
        self._is_folder, self._contents, self._names, self._tail = recorder.made, contents, names, tail
        self._written: dict[int, Path] = {}

    def write(self, folder: int, target: Path) -> bool:
        """Make `target` hold what the folder does; return whether a file had unsynced bytes."""
        target.mkdir(parents=True)
        had_tail = False
        for name, number in sorted(self._names.get(folder, {}).items()):
            if number in self._is_folder:
                had_tail |= self.write(number, target / name)
            elif number in self._written:
                os.link(self._written[number], target / name)
            else:
                synced, rest = self._contents.get(number, (b"", b""))
                kept = {"lost": b"", "half": rest[: len(rest) // 2], "zeros": bytes(len(rest)), "kept": rest}
                (target / name).write_bytes(synced + kept[self._tail])
                self._written[number] = target / name
                had_tail |= bool(rest)
        return had_tail
