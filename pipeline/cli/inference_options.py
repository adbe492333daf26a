"""Options that `label`, `predict` and `evaluate` share; defaults come from the checkpoint. No torch here."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hmsa_core.io.errors import ConfigError

if TYPE_CHECKING:
    from hmsa_core.config import RuntimeConfig
    from hmsa_core.inference.teachers.sources import Source

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ENGINE = "who runs the processes: this machine, or Ray (docs/scaling.md; default: local)"


def add_options(parser: argparse.ArgumentParser, *, teachers: bool = False, modes: bool = False) -> None:
    """Declare checkpoint (with `teachers`: any teacher), scales, flip, fusion (`modes`) and machine arguments."""
    who: argparse._ActionsContainer = parser.add_mutually_exclusive_group(required=True) if teachers else parser
    text = "checkpoint folder, a file in it, or a folder's address"
    who.add_argument("--checkpoint", required=not teachers, metavar="F", help=text)
    if teachers:
        text = "instead: onnx:FILE, hf:FOLDER, scores:FOLDER, a checkpoint folder, or several (their mean)"
        who.add_argument("--teacher", nargs="+", metavar="SPEC", help=text)
        text = "table of the --teacher's classes (default: FILE.teacher.yaml or FOLDER/teacher.yaml next to it)"
        parser.add_argument("--map", type=Path, metavar="FILE", help=text)
    parser.add_argument("--scales", type=scale_list, metavar="S,S,...", help="e.g. 0.5,1,2 (default: the checkpoint's)")
    text = "average with the mirror image (default: the checkpoint's)"
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=None, help=text)
    if modes:
        text = "how scales are fused (default: as the model was trained)"
        parser.add_argument("--mode", choices=("model", "single", "average", "max"), default="model", help=text)
    add_machine(parser)


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments on the machine: device, precision, threads."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    text = "default: fp32; bf16 falls back to fp32 on a CPU that gains nothing by it"
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help=text)
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")


def scale_list(text: str) -> tuple[float, ...]:
    """Parse the scales of a command line, `0.5,1,2`."""
    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.5,1,2") from None


def positive(text: str) -> int:
    """Parse a whole number of at least 1 of a command line."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def teacher_of(args: argparse.Namespace) -> tuple[Source, ...]:
    """What --checkpoint, --teacher and --map name."""
    from hmsa_core.inference.teachers.sources import parse

    sources = parse(args.teacher or args.checkpoint)
    if args.map is None:
        return sources
    if len(sources) > 1:
        raise ConfigError("--map is of one teacher", hint="of several, put a table next to each: FILE.teacher.yaml")
    source = replace(sources[0], map=args.map)
    if source.table.classes is None:
        raise ConfigError(
            f"--map {args.map}: says nothing of classes", hint="write `classes: {THEIRS: OURS, ...}` there"
        )
    return (source,)


def pin_threads(args: argparse.Namespace) -> int:
    """Fix the number of threads before numpy and torch are loaded, since both read it only once."""
    threads: int = args.threads or len(os.sched_getaffinity(0))
    for name in _THREADS:
        os.environ[name] = str(threads)
    return threads


def runtime_of(args: argparse.Namespace, *, threads: int, ranks: int = 1) -> RuntimeConfig:
    """Settings of the machine that the command line requests."""
    from hmsa_core.config import RuntimeConfig

    return RuntimeConfig(ranks=ranks, threads=threads, device=args.device, precision=args.precision)


def tell(line: str) -> None:
    """Print a line that is not a result to standard error."""
    sys.stderr.write(f"{line}\n")
