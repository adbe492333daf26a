"""The index of a data set: one row per image, in Parquet; and the table of refused files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hmsa_core.data.found import Refused
from hmsa_core.data.tables import Rows, Table, groups_of, schema_of, write_table
from hmsa_core.io.errors import InputError, IntegrityError
from hmsa_core.taxonomy import ClassTable

FORMAT, VERSION = "hmsa-index", 2
ROLES = ("learn", "calibrate", "report", "unlabelled", "guard")
KINDS = ("fine", "coarse", "unlabelled")


@dataclass(frozen=True)
class Sample:
    """One image of an index; paths are relative to the index's root, "" = none."""

    name: str  # unique stem, e.g. aachen_000000_000019
    image: str
    label: str
    coarse: str
    kind: str  # fine | coarse | unlabelled: the best available label
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


@dataclass(frozen=True, eq=False)
class Index:
    """A read index. Rows stay in the file until they are read, and are then checked."""

    samples: Rows[Sample]  # in file order
    classes: ClassTable
    root: str  # the root's name
    extra: Mapping[str, Any] = field(default_factory=dict)  # further metadata of the file

    def __len__(self) -> int:
        return len(self.samples)

    def by_name(self) -> dict[str, Sample]:
        """Samples by name."""
        return {s.name: s for s in self.samples}

    def pixels(self) -> int:
        """Pixels of all images together."""
        return sum(int(np.dot(*(part[n].to_numpy() for n in ("height", "width")))) for part in self.samples.tables())

    def select(
        self,
        *,
        roles: Collection[str] | None = None,
        kinds: Collection[str] | None = None,
        splits: Collection[str] | None = None,
        names: Collection[str] | None = None,
    ) -> Rows[Sample]:
        """Samples that pass every filter given, in index order; an unknown role, kind or name is an InputError."""
        _known("role", roles, ROLES)
        _known("kind", kinds, KINDS)
        wanted = {"role": roles, "kind": kinds, "split": splits, "name": names}
        filters = {column: pa.array(sorted(set(v)), pa.string()) for column, v in wanted.items() if v is not None}
        if not filters:
            return self.samples
        met, passed, at = set(), [], 0
        for part in self.samples.tables(list(filters)):
            inside = {column: pc.is_in(part[column], values).to_numpy() for column, values in filters.items()}
            passed.append(at + np.flatnonzero(np.all(list(inside.values()), axis=0)))
            at += part.num_rows
            if names is not None:
                met.update(part["name"].filter(inside["name"]).to_pylist())
        _known("name", names, met)
        return self.samples.at(np.concatenate([np.zeros(0, np.int64), *passed]))

    @classmethod
    def load(cls, path: str | Path) -> Index:
        """Open an index; InputError when it is missing, IntegrityError when it is not an index of this package."""
        table = Table(Path(path), FORMAT, VERSION)
        if table.columns != [f.name for f in fields(Sample)]:
            raise IntegrityError(f"{path}: unexpected columns {', '.join(table.columns)}")
        extra = {k: v for k, v in table.meta.items() if k not in ("format", "version", "root", "classes")}
        return cls(Rows(Sample, table), ClassTable.from_json(table.meta["classes"]), table.meta["root"], extra)

    @staticmethod
    def write(path: str | Path, samples: Iterable[Sample], classes: ClassTable, root: str, **extra: Any) -> str:
        """Write an index atomically; names must be unique. `extra` goes into the metadata. Returns the SHA-256."""
        meta = {"format": FORMAT, "version": VERSION, "root": root, "classes": classes.to_json(), **extra}
        parts = samples.tables() if isinstance(samples, Rows) else groups_of(samples, Sample)
        return write_table(Path(path), _unique(parts, path), schema_of(Sample), meta)


def _unique(parts: Iterable[pa.Table], where: str | Path) -> Iterator[pa.Table]:
    """The same tables; InputError after the last where two images have one name."""
    held: list[pa.Array] = []
    in_order, last = True, ""
    for part in parts:
        held += (names := part["name"]).chunks
        if in_order and len(names):  # then each name is new: no search needed
            later = pc.all(pc.less(names.slice(0, len(names) - 1), names.slice(1)), min_count=0).as_py()
            in_order, last = bool(later and last < names[0].as_py()), names[-1].as_py()
        yield part
    names = pa.chunked_array(held, pa.string())
    if not in_order and pc.count_distinct(names).as_py() < len(names):
        counts = names.value_counts()
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise InputError(f"{where}: two images are named {twice!r}")


def _known(what: str, given: Collection[str] | None, known: Collection[str]) -> None:
    unknown = sorted(set(given or ()) - set(known))
    if unknown:
        few = f": expected {', '.join(known)}" if len(known) < 10 else ""
        raise InputError(f"the index has no {what} {unknown[0]!r}{few}")


_QUARANTINE = "hmsa-quarantine"


def write_quarantine(path: str | Path, rows: Iterable[QuarantineRow]) -> str:
    """Write refused files sorted by (root, split, name, part); returns the SHA-256."""
    in_order = sorted(rows, key=attrgetter("root", "split", "name", "part", "path"))
    parts = groups_of(in_order, QuarantineRow)
    return write_table(Path(path), parts, schema_of(QuarantineRow), {"format": _QUARANTINE, "version": VERSION})


def read_quarantine(path: str | Path) -> list[QuarantineRow]:
    """Read a table of refused files."""
    return list(Rows(QuarantineRow, Table(Path(path), _QUARANTINE, VERSION)))
