"""A folder of PNG files, kept up to date: it holds one export and nothing else.

    .autolabel-export.json       what the export is of, and {image: {file: SHA-256 as it was written}}
    .autolabel-export.pending/   the same of images that are about to be written: read after a kill

What a person changed in the folder is never overwritten. An image's files belong together: where a person changed
one of them, all of them stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io import atomic
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels.formats._item import About, Item
from hmsa_core.labels.store.format import plain_path, png_bytes

MARK, PENDING = ".autolabel-export.json", ".autolabel-export.pending"
_BATCH_BYTES = 16 << 20  # written after one note

Digests = dict[str, str]  # file, relative to the folder: SHA-256; "" of one that a person changed before it was known
Files = Mapping[tuple[str, str], NDArray[np.uint8]]  # (folder below OUT or "", file name): 8-bit pixels


def update_folder(out: Path, about: About, items: Iterator[Item], files: Callable[[Item], Files]) -> None:
    """Write the PNG files that `files` makes of each image into a new folder or an earlier export of the same.

    Raises:
        ConfigError: `out` holds other files than an earlier export of the same kind. InputError: images of which
            people changed files since an earlier export were kept; the others are written.
    """
    about.check_folder(out)
    folder = _ExportFolder(out, about.facts())
    for item in items:
        folder.put(item.name, {plain_path(out, *place): pixels for place, pixels in files(item).items()})
    folder.finish(whole=about.whole)


class _ExportFolder:
    """Writes images, remembers their digests, and at the end removes those that the export no longer has.

    The folder is new or empty, or has an earlier export of the same `facts`; another one is a ConfigError.
    """

    def __init__(self, out: Path, facts: Mapping[str, str]) -> None:
        self.out, self._facts = out, dict(facts)
        self._before: dict[str, Digests] = self._claim()
        self._now: dict[str, Digests] = {}
        self._changed: list[str] = []
        self._batch: dict[str, dict[str, bytes]] = {}
        self._batch_bytes = self._notes = 0

    def _claim(self) -> dict[str, Digests]:
        """Mark the folder before its first file: photographs and labels of people have names like ours."""
        mark = self.out / MARK
        if not mark.is_file():
            if self.out.is_dir() and not all(atomic.is_temp(path.name, of=MARK) for path in self.out.iterdir()):
                raise ConfigError(f"{self.out}: not empty and not an earlier export", hint="give a new folder")
            atomic.make_folder(self.out)
            atomic.sweep_temps(self.out)
            self._save({})
            return {}
        there = atomic.read_json(mark)
        other = [name for name, value in self._facts.items() if there.get(name) != value]
        if other:
            raise ConfigError(
                f"{self.out}: holds another export (of other {', '.join(other)})", hint="give a new folder"
            )
        return self._settle(dict(there["images"]))

    def _settle(self, known: dict[str, Digests]) -> dict[str, Digests]:
        """What a run that was killed had written: each file is the one from before it or its own."""
        pending = self.out / PENDING
        notes = [atomic.read_json(path) for path in sorted(pending.glob("*.json"))]
        for note in notes:
            for image, files in note.items():
                old = known.get(image, {})
                known[image] = {name: self._settled(name, old.get(name, ""), new) for name, new in files.items()}
        if notes:
            self._save(known)
        if pending.is_dir():
            atomic.remove_tree(pending)
            atomic.sweep_temps(self.out)
        return known

    def _settled(self, name: str, old: str, new: str) -> str:
        path = self.out / name
        return new if not path.exists() or atomic.sha256_file(path) == new else old

    def _save(self, images: Mapping[str, Digests]) -> None:
        atomic.write_json(self.out / MARK, {**self._facts, "images": images})

    def _changed_file(self, files: Mapping[str, str], old: Mapping[str, str]) -> str:
        """The first file that is neither what was written before nor what is to be written; "" if there is none."""
        for name in {**files, **old}:
            path = self.out / name
            if path.exists() and atomic.sha256_file(path) not in (old.get(name), files.get(name)):
                return name
        return ""

    def put(self, image: str, files: Mapping[Path, NDArray[np.uint8]]) -> None:
        """Write an image's 8-bit PNG files, each atomically, unless a person changed one of those that are there."""
        data = {path.relative_to(self.out).as_posix(): png_bytes(array) for path, array in files.items()}
        digests, old = {name: atomic.sha256_bytes(each) for name, each in data.items()}, self._before.get(image, {})
        if changed := self._changed_file(digests, old):
            self._changed.append(changed)
            self._now[image] = old
            return
        self._now[image] = digests
        self._batch[image] = data
        self._batch_bytes += sum(map(len, data.values()))
        if self._batch_bytes > _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._batch:
            return
        self._notes += 1
        atomic.write_json(
            self.out / PENDING / f"{self._notes:06d}.json", {image: self._now[image] for image in self._batch}
        )
        for image, files in self._batch.items():
            for name, data in files.items():
                atomic.write_bytes(self.out / name, data)
            for name in self._before.get(image, {}).keys() - files.keys():  # its city has another name now
                (self.out / name).unlink(missing_ok=True)
        self._batch, self._batch_bytes = {}, 0

    def finish(self, *, whole: bool) -> None:
        """Write what is left, remove what the export has no longer (`whole`: all of it was put), tell what was kept.

        Raises:
            InputError: images of which people changed files stay as they are.
        """
        self._flush()
        for image in sorted(self._before.keys() - self._now.keys()):
            old = self._before[image]
            changed = self._changed_file({}, old) if whole else ""
            if whole and not changed:
                for name in old:
                    (self.out / name).unlink(missing_ok=True)
                continue
            self._now[image] = old
            if changed:
                self._changed.append(changed)
        self._save(self._now)
        atomic.remove_tree(self.out / PENDING)
        if self._changed:
            count = len(self._changed)
            several = f"{count} images have files that were" if count > 1 else "1 image has a file that was"
            raise InputError(
                f"{self.out}: {several} changed after the export: {', '.join(self._changed)}; all files of "
                f"{'these' if count > 1 else 'it'} are kept as they are, all others are up to date",
                hint="give a new folder to have the store's labels of all images",
            )
