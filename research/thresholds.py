"""Thresholds beside the best that the true label maps of a store's images allow: pixels kept, and how many are right.

python -m research.thresholds workspaces/scene --labels ceiling/

The best plain threshold, and the best thresholds by class, keep the most pixels at the precision that a row reaches.
Both are chosen with the true label maps: a measured threshold can hardly be better than the last column.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.decode import read_label
from hmsa_core.io.errors import InputError
from hmsa_core.labels import ConfidenceCode, LabelStore, ThresholdPolicy
from hmsa_core.taxonomy import IGNORE
from pipeline.cli.main import run_command
from pipeline.workspace.workspace import Workspace
from research.teachers import coverage_at

Counts = NDArray[np.int64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("workspace", type=Path, help="a workspace after `auto-infer`")
    parser.add_argument("--labels", type=Path, required=True, help="true label maps, NAME.png of a stored image")
    parser.add_argument("--plain", default=("0.9",), nargs="*", help="plain thresholds, on the grid of the codes")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    ws = Workspace(args.workspace.resolve())
    counts = count(ws.path("labels/raw"), args.labels)
    classes = len(counts[0])
    rows = {name: ThresholdPolicy.load(ws.path(f"calibration/{name}.json")).codes() for name in ("policy", "teach")}
    rows |= {name: np.full(classes, ConfidenceCode().code_for(name)) for name in args.plain}
    lines = ["| threshold | keeps | right | best plain keeps | best by class keeps |", "|---|---|---|---|---|"]
    for name, codes in rows.items():
        kept, right = from_codes(above(counts), codes)
        figures = kept / counts[0].sum(), right / max(kept, 1)
        reached = figures[1] - 1e-9  # a threshold reaches what it has, whatever is rounded
        best = coverage_at(counts.sum(axis=1), reached), best_by_class(counts, reached)
        lines.append(f"| {name} | " + " | ".join(f"{100 * share:.1f} %" for share in (*figures, *best)) + " |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def count(store: Path, labels: Path) -> Counts:
    """Pixels with a true label, and the right ones of them, by class and code: int64 (2, C, 256)."""
    with LabelStore.open(store) as opened:
        size = opened.classes.num_classes
        counts = np.zeros((2, size * 256), np.int64)
        paths = {name: labels / f"{name}.png" for name in opened.names()}
        known = {name: path for name, path in paths.items() if path.exists()}
        if not known:
            raise InputError(f"{labels}: no label map is named as an image of {store}", hint="expected NAME.png")
        for name, path in known.items():
            label, code = opened.read(name)[:2]
            truth = read_label(path, opened.classes)
            judged = (truth != IGNORE) & (label != IGNORE)
            at = label.astype(np.int64) * 256 + code
            for part, mask in zip(counts, (judged, judged & (label == truth)), strict=True):
                part += np.bincount(at[mask], minlength=size * 256)
    return counts.reshape(2, size, 256)


def above(counts: Counts) -> Counts:
    """Pixels with at least each code: int64 (2, C, 257); nothing is kept at code 256."""
    return np.pad(counts[..., ::-1].cumsum(axis=-1)[..., ::-1], ((0, 0), (0, 0), (0, 1)))


def from_codes(kept: Counts, codes: NDArray[np.integer]) -> Counts:
    """Pixels and right ones, int64 (2,), that smallest codes by class (C,) keep of `above(counts)`."""
    return np.take_along_axis(kept, codes.astype(np.int64)[None, :, None], axis=2).sum(axis=(1, 2))


def best_by_class(counts: Counts, precision: float) -> float:
    """Largest share of pixels that thresholds by class keep at this precision of all kept pixels together.

    Each price of a wrong pixel, in right pixels, has its best thresholds; the prices between 0 and 1 are tried.
    """
    kept = above(counts)
    best = 0
    for price in np.linspace(0, 1, 1001):
        pixels, correct = from_codes(kept, (kept[1] - price * kept[0]).argmax(axis=1))
        best = max(best, int(pixels)) if correct >= precision * pixels else best
    return best / int(counts[0].sum())


if __name__ == "__main__":
    sys.exit(run_command("python -m research.thresholds", sys.modules[__name__], sys.argv[1:]))
