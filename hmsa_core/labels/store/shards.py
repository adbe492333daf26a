"""Writing shards: one owner each, visible when complete, acknowledged by a receipt.

Order on disk: shard, sidecar, receipt (each atomically). A shard without a receipt was never acknowledged
and is written again; one with a receipt is never touched again. The manifest comes last of all.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hmsa_core.io import sealed
from hmsa_core.io.atomic import canonical_json, sha256_file, sweep_temps
from hmsa_core.io.errors import InputError, LockedError, StoreError, is_plain_name
from hmsa_core.io.locks import FileLock
from hmsa_core.labels.store import schema
from hmsa_core.labels.store.codec import Codec, encode
from hmsa_core.labels.store.codes import ConfidenceCode
from hmsa_core.labels.store.histogram import count, present_values
from hmsa_core.labels.store.manifest import publish_store, write_manifest
from hmsa_core.labels.store.parquet import FileRecord, ParquetSink
from hmsa_core.labels.store.plans import ShardPlan, plan_shards
from hmsa_core.labels.store.receipts import RECEIPT_FORMAT, read_receipt, receipt_path
from hmsa_core.labels.store.sidecar import SidecarRows
from hmsa_core.taxonomy import IGNORE, ClassTable, cityscapes

__all__ = [
    "ShardPlan",
    "ShardWriter",
    "claim_shard",
    "leave",
    "plan_shards",
    "publish_store",
    "read_receipt",
    "shard_done",
    "sweep",
    "write_manifest",
]

_CODE = ConfidenceCode()


class ShardWriter:
    """Writes one planned shard. Images come in the order of the plan; `close` acknowledges the shard.

    Args:
        store: folder of the store.
        plan: what belongs into this shard.
        classes: class table; ids must be below its number of classes, or 255. Default: Cityscapes.
        kind: "raw", or "thresholded" for final labels (those have a `source` map too).
        codec: "png" or "webp".
        streaming: the plan starts empty and grows with each image (LabelStoreWriter).

    Raises:
        LockedError: another process writes this shard.
    """

    def __init__(
        self,
        store: str | Path,
        plan: ShardPlan,
        *,
        classes: ClassTable | None = None,
        kind: schema.Kind = "raw",
        codec: Codec = "png",
        streaming: bool = False,
    ) -> None:
        self.root, self.plan, self.kind = Path(store), plan, kind
        self._codec, self._classes = codec, classes or cityscapes()
        self._streaming = streaming
        self._lock = FileLock(
            self.root / schema.LOCKS / f"{plan.stem}.lock", what=f"{plan.stem} of {self.root}"
        ).acquire()
        try:
            _sweep_once(self.root)
            self._sink = self._open()
        except BaseException:
            self._lock.release()
            raise
        self._sidecar = SidecarRows()
        self._rows: list[dict[str, Any]] = []
        self._skipped: list[dict[str, str]] = []
        self.notes: dict[str, Any] = {}  # any JSON object; goes into the receipt

    def _open(self) -> ParquetSink:
        about = {
            "format": schema.FORMAT,
            "version": schema.VERSION,
            "kind": self.kind,
            "codec": self._codec,
            "classes_sha256": self._classes.digest(),
            "key": self.plan.key,
        }
        self._schema = schema.shard_schema(self.kind, {b"hmsa": canonical_json(about)})
        path = self.root / f"{self.plan.stem}.parquet"
        # Images are compressed already; statistics only where a reader searches.
        return ParquetSink(path, self._schema, compression="none", statistics=["name"])

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
        """Append one image.

        Args:
            name: the plan's next name.
            label: uint8 HxW trainIds or 255.
            confidence: float32 HxW, top probability of the label, in [0, 1].
            city: unit in which shift is looked at: city, camera or drive.
            image_path: path of the image relative to its root.
            coarse_path: path of the human label relative to its root.
            image_sha256: content hash of the image file; must be the plan's where the plan has one.
            coarse: uint8 HxW trainIds of the human label, only counted (conflicts), not stored.

        Raises:
            InputError: wrong name, type, shape or ids.
        """
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
        source: NDArray[np.uint8] | None = None,
        city: str = "",
        image_path: str = "",
        coarse_path: str = "",
        image_sha256: str = "",
        coarse: NDArray[np.uint8] | None = None,
    ) -> None:
        """Append one image whose confidences are codes already; see `add`. `source`: schema.SOURCES."""
        maps = self._check(name, label, code, source, coarse)
        image_sha256 = self._check_plan(name, image_sha256)
        row: dict[str, Any] = {
            "name": name,
            "city": city,
            "image_path": image_path,
            "coarse_path": coarse_path,
            "height": label.shape[0],
            "width": label.shape[1],
            "image_sha256": image_sha256,
        }
        encoded = {column: encode(value, column, self._codec) for column, value in maps.items()}  # type: ignore[arg-type]  # keys are payload_columns
        digests = {f"{c}_sha256": hashlib.sha256(data).hexdigest() for c, data in encoded.items()}
        values = {**row, **encoded, **digests}
        self._sink.append(pa.table({n: [values[n]] for n in self._schema.names}, schema=self._schema))
        self._sidecar.add(name, count(label, code, coarse))
        self._rows.append(row)

    def skip(self, name: str, reason: str) -> None:
        """Leave out the plan's next image; name and reason are kept in receipt and manifest."""
        self._check_plan(name, "")
        self._skipped.append({"name": name, "reason": reason})

    def _check(
        self,
        name: str,
        label: NDArray[np.uint8],
        code: NDArray[np.uint8],
        source: NDArray[np.uint8] | None,
        coarse: NDArray[np.uint8] | None,
    ) -> dict[str, NDArray[np.uint8]]:
        _check_shapes(name, label, code)
        maps = {"label": label, "confidence": code}
        if (source is not None) != (self.kind == "thresholded"):
            raise InputError(f"{name}: a source map belongs to a thresholded store, and only there")
        if source is not None:
            maps["source"] = source
        for what, array in {**maps, **({} if coarse is None else {"coarse": coarse})}.items():
            if array.dtype != np.uint8 or array.shape != label.shape:
                raise InputError(f"{name}: {what} must be uint8 {label.shape}, got {array.dtype} {array.shape}")
        _check_ids(name, "label", label, self._classes)
        if coarse is not None:
            _check_ids(name, "coarse", coarse, self._classes)
        return {k: np.ascontiguousarray(v) for k, v in maps.items()}

    def _check_plan(self, name: str, image_sha256: str) -> str:
        if self._streaming:
            return image_sha256
        done = len(self._rows) + len(self._skipped)
        if done >= len(self.plan.names) or self.plan.names[done] != name:
            expected = self.plan.names[done] if done < len(self.plan.names) else "no further image"
            raise InputError(f"{self.plan.stem}: image {name!r} is not the plan's next ({expected!r})")
        planned = self.plan.image_sha256s[done]
        if planned and image_sha256 and planned != image_sha256:
            raise InputError(f"{name}: the image changed since it was planned (sha256 {image_sha256}, {planned})")
        return planned or image_sha256

    def close(self) -> dict[str, Any]:
        """Publish shard and sidecar, acknowledge them by the receipt, give the lock back; return the receipt."""
        if self._streaming:
            names, sha256s = zip(*((r["name"], r["image_sha256"]) for r in self._rows), strict=True)
            self.plan = ShardPlan(self.plan.index, names, sha256s, self.plan.key)
        missing = len(self.plan.names) - len(self._rows) - len(self._skipped)
        if missing:
            self.abort()
            raise StoreError(f"{self.plan.stem}: {missing} of its images were not written", hint="run again")
        try:
            shard = self._sink.commit(self.root)
            sidecar = self._sidecar.write(self.root / schema.SIDECAR / f"{self.plan.stem}.parquet", self.root)
            receipt = {
                "format": RECEIPT_FORMAT,
                "version": schema.VERSION,
                "kind": self.kind,
                "codec": self._codec,
                "classes_sha256": self._classes.digest(),
                "plan": self.plan.to_json(),
                "plan_sha256": self.plan.digest,
                "shard": shard.to_json(),
                "sidecar": sidecar.to_json(),
                "rows": self._rows,
                "skipped": self._skipped,
                "notes": self.notes,
            }
            receipt["digest"] = sealed.write(receipt_path(self.root, self.plan), receipt)
            return receipt
        finally:
            self._lock.release()

    def __len__(self) -> int:
        return len(self._rows)

    def abort(self) -> None:
        """Throw the unfinished shard away and give the lock back."""
        self._sink.abort()
        self._lock.release()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


_swept: set[Path] = set()


def sweep(root: Path) -> None:
    """Remove what dead writers left in a store; where ranks of several nodes write, before any of them starts."""
    sweep_temps(root)
    leave(root)


def leave(root: Path) -> None:
    """Somebody else has swept this store: writers of this process do not."""
    _swept.add(root.resolve())


def _sweep_once(root: Path) -> None:
    # Once a process: walking the folder for each of thousands of shards would be quadratic.
    if root.resolve() not in _swept:
        sweep(root)


def _check_shapes(name: str, label: NDArray[np.uint8], other: NDArray[Any]) -> None:
    if not name or not is_plain_name(name):
        raise InputError(f"image name {name!a} is empty, or holds control characters or bytes that are no UTF-8")
    for what, array in (("label", label), ("confidence", other)):
        if not isinstance(array, np.ndarray):
            raise InputError(f"{name}: {what} must be a numpy array, got {type(array).__name__}")
    if label.dtype != np.uint8 or label.ndim != 2 or 0 in label.shape:
        raise InputError(f"{name}: label must be uint8 HxW, got {label.dtype} {label.shape}")
    if other.shape != label.shape:
        raise InputError(f"{name}: confidence is {other.shape} but the label is {label.shape}")


def _check_ids(name: str, what: str, ids: NDArray[np.uint8], classes: ClassTable) -> None:
    present = present_values(ids)
    wrong = present[(present >= classes.num_classes) & (present != IGNORE)]
    if len(wrong):
        raise InputError(
            f"{name}: {what} holds {wrong.tolist()}, which are no trainIds of {classes.name} "
            f"(0..{classes.num_classes - 1} or {IGNORE})",
            hint="map ids to trainIds first, or give the right class table",
        )


def claim_shard(store: str | Path, plan: ShardPlan, **options: Any) -> ShardWriter | None:
    """A writer for a shard that is neither done nor in another process's hands; None otherwise.

    Done is asked again under the lock: its last owner may have finished it a moment ago.
    """
    if shard_done(store, plan):
        return None
    try:
        writer = ShardWriter(store, plan, **options)
    except LockedError:
        return None
    if shard_done(store, plan):
        writer.abort()
        return None
    return writer


def shard_done(store: str | Path, plan: ShardPlan, *, check_bytes: bool = True) -> bool:
    """Whether this very plan is acknowledged and its files are whole (all bytes read, unless told not to)."""
    root = Path(store)
    try:
        receipt = read_receipt(root, plan)
    except StoreError:
        return False
    for record in (FileRecord(**receipt["shard"]), FileRecord(**receipt["sidecar"])):
        path = root / record.file
        if not path.is_file() or path.stat().st_size != record.size_bytes:
            return False
        if check_bytes and sha256_file(path) != record.sha256:
            return False
    return True
