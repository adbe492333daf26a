"""Scoring one image (resize + argmax + confusion): in row blocks against the plain way, in turns, one thread.

    python research/bench/bench_evaluate.py [--rounds 9]

The plain way resizes all class scores to full size, takes argmax and counts pairs with bincount. Ours also gives
the confidence. Median of the rounds in milliseconds of processor time; both must count the same.
Goal: at least twice as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import torch

from hmsa_core.inference.predictor import decide
from hmsa_core.metrics import confusion_counts
from hmsa_core.models.rows import whole
from research.bench.reference.evaluate_plain import confusion as plain_confusion

CASES = {
    "19 classes, 512x1024": (19, 512, 1024),
    "19 classes, 1024x2048": (19, 1024, 2048),
    "65 classes, 1024x1856": (65, 1024, 1856),
}
BLOCK_BYTES = 2 << 20


def by_rows(logits: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """The same counts, a few rows at a time."""
    rows = whole(logits).resized(label.shape)
    pred = np.empty(label.shape, np.uint8)
    step = max(1, BLOCK_BYTES // (classes * label.shape[1] * 4))
    for y in range(0, label.shape[0], step):
        end = min(y + step, label.shape[0])
        pred[y:end], _ = decide(rows(y, end))
    return confusion_counts(pred, label, classes)[:, :classes]


def measure(classes: int, height: int, width: int, rounds: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((classes, height // 4, width // 4)).astype(np.float32)
    label = np.repeat(np.repeat(rng.integers(0, classes, (height // 8, width // 8), np.uint8), 8, 0), 8, 1)
    label[rng.random(label.shape) < 0.05] = 255
    tensor = torch.from_numpy(logits)[None]
    expected, found = plain_confusion(tensor, label, classes), by_rows(logits, label, classes)
    differing = int(np.abs(expected - found).sum()) // 2
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(rounds):
        for name, call in (
            ("plain", lambda: plain_confusion(tensor, label, classes)),
            ("ours", lambda: by_rows(logits, label, classes)),
        ):
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    plain, ours = (statistics.median(values) for values in times.values())
    return {
        "plain_ms": round(1e3 * plain, 1),
        "ours_ms": round(1e3 * ours, 1),
        "speedup": round(plain / ours, 2),
        "pixels_that_differ": differing,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(json.dumps({name: measure(*case, args.rounds) for name, case in CASES.items()}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
