"""Options that `label`, `predict` and `evaluate` share; defaults come from the checkpoint. No torch here."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmsa_core.io.errors import ConfigError

if TYPE_CHECKING:
    from hmsa_core.config import RuntimeConfig

__all__ = ["Options", "add_options", "pin_threads", "read_options"]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Options:
    """How a checkpoint is run."""

    checkpoint: Path
    meta: dict[str, Any]  # the checkpoint's JSON
    scales: tuple[float, ...]
    flip: bool
    runtime: RuntimeConfig


def add_options(parser: argparse.ArgumentParser) -> None:
    """Checkpoint, scales, flip, and how the machine is used."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="F", help="checkpoint folder or a file in it")
    parser.add_argument("--scales", type=_scales, metavar="S,S,...", help="e.g. 0.5,1,2 (default: the checkpoint's)")
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="average with the mirror image (default: the checkpoint's)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="default: fp32; bf16 falls back to fp32 on a CPU that gains nothing by it",
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: all cores)")


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.5,1,2") from None


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def pin_threads(args: argparse.Namespace) -> int:
    """Fix the number of threads before numpy and torch are loaded, which read it once."""
    threads: int = args.threads or len(os.sched_getaffinity(0))
    for name in _THREADS:
        os.environ[name] = str(threads)
    return threads


def read_options(args: argparse.Namespace, *, threads: int, ranks: int = 1) -> Options:
    """Fill in what the checkpoint says about itself.

    Raises:
        CheckpointError: there is no usable checkpoint. ConfigError: unusable scales.
    """
    from hmsa_core.config import LARGEST_SCALE, RuntimeConfig
    from hmsa_core.models import read_meta
    from hmsa_core.models.checkpoint import check_labels

    meta = read_meta(args.checkpoint)
    check_labels(meta, args.checkpoint)
    inference = meta.get("inference") or {}
    scales = args.scales if args.scales is not None else tuple(inference.get("scales") or _usual_scales(meta["kind"]))
    # Never false for "not a number", which compares with nothing.
    if 1.0 not in scales or len(set(scales)) != len(scales) or not all(0 < s <= LARGEST_SCALE for s in scales):
        shown = ",".join(f"{s:g}" for s in scales)
        raise ConfigError(
            f"--scales {shown}: give different numbers above 0 and up to {LARGEST_SCALE:g}, one of them 1",
            hint="for example --scales 0.5,1,2",
        )
    flip = args.flip if args.flip is not None else bool(inference.get("flip", True))
    runtime = RuntimeConfig(ranks=ranks, threads=threads, device=args.device, precision=args.precision)
    folder = args.checkpoint if args.checkpoint.is_dir() else args.checkpoint.parent
    return Options(folder, meta, tuple(float(s) for s in scales), flip, runtime)


def _usual_scales(kind: str) -> tuple[float, ...]:
    return (1.0,) if kind == "single" else (0.5, 1.0, 2.0)
