"""Find out how public networks label your images best, and write one teacher file.

A network is onnx:FILE, hf:FOLDER, scores:FOLDER or a checkpoint folder; several are combined. Its classes are mapped to
yours by their names. With --labels, some 20 images or more, the map is checked, and input, scales and combination are
chosen by mean IoU. Without labels they are chosen by agreement, which is weaker. `--teacher FILE` and
`auto_infer.teacher` take the file. Nothing is trained but the combination.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hmsa_core.io.errors import InputError
from pipeline.cli.inference_options import add_machine, pin_threads, runtime_of, tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `autolabel adopt`."""
    add = parser.add_argument
    add("teacher", nargs="+", metavar="SPEC", help="onnx:FILE, hf:FOLDER, scores:FOLDER or a checkpoint folder")
    add("--images", required=True, type=Path, metavar="DIR", help="images like those that shall be labelled")
    add("--labels", type=Path, metavar="DIR", help="label maps of some of them, of the same names")
    text = "what they hold, as in `evaluate` (default: ids of the class file, or colours)"
    add("--ids", choices=("auto", "file", "train", "colours"), default="auto", help=text)
    add("--classes", required=True, metavar="FILE", help="of the labels, as in `evaluate`")
    add("--out", type=Path, default=Path("teacher.yaml"), metavar="FILE", help="default: teacher.yaml")
    add("--yes", action="store_true", help="use classes that labels alone name without a look at the file")
    add_machine(parser)


def run(args: argparse.Namespace) -> int:
    """Choose how the networks are used, print the evidence, write the file."""
    if args.out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out {args.out}: must end in .yaml, by which --teacher knows such a file")
    threads = pin_threads(args)
    from hmsa_core.data.layouts import load_classes
    from hmsa_core.inference.adopt.adopt import adopt_folder
    from hmsa_core.inference.adopt.report import how, maps, table, to_yaml
    from hmsa_core.io.atomic import open_atomic

    classes = load_classes(Path(), args.classes)
    runtime = runtime_of(args, threads=threads)
    with open_atomic(args.out) as file:  # a folder that cannot be written to costs no run
        found = adopt_folder(args.teacher, args.images, args.labels, classes, runtime, tell, ids=args.ids)
        sys.stdout.write("\n".join([*maps(found), "", *table(found)]) + "\n")
        if not found.is_by_labels:
            tell(f"chosen {how(found)}, or give --labels")
        if args.yes:
            found = found.confirmed()
        file.write(to_yaml(found, args.out).encode())
    use = f"use it with `autolabel label --teacher {args.out}`, or as auto_infer.teacher"
    if unsure := found.adopted.unconfirmed:
        tell(f"{unsure[0]}: no known name says what its classes are; they were found by labels alone")
        use = "look at the map above, and delete the line `unconfirmed` in the file; then " + use
    sys.stdout.write(f"{args.out}: {use}\n")
    return 0
