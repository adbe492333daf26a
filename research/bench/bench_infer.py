"""Labels per second and peak memory: our inference against the plain way, side by side.

    python research/bench/bench_infer.py [--quick] [--cases micro,tiny,w48] [--threads 1] [--out FILE]

Time: both ways take turns on the same image in one process, the median of the rounds is reported.
Memory: each way labels one image in a process of its own; peak resident set, and what it is above that
of a process that has only loaded the model. Agreement: labels, and thresholded labels at 0.9, of the same image.
Weights are random (the time does not depend on them); heads are scaled so that labels vary.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

CASES = {
    "micro": {"trunk": "hrnet_micro", "size": (512, 1024), "precisions": ("fp32", "bf16"), "goal": 1.2},
    "tiny": {"trunk": "hrnet_tiny", "size": (512, 1024), "precisions": ("fp32", "bf16"), "goal": 1.2},
    "w18": {"trunk": "hrnet_w18", "size": (512, 1024), "precisions": ("fp32", "bf16"), "goal": 1.2},
    "w48": {"trunk": "hrnet_w48", "size": (512, 1024), "precisions": ("fp32", "bf16"), "goal": 1.6},
}
SCALES = (0.5, 1.0, 2.0)
CLASSES = 19


def make_model(trunk: str):
    import torch

    from hmsa_core import models

    torch.manual_seed(0)
    model = models.build("hierarchical", trunk=trunk, num_classes=CLASSES).eval()
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


def make_image(size: tuple[int, int]):
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3), np.uint8)
    return np.ascontiguousarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))


def open_way(way: str, trunk: str):
    """A function image -> (label, confidence)."""
    model = make_model(trunk)
    if way == "plain":
        from research.bench.reference.infer_plain import label_image as plain

        return lambda image: plain(model, image, SCALES, True)
    from hmsa_core.inference.predictor import Predictor, label_image

    predictor = Predictor(model, "cpu", way, in_place=True)
    return lambda image: label_image(predictor, image, SCALES, True)


def measure_memory(case: str, way: str) -> None:
    """Print peak resident MB after loading and after labelling (run in a process of its own)."""
    setting = CASES[case]
    image = make_image(setting["size"])
    label = open_way(way, setting["trunk"])
    loaded = _peak_mb()
    label(image)
    peak = _peak_mb()
    print(json.dumps({"loaded_mb": round(loaded), "peak_mb": round(peak)}))


def _peak_mb() -> float:
    # Not getrusage: its figure is inherited from the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def memory_of(case: str, way: str, threads: int) -> dict[str, int]:
    command = [sys.executable, __file__, "--memory", f"{case}:{way}", "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def agreement(expected, found) -> dict[str, float]:
    import numpy as np

    from hmsa_core.labels import ConfidenceCode

    code = ConfidenceCode()
    codes = [code.encode(np.clip(c, 0, 1)).astype(int) for c in (expected[1], found[1])]
    at = code.code_for(0.9)
    kept = [np.where(c >= at, way[0], 255) for c, way in zip(codes, (expected, found), strict=True)]
    return {
        "labels": float((expected[0] == found[0]).mean()),
        "thresholded_labels": float((kept[0] == kept[1]).mean()),
        "codes_within_5": float((np.abs(codes[0] - codes[1]) <= 5).mean()),
    }


def run_case(case: str, rounds: int, threads: int) -> dict[str, object]:
    setting = CASES[case]
    image = make_image(setting["size"])
    ways = {way: open_way(way, setting["trunk"]) for way in ("plain", *setting["precisions"])}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    results = {way: label(image) for way, label in ways.items()}  # also warms up
    for _ in range(rounds):
        for way, label in ways.items():
            start = time.perf_counter()
            label(image)
            seconds[way].append(time.perf_counter() - start)
    memory = {way: memory_of(case, way, threads) for way in ways}
    found: dict[str, object] = {
        "trunk": setting["trunk"],
        "size": setting["size"],
        "scales": SCALES,
        "flip": True,
        "rounds": rounds,
        "ways": {},
    }
    plain = statistics.median(seconds["plain"])
    for way in ways:
        median = statistics.median(seconds[way])
        found["ways"][way] = {
            "median_s": round(median, 4),
            "best_s": round(min(seconds[way]), 4),
            "images_per_s": round(1 / median, 3),
            "speedup": round(plain / median, 2),
            **memory[way],
            "peak_share": round(memory[way]["peak_mb"] / memory["plain"]["peak_mb"], 3),
            "agreement": agreement(results["plain"], results[way]),
        }
    found["goal_speedup"] = setting["goal"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="micro,tiny,w48")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round of the narrow model only")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    import cv2
    import torch

    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    if args.memory:
        measure_memory(*args.memory.split(":"))
        return 0
    cases, rounds = (["micro"], 1) if args.quick else (args.cases.split(","), args.rounds)
    result = {
        "benchmark": "infer",
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": args.threads,
        "cases": {case: run_case(case, rounds, args.threads) for case in cases},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        from hmsa_core.io.atomic import write_text

        write_text(args.out, text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
