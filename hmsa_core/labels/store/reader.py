"""Reading a label store: by name, verified, with damaged shards named and all others still served."""

from __future__ import annotations

import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hmsa_core.io import sealed
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.engine import HERE, Engine
from hmsa_core.io.errors import ConfigError, InputError, StoreError
from hmsa_core.io.remote import local_folder
from hmsa_core.labels.store import format as files
from hmsa_core.labels.store.format import MANIFEST, SIDECAR, FileRecord, Kind, read_manifest
from hmsa_core.labels.store.sidecar import image_table
from hmsa_core.taxonomy import ClassTable

_FOOTERS = 10_000  # files whose footers are checked at opening: a second


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a store."""

    file: str
    kind: str  # missing | torn | changed | swapped | renamed | unlisted
    message: str

    def __str__(self) -> str:
        return self.message


class LabelStore:
    """A finished store. `open` checks the manifest and each shard's size and footer; reads check the rest."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.kind: Kind = manifest["kind"]
        self.classes = ClassTable.from_json(manifest["classes"])
        self.lineage: dict[str, Any] = manifest["lineage"]
        self.digest: str = manifest["digest"]
        self.problems: list[Problem] = []
        self.open_files = 64  # shards that this reader holds open at most
        self._bad: dict[str, str] = {}
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._pid = os.getpid()

    @cached_property
    def _where(self) -> dict[str, tuple[int, int]]:
        table = image_table(self.path, self.manifest, ("name", "shard", "row"))
        name, shard, row = (column.to_pylist() for column in table.columns)
        return dict(zip(name, zip(shard, row, strict=True), strict=True))

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, strict: bool = False) -> LabelStore:
        """Open a store, a folder or an address; with `strict` read every byte, refuse the store if anything is wrong.

        Raises:
            InputError: no such folder.
            StoreError: no or a damaged manifest; with `strict` any problem at all, all of them named.
        """
        folder = local_folder(path)
        store = cls(folder, read_manifest(folder))
        if not strict:
            store.look()
            return store
        store.problems = store.verify()
        if store.problems:
            raise StoreError(
                f"{path}: refused, {len(store.problems)} problem(s): " + "; ".join(map(str, store.problems)),
                hint="`autolabel verify` lists them; in a workspace `autolabel doctor` names what restores the store",
            )
        return store

    def look(self) -> None:
        """Cheap check of all files but receipts: there, of the right size, with the recorded footer."""
        records = [r for entry in self.manifest["shards"] for r in (_record(entry), FileRecord(**entry["sidecar"]))]
        records += [FileRecord(**entry) for entry in self.manifest["statistics"].values()]
        sizes: dict[str, int] = {}  # by plain text: a path object each would take longer than all else
        for before in ("", f"{SIDECAR}/"):
            if (self.path / before).is_dir():
                sizes |= {before + entry.name: entry.stat().st_size for entry in os.scandir(self.path / before)}
        for record in records:
            if len(records) > _FOOTERS and sizes.get(record.file) == record.size_bytes:
                continue  # the footers of so many files are checked when they are read
            try:
                files.check_footer(self.path / record.file, record)
            except StoreError as error:
                kind = "changed" if (self.path / record.file).exists() else "missing"
                self.problems.append(Problem(record.file, kind, error.message))
                self._bad[record.file] = error.message
        for entry in self.manifest["extras"]:
            file, size = entry["file"], sizes.get(entry["file"])
            if size is None:
                self.problems.append(Problem(file, "missing", f"{self.path / file}: missing"))
            elif size != entry["size_bytes"]:
                detail = f"{self.path / file}: torn or changed ({size} bytes, recorded {entry['size_bytes']})"
                self.problems.append(Problem(file, "changed", detail))

    def verify(self, subset: str = "1/1", engine: Engine = HERE) -> list[Problem]:
        """Read all bytes (or the n-th of t slices, "n/t") and return everything that is wrong."""
        try:
            manifest = read_manifest(self.path)  # not the one of `open`: it may have been damaged or replaced since
        except StoreError as error:
            kind = "changed" if (self.path / MANIFEST).exists() else "missing"
            return [Problem(MANIFEST, kind, error.message)]
        match = re.fullmatch(r"(\d+)/(\d+)", subset)
        if not match or not 1 <= (n := int(match[1])) <= (of := int(match[2])):
            raise ConfigError(f"subset {subset!r} is not n/t with 1 <= n <= t", hint="for example 1/7, 2/7, ... 7/7")
        check = _Check.of(self.path, manifest, with_unlisted=n == 1)
        mine = sorted([*check.digests, *check.receipts])[n - 1 :: of]
        problems = [problem for problem in engine.map(check, mine, what="checks files", batch=16) if problem]
        return problems + check.unlisted_problems()

    def names(self) -> list[str]:
        """Names of all images in order, those of damaged shards too."""
        return list(self._where)

    def __len__(self) -> int:
        return int(self.manifest["images"])

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def is_served(self, name: str) -> bool:
        """Whether the image's shard passed the checks of `open`."""
        return self._entry(name)[0]["file"] not in self._bad

    def shard_of(self, name: str) -> str:
        """File name of the shard that holds an image."""
        return str(self._entry(name)[0]["file"])

    def _entry(self, name: str) -> tuple[dict[str, Any], int, int]:
        if name not in self._where:
            raise InputError(f"{self.path}: no image named {name!r} in this store")
        shard, row = self._where[name]
        return self.manifest["shards"][shard], shard, row

    def read(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Label (uint8 HxW trainIds or 255) and confidence code (uint8 HxW); damage is a StoreError."""
        maps = self._read(name, ("label", "confidence"))
        return maps["label"], maps["confidence"]

    def read_label(self, name: str) -> NDArray[np.uint8]:
        """The label alone (what training needs)."""
        return self._read(name, ("label",))["label"]

    def read_source(self, name: str) -> NDArray[np.uint8]:
        """Where each final pixel comes from (SOURCES); only a thresholded store has it."""
        if self.kind != "thresholded":
            raise InputError(f"{self.path}: a raw store has no source maps")
        return self._read(name, ("source",))["source"]

    def _read(self, name: str, columns: tuple[str, ...]) -> dict[str, NDArray[np.uint8]]:
        digests = [f"{c}_sha256" for c in columns]
        row = self._row(name, [*columns, *digests, "name", "height", "width"])
        where = f"{self.path / self.shard_of(name)}: image {name!r}"
        maps = {}
        for column, digest in zip(columns, digests, strict=True):
            if hashlib.sha256(row[column]).hexdigest() != row[digest]:
                raise StoreError(f"{where}: {column} is damaged (digest differs)")
            maps[column] = files.decode(row[column], self.manifest["codec"])
            if maps[column].shape != (row["height"], row["width"]):
                raise StoreError(f"{where}: {column} is {maps[column].shape}, recorded {row['height'], row['width']}")
        return maps

    def row(self, name: str) -> dict[str, Any]:
        """What the store knows of an image, without its maps: city, paths, size, digests."""
        columns = [n for n in files.shard_schema(self.kind).names if n not in files.payload_columns(self.kind)]
        return self._row(name, columns)

    def _row(self, name: str, columns: list[str]) -> dict[str, Any]:
        entry, shard, position = self._entry(name)
        path = self.path / entry["file"]
        if entry["file"] in self._bad:
            raise StoreError(self._bad[entry["file"]], hint="its other shards can still be read")
        with files.parquet_errors(path):
            table = self._file(shard, entry).read_row_group(position, columns=columns, use_threads=False)
            if table.num_rows != 1:
                raise StoreError(f"{path}: row group {position} holds {table.num_rows} rows, expected 1")
            row: dict[str, Any] = table.to_pylist()[0]
        if row.get("name", name) != name:
            raise StoreError(f"{path}: row {position} is {row['name']!r}, the manifest says {name!r}")
        return row

    def _file(self, shard: int, entry: dict[str, Any]) -> pq.ParquetFile:
        if self._pid != os.getpid():  # after a fork the parent's readers are not ours
            self._files, self._pid = OrderedDict(), os.getpid()
        if shard not in self._files:
            self._files[shard] = files.open_parquet(self.path / entry["file"], _record(entry))
            if len(self._files) > self.open_files:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(shard)
        return self._files[shard]

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is known of every image in order, from one small table (plus `shard` and `row` numbers)."""
        for part in image_table(self.path, self.manifest).to_batches():
            yield from part.to_pylist()

    def pictures(self) -> dict[str, str]:
        """{name: SHA-256 of the image's file ("" = unknown)} of all images."""
        names, digests = image_table(self.path, self.manifest, ("name", "image_sha256")).columns
        return dict(zip(names.to_pylist(), digests.to_pylist(), strict=True))

    def close(self) -> None:
        """Close open shards."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}  # open files do not travel to loader workers


def _record(entry: dict[str, Any]) -> FileRecord:
    return FileRecord(entry["file"], entry["size_bytes"], entry["sha256"], entry["footer_sha256"])


@dataclass(frozen=True)
class _Check:
    """Reads all bytes of one file of a store; what is wrong with it, or None."""

    root: Path
    digests: dict[str, str]  # recorded SHA-256 by file
    receipts: dict[str, str]  # recorded digest by receipt
    unlisted: dict[str, str]  # SHA-256 of each visible file that the manifest does not list

    @classmethod
    def of(cls, root: Path, manifest: Mapping[str, Any], *, with_unlisted: bool) -> _Check:
        records = [r for s in manifest["shards"] for r in (s, s["sidecar"])]
        records += [*manifest["statistics"].values(), *manifest["extras"]]
        unlisted, listed = {}, set(files.listed_files(manifest))
        for path in sorted(root.rglob("*")) if with_unlisted else []:
            relative = path.relative_to(root)
            hidden = any(part.startswith(".") for part in relative.parts)  # locks, leftovers of killed writers
            if path.is_file() and not hidden and relative.as_posix() not in listed:
                unlisted[relative.as_posix()] = sha256_file(path)
        receipts = {s["receipt"]["file"]: s["receipt"]["digest"] for s in manifest["shards"]}
        return cls(root, {r["file"]: r["sha256"] for r in records}, receipts, unlisted)

    def __call__(self, file: str) -> Problem | None:
        return self._receipt(file) if file in self.receipts else self._file(file)

    def _holder(self, sha256: str) -> str | None:
        return next((file for file, recorded in self.digests.items() if recorded == sha256), None)

    def _file(self, file: str) -> Problem | None:
        path, expected = self.root / file, self.digests[file]
        if not path.is_file():
            moved = next((other for other, sha256 in self.unlisted.items() if sha256 == expected), None)
            if moved:
                return Problem(file, "renamed", f"{path}: missing; its content lies in {moved} (renamed)")
            return Problem(file, "missing", f"{path}: missing")
        actual = sha256_file(path)
        if actual == expected:
            return None
        if other := self._holder(actual):
            return Problem(file, "swapped", f"{path}: holds the content of {other} (swapped or copied)")
        return Problem(file, "changed", f"{path}: changed or torn (sha256 is {actual}, recorded {expected})")

    def _receipt(self, file: str) -> Problem | None:
        path, expected = self.root / file, self.receipts[file]
        try:
            digest = sealed.read(path)["digest"]
        except StoreError as error:
            return Problem(file, "changed" if path.exists() else "missing", error.message)
        if digest != expected:
            return Problem(file, "swapped", f"{path}: is another receipt (digest {digest}, {expected})")
        return None

    def unlisted_problems(self) -> list[Problem]:
        problems = []
        for file, sha256 in self.unlisted.items():
            holder = self._holder(sha256)
            why = f"; it has the content of {holder}" if holder else ""
            if not holder and file.startswith(f"{SIDECAR}/"):
                why = "; it may be left over from a killed writer"
            problems.append(Problem(file, "unlisted", f"{self.root / file}: not in the manifest{why}"))
        return problems
