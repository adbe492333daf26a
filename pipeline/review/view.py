"""One label store as the inspector sees it: statistics, maps of an image, its picture and human label."""

from __future__ import annotations

import copy
import os
import threading
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import HmsaError, InputError
from hmsa_core.io.records import stamp_of
from hmsa_core.labels.store.codes import NUM_CODES, ConfidenceCode
from hmsa_core.labels.store.format import MANIFEST, FileRecord, encode, read_manifest, read_table
from hmsa_core.labels.store.reader import LabelStore
from hmsa_core.labels.store.sidecar import StoreStatistics
from hmsa_core.taxonomy import IGNORE
from pipeline.review.pictures import Pictures, middle

UInt8 = NDArray[np.uint8]
_OPEN_SHARDS = 4  # per thread
_MINI_WIDTH = 176  # pixels of a thumbnail's label map
# Edges at which the spread of confidence is sampled: enough to order images, few enough to read at once.
DOUBT_EDGES = ("0.3", "0.5", "0.7", "0.8", "0.9", "0.95", "0.99", "0.999")


def codes_of_one(count: int, class_id: int, code: int) -> NDArray[np.int64]:
    """Codes of `count` classes that withhold all but one."""
    codes = np.full(count, NUM_CODES)
    codes[class_id] = code
    return codes


def _read_only(label: UInt8, code: UInt8) -> tuple[UInt8, UInt8]:
    for plane in (label, code):
        plane.flags.writeable = False
    return label, code


class StaleError(HmsaError):
    """The labels on the disk, or the requested ones, are no longer those that were opened."""


class StoreView:
    """A store opened for looking at: thread-safe, constant memory.

    Args:
        path: folder of the store.
        images: root that `image_path` and `coarse_path` of the store are relative to, or None.

    Raises:
        StoreError: no store there, or its manifest is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, images: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.statistics = StoreStatistics(self.path, self.manifest)
        self.classes, self.kind = self.statistics.classes, str(self.manifest["kind"])
        self.lineage: dict[str, Any] = self.manifest["lineage"]
        self.digest = str(self.manifest["digest"])
        self._stamp = stamp_of(self.path / MANIFEST)
        self.pictures = Pictures(
            images, self.info, self.classes, lambda: list(self.statistics.images["image_path"].to_pylist())
        )
        self._local = threading.local()
        self._lock = threading.RLock()
        # A question is drawn, shown and answered on the same maps; four are those of the questions that come next.
        self._read = lru_cache(maxsize=4)(lambda name: _read_only(*self._reader.read(name)))
        self._kept = lru_cache(maxsize=4)(lambda codes: self.statistics.kept(np.frombuffer(codes, np.int64)))

    @cached_property
    def _store(self) -> LabelStore:
        # Opened at first use: opening looks at every shard, which figures from the sidecar do not need.
        with self._lock:
            store = LabelStore(self.path, self.manifest)
            store.look()
            return store

    @property
    def problems(self) -> list[str]:
        """Faults of the store's files, as far as sizes and footers show them."""
        return [str(problem) for problem in self._store.problems]

    @property
    def name(self) -> str:
        """Name of the store's folder."""
        return self.path.resolve().name

    @property
    def names(self) -> list[str]:
        """Names of all images in order."""
        return self.statistics.names

    def __contains__(self, name: object) -> bool:
        return name in self._positions

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.statistics.names)}

    def position(self, name: str) -> int:
        """Number of an image; an unknown name is an InputError."""
        if name not in self._positions:
            raise InputError(f"no image named {name!r} in this store")
        return self._positions[name]

    def info(self, name: str) -> dict[str, Any]:
        """City, paths and size of an image."""
        row = self.position(name)
        with self._lock:
            table = self.statistics.images
        return {n: table[n][row].as_py() for n in ("city", "image_path", "coarse_path", "height", "width")}

    @cached_property
    def _digests(self) -> dict[str, str]:
        return LabelStore(self.path, self.manifest).pictures()

    def image_digests(self) -> dict[str, str]:
        """SHA-256 of each image's file, read at first use."""
        with self._lock:
            return self._digests

    def is_served(self, name: str) -> bool:
        """Whether the image's shard passed the checks at opening."""
        return self._store.is_served(name)

    # --- counts -------------------------------------------------------------------------------------

    def kept(self, codes: NDArray[np.integer] | int) -> NDArray[np.int64]:
        """Kept pixels, int64 (N, C), under one code per class; the last few answers are remembered."""
        wanted = np.broadcast_to(np.asarray(codes, np.int64), (self.classes.num_classes,))
        with self._lock:
            return self._kept(wanted.tobytes())

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Pixels of each image and class whatever their confidence, int64 (N, C)."""
        with self._lock:
            return self.statistics.kept(0)

    @cached_property
    def totals(self) -> NDArray[np.int64]:
        """Pixels of each class and code over the whole store, int64 (C, 256)."""
        with self._lock:
            return self.statistics.totals()

    @cached_property
    def pixels(self) -> NDArray[np.int64]:
        """Pixels of each image, ignored ones included, int64 (N,)."""
        with self._lock:
            return self.statistics.pixels

    @cached_property
    def doubt(self) -> NDArray[np.float32]:
        """Sum of (1 - confidence) of each image and class, float32 (N, C), by trapezoids over DOUBT_EDGES."""
        grid = [0.0, *(float(edge) for edge in DOUBT_EDGES), 1.0]
        with self._lock:
            above = [self.predicted, *(self.statistics.kept(ConfidenceCode().code_for(e)) for e in DOUBT_EDGES)]
        sure = np.zeros(self.predicted.shape, np.float64)
        for i, width in enumerate(np.diff(grid)):
            sure += width * (above[i] + (above[i + 1] if i + 1 < len(above) else 0)) / 2
        return np.asarray(self.predicted - sure, np.float32)

    @cached_property
    def has_human(self) -> bool:
        """Whether human labels were known when the store was written."""
        with self._lock:
            return bool(self.statistics.pairs()[:-1].sum())

    def conflict(self, codes: NDArray[np.integer]) -> NDArray[np.int64]:
        """Kept pixels of each image and class that contradict the human label, int64 (N, C)."""
        counts = np.zeros((len(self.statistics), self.classes.num_classes), np.int64)
        if not self.has_human:
            return counts
        need = np.full(256, NUM_CODES, np.int64)
        need[: len(codes)] = codes
        first = 0
        for shard in self.manifest["shards"]:
            record = FileRecord(**shard["sidecar"])
            table = read_table(self.path / record.file, record, ["row", "class", "human", "code", "pixels"])
            row, ids, human, code, pixels = (table[i].to_numpy() for i in range(5))
            hit = (human != IGNORE) & (ids != IGNORE) & (human != ids) & (code >= need[ids])
            np.add.at(counts, (first + row[hit].astype(np.int64), ids[hit]), pixels[hit])
            first += shard["rows"]
        return counts

    def check_current(self) -> None:
        """Refuse to mix labels: of a replaced store, some open files may be old and others new.

        Raises:
            StaleError: the store was made anew, or is being made anew.
        """
        stamp = stamp_of(self.path / MANIFEST)
        if stamp == self._stamp:
            return
        if stamp is not None and str(read_manifest(self.path)["digest"]) == self.digest:
            self._stamp = stamp
            return
        raise StaleError(
            f"{self.path}: made anew since this server opened it",
            hint="start `autolabel serve` again and load the page",
        )

    # --- maps and pictures --------------------------------------------------------------------------

    @property
    def _reader(self) -> LabelStore:
        # Threads cannot share open Parquet files: each thread has a copy of the store. A copy keeps few files
        # open, because the footers of hundreds of shards are what would make the server grow.
        if not hasattr(self._local, "store"):
            self._local.store = copy.copy(self._store)
            self._local.store.open_files = _OPEN_SHARDS
        return self._local.store  # type: ignore[no-any-return]  # thread-local attributes are Any

    def read(self, name: str) -> tuple[UInt8, UInt8]:
        """Label and confidence code of an image (uint8 HxW each, read-only); damage is a StoreError."""
        self.check_current()
        return self._read(name)

    def plane_png(self, name: str, plane: str) -> bytes:
        """A map of an image as 8-bit grey PNG: "label", "confidence" or "human"."""
        if plane == "human":
            return encode(self.pictures.human(name), "label", "png")
        planes = ("label", "confidence")
        if plane not in planes:
            raise InputError(f"plane {plane!r}: expected label, confidence or human")
        return encode(dict(zip(planes, self.read(name), strict=True))[plane], plane, "png")

    def mini_png(self, name: str) -> bytes:
        """Label above code, every k-th pixel of the middle, as one grey PNG: the thumbnail that follows the slider."""
        planes = [plane[middle(plane)] for plane in self.read(name)]
        height, width = planes[0].shape
        step = -(-width // _MINI_WIDTH)
        # Start in the middle of the first step, or of an image smaller than one step: some pixel is always left.
        y, x = min(step, height) // 2, min(step, width) // 2
        small = [np.ascontiguousarray(plane[y::step, x::step]) for plane in planes]
        return encode(np.concatenate(small), "label", "png")
