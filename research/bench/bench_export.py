"""Images a second of an exported graph in onnxruntime against our own labelling, on the CPU.

    python -m research.bench.bench_export [--quick] [--checkpoint DIR] [--threads 1]

Both label the same picture in turns; the median of the rounds is reported. Without a checkpoint weights are random:
the time does not depend on them. No mirror image: a graph has none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from hmsa_core import models
from hmsa_core.inference.network.predictor import Predictor, label_image
from hmsa_core.models import export
from research.bench.bench_infer import make_image, make_model

SCALES = ((1.0,), (0.5, 1.0, 2.0))
SIZE = (360, 480)


def run_case(model: Any, scales: tuple[float, ...], rounds: int, data: bytes | None = None) -> dict[str, float]:
    """Both ways at some scales; `data` is an exported file that is there already."""
    data = data or export.to_onnx(export.trace(model, scales, argmax=True), {}, argmax=True)
    graph, predictor, image = export.open_graph(data, ".onnx"), Predictor(model), make_image(SIZE)
    batch = export.as_batch(image)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "onnxruntime": lambda: export.labels_of(graph(batch))[0],
        "ours": lambda: label_image(predictor, image, scales, False)[0],
    }
    labels = {way: label() for way, label in ways.items()}  # also warms up
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, label in ways.items():
            start = time.perf_counter()
            label()
            seconds[way].append(time.perf_counter() - start)
    speed = {f"{way}_images_per_s": round(1 / statistics.median(times), 3) for way, times in seconds.items()}
    return {**speed, "agreement": float((labels["onnxruntime"] == labels["ours"]).mean())}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one scale, one round")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    model = models.load(args.checkpoint) if args.checkpoint else make_model("hrnet_micro")
    cases, rounds = (SCALES[:1], 1) if args.quick else (SCALES, args.rounds)
    result = {",".join(f"{s:g}" for s in scales): run_case(model, scales, rounds) for scales in cases}
    sys.stdout.write(json.dumps({"scales": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
