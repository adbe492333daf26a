"""The index of a data set: one row an image, in Parquet; the table of refused files; and how such tables are stored.

No clock and no absolute path is stored: the same files give the same bytes on any machine. Tables are written
atomically. A table is read only if its content has the SHA-256 that its metadata hold. Parquet's own checksums cover
neither page headers nor the footer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hmsa_core.data.layouts import Refused
from hmsa_core.io.atomic import open_atomic
from hmsa_core.io.errors import InputError, IntegrityError
from hmsa_core.taxonomy import ClassTable

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


@dataclass(frozen=True, eq=False)
class Index:
    """A read index."""

    samples: Sequence[Sample]  # in file order
    classes: ClassTable
    root: str  # its name
    extra: Mapping[str, Any] = field(default_factory=dict)  # further metadata of the file

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
    in_order = sorted(rows, key=attrgetter("root", "split", "name", "part", "path"))
    return write_rows(Path(path), in_order, QuarantineRow, {"format": _QUARANTINE, "version": 1})


def read_quarantine(path: str | Path) -> list[QuarantineRow]:
    """Read a table of refused files."""
    table, _ = read_table(Path(path), _QUARANTINE, 1)
    return [QuarantineRow(**row) for row in table.to_pylist()]


# ---- Tables

_KEY, _DIGEST = b"hmsa", b"hmsa-sha256"
_TYPES = {"int": pa.int64(), "str": pa.string(), "float": pa.float64()}


def write_rows(path: Path, rows: Sequence[Any], row_type: type, meta: Mapping[str, Any]) -> str:
    """Write dataclass rows, one column a field (int, str, float); returns the file's SHA-256."""
    schema = pa.schema([(f.name, _TYPES[str(f.type)]) for f in fields(row_type)])
    return _write(path, pa.Table.from_pylist([asdict(r) for r in rows], schema=schema), meta)


def write_columns(path: Path, columns: Mapping[str, pa.Array], meta: Mapping[str, Any]) -> str:
    """Write whole columns; returns the file's SHA-256."""
    return _write(path, pa.table(dict(columns)), meta)


def _write(path: Path, table: pa.Table, meta: Mapping[str, Any]) -> str:
    text = json.dumps(meta, sort_keys=True)
    table = table.replace_schema_metadata({_KEY: text, _DIGEST: _digest(table, text)})
    with open_atomic(path) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    return file.sha256


def read_table(path: Path, form: str, version: int) -> tuple[pa.Table, dict[str, Any]]:
    """Read a table whose metadata (key `hmsa`) names `form` and `version`; returns (table, metadata)."""
    if not path.is_file():
        raise InputError(f"{path}: not found", hint="run the stage `prepare` first")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        text = (table.schema.metadata or {}).get(_KEY, b"null").decode()
        meta = json.loads(text)
    except (OSError, ValueError, NotImplementedError, KeyError) as error:  # pyarrow's own derive from these
        raise IntegrityError(f"{path}: damaged Parquet file ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != form:
        raise IntegrityError(f"{path}: not a file of format {form}")
    if meta.get("version") != version:
        raise IntegrityError(f"{path}: format version {meta.get('version')}, this program reads {version}")
    if (table.schema.metadata or {}).get(_DIGEST, b"").decode("ascii", "replace") != _digest(table, text):
        raise IntegrityError(f"{path}: the content does not have the digest it carries", hint="make it again")
    return table, meta


def _digest(table: pa.Table, text: str) -> str:
    """SHA-256 of the metadata and of the values column by column (strings: distinct values, then positions)."""
    sha = hashlib.sha256(text.encode())
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        sha.update(f"{name}:{column.type}:{len(column)}:{column.null_count}".encode())
        if pa.types.is_string(column.type):
            encoded = column.dictionary_encode()
            sha.update(json.dumps(encoded.dictionary.to_pylist()).encode())
            column = encoded.indices.cast(pa.int64())
        sha.update(np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).data)
    return sha.hexdigest()
