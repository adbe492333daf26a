"""The sidecar tables: histograms of each image, and their consolidated forms for instant statistics.

`sidecar/shard-NNNNN.parquet` is the source: one sparse table a shard, sorted by class. From all of them
`consolidate` makes three tables whose file names carry the digest of their sources, so that an old manifest
never meets new statistics:
  kept-<digest>    rows (image, class) sorted by class in each block of images, one column a code: a threshold
                   reads a few of the 258 columns
  totals-<digest>  sums by city: totals, conflicts with human labels, confidence histograms for the shift check
  images-<digest>  where each image lies and what is known of it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hmsa_core.io.atomic import digest
from hmsa_core.labels.store import schema
from hmsa_core.labels.store.histogram import Histogram, cumulative
from hmsa_core.labels.store.parquet import FileRecord, ParquetSink, read_table, sink

__all__ = ["SidecarRows", "consolidate"]

_SMALL = 512  # images
_BLOCK = 4096  # images that are looked at together: bounds memory to a few tens of MB
_GROUP_ROWS = 2048  # rows of (image, class) that close a row group of `kept`


class SidecarRows:
    """Collects the histograms of one shard's images and writes them as one table."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._parts: list[Histogram] = []

    def add(self, name: str, histogram: Histogram) -> None:
        """Append the histogram of the shard's next image."""
        self._names.append(name)
        self._parts.append(histogram)

    def write(self, path: Path, root: Path) -> FileRecord:
        """Write the table sorted by class, then image, human class, code."""
        rows = np.repeat(np.arange(len(self._parts), dtype=np.uint32), [len(p.code) for p in self._parts])
        columns = [np.concatenate([np.empty(0, np.uint32), *(p[i] for p in self._parts)]) for i in range(4)]
        order = np.argsort(columns[0], kind="stable")
        names = pa.array(self._names, pa.string()).take(pa.array(rows[order]))
        arrays = [names, pa.array(rows[order])]
        types = (pa.uint8(), pa.uint8(), pa.uint8(), pa.uint32())
        arrays += [pa.array(c[order].astype(t.to_pandas_dtype())) for c, t in zip(columns, types, strict=True)]
        with sink(path, schema.sidecar_schema(), statistics=["class"], dictionary=["name", "class", "human"]) as out:
            out.append(pa.Table.from_arrays(arrays, schema=schema.sidecar_schema()))
            return out.commit(root)


def consolidate(root: Path, receipts: Sequence[dict[str, Any]], num_classes: int) -> dict[str, FileRecord]:
    """Write the three tables of a whole store; return their records by name."""
    sources = digest([r["sidecar"]["sha256"] for r in receipts])[:16]
    where = {name: root / schema.SIDECAR / f"{name}-{sources}.parquet" for name in schema.STATISTICS}
    totals = _Totals(num_classes)
    # A compressor is set up for each of 258 column chunks a row group: that only pays where chunks are large.
    compression = "zstd" if sum(len(r["rows"]) for r in receipts) > _SMALL else "none"
    with sink(
        where["kept"], schema.kept_schema(), compression=compression, statistics=["class"], dictionary=["class"]
    ) as kept:
        for first, members in _blocks(receipts):
            tables = [_load(root, receipts[i]) for i in members]
            for table, i in zip(tables, members, strict=True):
                totals.add(table, [row["city"] for row in receipts[i]["rows"]])
            _write_kept(kept, tables, [len(receipts[i]["rows"]) for i in members], first, num_classes)
        records = {"kept": kept.commit(root)}
    records["totals"] = totals.write(where["totals"], root)
    records["images"] = _write_images(where["images"], root, receipts)
    return records


def _blocks(receipts: Sequence[dict[str, Any]]) -> Iterator[tuple[int, list[int]]]:
    """(number of the first image, receipt positions) of runs of shards with about _BLOCK images."""
    first = count = 0
    members: list[int] = []
    for i, receipt in enumerate(receipts):
        members.append(i)
        count += len(receipt["rows"])
        if count - first >= _BLOCK or i == len(receipts) - 1:
            yield first, members
            first, members = count, []


def _load(root: Path, receipt: dict[str, Any]) -> pa.Table:
    record = FileRecord(**receipt["sidecar"])
    return read_table(root / record.file, record, ["row", "class", "human", "code", "pixels"])


def _write_kept(out: ParquetSink, tables: list[pa.Table], sizes: list[int], first: int, num_classes: int) -> None:
    waiting: list[tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.uint32]]] = []
    starts = first + np.concatenate([[0], np.cumsum(sizes)])
    for class_id in range(num_classes):
        images, codes, pixels = [], [], []
        for table, start in zip(tables, starts, strict=False):
            ids = table["class"].to_numpy()
            lo, hi = np.searchsorted(ids, [class_id, class_id + 1])
            part = table.slice(lo, hi - lo)
            images.append(part["row"].to_numpy().astype(np.int64) + start)
            codes.append(part["code"].to_numpy())
            pixels.append(part["pixels"].to_numpy())
        image = np.concatenate(images)
        present, position = np.unique(image, return_inverse=True)
        if not len(present):
            continue
        counts = np.zeros((len(present), 256), np.uint32)
        # One image lists a code once for each human class, so the counts have to be added up.
        np.add.at(counts, (position, np.concatenate(codes)), np.concatenate(pixels))
        waiting.append((present, np.full(len(present), class_id, np.uint8), cumulative(counts).astype(np.uint32)))
        if sum(len(part[0]) for part in waiting) >= _GROUP_ROWS:
            _append_kept(out, waiting)
            waiting = []
    if waiting:
        _append_kept(out, waiting)


def _append_kept(out: ParquetSink, parts: list[tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.uint32]]]) -> None:
    image, class_id = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    columns = np.concatenate([part[2] for part in parts]).T
    arrays = [pa.array(image.astype(np.uint32)), pa.array(class_id)]
    arrays += [pa.array(np.ascontiguousarray(column)) for column in columns]
    out.append(pa.Table.from_arrays(arrays, schema=schema.kept_schema()))


class _Totals:
    """Sparse sums over (city, class, human class, code), so that many cities or classes cost no memory."""

    def __init__(self, num_classes: int) -> None:
        self._size = num_classes + 1  # the last index stands for 255
        self._cities: dict[str, int] = {}
        self._keys = np.empty(0, np.int64)
        self._pixels = np.empty(0, np.int64)

    def add(self, table: pa.Table, city_of_row: list[str]) -> None:
        """Add the rows of one sidecar."""
        city_ids = np.array([self._cities.setdefault(c, len(self._cities)) for c in city_of_row] or [0], np.int64)
        last = self._size - 1
        key = city_ids[table["row"].to_numpy()]
        for column in ("class", "human"):
            key = key * self._size + np.minimum(table[column].to_numpy(), last)
        key = key * 256 + table["code"].to_numpy()
        keys, position = np.unique(np.concatenate([self._keys, key]), return_inverse=True)
        sums = np.zeros(len(keys), np.int64)
        np.add.at(sums, position, np.concatenate([self._pixels, table["pixels"].to_numpy().astype(np.int64)]))
        self._keys, self._pixels = keys, sums

    def write(self, path: Path, root: Path) -> FileRecord:
        """Write the sums sorted by city name, class, human class, code."""
        shape = (max(1, len(self._cities)), self._size, self._size, 256)
        city, ids, human, code = np.unravel_index(self._keys, shape)
        names = np.array([*self._cities, ""], object)
        rank = np.argsort(np.argsort(names[: len(self._cities)], kind="stable"), kind="stable")
        order = np.argsort(rank[city], kind="stable") if len(rank) else np.arange(0)
        to_id = np.append(np.arange(self._size - 1), 255).astype(np.uint8)
        with sink(path, schema.totals_schema(), dictionary=["city"]) as out:
            out.append(
                pa.table(
                    {
                        "city": pa.array(list(names[city][order]), pa.string()),
                        "class": pa.array(to_id[ids][order]),
                        "human": pa.array(to_id[human][order]),
                        "code": pa.array(code[order].astype(np.uint8)),
                        "pixels": pa.array(self._pixels[order]),
                    },
                    schema=schema.totals_schema(),
                )
            )
            return out.commit(root)


def _write_images(path: Path, root: Path, receipts: Iterable[dict[str, Any]]) -> FileRecord:
    names = [n for n in schema.image_table_schema().names if n not in ("shard", "row")]
    with sink(path, schema.image_table_schema()) as out:
        for shard, receipt in enumerate(receipts):
            rows = receipt["rows"]
            if not rows:
                continue
            columns: dict[str, Any] = {n: [row[n] for row in rows] for n in names}
            columns["shard"] = [shard] * len(rows)
            columns["row"] = list(range(len(rows)))
            out.append(pa.table(columns, schema=schema.image_table_schema()))
        return out.commit(root)
