"""A folder that holds one export and nothing else; what people changed in it is never overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from hmsa_core.atomic import make_folder, read_json, sha256_bytes, sha256_file, write_bytes, write_json
from hmsa_core.errors import ConfigError, InputError
from hmsa_core.labels.codec import png_bytes

__all__ = ["MARK", "ExportFolder"]

MARK = ".autolabel-export.json"  # in an export's folder: what it holds, and each file's digest as it was written


class ExportFolder:
    """Writes files, remembers their digests, and at the end removes those that the export no longer has.

    Args:
        out: a new or empty folder, or one with an earlier export of the same facts.
        facts: what the export is of; other facts are another export.

    Raises:
        ConfigError: the folder holds other things.
    """

    def __init__(self, out: Path, facts: Mapping[str, str]) -> None:
        self.out, self._facts = out, dict(facts)
        self._before: dict[str, str] = self._claim()
        self._written: dict[str, str] = {}
        self._changed: list[str] = []

    def _claim(self) -> dict[str, str]:
        """Mark the folder before its first file: photographs and labels of people have names like ours."""
        mark = self.out / MARK
        if mark.is_file():
            there = read_json(mark)
            other = [name for name, value in self._facts.items() if there.get(name) != value]
            if other:
                raise ConfigError(
                    f"{self.out}: holds another export (of other {', '.join(other)})", hint="give a new folder"
                )
            return dict(there.get("files", {}))
        if self.out.is_dir() and any(self.out.iterdir()):
            raise ConfigError(f"{self.out}: not empty and not an earlier export", hint="give a new folder")
        make_folder(self.out)
        write_json(mark, self._facts)
        return {}

    def write(self, path: Path, array: NDArray[np.uint8]) -> None:
        """Write an 8-bit PNG atomically, unless a person changed the one that is there."""
        data, name = png_bytes(array), path.relative_to(self.out).as_posix()
        digest = sha256_bytes(data)
        # A run that was killed wrote files that the mark does not know yet: they are what is to be written.
        if path.exists() and sha256_file(path) not in (self._before.get(name), digest):
            self._changed.append(name)
            self._written[name] = self._before.get(name, "")
            return
        write_bytes(path, data)
        self._written[name] = digest

    def finish(self, *, whole: bool) -> None:
        """Remove what the export has no longer (`whole`: all of it was written) and tell what was kept.

        Raises:
            InputError: files that people changed stay as they are.
        """
        for name in sorted(self._before.keys() - self._written.keys()) if whole else ():
            path = self.out / name
            if path.exists() and sha256_file(path) != self._before[name]:
                self._changed.append(name)
            else:
                path.unlink(missing_ok=True)
                del self._before[name]
        if self._changed:
            several = f"{len(self._changed)} files were" if len(self._changed) > 1 else "1 file was"
            raise InputError(
                f"{self.out}: {several} changed since they were exported, the first: {self._changed[0]}; kept as they "
                "are, all others are up to date",
                hint="give a new folder to have the store's labels of all images",
            )

    def __enter__(self) -> ExportFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        write_json(self.out / MARK, {**self._facts, "files": {**self._before, **self._written}})
