"""Label a folder of images, or a list of them, with a teacher into a raw label store.

Any folder, sub-folders too: JPEG, PNG, WebP, TIFF of any size, EXIF rotation applied, no labels needed. A bad image
is listed and left out. The same call goes on where a stopped one was; images that were added later are appended.
Progress lies in OUT.work, next to the store: `plan.json`, the index, and what later calls must not change.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from hmsa_core.config import InferConfig, RuntimeConfig
from hmsa_core.data import prepare
from hmsa_core.data.index import Index, read_quarantine
from hmsa_core.data.layouts import load_classes
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.data.walk import IMAGE_SUFFIXES, walk
from hmsa_core.inference.teachers.run_options import MAX_SKIPPED, RunOptions, teacher_options
from hmsa_core.inference.teachers.sources import Spec
from hmsa_core.io.atomic import is_temp, read_json, write_json
from hmsa_core.io.engine import Engine, Kind
from hmsa_core.io.errors import ConfigError, HmsaError, InputError, InterruptedRunError
from hmsa_core.io.locks import FileLock
from hmsa_core.io.process import StopRequest
from hmsa_core.io.remote import is_url, local_path, local_tree
from hmsa_core.labels import LabelStore
from hmsa_core.labels.store.format import LOCKS, MANIFEST, RECEIPTS, SIDECAR, STATISTICS
from hmsa_core.labels.store.remote_store import RemoteStore
from hmsa_core.labels.store.shards import ShardPlan, is_acknowledged, read_receipt
from hmsa_core.labels.store.writer import publish_store
from hmsa_core.spec import InferSpec, Selection

_ROOT = "images"  # name of the root that image paths in the store are relative to
_RECORD = "options.json"  # in the work folder: what later runs must not change, and the job's own key leaves out
_FOLDER = "folder.json"  # in the work folder: where the images are
_CHECKERS = 8  # images that are checked at once, at most: each is decoded whole
Names = Literal["stem", "path"]
Tell = Callable[[str], None]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledCounts:
    """What a call did."""

    images: int  # labelled by this call
    resumed: int  # labelled before
    left_out: int


def label(
    images: str | Path | Sequence[str | Path],
    teacher: Spec,
    out: str | Path,
    *,
    classes: str | Path | None = None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    names: Names = "stem",
    images_per_shard: int | None = None,
    codec: Literal["png", "webp"] = "png",
    runtime: RuntimeConfig | None = None,
) -> LabelStore:
    """Label images into a store, in this process, and open it.

        store = label("my_images", "models/student", "my_labels")
        label_map, code = store.read(store.names()[0])

    Args:
        images: a folder (sub-folders too; also s3://, gs://, az://) or image files with a folder in common.
        teacher: a checkpoint folder or a file in it, onnx:FILE, hf:FOLDER, scores:FOLDER, or a list of these.
        out: folder (or address) of the store; progress lies in OUT.work next to it.
        classes: of the labels, for teachers of other tools: a file of class names, or a public label set;
            None = the teacher's own names.
        scales: different numbers, one of them 1.0; None = the checkpoint's, usually (0.5, 1, 2); of others 1.
        flip: average with the mirror image; None = the checkpoint's, usually True; of others False.
        names: images are called by their stems, or by their folders too (drive2__cam0__000001).
        images_per_shard: None = as the store was begun, at first 256.
        codec: lossless form of labels in the store; webp is smaller and slower.
        runtime: threads, device, precision; None = as the store was begun, at first all cores, fp32.

    Raises:
        HmsaError: its class says what failed; unfinished work stays in OUT.work, and the next call continues it.
    """
    if runtime is None:
        threads = threads_of(out) or len(os.sched_getaffinity(0))
        runtime = RuntimeConfig(threads=threads, precision="fp32")
    table = load_classes(Path(), str(classes)) if classes else None
    chosen = teacher_options(teacher, table, scales, flip)
    label_images(images, out, chosen, runtime, names=names, images_per_shard=images_per_shard, codec=codec)
    return LabelStore.open(out)


def label_images(
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    options: RunOptions,
    runtime: RuntimeConfig,
    *,
    names: Names = "stem",
    images_per_shard: int | None = None,
    codec: Literal["png", "webp"] = "png",
    engine: Kind = "local",
    tell: Tell = _LOG.warning,
    stop: StopRequest | None = None,
    run: Callable[[InferSpec, StopRequest], None] | None = None,
) -> LabelledCounts:
    """Index the images, run the inference job, publish the store.

    Args:
        images, out, names, images_per_shard, codec: as in `label`.
        options: teacher, and how it is run.
        runtime: how the machine is used.
        engine: "ray": images are checked and labelled by tasks of Ray, `runtime.ranks` at once.
        tell: called with one line for each remark, for example which image is left out and why.
        stop: set it to stop between two images.
        run: runs the job; None = in this process.
    """
    folder, files = _folder_of(images)
    if images_per_shard is not None and images_per_shard < 1:
        raise ConfigError("images per shard must be at least 1")
    stop = stop or StopRequest()
    cores = min(runtime.ranks * runtime.thread_count, _CHECKERS)
    by = Engine("ray", runtime.ranks) if engine == "ray" else Engine("threads", cores)
    target, local = RemoteStore.at(str(out)) if is_url(out) else (None, local_path(out).resolve())
    work = work_of(local)
    if target is None:
        check_target(local, work)
    new = not work.exists()
    with FileLock(work / "label.lock", what=f"labelling into {out}"):
        try:
            if target is not None:
                target.pull()
            before = begun_with(work) if target is None else target.options()
            shard = images_per_shard or before.get("images_per_shard", 256)
            kept = {"names": names, "threads": runtime.thread_count, "images_per_shard": shard}
            begun: dict[str, Any] = kept | {"folder": folder.name} | before
            _check_begun(kept, begun)
            write_json(work / _RECORD, begun)
            folder = _of_one_root(folder, begun["folder"], some=bool(files))
            _record_folder(folder, local, begun["folder"])
            refused = _index(folder, files, work, options, names, by, tell, stop)
            wanted, left_out = _unchanged(work, target, tell, some=bool(files))
            if target is not None and not before:
                target.begin(begun)
            config = InferConfig(
                scales=options.passes.scales,
                flip=options.passes.flip,
                images_per_shard=shard,
                codec=codec,
                runtime=runtime,
            )
            spec = InferSpec(
                work=work,
                roots={_ROOT: folder.parent},
                config=config,
                teacher=options.teacher,
                classes=options.class_table,
                selection=Selection(index=work / "index" / f"{_ROOT}.parquet", names=wanted),
                lineage={"licences": "unknown"},
                target=target.url if target is not None else "",
                engine=engine,
            )
            (run or _run_here)(spec, stop)
        except HmsaError:
            if new and not (work / "plan.json").exists():  # nothing was begun that could be gone on from
                shutil.rmtree(work)
            raise
        if target is None:
            publish_store(work / "store", local)
    summary = read_json(work / "summary.json")
    skipped = [row for row in summary["skipped"] if row["name"] not in left_out]
    for row in skipped:
        tell(f"left out: {row['name']}: {row['reason']}")
    if tiled := summary["tiled"]:
        sides = sorted(set(tiled.values()))
        tell(f"lack of memory: {len(tiled)} images were labelled in tiles of {', '.join(map(str, sides))} pixels")
    return LabelledCounts(summary["images"], summary["resumed"], refused + len(left_out) + len(skipped))


def work_of(out: Path) -> Path:
    """The folder of a store's progress."""
    out = out.resolve()
    return out.with_name(f"{out.name}.work")


def _record_folder(folder: Path, out: Path, first: str) -> None:
    """Write down where the images are: the folder, or where a store has images of several folders, their parent."""
    before = image_folder(out)
    root = folder if folder.name == first and before in (None, folder) else folder.parent
    known = {"absolute": str(root), "from_store": os.path.relpath(root, out.parent)}
    write_json(work_of(out) / _FOLDER, known)


def image_folder(out: Path) -> Path | None:
    """The folder of a store's images, while it exists there or moved together with the store; None = not known."""
    path = work_of(out) / _FOLDER
    if not path.is_file():
        return None
    known = read_json(path)
    places = (Path(known["absolute"]), out.resolve().parent / known["from_store"])
    return next((place.resolve() for place in places if place.is_dir()), None)


def _folder_of(images: str | Path | Sequence[str | Path]) -> tuple[Path, frozenset[Path]]:
    """The folder to look in, and the files that are requested; none = all."""
    if isinstance(images, str | Path):
        folder = local_tree(str(images)) if is_url(images) else local_path(images).resolve()
        if not folder.is_dir():
            raise InputError(f"--images {images}: no such folder")
        return _named(folder), frozenset()
    files = frozenset(Path(path).parent.resolve() / Path(path).name for path in images)
    missing = next((path for path in sorted(files) if not path.is_file()), None)
    if not files or missing is not None:
        raise InputError(f"{missing}: no such file" if files else "no image is given")
    other = next((p for p in sorted(files) if p.suffix.lower() not in IMAGE_SUFFIXES or p.name.startswith(".")), None)
    if other is not None:
        raise InputError(f"{other}: its name is not that of a JPEG, PNG, WebP or TIFF file, or begins with a dot")
    return _named(Path(os.path.commonpath([path.parent for path in files]))), files


def _named(folder: Path) -> Path:
    if not folder.name:
        raise InputError(f"the images have no folder in common but {folder}", hint="give images below one folder")
    return folder


def _of_one_root(folder: Path, first: str, *, some: bool) -> Path:
    """The folder to look in, so that paths go on to be relative to one root, where the store's folder `first` lies.

    For `some` images the folder may lie further up. Where the first folder is gone, any other is taken.
    """
    above = [p for p in folder.parents if p.parent.name]  # a folder at the top of the disk is there by chance
    homes = [p for p in (folder, *above) if (p.parent / first).is_dir()]
    if homes and (some or homes[0] == folder):
        return homes[0]
    if homes or first in folder.parts or (folder / first).is_dir():
        raise ConfigError(
            f"{folder}: paths in this store begin with {first}/, and no folder {first} lies next to it",
            hint=f"give images of {first} or of a folder next to it, one folder at a time, or another --out",
        )
    return folder


def _run_here(spec: InferSpec, stop: StopRequest) -> None:
    from hmsa_core.inference.folder import infer_job  # torch, which a caller that runs the job elsewhere does without
    from hmsa_core.runtime.ranks import JobContext

    infer_job.run(spec, JobContext.alone(spec.config.runtime, spec.work, stop))


def _index(
    folder: Path,
    files: frozenset[Path],
    work: Path,
    options: RunOptions,
    names: Names,
    engine: Engine,
    tell: Tell,
    stop: StopRequest,
) -> int:
    """Check every image by content and write the index; refused files are reported, their number returned."""
    source = SourceSpec(
        kind="folder",
        name=_ROOT,
        root=str(folder.parent),
        images=folder.name,
        labels="",
        splits=tuple(_folders(folder, files, tell)),
        classes=str(_class_file(work, options)),
        max_bad=1.0,
        names=names,
    )
    previous = work / "index" if (work / "index" / f"{_ROOT}.parquet").is_file() else None

    def stop_here(_done: int, _total: int) -> None:
        if stop.is_set():
            raise InterruptedRunError("stopped while images were checked", hint="run the same command again")

    only = {path.relative_to(folder.parent).as_posix() for path in files}
    summary = prepare.build(
        source, RolesSpec(), work / "index", engine=engine, previous=previous, only=only, progress=stop_here
    )
    rows = read_quarantine(work / "index" / "quarantine.parquet")
    for row in rows:
        tell(f"left out: {row.path}: {row.reason} ({row.detail})")
    if names == "stem" and (shared := sum(row.reason == "duplicate-name" for row in rows)):
        tell(
            f"{shared} images were left out because another one has the same name: --names path, into a new --out, "
            "tells them apart by their folders"
        )
    if not summary.images:
        raise InputError(f"{folder}: none of the {len(rows)} image files can be used", hint="the reasons are above")
    return len(rows)


def _folders(images: Path, files: frozenset[Path], tell: Tell) -> list[str]:
    """Folders below `images` (itself: "") that hold image files, as posix paths; linked ones too, each once."""
    if files:
        return sorted({"" if p.parent == images else p.parent.relative_to(images).as_posix() for p in files})
    found = walk(images)
    if not found.files:
        raise InputError(f"--images {images}: no JPEG, PNG, WebP or TIFF file in this folder or below it")
    for note in found.notes():
        tell(note)
    return sorted(found.files)


def _class_file(work: Path, options: RunOptions) -> Path:
    """Write the classes of the labels as a class file, from which the index is built."""
    table = options.class_table
    rows: list[dict[str, Any]] = (
        [{"id": i, "name": row["name"], "colour": row["colour"]} for i, row in enumerate(table["classes"])]
        if table
        else [{"id": i, "name": str(i), "colour": [i, i, i]} for i in range(options.num_classes)]
    )
    path = work / "classes.json"
    write_json(path, {"dataset": table["name"] if table else "unnamed", "classes": rows, "ignore_id": 255})
    return path


def _unchanged(
    work: Path, target: RemoteStore | None, tell: Tell, *, some: bool
) -> tuple[tuple[str, ...] | None, Set[str]]:
    """Names of the images to label (None: all), and of those that have changed, which are left out and named.

    `some`: the index has only the images that are requested, so that others are not gone.
    """
    index = Index.load(work / "index" / f"{_ROOT}.parquet")
    changed, lost, gone = _changes(work, target, {s.name: s.image_sha256 for s in index.samples})
    for name in changed:
        tell(
            f"left out: {name}: has changed since it was labelled; the store keeps the old label (give the new picture "
            "a new name, or label into a new store)"
        )
    for name in lost:
        tell(
            f"left out: {name}: has no label in this store, it was replaced while it was labelled (give it a new name, "
            "or label into a new store)"
        )
    if gone and not some:
        tell(
            f"of the store's images {len(gone)} are gone from the folder or cannot be used any more, {gone[0]} first: "
            "their labels stay (to be without them, label into a new store)"
        )
    left_out = {*changed, *lost}
    return (tuple(s.name for s in index.samples if s.name not in left_out) if left_out or some else None), left_out


def check_target(out: Path, work: Path) -> None:
    """Publishing removes what does not belong to the store: never touch a folder that is not one of ours."""
    if not out.exists():
        return
    is_store = (out / "manifest.json").is_file()
    # Where folders cannot be swapped (a mount point, NFS), files are published one by one, the manifest last: a run
    # that is killed then leaves parts, known by their names. The manifest of the work folder was there before them.
    if not is_store and not (out.is_dir() and is_free(out, for_parts=(work / "store" / MANIFEST).is_file())):
        raise ConfigError(f"--out {out}: exists and is no label store", hint="give a folder that does not exist yet")
    if is_store and not (work / "plan.json").is_file():
        raise ConfigError(
            f"--out {out}: holds a label store that was not made here ({work.name} is missing)",
            hint="give another folder",
        )


def is_free(folder: Path, *, for_parts: bool) -> bool:
    """Whether a folder is empty, or (`for_parts`) holds nothing but parts of a store that was never finished."""
    # A file system that was just made has a folder of its own at its top.
    content = [name for p in folder.rglob("*") if (name := p.relative_to(folder).as_posix()) != "lost+found"]
    statistics = "|".join(STATISTICS)
    ours = re.compile(
        rf"shard-\d+\.parquet|{RECEIPTS}(/shard-\d+\.json)?|{re.escape(LOCKS)}(/[\w.-]+\.lock)?"
        rf"|{SIDECAR}(/(shard-\d+|({statistics})-[0-9a-f]+)\.parquet)?"
    )
    return all(for_parts and (ours.fullmatch(name) or is_temp(PurePath(name).name)) for name in content)


def begun_with(work: Path) -> dict[str, Any]:
    """The options that the store's first labels were made with; empty if there are none yet."""
    if not (work / "plan.json").is_file():
        return {}
    return dict(read_json(work / _RECORD))


def threads_of(out: str | Path) -> int | None:
    """Threads that the labels of a store, a folder or an address, were begun with; None where there are none yet."""
    begun = RemoteStore.at(str(out))[0].options() if is_url(out) else begun_with(work_of(local_path(out)))
    return begun.get("threads")


def _check_begun(options: dict[str, Any], begun: dict[str, Any]) -> None:
    """Refuse what would mix two ways in one store: names would come twice, other numbers of threads sum otherwise."""
    if options["names"] != begun["names"]:
        raise ConfigError(
            f"--names {options['names']}: the images of this store are called by their {begun['names']}",
            hint=f"give --names {begun['names']}, or another --out",
        )
    for name in ("threads", "images_per_shard"):
        if options[name] != begun[name]:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{flag} {options[name]}: this store was begun with {flag} {begun[name]}",
                hint=f"leave {flag} out, or give another --out",
            )


def _changes(
    work: Path, target: RemoteStore | None, images: Mapping[str, str]
) -> tuple[list[str], list[str], list[str]]:
    """Names of the store's images that have other bytes now, with a label and without one, and of those that are gone.

    `images` are those that are there now, {name: SHA-256}. An image that was left out is not listed where its shard is
    made again with it: on a local disk, and if all labels next to it can be made again.

    Raises:
        InputError: too many changed for a mistake: names that are used again, of other pictures.
    """
    if not (work / "plan.json").is_file():
        return [], [], []
    store, plans = work / "store", [ShardPlan.from_json(p) for p in read_json(work / "plan.json")["shards"]]
    changed: set[str] = set()
    lost: set[str] = set()
    for plan in plans:
        planned = dict(zip(plan.names, plan.image_sha256s, strict=True))
        other = {name for name, sha256 in planned.items() if images.get(name, sha256) != sha256}
        if not other or not (is_acknowledged(store, plan) if target is None else target.has(plan)):
            continue  # a shard that is not finished is planned again
        if target is not None:
            target.collect([plan])
        left_out = {row["name"] for row in read_receipt(store, plan)["skipped"]}
        changed |= other - left_out
        if target is not None or any(images.get(n) != h for n, h in planned.items() if n not in left_out):
            lost |= other & left_out
    if len(changed) > max(1, MAX_SKIPPED * len(images)):
        raise InputError(
            f"{len(changed)} of {len(images)} images have changed since they were labelled, {min(changed)!r} first",
            hint="give new pictures new names, or label into a new store",
        )
    return sorted(changed), sorted(lost), sorted({name for plan in plans for name in plan.names} - images.keys())
