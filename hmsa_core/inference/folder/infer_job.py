"""Label images with a teacher into a raw label store: resumable, the same bytes on any number of ranks.

Every image is labelled on its own, so its bytes depend on nothing but its pixels and the store's key. Rank 0
plans shards (`work/plan.json`: appended for new images, never reordered). Each rank claims the next shard that is
free by a lock that the kernel takes back from a process that dies; another rank labels that shard then. Reading and
writing overlap with the model in threads. An image whose bytes differ from the index is skipped and listed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from hmsa_core import __version__
from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index, Sample
from hmsa_core.inference.teachers.run_options import MAX_SKIPPED
from hmsa_core.inference.teachers.sources import made_by
from hmsa_core.inference.teachers.teacher import Teacher, open_teacher
from hmsa_core.io.atomic import digest, read_json, sha256_file, write_json
from hmsa_core.io.engine import Engine, read_ahead
from hmsa_core.io.errors import ConfigError, DecodeError, IntegrityError
from hmsa_core.io.remote import ahead, fetched
from hmsa_core.labels.store.remote_store import RemoteStore
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
from hmsa_core.result_keys import METHOD, infer_material
from hmsa_core.runtime.ranks import JobContext
from hmsa_core.spec import InferSpec
from hmsa_core.taxonomy import ClassTable

_TOO_LATE = (
    "; it can be read now, but its shard is finished and cannot be made again: give it a new name, or label it into "
    "another store"
)
# Note of a receipt and entry of `summary.json`: images that did not fit into memory as their size would have them run,
# with the side in pixels of the tiles that did (see `Tiler.forced`). Labels near the tiles' borders can differ.
TILED = "tiled"
_READERS = 8  # threads a rank that read finished shards at the start
_POLL_S = 0.5  # between looks at the shards that other processes hold
_AHEAD = 2  # images waiting to be written
UInt8 = NDArray[np.uint8]


def run(spec: InferSpec, context: JobContext) -> dict[str, Any]:
    """Label the selected images into `work/store`; see the module's first lines.

    Returns:
        The content of `work/summary.json`; on other ranks than the first only `images`, `timing` and `model_share`.

    Raises:
        ConfigError: `work` holds labels made with other parameters, or classes do not fit.
        IntegrityError: more images are damaged than `MAX_SKIPPED` allows.
        InterruptedRunError: a stop was requested; finished shards stay.
    """
    start = time.monotonic()
    pipeline = _open(spec, context)
    store, target, ranks = pipeline.store, pipeline.target, context.ranks
    lineage = _lineage(spec, pipeline.teacher, context) if ranks.is_main else {}
    if ranks.is_main:
        sweep(store)  # before any rank opens a shard: live processes of other nodes look like dead ones
    teacher = pipeline.teacher
    how = {"kind": teacher.kind, "precision": teacher.precision}
    key = digest(infer_material(spec.config, teacher.sources, teacher.classes, **how)) if ranks.is_main else ""
    key = ranks.broadcast(key)
    whole = _whole(spec, key, context) if target is None else set()
    plans, pending = ranks.broadcast(_plan(spec, key, pipeline, whole) if ranks.is_main else None) or ([], [])
    leave(store)
    _work(spec, pipeline, pending)
    done = ranks.gather((pipeline.images, pipeline.timing))
    timing = {name: sum(seconds[name] for _, seconds in done) for name in pipeline.timing}
    summary = {
        "images": sum(count for count, _ in done),  # labelled by this run
        "timing": {name: round(seconds, 3) for name, seconds in timing.items()},
        "model_share": round(timing["model"] / (sum(timing.values()) or 1.0), 4),
    }
    if ranks.is_main:
        if target is not None:
            target.collect(plans)
        if spec.engine == "ray":
            summary["images"] = sum(len(read_receipt(store, plan)["rows"]) for plan in pending)
        skipped = _skipped(pipeline, plans)
        # Of images that are not requested, or are gone, any number may have been left out.
        expected = [row for row in skipped if row["name"] in pipeline.samples]
        _check_skipped(expected, pipeline, f" of {len(pipeline.samples)}")
        earlier = {n for p in plans for n in p.names} - {n for p in pending for n in p.names}
        resumed = len(earlier - {row["name"] for row in skipped})  # labelled by an earlier run
        tiled = {k: v for plan in plans for k, v in read_receipt(store, plan)["notes"].get(TILED, {}).items()}
        summary |= {"resumed": resumed, "skipped": skipped, TILED: tiled}
        sha256 = write_manifest(store, plans, lineage, classes=pipeline.classes)
        if target is not None:
            target.publish()
        summary["seconds"] = round(time.monotonic() - start, 3)
        write_json(spec.work / "summary.json", summary)
        context.log.write("done", manifest=sha256, **summary)
    return summary


def _open(spec: InferSpec, context: JobContext) -> Pipeline:
    """Open index and teacher on this process's device."""
    index = Index.load(spec.selection.index)
    selected = index.select(**spec.selection.filters())
    wanted = ClassTable.from_json(spec.classes) if spec.classes else index.classes
    teacher = open_teacher(spec.teacher, spec.config.passes, wanted, context)
    teacher.check([sample.name for sample in selected])
    return Pipeline(
        context,
        spec.work / "store",
        {s.name: s for s in selected},
        spec.roots[index.root],
        teacher,
        spec.config.codec,
        coarse_classes=index.classes if index.classes.classes == teacher.classes.classes else None,
        target=RemoteStore(spec.target, spec.work) if spec.target else None,
    )


def _work(spec: InferSpec, pipeline: Pipeline, pending: list[ShardPlan]) -> None:
    total, context = sum(len(plan.names) for plan in pending), pipeline.context
    if not total:
        return
    with context.progress(total, what="infer") as progress:
        if spec.engine == "local":
            pipeline.advance = progress.update
            pipeline.run(pending)
            return
        with closing(_on_ray(spec, pipeline.teacher.precision, pending, context)) as made:
            for plan, seconds in zip(pending, made, strict=True):
                for name in seconds:
                    pipeline.timing[name] += seconds[name]
                progress.update(len(plan.names))
                context.log.write("shard", shard=plan.stem, images=len(plan.names))


@dataclass
class _Worker:
    """Labels planned shards in a process of Ray, which assigns the shards; there is no contact with other ranks."""

    spec: InferSpec
    precision: str
    pipeline: Pipeline | None = None  # opened for the first shard; it does not travel

    def __call__(self, plan: ShardPlan) -> dict[str, float]:
        pipeline = self.pipeline = self.pipeline or self._opened()
        pipeline.timing = _no_time()
        if pipeline.target is not None:
            if pipeline.target.has(plan):
                return pipeline.timing
            withdraw(pipeline.store, plan)  # of a process that died before it could hand the shard in
        pipeline.run([plan])
        return pipeline.timing

    def _opened(self) -> Pipeline:
        pipeline = _open(self.spec, JobContext.alone(self.spec.config.runtime))
        if pipeline.teacher.precision != self.precision:
            raise ConfigError(
                f"a worker of Ray computes in {pipeline.teacher.precision}, this process in {self.precision}",
                hint="set the precision to one that all machines have, such as fp32",
            )
        leave(pipeline.store)
        return pipeline


def _on_ray(
    spec: InferSpec, precision: str, pending: list[ShardPlan], context: JobContext
) -> Generator[dict[str, float]]:
    """The time that each shard took, once it is done."""
    threads, device = context.runtime.thread_count, context.ranks.device.type
    runtime = spec.config.runtime.model_copy(update={"threads": threads, "device": device})
    worker = _Worker(spec.model_copy(update={"config": spec.config.model_copy(update={"runtime": runtime})}), precision)
    on_gpu = device == "cuda"
    engine = Engine("ray", runtime.ranks, 1 if on_gpu else threads, int(on_gpu))
    # Ray ends a process that had a GPU after each batch. With some shards in it, the teacher is opened less often.
    batch = max(1, min(8, len(pending) // (4 * runtime.ranks))) if on_gpu else 1
    return engine.map(worker, pending, what="labels images", batch=batch, check_stop=context.stop.check)


def _lineage(spec: InferSpec, teacher: Teacher, context: JobContext) -> dict[str, Any]:
    config = spec.config
    return {
        **spec.lineage,
        **made_by(teacher.sources, config.passes),
        "precision": teacher.precision,
        "code_version": __version__,
        "parameters": {
            "kind": teacher.kind,
            "method": METHOD,
            "codec": config.codec,
            "images_per_shard": config.images_per_shard,
            "device": context.ranks.device.type,
            "threads": context.runtime.thread_count,
            **({"teachers": facts} if (facts := teacher.facts()) else {}),
        },
    }


def _planned(spec: InferSpec) -> list[ShardPlan]:
    path = spec.work / "plan.json"
    return [ShardPlan.from_json(p) for p in read_json(path)["shards"]] if path.exists() else []


def _whole(spec: InferSpec, key: str, context: JobContext) -> set[int]:
    """Numbers of the shards of earlier runs whose bytes are those of their receipts; each rank reads its share.

    Times of files prove nothing (restored files carry any time), so all bytes are read: by all ranks, in threads.
    """
    planned = context.ranks.broadcast(_planned(spec) if context.ranks.is_main else [])
    mine = [plan for plan in planned if plan.key == key][context.ranks.rank :: context.ranks.world]
    with ThreadPoolExecutor(_READERS, "checker") as pool:
        good = list(pool.map(lambda plan: shard_done(spec.work / "store", plan), mine))
    found = [plan.index for plan, is_good in zip(mine, good, strict=True) if is_good]
    return {index for part in context.ranks.gather(found) for index in part}


def _plan(spec: InferSpec, key: str, pipeline: Pipeline, whole: set[int]) -> tuple[list[ShardPlan], list[ShardPlan]]:
    """All shards, and those that are still to do. The plan is on disk before the first image is labelled."""
    existing, store, target = _planned(spec), pipeline.store, pipeline.target
    wanted = {name: s.image_sha256 for name, s in pipeline.samples.items()}
    if any(plan.key != key for plan in existing):
        if target is not None or any(is_acknowledged(store, plan) for plan in existing):
            raise ConfigError(
                f"{spec.work} holds labels of another teacher, scales, flip, precision, codec or classes",
                hint="use another folder: labels made in different ways are never mixed",
            )
        existing = [plan for plan in existing if plan.key == key]  # others failed before any label was made
    done = (
        target.finished(existing)
        if target is not None
        else {plan.index for plan in existing if plan.index in whole and _stays(pipeline, plan)}
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


def _stays(pipeline: Pipeline, plan: ShardPlan) -> bool:
    """Whether a finished shard stays. One with skipped images is made again when one of them was restored.

    It is not made again when an image that it labelled is gone or has changed: that label could not be made again.
    """
    samples, skipped = pipeline.samples, {row["name"] for row in read_receipt(pipeline.store, plan)["skipped"]}
    for name, sha256 in _images(plan):
        if name not in skipped and (name not in samples or samples[name].image_sha256 != sha256):
            return True
    return not any(_is_intact(samples[name], pipeline.root) for name in skipped if name in samples)


def _is_intact(sample: Sample, root: Path) -> bool:
    files = [(sample.image, sample.image_sha256), (sample.coarse, sample.coarse_sha256)]
    try:
        return all(sha256_file(fetched(root / path)) == sha256 for path, sha256 in files if path)
    except (OSError, IntegrityError):
        return False


def _skipped(pipeline: Pipeline, plans: list[ShardPlan]) -> list[dict[str, str]]:
    """Images that this run or an earlier one has left out, with the reasons."""
    samples, root = pipeline.samples, pipeline.root
    rows = [row for p in plans for row in cast("list[dict[str, str]]", read_receipt(pipeline.store, p)["skipped"])]
    return [
        {**row, "reason": f"{row['reason']}{_TOO_LATE}"}
        if row["name"] in samples and _is_intact(samples[row["name"]], root)
        else row
        for row in rows
    ]


def _check_skipped(skipped: list[dict[str, str]], pipeline: Pipeline, of: str = "") -> None:
    limit = max(1, int(MAX_SKIPPED * len(pipeline.samples)))
    if len(skipped) > limit:
        raise IntegrityError(
            f"{len(skipped)}{of} images cannot be labelled, more than {limit}; the first: "
            f"{skipped[0]['name']}: {skipped[0]['reason']}",
            hint="restore the files, or run `prepare` again if they were changed on purpose",
        )


@dataclass(frozen=True)
class _Item:
    """One decoded image with what the store records of it, or the reason why there is none."""

    shard: ShardWriter
    sample: Sample
    image: UInt8 | None
    coarse: UInt8 | None
    reason: str = ""


def _no_time() -> dict[str, float]:
    """Seconds of the caller's thread: in the model, waiting for images, waiting for the writer."""
    return {"model": 0.0, "read_wait": 0.0, "write_wait": 0.0}


@dataclass
class Pipeline:
    """Labels the images of planned shards."""

    context: JobContext
    store: Path  # folder of the raw label store
    samples: dict[str, Sample]  # the selected images by name
    root: Path  # folder that their paths are relative to
    teacher: Teacher
    codec: Literal["png", "webp"]
    coarse_classes: ClassTable | None  # of human coarse labels, which are counted against ours; None = not counted
    target: RemoteStore | None = None  # where finished shards are handed in
    advance: Callable[[int], None] = lambda _images: None  # gets the number of finished images
    images: int = 0  # labelled so far
    skipped: list[dict[str, str]] = field(default_factory=list)
    timing: dict[str, float] = field(default_factory=_no_time)

    @property
    def classes(self) -> ClassTable:
        """Classes of the labels."""
        return self.teacher.classes

    def run(self, plans: list[ShardPlan]) -> None:
        """Label the images of these shards, with other processes that do the same, until all have their receipts.

        A shard appears when its last image is written. What another process holds is waited for, and taken over
        when that process dies. No plan may have a receipt of an earlier run (`withdraw`).
        """
        held_by_others = list(plans)
        while held_by_others:
            left, held_by_others = held_by_others, []
            opened: list[ShardWriter] = []
            try:
                self._label_claimed(self._claims(left, opened, held_by_others), opened)
            finally:
                for shard in opened:  # not finished
                    shard.abort()
            if held_by_others:
                self.context.stop.check()
                time.sleep(_POLL_S)

    def _claims(
        self, plans: list[ShardPlan], opened: list[ShardWriter], held_by_others: list[ShardPlan]
    ) -> Iterator[tuple[ShardWriter, Sample]]:
        """The images of each shard that can be claimed; each is claimed when it is due."""
        for plan in plans:
            if is_acknowledged(self.store, plan):  # by another process, in this run
                self.advance(len(plan.names))
                continue
            shard = claim_shard(self.store, plan, classes=self.classes, codec=self.codec)
            if shard is None:
                held_by_others.append(plan)
                continue
            opened.append(shard)
            yield from ((shard, self.samples[name]) for name in plan.names)

    def _label_claimed(self, claims: Iterator[tuple[ShardWriter, Sample]], opened: list[ShardWriter]) -> None:
        with (
            closing(ahead(claims, self._files)) as here,
            closing(read_ahead(here, self._read)) as items,
            ThreadPoolExecutor(1, "writer") as writer,
            ThreadPoolExecutor(1, "sender") as sender,
        ):
            sent: deque[Future[bool]] = deque()
            for shard, its_items in groupby(items, key=lambda item: item.shard):
                self._shard(shard, its_items, writer)
                opened.remove(shard)
                self.context.log.write("shard", shard=shard.plan.stem, images=len(shard.plan.names))
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
        except (DecodeError, IntegrityError) as error:
            return _Item(shard, sample, None, None, f"{getattr(error, 'reason', 'changed')}: {error.message}")
        return _Item(shard, sample, image, coarse)

    def _shard(self, shard: ShardWriter, items: Iterator[_Item], writer: ThreadPoolExecutor) -> None:
        """Label one shard's images; one image is begun before the labels of the last one are waited for."""
        begun: deque[Callable[[], Future[None]]] = deque()
        waiting: deque[Future[None]] = deque()
        try:
            for _ in shard.plan.names:
                self.context.stop.check()
                with self._timed("read_wait"):
                    item = next(items)
                begun.append(self._begin(item, writer))
                if len(begun) > 1:
                    waiting.append(begun.popleft()())
                if len(waiting) > _AHEAD:
                    self._wait(waiting)
                self.advance(1)
            waiting.append(begun.popleft()())
            while waiting:
                self._wait(waiting)
        except BaseException:
            for task in waiting:
                task.cancel()
            # The writer's thread may be inside of the shard: it must be out before the shard is thrown away.
            writer.submit(lambda: None).result()
            raise
        with self._timed("write_wait"):
            shard.close()

    def _begin(self, item: _Item, writer: ThreadPoolExecutor) -> Callable[[], Future[None]]:
        """Begin an image; what is returned waits for its labels and gives them to the writer."""
        shard, sample, image = item.shard, item.sample, item.image
        if image is None:
            self.skipped.append({"name": sample.name, "reason": item.reason})
            _check_skipped(self.skipped, self)
            return lambda: writer.submit(shard.skip, sample.name, item.reason)
        with self._timed("model"):
            labels = self.teacher.begin(sample.name, image)
        self.images += 1
        if side := self.teacher.forced(image):  # now: the next image may force more
            shard.notes.setdefault(TILED, {})[sample.name] = side

        def write() -> Future[None]:
            with self._timed("model"):
                label, confidence = labels()
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

    def _wait(self, waiting: deque[Future[None]]) -> None:
        with self._timed("write_wait"):
            waiting.popleft().result()

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timing[what] += time.perf_counter() - start
