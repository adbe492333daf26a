"""Finishing a store: the manifest is its commit point. The streaming writer: images come one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io import atomic, sealed
from hmsa_core.io.atomic import digest, sha256_file, sweep_temps
from hmsa_core.io.errors import ConfigError, InputError, StoreError
from hmsa_core.io.locks import FileLock
from hmsa_core.io.trees import publish_tree
from hmsa_core.labels.store import format as files
from hmsa_core.labels.store.codes import EDGES
from hmsa_core.labels.store.format import MANIFEST, SIDECAR, Codec, full_lineage, read_manifest
from hmsa_core.labels.store.shards import ImageFacts, ShardPlan, ShardWriter, read_receipt, receipt_path
from hmsa_core.labels.store.sidecar import consolidate
from hmsa_core.taxonomy import ClassTable, cityscapes


def write_manifest(
    store: str | Path,
    plans: Sequence[ShardPlan],
    lineage: Mapping[str, Any],
    *,
    classes: ClassTable | None = None,
    policy: Mapping[str, Any] | None = None,
    extras: Sequence[str] = (),
) -> str:
    """Consolidate the sidecars and commit the store; return the manifest's digest.

    Args:
        store, plans: folder of the store, and its shards in order, each with its receipt.
        lineage: any JSON object; see LINEAGE for the entries that readers look for.
        classes: class table of the shards; default: Cityscapes.
        policy: of a thresholded store: digest of the policy, of the raw store, rules.
        extras: further files in the folder that belong to the store.

    Raises:
        StoreError: a shard is missing, of another plan, or written with other classes.
    """
    root, table = Path(store), classes or cityscapes()
    sweep_temps(root)
    receipts = [read_receipt(root, plan) for plan in plans]
    kinds = {(r["kind"], r["codec"], r["classes_sha256"]) for r in receipts} or {("raw", "png", table.digest())}
    if len(kinds) > 1 or next(iter(kinds))[2] != table.digest():
        raise StoreError(f"{root}: its shards differ in kind, codec or class table", hint="make the store again")
    kind, codec, _ = next(iter(kinds))
    statistics = consolidate(root, receipts, table.num_classes)
    value = {
        "format": files.FORMAT,
        "version": files.MANIFEST_VERSION,
        "kind": kind,
        "codec": codec,
        "edges": list(EDGES),
        "classes": table.to_json(),
        "lineage": full_lineage(lineage),
        "policy": dict(policy) if policy else None,
        "images": sum(len(r["rows"]) for r in receipts),
        "shards": [_shard_entry(root, r) for r in receipts],
        "statistics": {name: asdict(record) for name, record in statistics.items()},
        "extras": [
            {"file": file, "size_bytes": (root / file).stat().st_size, "sha256": sha256_file(root / file)}
            for file in extras
        ],
    }
    sealed_digest = sealed.write(root / MANIFEST, value)
    current = {root / record.file for record in statistics.values()}
    for path in (path for name in statistics for path in (root / SIDECAR).glob(f"{name}-*.parquet")):
        if path not in current:
            atomic.ops.unlink(path)
    return sealed_digest


def _shard_entry(root: Path, receipt: dict[str, Any]) -> dict[str, Any]:
    plan = ShardPlan.from_json(receipt["plan"])
    return {
        "index": plan.index,
        "key": plan.key,
        **receipt["shard"],
        "sidecar": receipt["sidecar"],
        "receipt": {"file": receipt_path(root, plan).relative_to(root).as_posix(), "digest": receipt["digest"]},
        "rows": len(receipt["rows"]),
        "skipped": receipt["skipped"],
    }


def publish_store(source: str | Path, target: str | Path) -> None:
    """Hard-link a finished store's files into another folder, in one step; other files there go."""
    source, target = Path(source), Path(target)
    publish_tree(source, target, last=(MANIFEST,), only=files.listed_files(read_manifest(source)))


class LabelStoreWriter:
    """Writes a raw store in one process; an existing store with the same lineage is appended to.

    Args:
        path: folder of the store, made when missing.
        lineage: any JSON object; absent entries (teacher, scales, flip, precision, ...) become "unknown".
        images_per_shard: images a shard holds, >= 1.
        classes: class table; default: the lineage's `class_table`, else Cityscapes.
        codec: "png" or "webp".

    Raises:
        ConfigError: the folder holds a store with another lineage, codec or class table.
        LockedError: another process writes into the folder.
    """

    def __init__(
        self,
        path: str | Path,
        lineage: Mapping[str, Any],
        images_per_shard: int = 256,
        *,
        classes: ClassTable | None = None,
        codec: Codec = "png",
    ) -> None:
        if images_per_shard < 1:
            raise ConfigError(f"images_per_shard must be at least 1, got {images_per_shard}")
        self.path, self._lineage, self._per_shard = Path(path), full_lineage(lineage), images_per_shard
        table = lineage.get("class_table")
        self._classes = classes or (ClassTable.from_json(table) if isinstance(table, dict) else cityscapes())
        self._codec: Codec = codec
        self._key = digest({"lineage": self._lineage, "classes": self._classes.digest(), "codec": codec})
        self._lock = FileLock(self.path / files.LOCKS / "writer.lock", what=f"label store {self.path}").acquire()
        self._shard: ShardWriter | None = None
        self._closed = False
        try:
            sweep_temps(self.path)
            self._plans = self._existing()
        except BaseException:
            self._lock.release()
            raise
        self._names = {name for plan in self._plans for name in plan.names}

    def _existing(self) -> list[ShardPlan]:
        if not (self.path / MANIFEST).is_file():
            return []
        manifest = read_manifest(self.path)
        if any(entry["key"] != self._key for entry in manifest["shards"]):
            raise ConfigError(
                f"{self.path} holds labels of another teacher, parameters, codec or class table",
                hint="write into a new folder",
            )
        receipts = [self.path / entry["receipt"]["file"] for entry in manifest["shards"]]
        return [ShardPlan.from_json(sealed.read(path)["plan"]) for path in receipts]

    def add(
        self,
        name: str,
        label: NDArray[np.uint8],
        confidence: NDArray[np.floating],
        *,
        coarse: NDArray[np.uint8] | None = None,
        **facts: Unpack[ImageFacts],
    ) -> None:
        """Append one image; see `ShardWriter.add`. Names are unique in a store."""
        if self._closed:
            raise InputError(f"{self.path}: the writer is closed")
        if name in self._names:
            raise InputError(f"{self.path}: image name {name!r} occurs twice", hint="names must be unique")
        if self._shard is None:
            index = 1 + max((p.index for p in self._plans), default=-1)
            plan = ShardPlan(index, (), (), self._key)
            self._shard = ShardWriter(self.path, plan, classes=self._classes, codec=self._codec, streaming=True)
        self._shard.add(name, label, confidence, coarse=coarse, **facts)
        self._names.add(name)
        if len(self._shard) >= self._per_shard:
            self._finish_shard()

    def _finish_shard(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None and len(shard):
            self._plans.append(ShardPlan.from_json(shard.close()["plan"]))
        elif shard is not None:  # the only image that was given to it was refused
            shard.abort()

    def close(self) -> str:
        """Finish the last shard and commit the manifest; return its digest."""
        if self._closed:
            return str(read_manifest(self.path)["digest"])
        try:
            self._finish_shard()
            self._remove_leftovers()
            return write_manifest(self.path, self._plans, self._lineage, classes=self._classes)
        finally:
            self._closed = True
            self._lock.release()

    def _remove_leftovers(self) -> None:
        """Files of shards that a killed writer finished and that this store does not have."""
        planned = {plan.stem for plan in self._plans}
        for pattern in ("shard-*.parquet", f"{SIDECAR}/shard-*.parquet", f"{files.RECEIPTS}/shard-*.json"):
            for path in self.path.glob(pattern):
                if path.stem not in planned:
                    atomic.ops.unlink(path)

    def abort(self) -> None:
        """Give up: finished shards stay on disk without a manifest and are replaced by the next writer."""
        if not self._closed:
            self._closed = True
            if self._shard is not None:
                self._shard.abort()
            self._lock.release()

    def __enter__(self) -> LabelStoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
