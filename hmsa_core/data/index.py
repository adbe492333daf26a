"""The index of a data set: one row an image, in Parquet; and the table of refused files.

No clock and no absolute path is stored: the same files give the same bytes on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hmsa_core.data.layout import Refused
from hmsa_core.data.tables import read_table, write_rows
from hmsa_core.io.errors import InputError, IntegrityError
from hmsa_core.taxonomy import ClassTable

__all__ = ["KINDS", "ROLES", "Index", "QuarantineRow", "Sample", "read_quarantine", "write_quarantine"]

FORMAT, VERSION = "hmsa-index", 1
ROLES = ("learn", "calibrate", "report", "unlabelled", "guard")
KINDS = ("fine", "coarse", "unlabelled")


@dataclass(frozen=True)
class Sample:
    """One image of an index; paths are relative to the index's root, "" = none."""

    name: str  # unique stem, e.g. aachen_000000_000019
    image: str
    label: str
    coarse: str
    kind: str  # fine | coarse | unlabelled: the best label there is
    split: str
    role: str  # learn | calibrate | report | unlabelled | guard
    city: str
    sequence: str
    frame: int  # -1 = none
    block: str  # unit of resampling
    height: int  # pixels, upright
    width: int
    image_sha256: str
    label_sha256: str
    coarse_sha256: str
    phash: str  # perceptual hash, 16 hex digits


@dataclass(frozen=True)
class QuarantineRow(Refused):
    """One refused file: `Refused` plus the root it was found under."""

    root: str = "target"


class Index:
    """A read index: samples in file order, their classes, the name of their root."""

    def __init__(
        self, samples: Sequence[Sample], classes: ClassTable, root: str, extra: dict[str, Any] | None = None
    ) -> None:
        self.samples = tuple(samples)
        self.classes = classes
        self.root = root
        self.extra = extra or {}  # further metadata of the file

    def __len__(self) -> int:
        return len(self.samples)

    def by_name(self) -> dict[str, Sample]:
        """Samples by name."""
        return {s.name: s for s in self.samples}

    def select(
        self,
        *,
        roles: Collection[str] | None = None,
        kinds: Collection[str] | None = None,
        splits: Collection[str] | None = None,
        names: Collection[str] | None = None,
    ) -> list[Sample]:
        """Samples that pass every filter given, in index order; an unknown role, kind or name is an InputError."""
        _known("role", roles, ROLES)
        _known("kind", kinds, KINDS)
        wanted = None if names is None else set(names)
        if wanted is not None:
            _known("name", wanted, {s.name for s in self.samples})
        return [
            s
            for s in self.samples
            if (roles is None or s.role in roles)
            and (kinds is None or s.kind in kinds)
            and (splits is None or s.split in splits)
            and (wanted is None or s.name in wanted)
        ]

    @classmethod
    def load(cls, path: str | Path) -> Index:
        """Read an index; InputError when it is missing, IntegrityError when it is no index of ours."""
        table, meta = read_table(Path(path), FORMAT, VERSION)
        if table.column_names != [f.name for f in fields(Sample)]:
            raise IntegrityError(f"{path}: unexpected columns {', '.join(table.column_names)}")
        extra = {k: v for k, v in meta.items() if k not in ("format", "version", "root", "classes")}
        samples = [Sample(**row) for row in table.to_pylist()]
        return cls(samples, ClassTable.from_json(meta["classes"]), meta["root"], extra)

    @staticmethod
    def write(path: str | Path, samples: Iterable[Sample], classes: ClassTable, root: str, **extra: Any) -> str:
        """Write an index atomically; names must be unique. `extra` goes into the metadata. Returns the SHA-256."""
        rows = list(samples)
        names = [s.name for s in rows]
        if len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise InputError(f"{path}: two images are named {twice!r}")
        meta = {"format": FORMAT, "version": VERSION, "root": root, "classes": classes.to_json(), **extra}
        return write_rows(Path(path), rows, Sample, meta)


def _known(what: str, given: Collection[str] | None, known: Collection[str]) -> None:
    unknown = sorted(set(given or ()) - set(known))
    if unknown:
        few = f": expected {', '.join(known)}" if len(known) < 10 else ""
        raise InputError(f"the index has no {what} {unknown[0]!r}{few}")


_QUARANTINE = "hmsa-quarantine"


def write_quarantine(path: str | Path, rows: Iterable[QuarantineRow]) -> str:
    """Write refused files sorted by (root, split, name, part); returns the SHA-256."""
    key: Callable[[QuarantineRow], tuple[str, ...]] = lambda r: (r.root, r.split, r.name, r.part, r.path)  # noqa: E731
    return write_rows(Path(path), sorted(rows, key=key), QuarantineRow, {"format": _QUARANTINE, "version": 1})


def read_quarantine(path: str | Path) -> list[QuarantineRow]:
    """Read a table of refused files."""
    table, _ = read_table(Path(path), _QUARANTINE, 1)
    return [QuarantineRow(**row) for row in table.to_pylist()]
