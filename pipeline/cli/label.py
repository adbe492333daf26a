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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hmsa_core.errors import ConfigError, HmsaError, InputError
from pipeline.cli.inference_options import Options, add_options, pin_threads, read_options

if TYPE_CHECKING:
    from hmsa_core.process import StopRequest

_ROOT = "images"  # name of the root that image paths in the store are relative to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `autolabel label`."""
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the label store")
    parser.add_argument("--names", choices=("stem", "path"), default="stem", help="of images in the store (stem)")
    parser.add_argument("--images-per-shard", type=int, default=256, metavar="N", help="default: 256")
    parser.add_argument("--codec", choices=("png", "webp"), default="png", help="default: png; webp is smaller, slower")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="processes: one a GPU, or CPU processes")
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Index the folder, run the inference job, publish the store."""
    images, out = args.images.resolve(), args.out.resolve()
    if not images.is_dir():
        raise InputError(f"--images {args.images}: no such folder")
    if args.images_per_shard < 1 or args.ranks < 1:
        raise ConfigError("--images-per-shard and --ranks must be at least 1")
    work = out.with_name(f"{out.name}.work")
    _check_target(out, work)
    options = read_options(args, threads=max(1, pin_threads(args) // args.ranks), ranks=args.ranks)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from hmsa_core.locks import FileLock
    from hmsa_core.process import StopRequest

    stop = StopRequest().install()
    new = not work.exists()
    with FileLock(work / "label.lock", what=f"labelling into {args.out}"):
        try:
            _check_names(work, args.names)
            refused = _index(images, work, options, args.names)
            _label(work, images, options, args, stop)
        except HmsaError:
            if new and not (work / "plan.json").exists():  # nothing was begun that could be gone on from
                shutil.rmtree(work)
            raise
        from hmsa_core.labels.shards import publish_store

        publish_store(work / "store", out)
    _report(out, work, refused)
    return 0


def _check_target(out: Path, work: Path) -> None:
    """Publishing removes what does not belong to the store: never touch a folder that is not one of ours."""
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / "manifest.json").is_file()):
        raise ConfigError(f"--out {out}: exists and is no label store", hint="give a folder that does not exist yet")
    if (out / "manifest.json").is_file() and not (work / "plan.json").is_file():
        raise ConfigError(
            f"--out {out}: holds a label store that was not made here ({work.name} is missing)",
            hint="give another folder, or delete this one",
        )


def _check_names(work: Path, names: str) -> None:
    """Images added later are named as the first ones were: else each would come in twice."""
    from hmsa_core.atomic import read_json, write_json

    path = work / "names.json"
    before = read_json(path)["names"] if path.is_file() else "stem"  # of stores older than the option
    if (work / "plan.json").is_file() and before != names:
        raise ConfigError(f"--names {names}: the images of this store are called by their {before}",
                          hint=f"give --names {before}, or another --out")  # fmt: skip
    write_json(path, {"names": names})


def _index(images: Path, work: Path, options: Options, names: Literal["stem", "path"]) -> int:
    """Check every image by content and write the index; refused files are printed, their number returned."""
    from hmsa_core.data import prepare
    from hmsa_core.data.index import read_quarantine
    from hmsa_core.data.spec import RolesSpec, SourceSpec

    source = SourceSpec(
        kind="folder", name=_ROOT, root=str(images.parent), images=images.name, labels="",
        splits=tuple(_folders(images)), classes=str(_class_file(work, options)), max_bad=1.0,
        names=names,
    )  # fmt: skip
    previous = work / "index" if (work / "index" / f"{_ROOT}.parquet").is_file() else None
    summary = prepare.build(source, RolesSpec(), work / "index", previous=previous)
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
    from hmsa_core.data.layout import list_files

    found: list[str] = []
    seen: set[str] = set()
    # Links come after real folders, so that a link which is added later renames no image; one may lead upwards.
    roots = [images]
    for root in roots:
        for name, below, _ in os.walk(root):
            folder = Path(name)
            if (target := os.path.realpath(folder)) in seen:
                below.clear()
                continue
            seen.add(target)
            below[:] = sorted(one for one in below if not one.startswith("."))
            roots += [folder / one for one in below if (folder / one).is_symlink()]
            if list_files(folder):
                relative = folder.relative_to(images).as_posix()
                found.append("" if relative == "." else relative)
    if not found:
        raise InputError(f"--images {images}: no JPEG, PNG, WebP or TIFF file in this folder or below it")
    return sorted(found)


def _class_file(work: Path, options: Options) -> Path:
    """The checkpoint's classes as a class file, which the index asks for."""
    from hmsa_core.atomic import write_json

    table = options.meta.get("class_table")
    rows: list[dict[str, Any]] = (
        [{"id": i, "name": row["name"], "colour": row["colour"]} for i, row in enumerate(table["classes"])]
        if table
        else [{"id": i, "name": str(i), "colour": [i, i, i]} for i in range(options.meta["num_classes"])]
    )
    path = work / "classes.json"
    write_json(path, {"dataset": table["name"] if table else "unnamed", "classes": rows, "ignore_id": 255})
    return path


def _label(work: Path, images: Path, options: Options, args: argparse.Namespace, stop: StopRequest) -> None:
    from hmsa_core.config import InferConfig
    from hmsa_core.engine.spec import InferSpec, Selection
    from pipeline.launcher import run_job

    config = InferConfig(
        scales=options.scales, flip=options.flip, images_per_shard=args.images_per_shard, codec=args.codec,
        runtime=options.runtime,
    )  # fmt: skip
    spec = InferSpec(
        work=work, roots={_ROOT: images.parent}, config=config, checkpoint=options.checkpoint.resolve(),
        selection=Selection(index=work / "index" / f"{_ROOT}.parquet"), lineage={"licences": "unknown"},
    )  # fmt: skip
    run_job(spec, stop=stop)


def _report(out: Path, work: Path, refused: int) -> None:
    from hmsa_core.atomic import read_json

    summary = read_json(work / "summary.json")
    for row in summary["skipped"]:
        sys.stderr.write(f"left out: {row['name']}: {row['reason']}\n")
    left_out = refused + len(summary["skipped"])
    sys.stdout.write(
        f"{out}: {summary['images']} images labelled, {summary['resumed']} were labelled before, {left_out} left out\n"
    )
