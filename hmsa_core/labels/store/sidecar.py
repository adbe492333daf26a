"""The sidecar tables: histograms of each image, their consolidated forms, and statistics at any threshold from them.

`sidecar/shard-NNNNN.parquet` is the source: one sparse table per shard, sorted by class. `consolidate` makes the
tables kept, totals and images (format.py) of all of them. Their file names hold the digest of their sources, so that
an old manifest never reads new statistics. `kept` has a column for each code: a threshold reads a few of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hmsa_core.io.atomic import digest, sha256_file
from hmsa_core.io.errors import InputError, StoreError
from hmsa_core.labels.store import format as files
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.store.format import SIDECAR, FileRecord, ParquetSink, read_manifest, read_table
from hmsa_core.taxonomy import IGNORE, ClassTable

_SMALL = 512  # images
_BLOCK = 4096  # images that are looked at together: bounds memory to a few tens of MB
_GROUP_ROWS = 2048  # rows of (image, class) that close a row group of `kept`
_HASHED_BYTES = 16 << 20
_IMAGE_ROWS = 1 << 16  # rows of a row group of `images`
_HINT = "run `autolabel verify` on the store; make it again"


Kept = tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint32]]  # numbers of images, class, pixels by code


class Histogram(NamedTuple):
    """Sparse counts sorted by class, human class and code; only pixels > 0 are listed."""

    class_id: NDArray[np.uint8]
    human: NDArray[np.uint8]
    code: NDArray[np.uint8]
    pixels: NDArray[np.uint32]


def present_values(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The values that occur, in order (ten times faster than np.bincount or np.unique on uint8)."""
    bins = cv2.calcHist([np.ascontiguousarray(ids)], [0], None, [256], [0, 256])
    return np.flatnonzero(bins.reshape(-1)).astype(np.uint8)


def _dense(ids: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Present values, and a 256-entry table value -> its position among them."""
    present = present_values(ids)
    table = np.zeros(256, np.int32)
    table[present] = np.arange(len(present))
    return present, table


def count(label: NDArray[np.uint8], code: NDArray[np.uint8], human: NDArray[np.uint8] | None = None) -> Histogram:
    """Count the pixels of one image; without a human label all pixels count as human 255."""
    classes, class_at = _dense(label)
    key = np.asarray(cv2.LUT(np.ascontiguousarray(label), class_at), np.int32)
    humans = np.full(1, 255, np.uint8)
    if human is not None:
        humans, human_at = _dense(human)
        key *= len(humans)
        key += np.asarray(cv2.LUT(np.ascontiguousarray(human), human_at), np.int32)
    key <<= 8
    key |= code
    bins = np.bincount(key.reshape(-1))
    hit = np.flatnonzero(bins)
    pair = hit >> 8
    return Histogram(
        classes[pair // len(humans)],
        humans[pair % len(humans)],
        (hit & 255).astype(np.uint8),
        bins[hit].astype(np.uint32),
    )


def cumulative(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Pixels with at least each code: reversed cumulative sum over the last axis."""
    return np.cumsum(counts[..., ::-1], axis=-1, dtype=np.int64)[..., ::-1]


def write_sidecar(path: Path, root: Path, images: Sequence[tuple[str, Histogram]]) -> FileRecord:
    """Write the histograms of a shard's images (name, counts) as one table: by class, image, human class, code."""
    parts = [part for _, part in images]
    rows = np.repeat(np.arange(len(parts), dtype=np.uint32), [len(p.code) for p in parts])
    columns = [np.concatenate([np.empty(0, np.uint32), *(p[i] for p in parts)]) for i in range(4)]
    order = np.argsort(columns[0], kind="stable")
    row = pa.array(rows[order])
    arrays = [pa.array([name for name, _ in images], pa.string()).take(row), row]
    types = (np.uint8, np.uint8, np.uint8, np.uint32)
    arrays += [pa.array(c[order].astype(t)) for c, t in zip(columns, types, strict=True)]
    with ParquetSink(path, files.SIDECAR_SCHEMA, statistics=["class"], dictionary=["name", "class", "human"]) as out:
        out.append(pa.Table.from_arrays(arrays, schema=files.SIDECAR_SCHEMA))
        return out.commit(root)


def consolidate(root: Path, receipts: Sequence[dict[str, Any]], num_classes: int) -> dict[str, FileRecord]:
    """Write the three tables of a whole store; return their records by name."""
    sources = digest([r["sidecar"]["sha256"] for r in receipts])[:16]
    where = {name: root / SIDECAR / f"{name}-{sources}.parquet" for name in files.STATISTICS}
    totals = files.TOTALS_SCHEMA.empty_table()
    # A compressor is set up for each of 258 column chunks a row group: that only pays where chunks are large.
    compression = "zstd" if sum(len(r["rows"]) for r in receipts) > _SMALL else "none"
    with ParquetSink(
        where["kept"], files.KEPT_SCHEMA, compression=compression, statistics=["class"], dictionary=["class"]
    ) as kept:
        for first, members in _blocks(receipts):
            records = [FileRecord(**receipt["sidecar"]) for receipt in members]
            tables = [read_table(root / r.file, r, ["row", "class", "human", "code", "pixels"]) for r in records]
            named = [_with_cities(table, receipt["rows"]) for table, receipt in zip(tables, members, strict=True)]
            totals = _sum_by_city([totals, *named])
            _write_kept(kept, tables, [len(receipt["rows"]) for receipt in members], first, num_classes)
        written = {"kept": kept.commit(root)}
    order = [(name, "ascending") for name in files.TOTALS_SCHEMA.names[:-1]]
    with ParquetSink(where["totals"], files.TOTALS_SCHEMA, dictionary=["city"]) as out:
        out.append(totals.sort_by(order).combine_chunks())
        written["totals"] = out.commit(root)
    return written | {"images": _write_images(where["images"], root, receipts)}


def _blocks(receipts: Sequence[dict[str, Any]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(number of the first image, receipts) of runs of shards with about _BLOCK images."""
    first = images = 0
    members: list[dict[str, Any]] = []
    for i, receipt in enumerate(receipts):
        members.append(receipt)
        images += len(receipt["rows"])
        if images - first >= _BLOCK or i == len(receipts) - 1:
            yield first, members
            first, members = images, []


def _write_kept(out: ParquetSink, tables: list[pa.Table], sizes: list[int], first: int, num_classes: int) -> None:
    waiting: list[Kept] = []
    starts = first + np.concatenate([[0], np.cumsum(sizes)])
    for class_id in range(num_classes):
        parts, images = [], []
        for table, start in zip(tables, starts, strict=False):
            lo, hi = np.searchsorted(table["class"].to_numpy(), [class_id, class_id + 1])
            parts.append(table.slice(lo, hi - lo))
            images.append(parts[-1]["row"].to_numpy().astype(np.int64) + start)
        codes, pixels = (np.concatenate([part[name].to_numpy() for part in parts]) for name in ("code", "pixels"))
        present, position = np.unique(np.concatenate(images), return_inverse=True)
        if not len(present):
            continue
        counts = np.zeros((len(present), 256), np.uint32)
        # One image lists a code once for each human class, so the counts have to be added up.
        np.add.at(counts, (position, codes), pixels)
        waiting.append((present, np.full(len(present), class_id, np.uint8), cumulative(counts).astype(np.uint32)))
        if sum(len(part[0]) for part in waiting) >= _GROUP_ROWS:
            _append_kept(out, waiting)
            waiting = []
    if waiting:
        _append_kept(out, waiting)


def _append_kept(out: ParquetSink, parts: list[Kept]) -> None:
    image, class_id = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    columns = np.concatenate([part[2] for part in parts]).T
    arrays = [pa.array(image.astype(np.uint32)), pa.array(class_id)]
    arrays += [pa.array(np.ascontiguousarray(column)) for column in columns]
    out.append(pa.Table.from_arrays(arrays, schema=files.KEPT_SCHEMA))


def _sum_by_city(tables: Sequence[pa.Table]) -> pa.Table:
    """Sparse sums over (city, class, human class, code): many cities or classes cost no memory."""
    cells = files.TOTALS_SCHEMA.names[:-1]
    sums = pa.concat_tables(tables).group_by(cells).aggregate([("pixels", "sum")])
    return sums.select([*cells, "pixels_sum"]).rename_columns(files.TOTALS_SCHEMA.names).cast(files.TOTALS_SCHEMA)


def _with_cities(table: pa.Table, rows: Sequence[dict[str, Any]]) -> pa.Table:
    cities = pa.array([row["city"] for row in rows], pa.string()).take(table["row"])
    return table.append_column("city", cities).select(files.TOTALS_SCHEMA.names).cast(files.TOTALS_SCHEMA)


def _write_images(path: Path, root: Path, receipts: Iterable[dict[str, Any]]) -> FileRecord:
    names = [n for n in files.IMAGES_SCHEMA.names if n not in ("shard", "row")]
    every = ((shard, at, row) for shard, receipt in enumerate(receipts) for at, row in enumerate(receipt["rows"]))
    with ParquetSink(path, files.IMAGES_SCHEMA) as out:
        while part := list(islice(every, _IMAGE_ROWS)):
            columns: dict[str, Any] = {n: [row[n] for _, _, row in part] for n in names}
            columns |= {"shard": [shard for shard, _, _ in part], "row": [at for _, at, _ in part]}
            out.append(pa.table(columns, schema=files.IMAGES_SCHEMA))
        return out.commit(root)


def image_table(path: Path, manifest: Mapping[str, Any], columns: Sequence[str] | None = None) -> pa.Table:
    """Columns of the table of a store's images, in the manifest's order; a changed one is a StoreError."""
    return read_table(*_checked(path, manifest, "images"), columns)


def _checked(path: Path, manifest: Mapping[str, Any], name: str) -> tuple[Path, FileRecord]:
    """Place and record of a table whose bytes are those recorded. Page checksums miss flips in page headers."""
    record = FileRecord(**manifest["statistics"][name])
    file = path / record.file
    # The table `kept` may be large: it is checked by its sums.
    hashed = name != "kept" or record.size_bytes <= _HASHED_BYTES
    if hashed and file.is_file() and (found := sha256_file(file)) != record.sha256:
        raise StoreError(f"{file}: changed or torn (its sha256 is {found}, recorded is {record.sha256})", hint=_HINT)
    return file, record


class StoreStatistics:
    """Counts of a store. N images in the manifest's order, C classes, codes 0..255."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.classes = ClassTable.from_json(manifest["classes"])

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> StoreStatistics:
        """Open the sidecar tables of a store; a missing or damaged one is a StoreError when it is used."""
        return cls(Path(path), read_manifest(path))

    def __len__(self) -> int:
        return int(self.manifest["images"])

    @cached_property
    def names(self) -> list[str]:
        """Names of all images in order."""
        return list(self.images["name"].to_pylist())

    @cached_property
    def _kept_file(self) -> tuple[pq.ParquetFile, list[tuple[int, int]]]:
        """The open table, and the lowest and highest class of each of its row groups."""
        path, record = _checked(self.path, self.manifest, "kept")
        file = files.open_parquet(path, record)
        groups = [file.metadata.row_group(i).column(1).statistics for i in range(file.metadata.num_row_groups)]
        if any(s is None or not s.has_min_max for s in groups):
            raise StoreError(f"{path}: row groups without statistics of their classes", hint=_HINT)
        return file, [(int(s.min), int(s.max)) for s in groups]

    def kept(self, codes: NDArray[np.integer] | list[int] | int) -> NDArray[np.int64]:
        """Pixels kept when class c needs `codes[c]` (256 = withheld), as int64 (N, C)."""
        wanted = self._codes(codes)
        file, classes_of_group = self._kept_file
        counts = np.zeros((len(self), self.classes.num_classes), np.int64)
        with files.parquet_errors(self.path / self.manifest["statistics"]["kept"]["file"]):
            for group, (low, high) in enumerate(classes_of_group):
                columns = {c: f"k{wanted[c]:03d}" for c in range(low, high + 1) if wanted[c] < NUM_CODES}
                if not columns:
                    continue
                names = ["image", "class", *dict.fromkeys(columns.values())]
                table = file.read_row_group(group, columns=names, use_threads=False)
                image, ids = table["image"].to_numpy(), table["class"].to_numpy()
                for class_id, column in columns.items():
                    start, end = np.searchsorted(ids, [class_id, class_id + 1])
                    counts[image[start:end], class_id] = table[column].to_numpy()[start:end]
        self._check_sums(counts, wanted)
        return counts

    def _check_sums(self, counts: NDArray[np.int64], codes: NDArray[np.int64]) -> None:
        """The sums over all images are known from another table: a damaged number cannot hide."""
        expected = np.append(cumulative(self._all_totals), np.zeros((len(codes), 1), np.int64), axis=1)
        if (counts.sum(axis=0) != expected[np.arange(len(codes)), codes]).any():
            raise StoreError(
                f"{_checked(self.path, self.manifest, 'kept')[0]}: damaged (its sums are not those of totals)",
                hint=_HINT,
            )

    def _codes(self, codes: NDArray[np.integer] | list[int] | int) -> NDArray[np.int64]:
        n = self.classes.num_classes
        wanted = np.broadcast_to(np.asarray(codes, np.int64), np.shape(codes) or (n,))
        if wanted.shape != (n,) or wanted.min() < 0 or wanted.max() > NUM_CODES:
            raise InputError(f"codes must be {n} values in 0..{NUM_CODES}, got {np.asarray(codes).tolist()}")
        return wanted

    @cached_property
    def images(self) -> pa.Table:
        """Name, city, paths, height, width, image_sha256, shard, row of each image."""
        return image_table(self.path, self.manifest)

    @cached_property
    def cities(self) -> list[str]:
        """City (or camera, drive) of each image."""
        return list(self.images["city"].to_pylist())

    @cached_property
    def pixels(self) -> NDArray[np.int64]:
        """Number of pixels of each image, ignored ones included, (N,)."""
        height, width = image_table(self.path, self.manifest, ("height", "width")).columns
        return np.asarray(height.to_numpy().astype(np.int64) * width.to_numpy(), np.int64)

    @cached_property
    def _totals(self) -> pa.Table:
        return read_table(*_checked(self.path, self.manifest, "totals"))

    def pairs(self, city: str | None = None) -> NDArray[np.int64]:
        """Counts over (human class, class, code) as int64 (C+1, C, 256); last human row = unlabelled."""
        c, table = self.classes.num_classes, self._totals
        wanted = pc.not_equal(table["class"], IGNORE)
        if city is not None:
            wanted = pc.and_(wanted, pc.equal(table["city"], city))
        table = table.filter(wanted)
        human, ids, code, pixels = (table[name].to_numpy() for name in ("human", "class", "code", "pixels"))
        counts = np.zeros((c + 1, c, NUM_CODES), np.int64)
        np.add.at(counts, (np.minimum(human, c), ids, code), pixels)
        return counts

    @cached_property
    def _all_totals(self) -> NDArray[np.int64]:
        return self.totals()

    def totals(self, city: str | None = None) -> NDArray[np.int64]:
        """Pixels of each class and code, int64 (C, 256), of all images or of one city's."""
        return np.asarray(self.pairs(city).sum(axis=0))

    def city_names(self) -> list[str]:
        """All cities of the store, sorted."""
        return sorted(pc.unique(self._totals["city"]).to_pylist())

    def close(self) -> None:
        """Close the open table."""
        if "_kept_file" in self.__dict__:
            self._kept_file[0].close()
            del self.__dict__["_kept_file"]
