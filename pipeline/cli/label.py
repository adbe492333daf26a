"""Label a folder of images with a checkpoint into a label store.

Any folder, sub-folders too: JPEG, PNG, WebP, TIFF of any size, EXIF rotation applied, no labels needed. A
bad image is listed and left out. Stop it at any time: the same command goes on where it was; images
added to the folder later are appended. Progress lies in OUT.work, beside the store. In the store an image
is called by its stem; where several drives count their images from 1, --names path calls it by its folders
too: drive2/cam0/000001.jpg is drive2__cam0__000001.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hmsa_core.io.errors import ConfigError, HmsaError, InputError, InterruptedRunError
from pipeline.cli.inference_options import Options, add_options, pin_threads, read_options
from pipeline.cli.label_begun import begun_with, changes, check_begun, check_target

if TYPE_CHECKING:
    from hmsa_core.io.process import StopRequest

_ROOT = "images"  # name of the root that image paths in the store are relative to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `autolabel label`."""
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the label store")
    parser.add_argument("--names", choices=("stem", "path"), default="stem", help="of images in the store (stem)")
    parser.add_argument("--images-per-shard", type=int, metavar="N", help="default: as the store was begun, 256")
    parser.add_argument("--codec", choices=("png", "webp"), default="png", help="default: png; webp is smaller, slower")
    parser.add_argument(
        "--ranks",
        type=int,
        default=1,
        metavar="N",
        help="processes: one a GPU, or CPU processes of --threads each (default: 1)",
    )
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Index the folder, run the inference job, publish the store."""
    images, out = args.images.resolve(), args.out.resolve()
    if not images.is_dir():
        raise InputError(f"--images {args.images}: no such folder")
    work = out.with_name(f"{out.name}.work")
    if args.images_per_shard is None:
        args.images_per_shard = begun_with(work).get("images_per_shard", 256)
    if args.images_per_shard < 1 or args.ranks < 1:
        raise ConfigError("--images-per-shard and --ranks must be at least 1")
    check_target(out, work)
    options = read_options(args, threads=_threads(args, work), ranks=args.ranks)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from hmsa_core.io.locks import FileLock
    from hmsa_core.io.process import StopRequest

    stop = StopRequest().install()
    new = not work.exists()
    with FileLock(work / "label.lock", what=f"labelling into {args.out}"):
        try:
            check_begun(
                work,
                {"names": args.names, "threads": options.runtime.threads, "images_per_shard": args.images_per_shard},
            )
            refused = _index(images, work, options, args.names, stop)
            wanted, changed = _unchanged(work)
            _label(work, images, options, args, stop, wanted)
        except HmsaError:
            if new and not (work / "plan.json").exists():  # nothing was begun that could be gone on from
                shutil.rmtree(work)
            raise
        from hmsa_core.labels.store.writer import publish_store

        publish_store(work / "store", out)
    _report(out, work, refused + changed)
    return 0


def _threads(args: argparse.Namespace, work: Path) -> int:
    """Threads of each process: those asked for, those that the store was begun with, or all cores; now pinned.

    Threads move last bits, so the number depends neither on `--ranks` nor on where a store is gone on with.
    """
    begun, cores = begun_with(work).get("threads"), len(os.sched_getaffinity(0))
    if begun and not args.threads:
        args.threads = begun
        if begun != cores:
            sys.stderr.write(f"--threads {begun}, as this store was begun (there are {cores} cores)\n")
    return pin_threads(args)


def _index(images: Path, work: Path, options: Options, names: Literal["stem", "path"], stop: StopRequest) -> int:
    """Check every image by content and write the index; refused files are printed, their number returned."""
    from hmsa_core.data import prepare
    from hmsa_core.data.index import read_quarantine
    from hmsa_core.data.spec import RolesSpec, SourceSpec

    source = SourceSpec(
        kind="folder",
        name=_ROOT,
        root=str(images.parent),
        images=images.name,
        labels="",
        splits=tuple(_folders(images)),
        classes=str(_class_file(work, options)),
        max_bad=1.0,
        names=names,
    )
    previous = work / "index" if (work / "index" / f"{_ROOT}.parquet").is_file() else None

    def stop_here(_done: int, _total: int) -> None:
        if stop.is_set():
            raise InterruptedRunError("stopped while images were checked", hint="run the same command again")

    summary = prepare.build(source, RolesSpec(), work / "index", previous=previous, progress=stop_here)
    rows = read_quarantine(work / "index" / "quarantine.parquet")
    for row in rows:
        sys.stderr.write(f"left out: {row.path}: {row.reason} ({row.detail})\n")
    if names == "stem" and (shared := sum(row.reason == "duplicate-name" for row in rows)):
        sys.stderr.write(
            f"{shared} images were left out because another one has the same name: --names path, into a new --out, "
            "tells them apart by their folders\n"
        )
    if not summary.images:
        raise InputError(f"{images}: none of the {len(rows)} image files can be used", hint="the reasons are above")
    return len(rows)


def _folders(images: Path) -> list[str]:
    """Folders below `images` (itself: "") that hold image files, as posix paths; linked ones too, each once."""
    from hmsa_core.data.layouts import IMAGE_SUFFIXES, list_files

    found: list[str] = []
    others: Counter[str] = Counter()
    seen: set[str] = set()
    # Links come after real folders, so that a link which is added later renames no image; one may lead upwards.
    roots = [images]
    for root in roots:
        for name, below, files in os.walk(root):
            folder = Path(name)
            if (target := os.path.realpath(folder)) in seen:
                below.clear()
                continue
            seen.add(target)
            below[:] = sorted(one for one in below if not one.startswith("."))
            roots += [folder / one for one in below if (folder / one).is_symlink()]
            visible = [file for file in files if not file.startswith(".")]
            others.update(suffix for f in visible if (suffix := Path(f).suffix.lower()) not in IMAGE_SUFFIXES)
            if list_files(folder):
                relative = folder.relative_to(images).as_posix()
                found.append("" if relative == "." else relative)
    if not found:
        raise InputError(f"--images {images}: no JPEG, PNG, WebP or TIFF file in this folder or below it")
    if others:
        told = ", ".join(f"{suffix or 'without ending'} {count}" for suffix, count in others.most_common(5))
        sys.stderr.write(f"not looked at: files of other kinds ({told})\n")
    return sorted(found)


def _class_file(work: Path, options: Options) -> Path:
    """The checkpoint's classes as a class file, which the index asks for."""
    from hmsa_core.io.atomic import write_json

    table = options.meta.get("class_table")
    rows: list[dict[str, Any]] = (
        [{"id": i, "name": row["name"], "colour": row["colour"]} for i, row in enumerate(table["classes"])]
        if table
        else [{"id": i, "name": str(i), "colour": [i, i, i]} for i in range(options.meta["num_classes"])]
    )
    path = work / "classes.json"
    write_json(path, {"dataset": table["name"] if table else "unnamed", "classes": rows, "ignore_id": 255})
    return path


def _unchanged(work: Path) -> tuple[tuple[str, ...] | None, int]:
    """Names of the images to label (None: all), and how many are left out; what differs from the store is printed."""
    from hmsa_core.data.index import Index

    index = Index.load(work / "index" / f"{_ROOT}.parquet")
    changed, gone = changes(work, {s.name: s.image_sha256 for s in index.samples})
    for name in changed:
        sys.stderr.write(
            f"left out: {name}: has changed since it was labelled; the store keeps the old label (give the new picture "
            "a new name, or label into a new store)\n"
        )
    if gone:
        sys.stderr.write(
            f"of the store's images {len(gone)} are gone from the folder or cannot be used any more, {gone[0]} first: "
            "their labels stay (to be without them, label into a new store)\n"
        )
    return (tuple(s.name for s in index.samples if s.name not in set(changed)) if changed else None), len(changed)


def _label(
    work: Path,
    images: Path,
    options: Options,
    args: argparse.Namespace,
    stop: StopRequest,
    names: tuple[str, ...] | None,
) -> None:
    from hmsa_core.config import InferConfig
    from hmsa_core.spec import InferSpec, Selection
    from pipeline.launcher import run_job

    config = InferConfig(
        scales=options.scales,
        flip=options.flip,
        images_per_shard=args.images_per_shard,
        codec=args.codec,
        runtime=options.runtime,
    )
    spec = InferSpec(
        work=work,
        roots={_ROOT: images.parent},
        config=config,
        checkpoint=options.checkpoint.resolve(),
        selection=Selection(index=work / "index" / f"{_ROOT}.parquet", names=names),
        lineage={"licences": "unknown"},
    )
    # Threads that wait in busy loops take the cores from those with work, of other ranks and other programs: a seventh
    # faster on an idle machine, several times slower on any other (docs/inference.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    run_job(spec, stop=stop)


def _report(out: Path, work: Path, refused: int) -> None:
    from hmsa_core.io.atomic import read_json

    summary = read_json(work / "summary.json")
    for row in summary["skipped"]:
        sys.stderr.write(f"left out: {row['name']}: {row['reason']}\n")
    left_out = refused + len(summary["skipped"])
    sys.stdout.write(
        f"{out}: {summary['images']} images labelled, {summary['resumed']} were labelled before, {left_out} left out\n"
    )
