"""Labels per second and peak memory: our inference against the plain way, side by side.

    python -m research.bench.bench_infer [--quick] [--cases micro,tiny,w48] [--threads 1]
    python -m research.bench.bench_infer --workspace DIR      (bf16 against fp32 with a trained teacher)
    python -m research.bench.bench_infer --device cuda --cases w48 [--tflops 550] [--tb-s 2.6]

On a GPU (`auto`: where there is one): images of 1024x2048 a second with the next image begun before the last one is
waited for, peak memory of the card, and the share of the bound of `roofline.py` that was reached. Elsewhere:

Time: both ways take turns on the same image in one process, the median of the rounds is reported.
Memory: each way labels one image in a process of its own; peak resident set, and what it is above that
of a process that has only loaded the model. Agreement: labels, and thresholded labels at 0.9, of the same image.
Weights are random (the time does not depend on them); heads are scaled so that labels vary.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from hmsa_core import models
from hmsa_core.config import Passes
from hmsa_core.data.decode import read_image
from hmsa_core.inference.network.predictor import Predictor, Tiler, label_image
from hmsa_core.labels import ConfidenceCode
from pipeline.jobs import measure
from pipeline.workspace.workspace import Workspace
from research.bench import roofline
from research.bench.memory import status_kib
from research.bench.reference.infer_plain import label_image as plain

TRUNKS = {"micro": "hrnet_micro", "tiny": "hrnet_tiny", "w18": "hrnet_w18", "w48": "hrnet_w48"}
SIZE = (512, 1024)
GPU_SIZE = (1024, 2048)
WAYS = ("plain", "fp32", "bf16")
SCALES = (0.5, 1.0, 2.0)
Labelled = tuple[np.ndarray, np.ndarray]  # label, confidence


def make_model(trunk: str) -> torch.nn.Module:
    """A model with random weights whose labels vary."""
    torch.manual_seed(0)
    model = models.build("hierarchical", trunk=trunk, head="released").eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.uniform_(0.8, 1.2)
                module.weight.uniform_(0.3, 0.6)
        scores = model.forward_scale(torch.randn(1, 3, 128, 256))
        spread = scores.logits.std(dim=(0, 2, 3))
        model.ocr.cls_head.weight.mul_((4.0 / spread).reshape(-1, 1, 1, 1))
        model.ocr.cls_head.bias.sub_(scores.logits.mean(dim=(0, 2, 3))).mul_(4.0 / spread)
    return model


def make_image(size: tuple[int, int]) -> np.ndarray:
    """A smooth picture of random colours."""
    small = np.random.default_rng(0).integers(0, 256, (size[0] // 16, size[1] // 16, 3), np.uint8)
    return np.ascontiguousarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))


def open_way(way: str, trunk: str) -> Callable[[np.ndarray], Labelled]:
    """A function image -> (label, confidence)."""
    model = make_model(trunk)
    if way == "plain":
        return lambda image: plain(model, image, SCALES, True)
    predictor = Predictor(model, "cpu", way, in_place=True)
    return lambda image: label_image(predictor, image, SCALES, True)


def measure_memory(trunk: str, way: str) -> dict[str, int]:
    """Peak memory after loading and after labelling one image; run in a process of its own."""
    image, label = make_image(SIZE), open_way(way, trunk)
    loaded = status_kib("VmHWM")
    label(image)
    return {"loaded_mb": round(loaded / 1024), "peak_mb": round(status_kib("VmHWM") / 1024)}


def memory_of(trunk: str, way: str, threads: int) -> dict[str, int]:
    """`measure_memory` in a new process."""
    command = [sys.executable, "-m", "research.bench.bench_infer", "--memory", f"{trunk}:{way}"]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def agreement(expected: Labelled, found: Labelled) -> dict[str, float]:
    """Shares of equal labels, of equal labels at threshold 0.9, and of codes within five steps."""
    code = ConfidenceCode()
    codes = [code.encode(np.clip(c, 0, 1)).astype(int) for c in (expected[1], found[1])]
    kept = [np.where(c >= code.code_for(0.9), way[0], 255) for c, way in zip(codes, (expected, found), strict=True)]
    return {
        "labels": float((expected[0] == found[0]).mean()),
        "thresholded_labels": float((kept[0] == kept[1]).mean()),
        "codes_within_5": float((np.abs(codes[0] - codes[1]) <= 5).mean()),
    }


def run_case(trunk: str, rounds: int, threads: int) -> dict[str, Any]:
    """All ways with one trunk."""
    image = make_image(SIZE)
    ways = {way: open_way(way, trunk) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    results = {way: label(image) for way, label in ways.items()}  # also warms up
    for _ in range(rounds):
        for way, label in ways.items():
            start = time.perf_counter()
            label(image)
            seconds[way].append(time.perf_counter() - start)
    memory = {way: memory_of(trunk, way, threads) for way in ways}
    median = {way: statistics.median(times) for way, times in seconds.items()}
    return {
        way: {
            "median_s": round(median[way], 4),
            "best_s": round(min(seconds[way]), 4),
            "images_per_s": round(1 / median[way], 3),
            "speedup": round(median["plain"] / median[way], 2),
            **memory[way],
            "peak_share": round(memory[way]["peak_mb"] / memory["plain"]["peak_mb"], 3),
            "agreement": agreement(results["plain"], results[way]),
        }
        for way in ways
    }


def run_on_gpu(trunk: str, rounds: int, size: tuple[int, int], peaks: tuple[float, float]) -> dict[str, Any]:
    """One trunk in both precisions; images follow each other as in a job."""
    bound = roofline.labelling(roofline.empty_model(trunk), size, *peaks)
    images, found = [make_image(size) for _ in range(2)], {}
    for precision_ in ("fp32", "bf16"):
        tiler = Tiler(Predictor(make_model(trunk), "cuda", precision_, in_place=True))
        for image in [*images, *images]:  # chooses algorithms, then captures the passes
            tiler.label(image.copy(), Passes(SCALES, True))
        torch.cuda.reset_peak_memory_stats()
        start, waiting = time.perf_counter(), []
        for i in range(4 * rounds):
            waiting.append(tiler.begin(images[i % 2], Passes(SCALES, True)))
            if len(waiting) > 1:
                waiting.pop(0)()
        waiting.pop()()
        seconds = (time.perf_counter() - start) / (4 * rounds)
        found[precision_] = {
            "seconds": round(seconds, 4),
            "images_per_s": round(1 / seconds, 2),
            "peak_mb": round(torch.cuda.max_memory_allocated() / 1e6),
        }
    # The peaks are those of bf16.
    found["bf16"]["roofline_share"] = roofline.share(bound, found["bf16"]["seconds"])
    return {"gpu": torch.cuda.get_device_name(), "ways": found, "roofline": bound.to_json()}


def with_teacher(ws: Workspace, limit: int) -> dict[str, float]:
    """Agreement of fp32 and bf16 over report images, with the workspace's teacher and the settings of `auto_infer`."""
    config, model = ws.params.auto_infer, models.load(ws.path("models/teacher"))
    ways = [Predictor(model, "cpu", each) for each in ("fp32", "bf16")]
    if ways[1].precision != "bf16":
        raise SystemExit("this processor has no bf16 units: nothing to compare")
    samples = measure.fine_samples(ws, "report")
    chosen = samples[:: max(1, len(samples) // limit)][:limit]
    images = [read_image(ws.roots["target"] / sample.image) for sample in chosen]
    found = [agreement(*(way.open(one).label(config.scales, config.flip) for way in ways)) for one in images]
    return {"images": len(found)} | {k: round(float(np.mean([f[k] for f in found])), 5) for k in found[0]}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="micro,tiny,w48")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round of the narrow model only")
    parser.add_argument("--workspace", type=Path, help="a finished one; its own teacher is looked at")
    parser.add_argument("--limit", type=int, default=20, help="with --workspace: images")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="cpu")
    parser.add_argument("--size", type=roofline.size_of, default=GPU_SIZE, help="on a GPU: HEIGHTxWIDTH of the images")
    roofline.add_peaks(parser)
    args = parser.parse_args()
    on_gpu = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda, but torch finds no GPU")
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    if args.memory:
        result: dict[str, Any] = dict(measure_memory(*args.memory.split(":")))
    elif args.workspace:
        result = dict(with_teacher(Workspace(args.workspace), args.limit))
    else:
        cases, rounds = (["micro"], 1) if args.quick else (args.cases.split(","), args.rounds)
        result = {"cases": {}}
        for case in cases:
            trunk = TRUNKS[case]
            result["cases"][case] = (
                run_on_gpu(trunk, rounds, args.size, (args.tflops, args.tb_s))
                if on_gpu
                else {"ways": run_case(trunk, rounds, args.threads)}
            )
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
