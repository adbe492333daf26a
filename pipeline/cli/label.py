"""Label a folder of images with a checkpoint, or with a teacher of another tool, into a label store.

Any folder, sub-folders too: JPEG, PNG, WebP, TIFF of any size, EXIF rotation applied, no labels needed. A
bad image is listed and left out. Stop it at any time: the same command goes on where it was; images
added to the folder later are appended. Progress lies in OUT.work, next to the store. In the store an image
is called by its stem; where several drives count their images from 1, --names path calls it by its folders
too: drive2/cam0/000001.jpg is drive2__cam0__000001.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hmsa_core.io.errors import ConfigError
from pipeline.cli.inference_options import ENGINE, add_options, pin_threads, runtime_of, teacher_of, tell

if TYPE_CHECKING:
    from hmsa_core.inference.teachers.run_options import RunOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `autolabel label`."""
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="folder of images, or its s3://, gs://, az:// address")
    add("--out", required=True, metavar="STORE", help="folder or address of the label store")
    add("--names", choices=("stem", "path"), default="stem", help="of images in the store (stem)")
    add("--images-per-shard", type=int, metavar="N", help="default: as the store was begun, 256")
    add("--codec", choices=("png", "webp"), default="png", help="default: png; webp is smaller, slower")
    text = "processes: one a GPU, or CPU processes of --threads each (default: 1)"
    add("--ranks", type=int, default=1, metavar="N", help=text)
    add("--engine", choices=("local", "ray"), default="local", help=ENGINE)
    add_options(parser, teachers=True)
    text = (
        "of the labels, with --teacher: a file of class names or a public label set, as in `evaluate` (default: the "
        "teacher's own names)"
    )
    add("--classes", metavar="FILE", help=text)


def run(args: argparse.Namespace) -> int:
    """Label the folder in a job of separate processes."""
    if args.ranks < 1 or (args.images_per_shard is not None and args.images_per_shard < 1):
        raise ConfigError("--images-per-shard and --ranks must be at least 1")
    threads = _pin_threads(args)
    from hmsa_core.inference.folder.label_folder import label_images
    from hmsa_core.io.process import StopRequest
    from hmsa_core.io.remote import is_url, local_path
    from pipeline.jobs.launcher import run_job

    options, runtime = _options(args), runtime_of(args, threads=threads, ranks=args.ranks)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Threads that wait in busy loops take cores from other ranks and programs: a seventh faster on an idle machine,
    # several times slower on any other (docs/inference.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    counts = label_images(
        args.images,
        args.out,
        options,
        runtime,
        names=args.names,
        images_per_shard=args.images_per_shard,
        codec=args.codec,
        engine=args.engine,
        tell=tell,
        stop=StopRequest().install(),
        run=lambda spec, stop: run_job(spec, stop=stop),
    )
    shown = args.out if is_url(args.out) else local_path(args.out).resolve()
    sys.stdout.write(
        f"{shown}: {counts.images} images labelled, {counts.resumed} were labelled before, {counts.left_out} left out\n"
    )
    return 0


def _options(args: argparse.Namespace) -> RunOptions:
    from hmsa_core.data.layouts import load_classes
    from hmsa_core.inference.teachers.run_options import teacher_options

    classes = load_classes(Path(), args.classes) if args.classes else None
    return teacher_options(teacher_of(args), classes, args.scales, args.flip)


def _pin_threads(args: argparse.Namespace) -> int:
    """Pin and return the threads of each process: --threads, else those of the begun store, else all cores.

    The number changes last bits, so it depends neither on `--ranks` nor on the machine that continues a store.
    """
    from hmsa_core.inference.folder.label_folder import threads_of

    cores, begun = len(os.sched_getaffinity(0)), threads_of(args.out)
    if begun and not args.threads:
        args.threads = begun
        if begun != cores:
            sys.stderr.write(f"--threads {begun}, as this store was begun (there are {cores} cores)\n")
    return pin_threads(args)
