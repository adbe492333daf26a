"""Images in, shards out: a thread reads ahead, the model runs in the caller's thread, a thread writes.

Each of the two queues holds two images at most, so memory stays flat whatever is the slowest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmsa_core.config import InferConfig
from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Sample
from hmsa_core.inference.predictor import Tiler
from hmsa_core.io.errors import DecodeError, IntegrityError
from hmsa_core.labels.store.shards import ShardPlan, ShardWriter
from hmsa_core.taxonomy import ClassTable

__all__ = ["Pipeline", "Timing"]

_AHEAD = 2  # images read before they are needed, and images waiting to be written
UInt8 = NDArray[np.uint8]


@dataclass
class Timing:
    """Seconds of the caller's thread: in the model, waiting for images, waiting for the writer."""

    model: float = 0.0
    read_wait: float = 0.0
    write_wait: float = 0.0

    def __add__(self, other: Timing) -> Timing:
        return Timing(self.model + other.model, self.read_wait + other.read_wait, self.write_wait + other.write_wait)

    @property
    def model_share(self) -> float:
        """Share of the time that was spent in the model."""
        total = self.model + self.read_wait + self.write_wait
        return self.model / total if total else 1.0


@dataclass(frozen=True)
class _Item:
    """One decoded image with what the store records of it, or the reason why there is none."""

    sample: Sample
    image: UInt8 | None
    coarse: UInt8 | None
    reason: str = ""


class Pipeline:
    """Labels the images of planned shards.

    Args:
        store: folder of the raw label store.
        samples: the selected images by name.
        root: folder that their paths are relative to.
        tiler: labels one image.
        config: scales, flip, codec.
        classes: classes of the labels.
        coarse_classes: classes of human coarse labels, which are counted against ours; None = not counted.
        limit: images that may be skipped.
    """

    def __init__(
        self,
        store: Path,
        samples: dict[str, Sample],
        root: Path,
        tiler: Tiler,
        config: InferConfig,
        classes: ClassTable,
        *,
        coarse_classes: ClassTable | None,
        limit: int,
    ) -> None:
        self._store, self._samples, self._root, self._tiler = store, samples, root, tiler
        self._config, self._classes, self._coarse_classes = config, classes, coarse_classes
        self._limit = limit
        self.images = 0
        self.skipped: list[dict[str, str]] = []
        self.timing = Timing()

    def run(
        self,
        plans: list[ShardPlan],
        *,
        check_stop: Callable[[], None],
        advance: Callable[[], None],
        log: Callable[..., None],
    ) -> None:
        """Label all images of these shards; a shard appears when its last image is written."""
        with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as writer:
            ahead = self._read_ahead(plans, reader)
            for plan in plans:
                self._shard(plan, ahead, writer, check_stop, advance)
                log("shard", shard=plan.stem, images=len(plan.names))

    def _read_ahead(self, plans: list[ShardPlan], reader: ThreadPoolExecutor) -> Iterator[_Item]:
        waiting: deque[Future[_Item]] = deque()
        for plan in plans:
            for name in plan.names:
                waiting.append(reader.submit(self._read, self._samples[name]))
                if len(waiting) > _AHEAD:
                    yield self._next(waiting)
        while waiting:
            yield self._next(waiting)

    def _next(self, waiting: deque[Future[_Item]]) -> _Item:
        start = time.perf_counter()
        item = waiting.popleft().result()
        self.timing.read_wait += time.perf_counter() - start
        return item

    def _read(self, sample: Sample) -> _Item:
        try:
            image = read_image(self._root / sample.image, sha256=sample.image_sha256)
            coarse = None
            if sample.coarse and self._coarse_classes is not None:
                coarse = read_label(self._root / sample.coarse, self._coarse_classes, sha256=sample.coarse_sha256)
                if coarse.shape != image.shape[:2]:
                    raise DecodeError(f"{sample.coarse}: size differs from {sample.image}", reason="size-mismatch")
        except DecodeError as error:
            return _Item(sample, None, None, f"{error.reason}: {error.message}")
        except IntegrityError as error:
            return _Item(sample, None, None, f"changed: {error.message}")
        return _Item(sample, image, coarse)

    def _shard(
        self,
        plan: ShardPlan,
        items: Iterator[_Item],
        writer: ThreadPoolExecutor,
        check_stop: Callable[[], None],
        advance: Callable[[], None],
    ) -> None:
        shard = ShardWriter(self._store, plan, classes=self._classes, codec=self._config.codec)
        waiting: deque[Future[None]] = deque()
        try:
            for _ in plan.names:
                check_stop()
                item = next(items)
                waiting.append(self._label(item, shard, writer))
                if len(waiting) > _AHEAD:
                    self._wait(waiting)
                advance()
            while waiting:
                self._wait(waiting)
        except BaseException:
            for task in waiting:
                task.cancel()
            # The writer's thread may be inside of the shard: it must be out before the shard is thrown away.
            writer.submit(lambda: None).result()
            shard.abort()
            raise
        start = time.perf_counter()
        shard.close()
        self.timing.write_wait += time.perf_counter() - start

    def _label(self, item: _Item, shard: ShardWriter, writer: ThreadPoolExecutor) -> Future[None]:
        sample = item.sample
        if item.image is None:
            self._skip(sample.name, item.reason)
            return writer.submit(shard.skip, sample.name, item.reason)
        start = time.perf_counter()
        label, confidence = self._tiler.label(item.image, self._config.scales, self._config.flip)
        self.timing.model += time.perf_counter() - start
        self.images += 1
        return writer.submit(
            shard.add,
            sample.name,
            label,
            confidence,
            city=sample.city,
            image_path=sample.image,
            coarse_path=sample.coarse,
            image_sha256=sample.image_sha256,
            coarse=item.coarse,
        )

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append({"name": name, "reason": reason})
        if len(self.skipped) > self._limit:
            raise IntegrityError(
                f"{len(self.skipped)} images cannot be labelled, more than {self._limit}; the first: "
                f"{self.skipped[0]['name']}: {self.skipped[0]['reason']}",
                hint="restore the files, or run `prepare` again if they were changed on purpose",
            )

    def _wait(self, waiting: deque[Future[None]]) -> None:
        start = time.perf_counter()
        waiting.popleft().result()
        self.timing.write_wait += time.perf_counter() - start
