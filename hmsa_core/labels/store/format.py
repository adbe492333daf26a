"""The format of a label store: names and columns of its files, images, Parquet tables and the manifest.

docs/label-store.md explains each file.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from hmsa_core.io import sealed
from hmsa_core.io.atomic import AtomicFile, read_json
from hmsa_core.io.errors import ConfigError, InputError, IntegrityError, NoSpaceError, StoreError, translate_os_error

FORMAT, VERSION = "hmsa-label-store", 1
MANIFEST_VERSION = 2
MANIFEST, RECEIPTS, SIDECAR, LOCKS = "manifest.json", "receipts", "sidecar", ".locks"
STATISTICS = ("kept", "totals", "images")  # consolidated from the sidecars; named by the digest of their sources
# Column `source` of a thresholded store; alike: concluded from answers about alike regions.
SOURCES = {"none": 0, "teacher": 1, "human": 2, "both": 3, "alike": 4}
UNKNOWN = "unknown"
# What every store says about where its labels come from. Absent entries are recorded as unknown.
LINEAGE = ("teacher", "parameters", "scales", "flip", "precision", "code_version", "licences")

Kind = Literal["raw", "thresholded"]
Codec = Literal["png", "webp"]
UInt8 = NDArray[np.uint8]


# Columns of the tables


def _schema(metadata: dict[bytes, bytes] | None = None, **columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(n, t, nullable=False) for n, t in columns.items()], metadata=metadata)


_ABOUT = {
    **dict.fromkeys(("name", "city", "image_path", "coarse_path"), pa.string()),
    **dict.fromkeys(("height", "width"), pa.int32()),
}
_CELL = {"class": pa.uint8(), "human": pa.uint8(), "code": pa.uint8()}

# Sparse histogram of one shard's images: pixels of a class and a code under a human class (255 = none).
SIDECAR_SCHEMA = _schema(name=pa.string(), row=pa.uint32(), **_CELL, pixels=pa.uint32())
# Where each image lies and what is known of it.
IMAGES_SCHEMA = _schema(**_ABOUT, image_sha256=pa.string(), shard=pa.uint32(), row=pa.uint32())
# Histogram summed over the images of a city.
TOTALS_SCHEMA = _schema(city=pa.string(), **_CELL, pixels=pa.int64())
# `kKKK` = pixels of `class` with code >= KKK in image number `image` (order of the manifest).
KEPT_SCHEMA = _schema(
    image=pa.uint32(), **{"class": pa.uint8()}, **{f"k{code:03d}": pa.uint32() for code in range(256)}
)


def payload_columns(kind: Kind) -> tuple[str, ...]:
    """Names of the columns that hold images."""
    return ("label", "confidence") if kind == "raw" else ("label", "confidence", "source")


def shard_schema(kind: Kind, metadata: dict[bytes, bytes] | None = None) -> pa.Schema:
    """Columns of a shard: one row per image, its maps as bytes of a standard file format."""
    images = payload_columns(kind)
    digests = {f"{c}_sha256": pa.string() for c in images}
    return _schema(metadata, **_ABOUT, **dict.fromkeys(images, pa.binary()), image_sha256=pa.string(), **digests)


# Maps as images. The PNG settings were measured (research/bench/bench_store.py): run-length strategy with filter Up
# for labels and Paeth for codes is 5 to 10 times faster to write than Pillow's default at 0.85 to 1.03 of its bytes.

_WEBP_MAX_SIDE = 16383  # limit of the format
_NONE, _UP, _PAETH = 8, 32, 128  # libpng's flags of row filters
_FILTER_KEY = getattr(cv2, "IMWRITE_PNG_FILTER", None)  # older OpenCV chooses the filter itself: larger, same pixels
_RLE, _FILTERED = cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_STRATEGY_FILTERED
_SMALL = 1 << 16  # pixels


def _png(strategy: int, level: int, row_filter: int) -> list[int]:
    options = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_STRATEGY, strategy]
    return options if _FILTER_KEY is None else [*options, _FILTER_KEY, row_filter]


# The smallest result is kept. The slow setting is tried on small maps of ids only: at 360x480 it takes 13 times as long
# and saves 1 % of the label and its codes. On a trained teacher's codes it never won.
_IDS, _SMALL_IDS = [_png(_RLE, 3, _UP), _png(_RLE, 3, _NONE)], [_png(_FILTERED, 9, _NONE)]
_CODES = [_png(_RLE, 3, _PAETH)]


def encode(array: UInt8, what: str, codec: Codec) -> bytes:
    """Losslessly compress a uint8 HxW map; `what` is its column (label, confidence or source)."""
    if codec == "webp":
        return _encode_webp(array)
    ids = _IDS + (_SMALL_IDS if array.size <= _SMALL else [])
    candidates = _CODES if what == "confidence" else ids
    return min((png_bytes(array, options) for options in candidates), key=len)


def png_bytes(array: UInt8, options: list[int] | None = None) -> bytes:
    """An 8-bit PNG of uint8 HxW (grey) or HxWx3 (RGB), by default as small as is quick to make."""
    if array.ndim == 3:
        array = np.ascontiguousarray(array[:, :, ::-1])  # cv2 writes BGR
    _, data = cv2.imencode(".png", array, options or [cv2.IMWRITE_PNG_COMPRESSION, 6])
    return data.tobytes()


def _encode_webp(array: UInt8) -> bytes:
    if max(array.shape) > _WEBP_MAX_SIDE:
        raise InputError(f"a map of {array.shape} is too large for WebP", hint="use codec png")
    # Grey goes into all three channels; the subtract-green transform makes the copies free.
    file = io.BytesIO()
    Image.fromarray(array).convert("RGB").save(file, "WEBP", lossless=True, quality=40, method=2, exact=True)
    return file.getvalue()


def decode(data: bytes, codec: Codec) -> UInt8:
    """Undo `encode`; bytes that are no such image are a StoreError.

    Callers check digests first: a decoder that succeeds proves nothing about the bytes.
    """
    flag = cv2.IMREAD_UNCHANGED if codec == "png" else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise StoreError(f"a stored {codec} image could not be decoded ({error})") from error
    if image is None or image.dtype != np.uint8 or image.ndim != (2 if codec == "png" else 3):
        raise StoreError(f"a stored {codec} image could not be decoded to 8-bit grey")
    return np.ascontiguousarray(image if codec == "png" else image[:, :, 1], np.uint8)


# Parquet files: written through an atomic file with page checksums, read with them verified


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says about one Parquet file: name relative to the store, size and digests."""

    file: str
    size_bytes: int
    sha256: str
    footer_sha256: str


class ParquetSink:
    """Writes one Parquet file by row groups; the file appears at its path only on `commit`.

    As a context manager it discards the file when the block raises. The block must call `commit` itself.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        *,
        compression: str = "zstd",
        statistics: Sequence[str] = (),
        dictionary: Sequence[str] = (),
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
                use_dictionary=list(dictionary) or False,
                write_statistics=list(statistics) or False,
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
        size = self._file.tell()
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

    def __enter__(self) -> ParquetSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort()


def footer_sha256(path: Path) -> str:
    """SHA-256 of a Parquet file's footer (metadata, its length, magic): the part that page checksums miss."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 12:
            raise StoreError(f"{path}: torn ({size} bytes)")
        file.seek(size - 8)
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length + 12 > size:
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


def open_parquet(path: Path, record: FileRecord) -> pq.ParquetFile:
    """Open with page checksums on, after a check of size and footer against the record."""
    check_footer(path, record)
    with parquet_errors(path):
        return pq.ParquetFile(path, page_checksum_verification=True)


def read_table(path: Path, record: FileRecord, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a whole table; damage is a StoreError that names the file."""
    with parquet_errors(path), open_parquet(path, record) as file:
        return file.read(columns=columns, use_threads=False)


# The manifest


def full_lineage(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """The lineage with "unknown" for each absent entry of LINEAGE; further entries are kept."""
    return {**dict.fromkeys(LINEAGE, UNKNOWN), **lineage}


def binding(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """What a policy is bound to: teacher hash, scales, flip and precision, and the kind of model if average or max.

    Models of those two kinds fuse the scales of the same weights as a single-scale model, and have its hash.
    """
    full = full_lineage(lineage)
    scales, parameters = full["scales"], full["parameters"]
    kind = parameters.get("kind") if isinstance(parameters, Mapping) else None
    return {
        **{k: full[k] for k in ("teacher", "scales", "flip", "precision")},
        "scales": sorted(float(s) for s in scales) if isinstance(scales, (list, tuple)) else scales,
        **({"kind": kind} if kind in ("average", "max") else {}),
    }


def read_manifest(store: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a store's manifest; anything wrong is a StoreError (no folder: InputError) that names the file."""
    path = Path(store) / MANIFEST
    if not Path(store).is_dir():
        raise InputError(f"{store}: no such folder", hint="give the folder of a label store, such as labels/raw")
    if not path.is_file():
        raise StoreError(
            f"{store}: no label store here ({MANIFEST} is missing)",
            hint="a store without a manifest was never finished: run the command that makes it again",
        )
    value = sealed.read(path)
    if value.get("format") != FORMAT:
        raise StoreError(f"{path}: format is {value.get('format')!r}, expected {FORMAT!r}")
    if value.get("version") != MANIFEST_VERSION:
        raise StoreError(
            f"{path}: version {value.get('version')} of the format, this program reads {MANIFEST_VERSION}",
            hint="use the release that wrote it, or make the store again",
        )
    return value


def listed_files(manifest: Mapping[str, Any]) -> list[str]:
    """All files of a store, the manifest last, relative to its folder."""
    records = [record for shard in manifest["shards"] for record in (shard, shard["sidecar"], shard["receipt"])]
    records += [*manifest["statistics"].values(), *manifest["extras"]]
    return [*(record["file"] for record in records), MANIFEST]


def refuse_in_store(out: Path) -> None:
    """Refuse a folder in (or at) a label store: a file that the manifest does not list would make the store damaged."""
    place = out.resolve()
    for folder in (place, *place.parents):
        with suppress(OSError, IntegrityError):  # there is no manifest, or it cannot be read
            if read_json(folder / MANIFEST).get("format") == FORMAT:
                raise ConfigError(
                    f"{out}: lies in a label store, which holds nothing but its own files",
                    hint="give a folder elsewhere",
                )


def plain_path(out: Path, folder: str, file: str) -> Path:
    """`out/folder/file`, refused when a name from a store would leave `out`."""
    path = out / folder / file
    if not path.resolve().is_relative_to(out.resolve()) or Path(file).name != file:
        raise InputError(f"image name {file!r} is not a plain file name", hint="rename the image in the store")
    return path
