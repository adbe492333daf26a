"""Small Parquet tables of ours: written atomically with page checksums, read with verification on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hmsa_core.atomic import open_atomic
from hmsa_core.errors import InputError, IntegrityError

__all__ = ["read_table", "write_columns", "write_rows"]

_KEY = b"hmsa"
_TYPES = {"int": pa.int64(), "str": pa.string(), "float": pa.float64()}


def write_rows(path: Path, rows: Sequence[Any], row_type: type, meta: Mapping[str, Any]) -> str:
    """Write dataclass rows, one column a field (int, str, float); returns the file's SHA-256."""
    schema = pa.schema([(f.name, _TYPES[str(f.type)]) for f in fields(row_type)])
    return _write(path, pa.Table.from_pylist([asdict(r) for r in rows], schema=schema), meta)


def write_columns(path: Path, columns: Mapping[str, pa.Array], meta: Mapping[str, Any]) -> str:
    """Write whole columns; returns the file's SHA-256."""
    return _write(path, pa.table(dict(columns)), meta)


def _write(path: Path, table: pa.Table, meta: Mapping[str, Any]) -> str:
    table = table.replace_schema_metadata({_KEY: json.dumps(meta, sort_keys=True)})
    with open_atomic(path) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    return file.sha256


def read_table(path: Path, form: str, version: int) -> tuple[pa.Table, dict[str, Any]]:
    """Read a table whose metadata (key `hmsa`) names `form` and `version`; returns (table, metadata)."""
    if not path.is_file():
        raise InputError(f"{path}: not found", hint="run the stage `prepare` first")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        meta = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise IntegrityError(f"{path}: damaged Parquet file ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != form:
        raise IntegrityError(f"{path}: not a file of format {form}")
    if meta.get("version") != version:
        raise IntegrityError(f"{path}: format version {meta.get('version')}, this program reads {version}")
    return table, meta
