"""Label images with a teacher into a raw label store: resumable, the same bytes on any number of ranks.

Every image is labelled on its own, so its bytes depend on nothing but its pixels and the store's key. Rank 0
plans shards (`work/plan.json`: appended for new images, never reordered); rank r labels every world-th
shard that is not acknowledged yet. Reading and writing overlap with the model in threads. An image whose
bytes differ from the index is not labelled: it is listed as skipped, and too many of them end the run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
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
from hmsa_core.io.errors import ConfigError, DecodeError, IntegrityError
from hmsa_core.io.remote import ahead, fetched
from hmsa_core.labels.store.remote import RemoteStore
from hmsa_core.labels.store.shards import ShardPlan, ShardWriter, leave, plan_shards, read_receipt, shard_done, sweep
from hmsa_core.labels.store.writer import write_manifest
from hmsa_core.runtime.ranks import JobContext
from hmsa_core.spec import InferSpec
from hmsa_core.taxonomy import ClassTable

_BESIDE_GONE = (
    "; it can be read now, but labels beside it in its shard are of images that are gone or have changed: "
    "label it into another store"
)
_AHEAD = 2  # images read before they are needed, and images waiting to be written
_METHOD = 1  # raise it when inference computes something else: older labels are then not mixed with newer ones
UInt8 = NDArray[np.uint8]


T = TypeVar("T")
U = TypeVar("U")


def read_ahead(sources: Iterable[T], read: Callable[[T], U]) -> Generator[U]:
    """Read in a thread while the caller works; at most `_AHEAD` results wait."""
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
    timing: Timing = field(default_factory=Timing)


def run(spec: InferSpec, context: JobContext) -> Summary:
    """Label the selected images into `work/store`; see the module's first lines.

    Raises:
        ConfigError: `work` holds labels made with other parameters, or classes do not fit.
        IntegrityError: more images are damaged than `MAX_SKIPPED` allows.
        InterruptedRunError: a stop was asked for; finished shards stay.
    """
    start = time.monotonic()
    index = Index.load(spec.selection.index)
    selected = index.select(**spec.selection.model_dump(exclude={"index"}))
    wanted = ClassTable.from_json(spec.classes) if spec.classes else index.classes
    teacher = open_teacher(spec.teacher, spec.config, wanted, context)
    classes = teacher.classes
    teacher.check([sample.name for sample in selected])
    lineage = _lineage(spec, teacher, context) if context.is_main else {}
    store = spec.work / "store"
    if context.is_main:
        sweep(store)  # before any rank opens a shard: other nodes' processes cannot be told from dead ones
    target = RemoteStore(spec.target, spec.work) if spec.target else None
    plans, pending = context.ranks.broadcast(
        _plan(spec, _key(lineage, classes, spec.config.codec), selected, index.root, target)
        if context.is_main
        else None
    ) or ([], [])
    leave(store)
    mine = pending[context.rank :: context.world]
    pipeline = Pipeline(
        store,
        {s.name: s for s in selected},
        spec.roots[index.root],
        teacher,
        spec.config,
        classes,
        coarse_classes=index.classes if index.classes.classes == classes.classes else None,
        limit=_limit(len(selected)),
        target=target,
    )
    _work(pipeline, mine, context)
    done = context.ranks.gather((pipeline.images, pipeline.timing))
    resumed = sum(len(p.names) for p in plans) - sum(len(p.names) for p in pending)
    summary = Summary(sum(n for n, _ in done), resumed, timing=sum((t for _, t in done), Timing()))
    if context.is_main:
        if target is not None:
            target.collect(plans)
        summary.skipped = _skipped(store, plans, {s.name: s for s in selected}, spec.roots[index.root])
        _check_skipped(summary.skipped, len(selected))
        sha256 = write_manifest(store, plans, lineage, classes=classes)
        if target is not None:
            target.publish()
        write_json(spec.work / "summary.json", _summary_json(summary, time.monotonic() - start))
        context.log.write("done", manifest=sha256, **_summary_json(summary, time.monotonic() - start))
    return summary


def _work(pipeline: Pipeline, mine: list[ShardPlan], context: JobContext) -> None:
    total = sum(len(plan.names) for plan in mine)
    if not total:
        return
    what = "infer" if context.world == 1 else f"infer (rank 0 of {context.world})"
    with context.progress(total, what=what) as progress:
        pipeline.run(mine, check_stop=context.check_stop, advance=progress.update, log=context.log.write)


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


def _plan(
    spec: InferSpec, key: str, selected: list[Sample], index_root: str, target: RemoteStore | None
) -> tuple[list[ShardPlan], list[ShardPlan]]:
    """All shards, and those that are still to do. The plan is on disk before the first image is labelled."""
    path, store = spec.work / "plan.json", spec.work / "store"
    existing = [ShardPlan.from_json(p) for p in read_json(path)["shards"]] if path.exists() else []
    wanted = {s.name: s.image_sha256 for s in selected}
    if any(plan.key != key for plan in existing):
        raise ConfigError(
            f"{spec.work} holds labels of another teacher, scales, flip, precision, codec or classes",
            hint="use another folder: labels made in different ways are never mixed",
        )
    root = spec.roots[index_root]
    by_name = {s.name: s for s in selected}
    done = (
        target.finished(existing)
        if target is not None
        else {plan.index for plan in existing if _is_done(store, plan, by_name, root)}
    )
    # A shard that was never finished and whose images are gone cannot be made any more.
    kept = [p for p in existing if p.index in done or all(wanted.get(n) == h for n, h in _images(p))]
    # Other writers at an address may know the shards that are dropped: their numbers are not used again.
    first = 1 + max((p.index for p in existing), default=-1) if target is not None else 0
    plans = plan_shards(kept, wanted.items(), spec.config.images_per_shard, key, first=first)
    write_json(path, {"format": "hmsa-infer-plan", "version": 1, "shards": [p.to_json() for p in plans]})
    if target is not None:
        target.plan()
        done = target.finished(plans)
    return plans, [plan for plan in plans if plan.index not in done]


def _images(plan: ShardPlan) -> list[tuple[str, str]]:
    return list(zip(plan.names, plan.image_sha256s, strict=True))


def _is_done(store: Path, plan: ShardPlan, samples: dict[str, Sample], root: Path) -> bool:
    """Whether a shard is finished. A shard with skipped images is made again when one of them was restored.

    It is not made again when an image that it labelled is gone or has changed: that label could not be made again.
    """
    if not shard_done(store, plan):
        return False
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
        "seconds": round(seconds, 3),
        "timing": {k: round(v, 3) for k, v in asdict(summary.timing).items()},
        "model_share": round(summary.timing.model_share, 4),
    }


@dataclass(frozen=True)
class _Item:
    """One decoded image with what the store records of it, or the reason why there is none."""

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
        advance: Callable[[], None],
        log: Callable[..., None],
    ) -> None:
        """Label all images of these shards; a shard appears when its last image is written."""
        samples = [self.samples[name] for plan in plans for name in plan.names]
        with (
            closing(ahead(samples, self._files)) as here,
            closing(read_ahead(here, self._read)) as items,
            ThreadPoolExecutor(1, "writer") as writer,
            ThreadPoolExecutor(1, "sender") as sender,
        ):
            sent: deque[Future[bool]] = deque()
            for plan in plans:
                self._shard(plan, items, writer, check_stop, advance)
                log("shard", shard=plan.stem, images=len(plan.names))
                if self.target is not None:
                    sent.append(sender.submit(self.target.send, plan))
                while len(sent) > _AHEAD:
                    sent.popleft().result()
            for task in sent:
                task.result()

    def _files(self, sample: Sample) -> list[Path]:
        coarse = sample.coarse if self.coarse_classes is not None else ""
        return [self.root / path for path in (sample.image, coarse) if path]

    def _read(self, sample: Sample) -> _Item:
        try:
            image = read_image(self.root / sample.image, sha256=sample.image_sha256)
            coarse = None
            if sample.coarse and self.coarse_classes is not None:
                coarse = read_label(self.root / sample.coarse, self.coarse_classes, sha256=sample.coarse_sha256)
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
        shard = ShardWriter(self.store, plan, classes=self.classes, codec=self.config.codec)
        waiting: deque[Future[None]] = deque()
        try:
            for _ in plan.names:
                check_stop()
                start = time.perf_counter()
                item = next(items)
                self.timing.read_wait += time.perf_counter() - start
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
        label, confidence = self.teacher.label(sample.name, item.image)
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
