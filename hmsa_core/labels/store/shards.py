"""Shards of a store: which image goes where, one writer for each, acknowledged by a receipt.

Order on disk: shard, sidecar, receipt (each atomically). A shard without a receipt was never acknowledged
and is written again; one with a receipt is never touched again. The manifest comes last of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hmsa_core.io import atomic, sealed
from hmsa_core.io.atomic import canonical_json, digest, sha256_file, sweep_temps
from hmsa_core.io.errors import ConfigError, InputError, LockedError, StoreError, is_plain_name
from hmsa_core.io.locks import FileLock
from hmsa_core.labels.store import format as files
from hmsa_core.labels.store.codes import ConfidenceCode
from hmsa_core.labels.store.format import SIDECAR, Codec, FileRecord, Kind
from hmsa_core.labels.store.sidecar import Histogram, count, present_values, write_sidecar
from hmsa_core.taxonomy import IGNORE, ClassTable, cityscapes

RECEIPT_FORMAT = "hmsa-label-shard"
UInt8 = NDArray[np.uint8]
_CODE = ConfidenceCode()


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its number, its images in order with their content hashes, and the key of what labels them."""

    index: int
    names: tuple[str, ...]
    image_sha256s: tuple[str, ...]
    key: str

    @property
    def stem(self) -> str:
        """File stem of the shard, its sidecar and its receipt."""
        return f"shard-{self.index:05d}"

    @cached_property
    def digest(self) -> str:
        """Digest of the whole plan: a receipt counts only for the plan that it was written for."""
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` rebuilds the plan."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardPlan:
        """Rebuild a plan from `to_json`."""
        return cls(value["index"], tuple(value["names"]), tuple(value["image_sha256s"]), value["key"])


def plan_shards(
    existing: Sequence[ShardPlan], images: Iterable[tuple[str, str]], images_per_shard: int, key: str, *, first: int = 0
) -> list[ShardPlan]:
    """Keep the existing plans and append shards for the images that are in none of them.

    Args:
        existing: plans of earlier runs with the same key. They are never reordered or refilled.
        images: (name, image_sha256) of all images wanted now, in any order.
        images_per_shard: of new shards, >= 1.
        key: digest of all that determines a label.
        first: least number of a new shard.

    Raises:
        ConfigError: an existing plan has another key (changed parameters need a new store).
        InputError: a name occurs twice, or its content changed since it was labelled.
    """
    if images_per_shard < 1:
        raise ConfigError(f"images_per_shard must be at least 1, got {images_per_shard}")
    if any(plan.key != key for plan in existing):
        raise ConfigError(
            "the existing shards were made with other parameters or another teacher", hint="use a new store"
        )
    known = {n: h for plan in existing for n, h in zip(plan.names, plan.image_sha256s, strict=True)}
    new: dict[str, str] = {}
    for name, sha256 in images:
        if name in new:
            raise InputError(f"image name {name!r} occurs twice", hint="names must be unique in a store")
        new[name] = sha256
    for name in sorted(known.keys() & new.keys()):
        if known[name] != new[name]:
            raise InputError(
                f"image {name!r} has changed since it was labelled (sha256 {new[name]}, labelled {known[name]})",
                hint="give it a new name, or label into a new store",
            )
    # Sorted by name: the plan does not depend on the order in which a folder was listed.
    fresh = sorted(new.keys() - known.keys())
    first = max(first, 1 + max((plan.index for plan in existing), default=-1))
    parts = [tuple(fresh[i : i + images_per_shard]) for i in range(0, len(fresh), images_per_shard)]
    appended = [ShardPlan(first + i, part, tuple(new[n] for n in part), key) for i, part in enumerate(parts)]
    return [*existing, *appended]


def receipt_path(store: Path, plan: ShardPlan) -> Path:
    """Where the receipt of a planned shard lies."""
    return store / files.RECEIPTS / f"{plan.stem}.json"


def read_receipt(store: Path, plan: ShardPlan) -> dict[str, Any]:
    """Receipt of a planned shard; missing, damaged or of another plan is a StoreError."""
    receipt = sealed.read(receipt_path(store, plan))
    if receipt.get("plan_sha256") != plan.digest or receipt.get("version") != files.VERSION:
        raise StoreError(f"{receipt_path(store, plan)}: belongs to another plan")
    return receipt


class ImageFacts(TypedDict, total=False):
    """What a store keeps of an image besides its maps; absent entries are "".

    `city` is the unit in which shift is measured: a city, a camera or a drive. `image_path` and `coarse_path` are
    paths of the image and of its human label, relative to their root. `image_sha256` is the content hash of the image
    file.
    """

    city: str
    image_path: str
    coarse_path: str
    image_sha256: str


class ShardWriter:
    """Writes one planned shard. Images come in the order of the plan; `close` acknowledges the shard.

    Args:
        store, plan: folder of the store, and what belongs into this shard.
        classes, codec: class table, default: Cityscapes; "png" or "webp".
        kind: "raw", or "thresholded" for final labels. Those have a `source` map too.
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
        kind: Kind = "raw",
        codec: Codec = "png",
        streaming: bool = False,
    ) -> None:
        self.root, self.plan, self.kind = Path(store), plan, kind
        self._codec, self._classes = codec, classes or cityscapes()
        self._streaming = streaming
        self._facts = {"version": files.VERSION, "kind": kind, "codec": codec, "classes_sha256": self._classes.digest()}
        self._lock = FileLock(
            self.root / files.LOCKS / f"{plan.stem}.lock", what=f"{plan.stem} of {self.root}"
        ).acquire()
        try:
            # Once a process: walking the folder for each of thousands of shards would be quadratic.
            if self.root.resolve() not in _swept:
                sweep(self.root)
            about = {"format": files.FORMAT, **self._facts, "key": plan.key}
            self._schema = files.shard_schema(kind, {b"hmsa": canonical_json(about)})
            # Images are compressed already; statistics only where a reader searches.
            path = self.root / f"{plan.stem}.parquet"
            self._sink = files.ParquetSink(path, self._schema, compression="none", statistics=["name"])
        except BaseException:
            self._lock.release()
            raise
        self._histograms: list[tuple[str, Histogram]] = []
        self._rows: list[dict[str, Any]] = []
        self._skipped: list[dict[str, str]] = []
        self.notes: dict[str, Any] = {}  # any JSON object; goes into the receipt

    def add(
        self,
        name: str,
        label: UInt8,
        confidence: NDArray[np.floating],
        *,
        coarse: UInt8 | None = None,
        **facts: Unpack[ImageFacts],
    ) -> None:
        """Append the plan's next image; a wrong name, digest, type, shape or id is an InputError.

        Args:
            label: uint8 HxW trainIds or 255.
            confidence: float32 HxW, top probability of the label, in [0, 1].
            coarse: uint8 HxW trainIds of the human label, only counted (conflicts), not stored.
        """
        self.add_coded(name, label, _CODE.encode(confidence), coarse=coarse, **facts)

    def add_coded(
        self,
        name: str,
        label: UInt8,
        code: UInt8,
        *,
        source: UInt8 | None = None,
        coarse: UInt8 | None = None,
        **facts: Unpack[ImageFacts],
    ) -> None:
        """Append one image whose confidences are codes already; see `add`. `source`: SOURCES of a thresholded store."""
        maps = self._check(name, label, code, source, coarse)
        row: dict[str, Any] = {
            **dict.fromkeys(("city", "image_path", "coarse_path"), ""),
            **facts,
            "name": name,
            "height": label.shape[0],
            "width": label.shape[1],
            "image_sha256": self._check_plan(name, facts.get("image_sha256", "")),
        }
        encoded = {column: files.encode(value, column, self._codec) for column, value in maps.items()}
        digests = {f"{c}_sha256": hashlib.sha256(data).hexdigest() for c, data in encoded.items()}
        values = {**row, **encoded, **digests}
        self._sink.append(pa.table({n: [values[n]] for n in self._schema.names}, schema=self._schema))
        self._histograms.append((name, count(label, code, coarse)))
        self._rows.append(row)

    def skip(self, name: str, reason: str) -> None:
        """Leave out the plan's next image; name and reason are kept in receipt and manifest."""
        self._check_plan(name, "")
        self._skipped.append({"name": name, "reason": reason})

    def _check(
        self, name: str, label: UInt8, code: UInt8, source: UInt8 | None, coarse: UInt8 | None
    ) -> dict[str, UInt8]:
        """The maps to be stored, by column."""
        _check_shapes(name, label, code)
        if (source is not None) != (self.kind == "thresholded"):
            raise InputError(f"{name}: a source map belongs to a thresholded store, and only there")
        maps = {"label": label, "confidence": code, "source": source, "coarse": coarse}
        given = {what: array for what, array in maps.items() if array is not None}
        for what, array in given.items():
            if array.dtype != np.uint8 or array.shape != label.shape:
                raise InputError(f"{name}: {what} must be uint8 {label.shape}, got {array.dtype} {array.shape}")
        for what in ("label", "coarse"):
            if what in given:
                _check_ids(name, what, given[what], self._classes)
        return {what: np.ascontiguousarray(array) for what, array in given.items() if what != "coarse"}

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
            sidecar = write_sidecar(self.root / SIDECAR / f"{self.plan.stem}.parquet", self.root, self._histograms)
            receipt = {
                "format": RECEIPT_FORMAT,
                **self._facts,
                "plan": self.plan.to_json(),
                "plan_sha256": self.plan.digest,
                "shard": asdict(shard),
                "sidecar": asdict(sidecar),
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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
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


def _check_shapes(name: str, label: UInt8, other: NDArray[Any]) -> None:
    if not name or not is_plain_name(name):
        raise InputError(f"image name {name!a} is empty, or holds control characters or bytes that are no UTF-8")
    for what, array in (("label", label), ("confidence", other)):
        if not isinstance(array, np.ndarray):
            raise InputError(f"{name}: {what} must be a numpy array, got {type(array).__name__}")
    if label.dtype != np.uint8 or label.ndim != 2 or 0 in label.shape:
        raise InputError(f"{name}: label must be uint8 HxW, got {label.dtype} {label.shape}")
    if other.shape != label.shape:
        raise InputError(f"{name}: confidence is {other.shape} but the label is {label.shape}")


def _check_ids(name: str, what: str, ids: UInt8, classes: ClassTable) -> None:
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

    Done is checked again under the lock: its last owner may have finished it a moment ago.
    """
    try:
        writer = None if shard_done(store, plan) else ShardWriter(store, plan, **options)
    except LockedError:
        return None
    if writer is not None and shard_done(store, plan):
        writer.abort()
        return None
    return writer


def shard_done(store: str | Path, plan: ShardPlan) -> bool:
    """Whether this very plan is acknowledged and its files are whole (all bytes are read)."""
    root = Path(store)
    try:
        receipt = read_receipt(root, plan)
    except StoreError:
        return False
    records = [FileRecord(**receipt[part]) for part in ("shard", "sidecar")]
    return all((root / r.file).is_file() and sha256_file(root / r.file) == r.sha256 for r in records)


def is_acknowledged(store: str | Path, plan: ShardPlan) -> bool:
    """Whether this plan has its receipt; files are not looked at."""
    try:
        read_receipt(Path(store), plan)
    except StoreError:
        return False
    return True


def withdraw(store: str | Path, plan: ShardPlan) -> None:
    """Take a shard's receipt away: the shard is to be made again."""
    path = receipt_path(Path(store), plan)
    if path.is_file():
        atomic.ops.unlink(path)
