"""Statistics of a store at any threshold, from its sidecar tables alone: no pixel is touched."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import InputError, StoreError
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.store.histogram import cumulative
from hmsa_core.labels.store.manifest import read_manifest
from hmsa_core.labels.store.parquet import FileRecord, open_parquet, parquet_errors, read_table
from hmsa_core.taxonomy import IGNORE, ClassTable

__all__ = ["StoreStatistics"]

_HASHED_BYTES = 16 << 20
_MEND = "run `autolabel verify` on the store; make it again"


class StoreStatistics:
    """Counts of a store. N images in the manifest's order, C classes, codes 0..255."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.classes = ClassTable.from_json(manifest["classes"])
        self.names: list[str] = [image[0] for shard in manifest["shards"] for image in shard["images"]]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> StoreStatistics:
        """Open the sidecar tables of a store; a missing or damaged one is a StoreError when it is used."""
        return cls(Path(path), read_manifest(path))

    def _table_path(self, name: str) -> tuple[Path, FileRecord]:
        record = FileRecord(**self.manifest["statistics"][name])
        path = self.path / record.file
        # Page checksums miss flips in page headers. Small tables are hashed; a large one is checked by its sums.
        if record.size_bytes <= _HASHED_BYTES and path.is_file() and (found := sha256_file(path)) != record.sha256:
            said = f"its sha256 is {found}, recorded is {record.sha256}"
            raise StoreError(f"{path}: changed or torn ({said})", hint=_MEND)
        return path, record

    @cached_property
    def _kept_file(self) -> tuple[pq.ParquetFile, list[tuple[int, int]]]:
        """The open table, and the lowest and highest class of each of its row groups."""
        path, record = self._table_path("kept")
        file = open_parquet(path, record)
        groups = [file.metadata.row_group(i).column(1).statistics for i in range(file.metadata.num_row_groups)]
        if any(s is None or not s.has_min_max for s in groups):
            raise StoreError(f"{path}: row groups without statistics of their classes", hint=_MEND)
        return file, [(int(s.min), int(s.max)) for s in groups]

    def kept(self, codes: NDArray[np.integer] | list[int] | int) -> NDArray[np.int64]:
        """Pixels kept when class c needs `codes[c]` (256 = withheld), as int64 (N, C)."""
        wanted = self._codes(codes)
        file, classes_of_group = self._kept_file
        counts = np.zeros((len(self.names), self.classes.num_classes), np.int64)
        with parquet_errors(self.path / self.manifest["statistics"]["kept"]["file"]):
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
            raise StoreError(f"{self._table_path('kept')[0]}: damaged (its sums are not those of totals)", hint=_MEND)

    def _codes(self, codes: NDArray[np.integer] | list[int] | int) -> NDArray[np.int64]:
        n = self.classes.num_classes
        wanted = np.broadcast_to(np.asarray(codes, np.int64), (n,) if np.ndim(codes) == 0 else np.shape(codes))
        if wanted.shape != (n,) or wanted.min() < 0 or wanted.max() > NUM_CODES:
            raise InputError(f"codes must be {n} values in 0..{NUM_CODES}, got {np.asarray(codes).tolist()}")
        return wanted

    @cached_property
    def images(self) -> pa.Table:
        """Name, city, paths, height, width, image_sha256, shard, row of each image."""
        return read_table(*self._table_path("images"))

    @cached_property
    def cities(self) -> list[str]:
        """City (or camera, drive) of each image."""
        return list(self.images["city"].to_pylist())

    @cached_property
    def pixels(self) -> NDArray[np.int64]:
        """Number of pixels of each image, ignored ones included, (N,)."""
        height, width = self.images["height"].to_numpy(), self.images["width"].to_numpy()
        return np.asarray(height.astype(np.int64) * width, np.int64)

    @cached_property
    def _totals(self) -> dict[str, NDArray[Any]]:
        """Columns of the table of sums; `city` as a position in `_total_cities`."""
        table = read_table(*self._table_path("totals"))
        city = table["city"].combine_chunks().dictionary_encode()
        self._total_cities: list[str] = city.dictionary.to_pylist()
        columns = {name: table[name].to_numpy() for name in ("class", "human", "code", "pixels")}
        return {**columns, "city": city.indices.to_numpy()}

    def pairs(self, city: str | None = None) -> NDArray[np.int64]:
        """Counts over (human class, class, code) as int64 (C+1, C, 256); last human row = unlabelled."""
        c, table = self.classes.num_classes, self._totals
        mine = table["class"] != IGNORE
        if city is not None:
            known = {name: i for i, name in enumerate(self._total_cities)}
            mine = mine & (table["city"] == known.get(city, -1))
        human = np.minimum(table["human"][mine], c)
        counts = np.zeros((c + 1, c, NUM_CODES), np.int64)
        np.add.at(counts, (human, table["class"][mine], table["code"][mine]), table["pixels"][mine])
        return counts

    @cached_property
    def _all_totals(self) -> NDArray[np.int64]:
        return self.totals()

    def totals(self, city: str | None = None) -> NDArray[np.int64]:
        """Pixels of each class and code, int64 (C, 256), of all images or of one city's."""
        return np.asarray(self.pairs(city).sum(axis=0))

    def city_names(self) -> list[str]:
        """All cities of the store, sorted."""
        return sorted(set(self.cities))

    @property
    def conflicts(self) -> NDArray[np.int64]:
        """Pixels of each (human class, teacher's class) pair, int64 (C, C); the diagonal is agreement."""
        return np.asarray(self.pairs().sum(axis=2)[:-1])

    def close(self) -> None:
        """Close the open table."""
        if "_kept_file" in self.__dict__:
            self._kept_file[0].close()
            del self.__dict__["_kept_file"]
