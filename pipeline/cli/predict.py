"""Predict images: label, confidence, weight of each scale as pictures, and one contact sheet an image (white = 1)."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from hmsa_core.io.errors import InputError
from pipeline.cli.inference_options import add_options, pin_threads, runtime_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `autolabel predict`."""
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="JPEG, PNG, WebP or TIFF")
    text = "folder for the pictures (default: predictions)"
    add("--out", type=Path, default=Path("predictions"), metavar="DIR", help=text)
    add_options(parser, modes=True)


def run(args: argparse.Namespace) -> int:
    """Write the pictures and print the path of each sheet."""
    _check_stems(args.images)
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out {args.out}: is a file", hint="give a folder for the pictures")
    runtime = runtime_of(args, threads=pin_threads(args))
    from hmsa_core.data.decode import read_image
    from hmsa_core.inference.network.pictures import picture, write_pictures
    from hmsa_core.inference.network.predictor import open_tiler
    from hmsa_core.inference.teachers.run_options import run_options

    options = run_options(args.checkpoint, args.scales, args.flip)
    tiler = open_tiler(options.checkpoint, runtime)
    for path in args.images:
        shown = picture(tiler, read_image(path), replace(options.passes, kind=args.mode))
        sheet = write_pictures(args.out, path.stem, shown, options.classes)[-1]
        sys.stdout.write(f"{sheet}\n")
    return 0


def _check_stems(images: list[Path]) -> None:
    folder = next((path for path in images if path.is_dir()), None)
    if folder is not None:
        raise InputError(f"{folder}: is a folder", hint=f"give its images ({folder}/*), or use `autolabel label`")
    # Checked before the network is loaded and the first image is predicted.
    missing = next((path for path in images if not path.exists()), None)
    if missing is not None:
        raise InputError(f"{missing}: no such file")
    stems = [path.stem for path in images]
    repeated = next((s for s in stems if stems.count(s) > 1), None)
    if repeated is not None:
        raise InputError(f"two of the images are named {repeated!r}: their pictures would replace each other")
