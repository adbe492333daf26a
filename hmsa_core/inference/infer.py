"""Label images with a teacher into a raw label store: resumable, the same bytes on any number of ranks.

Every image is labelled on its own, so its bytes depend on nothing but its pixels and the store's key. Rank 0
plans shards (`work/plan.json`: appended for new images, never reordered). Each rank claims the next shard that is
free when it comes to it, by a lock that the kernel takes back from a process that dies. Fast ranks label more, and
a lost one's shard is labelled by another. Reading and writing overlap with the model in threads; on a GPU the next
image begins before the last one's labels are there. An image whose bytes differ from the index is not labelled: it
is listed as skipped, and too many of them end the run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from hmsa_core import __version__
from hmsa_core.config import InferConfig
from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index, Sample
from hmsa_core.inference.options import MAX_SKIPPED
from hmsa_core.inference.teachers.sources import digest_of
from hmsa_core.inference.teachers.teacher import Teacher, open_teacher
from hmsa_core.io.atomic import digest, read_json, sha256_file, write_json
from hmsa_core.io.engine import Engine
from hmsa_core.io.errors import ConfigError, DecodeError, IntegrityError
from hmsa_core.io.remote import ahead, fetched
from hmsa_core.labels.store.remote import RemoteStore
from hmsa_core.labels.store.shards import (
    ShardPlan,
    ShardWriter,
    claim_shard,
    is_acknowledged,
    leave,
    plan_shards,
    read_receipt,
    shard_done,
    sweep,
    withdraw,
)
from hmsa_core.labels.store.writer import write_manifest
from hmsa_core.runtime.ranks import JobContext, start_ranks
from hmsa_core.spec import InferSpec
from hmsa_core.taxonomy import ClassTable

_BESIDE_GONE = (
    "; it can be read now, but labels beside it in its shard are of images that are gone or have changed: "
    "label it into another store"
)
# Note of a receipt and entry of `summary.json`: images that did not fit into memory as their size would have them run,
# with the side in pixels of the tiles that did (see `Tiler.forced`). Labels near the tiles' borders can differ.
TILED = "tiled"
_READERS = 8  # threads a rank that read finished shards at the start
_POLL_S = 0.5  # between looks at the shards that other processes hold
_AHEAD = 2  # images read before they are needed, and images waiting to be written
_METHOD = 1  # raise it when inference computes something else: older labels are then not mixed with newer ones
UInt8 = NDArray[np.uint8]


T = TypeVar("T")
U = TypeVar("U")


def read_ahead(sources: Iterable[T], read: Callable[[T], U]) -> Generator[U]:
    """Read sources in a second thread, up to `_AHEAD` ahead of the caller, whose thread iterates over `sources`."""
    with ThreadPoolExecutor(1, "reader") as reader:
        waiting: deque[Future[U]] = deque()
        for source in sources:
            waiting.append(reader.submit(read, source))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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


@dataclass
class Summary:
    """What all ranks did; `work/summary.json`."""

    images: int = 0  # labelled by this run
    resumed: int = 0  # found labelled by an earlier run
    skipped: list[dict[str, str]] = field(default_factory=list)  # by any run; rank 0 knows them
    tiled: dict[str, int] = field(default_factory=dict)  # by any run, see `TILED`; rank 0 knows them
    timing: Timing = field(default_factory=Timing)


def run(spec: InferSpec, context: JobContext) -> Summary:
    """Label the selected images into `work/store`; see the module's first lines.

    Raises:
        ConfigError: `work` holds labels made with other parameters, or classes do not fit.
        IntegrityError: more images are damaged than `MAX_SKIPPED` allows.
        InterruptedRunError: a stop was asked for; finished shards stay.
    """
    start = time.monotonic()
    pipeline = _open(spec, context)
    teacher, classes, store, target = pipeline.teacher, pipeline.classes, pipeline.store, pipeline.target
    lineage = _lineage(spec, teacher, context) if context.is_main else {}
    if context.is_main:
        sweep(store)  # before any rank opens a shard: other nodes' processes cannot be told from dead ones
    key = context.ranks.broadcast(_key(lineage, classes, spec.config.codec) if context.is_main else "")
    whole = _whole(spec, key, context) if target is None else set()
    plans, pending = context.ranks.broadcast(_plan(spec, key, pipeline, whole) if context.is_main else None) or ([], [])
    leave(store)
    _work(spec, pipeline, pending, context)
    done = context.ranks.gather((pipeline.images, pipeline.timing))
    resumed = sum(len(p.names) for p in plans) - sum(len(p.names) for p in pending)
    summary = Summary(sum(n for n, _ in done), resumed, timing=sum((t for _, t in done), Timing()))
    if context.is_main:
        if target is not None:
            target.collect(plans)
        if spec.engine == "ray":
            summary.images = sum(len(read_receipt(store, plan)["rows"]) for plan in pending)
        summary.skipped = _skipped(store, plans, pipeline.samples, pipeline.root)
        _check_skipped(summary.skipped, len(pipeline.samples))
        summary.tiled = _tiled(store, plans)
        sha256 = write_manifest(store, plans, lineage, classes=classes)
        if target is not None:
            target.publish()
        write_json(spec.work / "summary.json", _summary_json(summary, time.monotonic() - start))
        context.log.write("done", manifest=sha256, **_summary_json(summary, time.monotonic() - start))
    return summary


def _open(spec: InferSpec, context: JobContext) -> Pipeline:
    """Open index and teacher on this process's device."""
    index = Index.load(spec.selection.index)
    selected = index.select(**spec.selection.model_dump(exclude={"index"}))
    wanted = ClassTable.from_json(spec.classes) if spec.classes else index.classes
    teacher = open_teacher(spec.teacher, spec.config, wanted, context)
    classes = teacher.classes
    teacher.check([sample.name for sample in selected])
    return Pipeline(
        spec.work / "store",
        {s.name: s for s in selected},
        spec.roots[index.root],
        teacher,
        spec.config,
        classes,
        coarse_classes=index.classes if index.classes.classes == classes.classes else None,
        limit=_limit(len(selected)),
        target=RemoteStore(spec.target, spec.work) if spec.target else None,
    )


def _work(spec: InferSpec, pipeline: Pipeline, pending: list[ShardPlan], context: JobContext) -> None:
    total = sum(len(plan.names) for plan in pending)
    if not total:
        return
    with context.progress(total, what="infer") as progress:
        if spec.engine == "local":
            pipeline.run(pending, check_stop=context.check_stop, advance=progress.update, log=context.log.write)
            return
        with closing(_on_ray(spec, pipeline.teacher.precision, pending, context)) as made:
            for plan, timing in zip(pending, made, strict=True):
                pipeline.timing += timing
                progress.update(len(plan.names))
                context.log.write("shard", shard=plan.stem, images=len(plan.names))


@dataclass
class _Worker:
    """Labels planned shards in a process of Ray, which assigns the shards; there is no contact with other ranks."""

    spec: InferSpec
    precision: str
    pipeline: Pipeline | None = None  # opened for the first shard; it does not travel

    def __call__(self, plan: ShardPlan) -> Timing:
        pipeline = self.pipeline = self.pipeline or self._opened()
        if pipeline.target is not None:
            if pipeline.target.has(plan):
                return Timing()
            withdraw(pipeline.store, plan)  # of a process that died before it could hand the shard in
        pipeline.timing = Timing()
        pipeline.run([plan], check_stop=lambda: None, advance=lambda _count: None, log=lambda *_, **__: None)
        return pipeline.timing

    def _opened(self) -> Pipeline:
        runtime = self.spec.config.runtime
        pipeline = _open(self.spec, JobContext(self.spec.work, start_ranks(runtime, {}), runtime))
        if pipeline.teacher.precision != self.precision:
            raise ConfigError(
                f"a worker of Ray computes in {pipeline.teacher.precision}, this process in {self.precision}",
                hint="set the precision to one that all machines have, such as fp32",
            )
        leave(pipeline.store)
        return pipeline


def _on_ray(spec: InferSpec, precision: str, pending: list[ShardPlan], context: JobContext) -> Generator[Timing]:
    """The time that each shard took, once it is done."""
    threads, device = context.runtime.thread_count, context.device.type
    runtime = spec.config.runtime.model_copy(update={"threads": threads, "device": device})
    worker = _Worker(spec.model_copy(update={"config": spec.config.model_copy(update={"runtime": runtime})}), precision)
    on_gpu = device == "cuda"
    engine = Engine("ray", runtime.ranks, 1 if on_gpu else threads, int(on_gpu))
    # Ray ends a process that had a GPU after each batch. With some shards in it, the teacher is opened less often.
    batch = max(1, min(8, len(pending) // (4 * runtime.ranks))) if on_gpu else 1
    return engine.map(worker, pending, what="labels images", batch=batch, check_stop=context.check_stop)


def _lineage(spec: InferSpec, teacher: Teacher, context: JobContext) -> dict[str, Any]:
    config = spec.config
    return {
        **spec.lineage,
        "teacher": digest_of(teacher.sources),
        "scales": sorted(config.scales),
        "flip": config.flip,
        "precision": teacher.precision,
        "code_version": __version__,
        "parameters": {
            "kind": teacher.kind,
            "method": _METHOD,
            "codec": config.codec,
            "images_per_shard": config.images_per_shard,
            "device": context.device.type,
            "threads": context.runtime.thread_count,
            **({"teachers": facts} if (facts := teacher.facts()) else {}),
        },
    }


def _key(lineage: dict[str, Any], classes: ClassTable, codec: str) -> str:
    """Digest of what determines a label. Device and threads may move last bits; they are only recorded."""
    made_by = {name: lineage[name] for name in ("teacher", "scales", "flip", "precision")}
    kind = lineage["parameters"]["kind"]
    if kind in ("average", "max"):  # the same weights as `single`, so the same digest of the teacher
        made_by["kind"] = kind
    return digest({**made_by, "method": _METHOD, "codec": codec, "classes": classes.digest()})


def _planned(spec: InferSpec) -> list[ShardPlan]:
    path = spec.work / "plan.json"
    return [ShardPlan.from_json(p) for p in read_json(path)["shards"]] if path.exists() else []


def _whole(spec: InferSpec, key: str, context: JobContext) -> set[int]:
    """Numbers of the shards of earlier runs whose bytes are those of their receipts; each rank reads its share.

    Times of files prove nothing (restored files carry any time), so all bytes are read: by all ranks, in threads.
    """
    planned = context.ranks.broadcast(_planned(spec) if context.is_main else [])
    mine = [plan for plan in planned if plan.key == key][context.rank :: context.world]
    with ThreadPoolExecutor(_READERS, "checker") as pool:
        good = list(pool.map(lambda plan: shard_done(spec.work / "store", plan), mine))
    found = [plan.index for plan, is_good in zip(mine, good, strict=True) if is_good]
    return {index for part in context.ranks.gather(found) for index in part}


def _plan(spec: InferSpec, key: str, pipeline: Pipeline, whole: set[int]) -> tuple[list[ShardPlan], list[ShardPlan]]:
    """All shards, and those that are still to do. The plan is on disk before the first image is labelled."""
    existing, store, target, by_name = _planned(spec), pipeline.store, pipeline.target, pipeline.samples
    wanted = {name: s.image_sha256 for name, s in by_name.items()}
    if any(plan.key != key for plan in existing):
        raise ConfigError(
            f"{spec.work} holds labels of another teacher, scales, flip, precision, codec or classes",
            hint="use another folder: labels made in different ways are never mixed",
        )
    done = (
        target.finished(existing)
        if target is not None
        else {plan.index for plan in existing if plan.index in whole and _stays(store, plan, by_name, pipeline.root)}
    )
    # A shard that was never finished and whose images are gone cannot be made any more.
    kept = [p for p in existing if p.index in done or all(wanted.get(n) == h for n, h in _images(p))]
    # Other writers at an address may know the shards that are dropped: their numbers are not used again.
    first = 1 + max((p.index for p in existing), default=-1) if target is not None else 0
    plans = plan_shards(kept, wanted.items(), spec.config.images_per_shard, key, first=first)
    for plan in kept:
        if plan.index not in done:  # from now on a receipt says that some rank of this run has made the shard
            withdraw(store, plan)
    path = spec.work / "plan.json"
    write_json(path, {"format": "hmsa-infer-plan", "version": 1, "shards": [p.to_json() for p in plans]})
    if target is not None:
        target.plan()
        done = target.finished(plans)
    return plans, [plan for plan in plans if plan.index not in done]


def _images(plan: ShardPlan) -> list[tuple[str, str]]:
    return list(zip(plan.names, plan.image_sha256s, strict=True))


def _stays(store: Path, plan: ShardPlan, samples: dict[str, Sample], root: Path) -> bool:
    """Whether a finished shard stays. One with skipped images is made again when one of them was restored.

    It is not made again when an image that it labelled is gone or has changed: that label could not be made again.
    """
    skipped = {row["name"] for row in read_receipt(store, plan)["skipped"]}
    if any(
        name not in samples or samples[name].image_sha256 != sha256
        for name, sha256 in _images(plan)
        if name not in skipped
    ):
        return True
    return not any(_is_intact(samples[name], root) for name in skipped if name in samples)


def _is_intact(sample: Sample, root: Path) -> bool:
    files = [(sample.image, sample.image_sha256), (sample.coarse, sample.coarse_sha256)]
    try:
        return all(sha256_file(fetched(root / path)) == sha256 for path, sha256 in files if path)
    except (OSError, IntegrityError):
        return False


def _limit(images: int) -> int:
    return max(1, int(MAX_SKIPPED * images))


def _skipped(store: Path, plans: list[ShardPlan], samples: dict[str, Sample], root: Path) -> list[dict[str, str]]:
    rows = [row for plan in plans for row in cast("list[dict[str, str]]", read_receipt(store, plan)["skipped"])]
    return [
        {**row, "reason": f"{row['reason']}{_BESIDE_GONE}"}
        if row["name"] in samples and _is_intact(samples[row["name"]], root)
        else row
        for row in rows
    ]


def _tiled(store: Path, plans: list[ShardPlan]) -> dict[str, int]:
    return {k: v for plan in plans for k, v in read_receipt(store, plan)["notes"].get(TILED, {}).items()}


def _check_skipped(skipped: list[dict[str, str]], images: int) -> None:
    if len(skipped) > _limit(images):
        raise IntegrityError(
            f"{len(skipped)} of {images} images cannot be labelled, more than {_limit(images)}; the first: "
            f"{skipped[0]['name']}: {skipped[0]['reason']}",
            hint="restore the files, or run `prepare` again if they were changed on purpose",
        )


def _summary_json(summary: Summary, seconds: float) -> dict[str, Any]:
    return {
        "images": summary.images,
        "resumed": summary.resumed,
        "skipped": summary.skipped,
        TILED: summary.tiled,
        "seconds": round(seconds, 3),
        "timing": {k: round(v, 3) for k, v in asdict(summary.timing).items()},
        "model_share": round(summary.timing.model_share, 4),
    }


@dataclass(frozen=True)
class _Item:
    """One decoded image with what the store records of it, or the reason why there is none."""

    shard: ShardWriter
    sample: Sample
    image: UInt8 | None
    coarse: UInt8 | None
    reason: str = ""


@dataclass
class Pipeline:
    """Labels the images of planned shards."""

    store: Path  # folder of the raw label store
    samples: dict[str, Sample]  # the selected images by name
    root: Path  # folder that their paths are relative to
    teacher: Teacher
    config: InferConfig
    classes: ClassTable
    coarse_classes: ClassTable | None  # of human coarse labels, which are counted against ours; None = not counted
    limit: int  # images that may be skipped
    target: RemoteStore | None = None  # where finished shards are handed in
    images: int = 0  # labelled so far
    skipped: list[dict[str, str]] = field(default_factory=list)
    timing: Timing = field(default_factory=Timing)

    def run(
        self,
        plans: list[ShardPlan],
        *,
        check_stop: Callable[[], None],
        advance: Callable[[int], None],
        log: Callable[..., None],
    ) -> None:
        """Label the images of these shards, with other processes that do the same, until all have their receipts.

        A shard appears when its last image is written. What another process holds is waited for, and taken over
        when that process dies. No plan may have a receipt of an earlier run (`withdraw`).
        """
        left = list(plans)
        while left:
            claims = _Claims(self, left, advance)
            try:
                self._label_claimed(claims, check_stop, advance, log)
            finally:
                claims.abort()
            left = claims.held_by_others
            if left:
                check_stop()
                time.sleep(_POLL_S)

    def _label_claimed(
        self, claims: _Claims, check_stop: Callable[[], None], advance: Callable[[int], None], log: Callable[..., None]
    ) -> None:
        with (
            closing(ahead(claims, self._files)) as here,
            closing(read_ahead(here, self._read)) as items,
            ThreadPoolExecutor(1, "writer") as writer,
            ThreadPoolExecutor(1, "sender") as sender,
        ):
            sent: deque[Future[bool]] = deque()
            for shard, its_items in groupby(items, key=lambda item: item.shard):
                self._shard(shard, its_items, writer, check_stop, advance)
                claims.open.remove(shard)
                log("shard", shard=shard.plan.stem, images=len(shard.plan.names))
                if self.target is not None:
                    sent.append(sender.submit(self.target.send, shard.plan))
                while len(sent) > _AHEAD:
                    sent.popleft().result()
            for task in sent:
                task.result()

    def _files(self, claimed: tuple[ShardWriter, Sample]) -> list[Path]:
        sample = claimed[1]
        coarse = sample.coarse if self.coarse_classes is not None else ""
        return [self.root / path for path in (sample.image, coarse) if path]

    def _read(self, claimed: tuple[ShardWriter, Sample]) -> _Item:
        shard, sample = claimed
        try:
            image = read_image(self.root / sample.image, sha256=sample.image_sha256)
            coarse = None
            if sample.coarse and self.coarse_classes is not None:
                coarse = read_label(self.root / sample.coarse, self.coarse_classes, sha256=sample.coarse_sha256)
                if coarse.shape != image.shape[:2]:
                    raise DecodeError(f"{sample.coarse}: size differs from {sample.image}", reason="size-mismatch")
        except DecodeError as error:
            return _Item(shard, sample, None, None, f"{error.reason}: {error.message}")
        except IntegrityError as error:
            return _Item(shard, sample, None, None, f"changed: {error.message}")
        return _Item(shard, sample, image, coarse)

    def _shard(
        self,
        shard: ShardWriter,
        items: Iterator[_Item],
        writer: ThreadPoolExecutor,
        check_stop: Callable[[], None],
        advance: Callable[[int], None],
    ) -> None:
        """Label one shard's images; one image is begun before the labels of the last one are waited for."""
        begun: deque[Callable[[], Future[None]]] = deque()
        waiting: deque[Future[None]] = deque()
        try:
            for _ in shard.plan.names:
                check_stop()
                start = time.perf_counter()
                item = next(items)
                self.timing.read_wait += time.perf_counter() - start
                begun.append(self._begin(item, writer))
                if len(begun) > 1:
                    waiting.append(begun.popleft()())
                if len(waiting) > _AHEAD:
                    self._wait(waiting)
                advance(1)
            waiting.append(begun.popleft()())
            while waiting:
                self._wait(waiting)
        except BaseException:
            for task in waiting:
                task.cancel()
            # The writer's thread may be inside of the shard: it must be out before the shard is thrown away.
            writer.submit(lambda: None).result()
            raise
        start = time.perf_counter()
        shard.close()
        self.timing.write_wait += time.perf_counter() - start

    def _begin(self, item: _Item, writer: ThreadPoolExecutor) -> Callable[[], Future[None]]:
        """Begin an image; what is returned waits for its labels and gives them to the writer."""
        shard, sample, image = item.shard, item.sample, item.image
        if image is None:
            self._skip(sample.name, item.reason)
            return lambda: writer.submit(shard.skip, sample.name, item.reason)
        start = time.perf_counter()
        labels = self.teacher.begin(sample.name, image)
        self.timing.model += time.perf_counter() - start
        self.images += 1
        if side := self.teacher.forced(image):  # now: the next image may force more
            shard.notes.setdefault(TILED, {})[sample.name] = side

        def write() -> Future[None]:
            start = time.perf_counter()
            label, confidence = labels()
            self.timing.model += time.perf_counter() - start
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

        return write

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append({"name": name, "reason": reason})
        if len(self.skipped) > self.limit:
            raise IntegrityError(
                f"{len(self.skipped)} images cannot be labelled, more than {self.limit}; the first: "
                f"{self.skipped[0]['name']}: {self.skipped[0]['reason']}",
                hint="restore the files, or run `prepare` again if they were changed on purpose",
            )

    def _wait(self, waiting: deque[Future[None]]) -> None:
        start = time.perf_counter()
        waiting.popleft().result()
        self.timing.write_wait += time.perf_counter() - start


class _Claims:
    """The images of each shard that could be claimed, in one round over the plans; each is claimed when it is due."""

    def __init__(self, pipeline: Pipeline, plans: list[ShardPlan], advance: Callable[[int], None]) -> None:
        self.open: list[ShardWriter] = []
        self.held_by_others: list[ShardPlan] = []
        self._pipeline, self._plans, self._advance = pipeline, plans, advance

    def __iter__(self) -> Iterator[tuple[ShardWriter, Sample]]:
        pipeline = self._pipeline
        for plan in self._plans:
            if is_acknowledged(pipeline.store, plan):  # by another process, in this run
                self._advance(len(plan.names))
                continue
            shard = claim_shard(pipeline.store, plan, classes=pipeline.classes, codec=pipeline.config.codec)
            if shard is None:
                self.held_by_others.append(plan)
                continue
            self.open.append(shard)
            yield from ((shard, pipeline.samples[name]) for name in plan.names)

    def abort(self) -> None:
        """Throw away what is not finished, and give the locks back."""
        for shard in self.open:
            shard.abort()
