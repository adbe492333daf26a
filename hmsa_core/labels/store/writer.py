"""The streaming writer: images come one by one, memory stays constant, the store appears at `close`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io import atomic
from hmsa_core.io.atomic import digest, sweep_temps
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.io.locks import FileLock
from hmsa_core.labels.store import schema
from hmsa_core.labels.store.codec import Codec
from hmsa_core.labels.store.codes import ConfidenceCode
from hmsa_core.labels.store.manifest import full_lineage, read_manifest, write_manifest
from hmsa_core.labels.store.plans import ShardPlan
from hmsa_core.labels.store.shards import ShardWriter, _check_shapes
from hmsa_core.taxonomy import ClassTable, cityscapes

__all__ = ["LabelStoreWriter"]

_CODE = ConfidenceCode()


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
        self._lock = FileLock(self.path / schema.LOCKS / "writer.lock", what=f"label store {self.path}").acquire()
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
        if not (self.path / schema.MANIFEST).is_file():
            return []
        manifest = read_manifest(self.path)
        if any(entry["key"] != self._key for entry in manifest["shards"]):
            raise ConfigError(
                f"{self.path} holds labels of another teacher, parameters, codec or class table",
                hint="write into a new folder",
            )
        return [_plan(self.path, entry) for entry in manifest["shards"]]

    def add(
        self,
        name: str,
        label: NDArray[np.uint8],
        confidence: NDArray[np.floating],
        *,
        city: str = "",
        image_path: str = "",
        coarse_path: str = "",
        image_sha256: str = "",
        coarse: NDArray[np.uint8] | None = None,
    ) -> None:
        """Append one image; see `ShardWriter.add`. Names are unique in a store."""
        _check_shapes(name, label, confidence)
        self.add_coded(
            name,
            label,
            _CODE.encode(confidence),
            city=city,
            image_path=image_path,
            coarse_path=coarse_path,
            image_sha256=image_sha256,
            coarse=coarse,
        )

    def add_coded(
        self,
        name: str,
        label: NDArray[np.uint8],
        code: NDArray[np.uint8],
        *,
        city: str = "",
        image_path: str = "",
        coarse_path: str = "",
        image_sha256: str = "",
        coarse: NDArray[np.uint8] | None = None,
    ) -> None:
        """Append one image whose confidences are codes already."""
        if self._closed:
            raise InputError(f"{self.path}: the writer is closed")
        if name in self._names:
            raise InputError(f"{self.path}: image name {name!r} occurs twice", hint="names must be unique")
        if self._shard is None:
            index = 1 + max((p.index for p in self._plans), default=-1)
            plan = ShardPlan(index, (), (), self._key)
            self._shard = ShardWriter(self.path, plan, classes=self._classes, codec=self._codec, streaming=True)
        self._shard.add_coded(
            name,
            label,
            code,
            city=city,
            image_path=image_path,
            coarse_path=coarse_path,
            image_sha256=image_sha256,
            coarse=coarse,
        )
        self._names.add(name)
        if len(self._shard) >= self._per_shard:
            self._finish_shard()

    def _finish_shard(self) -> None:
        if self._shard is not None:
            shard, self._shard = self._shard, None
            if not len(shard):  # the only image that was given to it was refused
                shard.abort()
                return
            self._plans.append(ShardPlan.from_json(shard.close()["plan"]))

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
        own = {plan.stem for plan in self._plans}
        for pattern in ("shard-*.parquet", f"{schema.SIDECAR}/shard-*.parquet", f"{schema.RECEIPTS}/shard-*.json"):
            for path in self.path.glob(pattern):
                if path.stem not in own:
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _plan(root: Path, entry: dict[str, Any]) -> ShardPlan:
    from hmsa_core.io import sealed

    return ShardPlan.from_json(sealed.read(root / entry["receipt"]["file"])["plan"])
