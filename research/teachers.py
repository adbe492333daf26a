"""Teachers compared on a workspace's report pictures: mIoU, calibration error, coverage at equal precision.

python -m research.teachers workspaces/scene ours=models/teacher theirs=onnx:net.onnx both=models/teacher,onnx:net.onnx

Coverage is the share of pixels that one threshold for all classes keeps, the lowest one with which the kept pixels
have the precision that is asked for on these very pictures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hmsa_core.config import Passes, RuntimeConfig
from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index
from hmsa_core.inference.teachers.sources import resolved
from hmsa_core.inference.teachers.teacher import open_teacher
from hmsa_core.io.errors import ConfigError
from hmsa_core.labels import ConfidenceCode
from hmsa_core.metrics import confusion_counts, iou_of, mean_iou_of
from hmsa_core.metrics.reliability import Reliability
from hmsa_core.runtime.ranks import JobContext, Ranks
from hmsa_core.taxonomy import IGNORE
from pipeline.cli.inference_options import scale_list
from pipeline.cli.main import run_command
from pipeline.jobs.support import role_index
from pipeline.workspace.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("workspace", type=Path, help="a workspace after `prepare`; paths of teachers begin there")
    parser.add_argument("rows", nargs="+", metavar="NAME=SPEC[,SPEC]", help="a row: a teacher, or an ensemble")
    parser.add_argument("--scales", type=scale_list, default=(1.0,), help="default: 1")
    parser.add_argument("--precision", type=float, default=0.95, help="of the kept pixels; default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    ws = Workspace(args.workspace.resolve())
    path = role_index(ws, "report")
    lines = ["| teacher | mIoU | calibration error | coverage |", "|---|---|---|---|"]
    for row in args.rows:
        name, equals, specs = row.partition("=")
        if not equals:
            raise ConfigError(f"{row}: expected NAME=SPEC")
        teacher = resolved(specs.split(","), ws.resolve)
        miou, ece, coverage = measure(path, ws.roots[Index.load(path).root], teacher, args.scales, args.precision)
        lines.append(f"| {name} | {100 * miou:.1f} | {ece:.3f} | {100 * coverage:.1f} % |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def measure(
    path: Path, root: Path, specs: tuple[str, ...], scales: tuple[float, ...], precision: float
) -> tuple[float, float, float]:
    """MIoU, calibration error, and coverage at this precision, each in [0, 1].

    Args:
        path, root: index of pictures with fine labels, and the folder that its paths begin in.
        specs: a teacher, or several whose mean counts.
    """
    index = Index.load(path)
    context = JobContext(Ranks(0, 1, torch.device("cpu")), RuntimeConfig(threads=1, precision="fp32"))
    teacher = open_teacher(specs, Passes(scales, flip=False), index.classes, context)
    size, code, reliability = index.classes.num_classes, ConfidenceCode(), Reliability()
    confusion, kept = np.zeros((size, size + 1), np.int64), np.zeros((2, 256), np.int64)
    for sample in index.select(kinds=("fine",)):
        truth = read_label(root / sample.label, index.classes)
        label, confidence = teacher.label(sample.name, read_image(root / sample.image))
        confusion += confusion_counts(label, truth, size)
        reliability.update(label, confidence, truth)
        known, codes = truth != IGNORE, code.encode(confidence)
        kept += np.stack([_by_code(codes[known]), _by_code(codes[known & (label == truth)])])
    return float(mean_iou_of(iou_of(confusion))), reliability.ece(), coverage_at(kept, precision)


def coverage_at(kept: NDArray[np.int64], precision: float) -> float:
    """Largest share of pixels above one code of which this share is right; `kept`: pixels and right ones by code."""
    total, right = kept[:, ::-1].cumsum(axis=1)
    enough = total[right >= precision * total]
    return float(enough.max() / total[-1]) if len(enough) else 0.0


def _by_code(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bincount(codes, minlength=256)


if __name__ == "__main__":
    sys.exit(run_command("python -m research.teachers", sys.modules[__name__], sys.argv[1:]))
