"""Tables of a data set in Parquet: written and read in groups of rows, so that millions of rows need little memory.

No clock and no absolute path is stored: the same rows give the same bytes on any machine. Tables are written
atomically. Each column of a group is compared with the SHA-256 in the metadata when it is read: Parquet's
checksums cover neither page headers nor the footer.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hmsa_core.io.atomic import AtomicFile, open_atomic
from hmsa_core.io.errors import InputError, IntegrityError

Row = TypeVar("Row")
GROUP = 1 << 14  # rows
_KEY, _DIGEST = b"hmsa", b"hmsa-sha256"
_TYPES = {"int": pa.int64(), "str": pa.string(), "float": pa.float64()}


class Table:
    """A table that is open for reading; its metadata are checked at once, its columns when they are read."""

    def __init__(self, source: Path | pa.Buffer, form: str, version: int) -> None:
        self.where = str(source) if isinstance(source, Path) else "a table in memory"
        if isinstance(source, Path) and not source.is_file():
            raise InputError(f"{source}: not found", hint="run the stage `prepare` first")
        with _errors(self.where):
            self._file = pq.ParquetFile(source, page_checksum_verification=True)
            held = self._file.metadata.metadata or {}
            text = held.get(_KEY, b"null").decode()
            meta = json.loads(text)
            sealed = held.get(_DIGEST, b"").decode("ascii", "replace")
            self.schema: pa.Schema = self._file.schema_arrow.remove_metadata()
            self.columns: list[str] = self.schema.names
            groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.metadata.num_row_groups)]
        if not isinstance(meta, dict) or meta.get("format") != form:
            raise IntegrityError(f"{self.where}: not a file of format {form}")
        if meta.get("version") != version:
            raise IntegrityError(f"{self.where}: format version {meta.get('version')}, this program reads {version}")
        self._digests: dict[str, list[str]] = meta.pop("columns", {})
        self.meta: dict[str, Any] = meta
        self.starts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        if sealed != hashlib.sha256(text.encode()).hexdigest() or sorted(self._digests) != sorted(self.columns):
            raise self._changed()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one group of rows; IntegrityError if it differs from the written group."""
        names = self.columns if columns is None else list(columns)
        with _errors(self.where):
            found = self._file.read_row_group(group, columns=names, use_threads=False).select(names)
        if any(_digest(found[name]) != self._digests[name][group] for name in names):
            raise self._changed()
        return found

    def whole(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All groups."""
        groups = [self.read(i, columns) for i in range(len(self.starts) - 1)]
        names = self.columns if columns is None else list(columns)
        return pa.concat_tables(groups) if groups else self.schema.empty_table().select(names)

    def _changed(self) -> IntegrityError:
        return IntegrityError(f"{self.where}: the content does not have the digest it carries", hint="make it again")


@contextmanager
def _errors(where: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, NotImplementedError, KeyError) as error:  # pyarrow's errors derive from these
        raise IntegrityError(f"{where}: damaged Parquet file ({error})") from error


def write_table(path: Path, parts: Iterable[pa.Table], schema: pa.Schema, meta: Mapping[str, Any]) -> str:
    """Write groups of rows; returns the file's SHA-256."""
    with open_atomic(path) as file:
        _write(file, parts, schema, meta)
    return file.sha256


def _write(
    file: AtomicFile | io.BytesIO, parts: Iterable[pa.Table], schema: pa.Schema, meta: Mapping[str, Any]
) -> None:
    digests: dict[str, list[str]] = {name: [] for name in schema.names}
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        for part in parts:
            for name in schema.names:
                digests[name].append(_digest(part[name]))
            writer.write(part, row_group_size=max(1, part.num_rows))
        text = json.dumps({**meta, "columns": digests}, sort_keys=True)
        sealed = hashlib.sha256(text.encode()).hexdigest()
        writer.add_key_value_metadata({_KEY.decode(): text, _DIGEST.decode(): sealed})


def _digest(column: pa.ChunkedArray) -> str:
    """SHA-256 of type and values (strings: lengths, then bytes)."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    sha = hashlib.sha256(f"{array.type}:{len(array)}:{array.null_count}".encode())
    if pa.types.is_string(array.type):
        sha.update(np.ascontiguousarray(pc.binary_length(array).to_numpy(zero_copy_only=False)).data)
        if len(array) and (data := array.buffers()[2]) is not None:
            ends = np.frombuffer(array.buffers()[1], np.int32)
            sha.update(data[int(ends[array.offset]) : int(ends[array.offset + len(array)])])
    else:
        sha.update(np.ascontiguousarray(array.to_numpy(zero_copy_only=False)).data)
    return sha.hexdigest()


# ---- Rows as objects


def schema_of(row_type: type) -> pa.Schema:
    """One column a field of a dataclass (int, str, float)."""
    return pa.schema([(f.name, _TYPES[str(f.type)]) for f in fields(row_type)])


def groups_of(rows: Iterable[Any], row_type: type) -> Iterator[pa.Table]:
    """Dataclass rows as tables of GROUP rows."""
    schema, left = schema_of(row_type), iter(rows)
    values = attrgetter(*schema.names)
    while part := [values(row) for row in islice(left, GROUP)]:
        columns = zip(*part, strict=True)
        yield pa.table([pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)], schema=schema)


class Rows(Sequence[Row]):
    """Rows of a table as objects of a dataclass, made on access; all rows, or the rows at `places`."""

    def __init__(self, row_type: Callable[..., Row], table: Table, places: NDArray[np.int64] | None = None) -> None:
        self._type, self._table, self._places = row_type, table, places
        self._last: tuple[int, list[Row]] = (-1, [])

    @classmethod
    def of(cls, row_type: type[Row], rows: Iterable[Row]) -> Rows[Row]:
        """Rows kept in memory, packed: a few tens of bytes each."""
        if isinstance(rows, Rows):
            return rows
        out = io.BytesIO()
        _write(out, groups_of(rows, row_type), schema_of(row_type), {"format": "rows", "version": 1})
        return cls(row_type, Table(pa.py_buffer(out.getbuffer()), "rows", 1))

    def __len__(self) -> int:
        return len(self._table) if self._places is None else len(self._places)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | Sequence[Row]:
        if isinstance(at, slice):
            return self.at(np.arange(len(self))[at])
        place = range(len(self))[at] if self._places is None else int(self._places[at])
        group = int(np.searchsorted(self._table.starts, place, "right")) - 1
        return self._group(group)[place - int(self._table.starts[group])]

    def __iter__(self) -> Iterator[Row]:
        for group, inside in self._parts():
            rows = self._group(group)
            yield from rows if inside is None else map(rows.__getitem__, inside.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def at(self, places: NDArray[np.int64]) -> Rows[Row]:
        """Rows at some of the places, in the order given."""
        return Rows(self._type, self._table, places if self._places is None else self._places[places])

    def column(self, name: str) -> pa.ChunkedArray:
        """Values of one field."""
        parts = [part[name] for part in self.tables([name])]
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], self._table.schema.field(name).type)

    def values(self, *names: str) -> Iterator[Any]:
        """Values of one field, or tuples of several, without objects for the rows."""
        for part in self.tables(names):
            columns = [column.to_pylist() for column in part.columns]
            yield from columns[0] if len(names) == 1 else zip(*columns, strict=True)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows as tables, a group at a time."""
        for group, inside in self._parts():
            part = self._table.read(group, columns)
            yield part if inside is None else part.take(pa.array(inside))

    def _parts(self) -> Iterator[tuple[int, NDArray[np.int64] | None]]:
        """(group, places in it) in the order of the rows; a group may come twice."""
        if self._places is None:
            yield from ((group, None) for group in range(len(self._table.starts) - 1))
            return
        groups = np.searchsorted(self._table.starts, self._places, "right") - 1
        ends = np.append(np.flatnonzero(np.diff(groups)) + 1, len(groups))
        for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
            if start < end:
                group = int(groups[start])
                yield group, self._places[start:end] - self._table.starts[group]

    def _group(self, group: int) -> list[Row]:
        if self._last[0] != group:
            columns = [c.to_pylist() for c in self._table.read(group).columns]
            self._last = group, [self._type(*values) for values in zip(*columns, strict=True)]
        return self._last[1]
