"""Small Parquet tables of ours: written atomically, read only if their content has the digest they carry.

Page checksums leave page headers and the footer out; so the metadata also hold a SHA-256 of the content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hmsa_core.io.atomic import open_atomic
from hmsa_core.io.errors import InputError, IntegrityError

__all__ = ["read_table", "write_columns", "write_rows"]

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
