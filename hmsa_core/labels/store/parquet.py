"""Parquet as the store uses it: written through an atomic file with page checksums, read with them verified."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hmsa_core.io.atomic import AtomicFile
from hmsa_core.io.errors import NoSpaceError, StoreError, translate_os_error

__all__ = ["FileRecord", "ParquetSink", "check_footer", "footer_sha256", "open_parquet", "read_table"]

_MAGIC = b"PAR1"


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says about one Parquet file: name relative to the store, size and digests."""

    file: str
    size_bytes: int
    sha256: str
    footer_sha256: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


class ParquetSink:
    """One Parquet file in the making: row groups are appended, nothing is visible before `commit`."""

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        *,
        compression: str,
        statistics: list[str],
        dictionary: list[str] | None = None,
    ) -> None:
        self.path, self.schema = path, schema
        self._file = AtomicFile(path)
        try:
            # Buffered: the tables of statistics are thousands of small column chunks.
            self._stream = pa.BufferedOutputStream(pa.PythonFile(self._file, mode="w"), 1 << 20)
            self._writer = pq.ParquetWriter(
                self._stream,
                schema,
                compression=compression,
                use_dictionary=dictionary or False,
                write_statistics=statistics or False,
                write_page_checksum=True,
            )
        except BaseException:
            self._file.abort()
            raise

    def append(self, table: pa.Table) -> None:
        """Write a table as one row group."""
        try:
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        except OSError as error:
            raise translate_os_error(error, f"writing {self.path}") from error

    def commit(self, root: Path) -> FileRecord:
        """Finish, sync and publish the file; return its record with a path relative to `root`."""
        try:
            self._writer.close()
            self._stream.flush()
            sha256 = self._file.commit()
        except OSError as error:
            self.abort()
            raise translate_os_error(error, f"writing {self.path}") from error
        size = self._file.size_bytes
        return FileRecord(self.path.relative_to(root).as_posix(), size, sha256, footer_sha256(self.path))

    def abort(self) -> None:
        """Throw away what was written."""
        if not self._file.closed:
            # Closed while the file is open: destructors would try again, too late. What a full disk
            # refuses here is thrown away anyway.
            for closing in (self._writer, self._stream):
                with suppress(OSError, ValueError, pa.ArrowException):
                    closing.close()
            self._writer.is_open = False
        self._file.abort()


@contextmanager
def sink(
    path: Path,
    schema: pa.Schema,
    *,
    compression: str = "zstd",
    statistics: list[str] | None = None,
    dictionary: list[str] | None = None,
) -> Iterator[ParquetSink]:
    """A ParquetSink that is thrown away when the block raises; the block itself commits."""
    out = ParquetSink(path, schema, compression=compression, statistics=statistics or [], dictionary=dictionary)
    try:
        yield out
    except BaseException:
        out.abort()
        raise


def footer_sha256(path: Path) -> str:
    """SHA-256 of a Parquet file's footer (metadata, its length, magic): the part that page checksums miss."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 12:
            raise StoreError(f"{path}: torn ({size} bytes)")
        file.seek(size - 8)
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length + 12 > size:
            raise StoreError(f"{path}: torn or damaged footer")
        file.seek(size - 8 - length)
        return hashlib.sha256(file.read(length + 8)).hexdigest()


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes pyarrow raise becomes a StoreError that names it."""
    try:
        yield
    except (StoreError, NoSpaceError):
        raise
    except FileNotFoundError:
        raise StoreError(f"{path}: missing", hint="restore it, or make the store again") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise StoreError(f"{path}: damaged ({error})", hint="run `autolabel verify` on the store") from error


def check_footer(path: Path, record: FileRecord) -> None:
    """Size and footer of a file against its record: cheap, and finds torn, swapped and foreign files."""
    with parquet_errors(path):
        size = path.stat().st_size
        if size != record.size_bytes:
            raise StoreError(f"{path}: torn or changed ({size} bytes, recorded {record.size_bytes})")
        actual = footer_sha256(path)
        if actual != record.footer_sha256:
            raise StoreError(f"{path}: changed (footer digest {actual}, recorded {record.footer_sha256})")


def open_parquet(path: Path, record: FileRecord | None = None) -> pq.ParquetFile:
    """Open with page checksums on; with a record, size and footer digest are checked first."""
    if record is not None:
        check_footer(path, record)
    with parquet_errors(path):
        return pq.ParquetFile(path, page_checksum_verification=True)


def read_table(path: Path, record: FileRecord | None = None, columns: Iterable[str] | None = None) -> pa.Table:
    """Read a whole table; damage is a StoreError that names the file."""
    with parquet_errors(path), open_parquet(path, record) as file:
        return file.read(columns=None if columns is None else list(columns), use_threads=False)
