"""RMI loss, forward + backward: ours against the plain formula and against binary cross-entropy.

    python -m research.bench.bench_rmi [--shape 1x19x512x1024] [--threads 2] [--device cpu] [--quick]

All run in turns in one process, so that another load on the machine hits each of them; best and median of the
rounds are reported, ratios of the medians and of the bests. Extra peak memory (gradient included) is measured
in a fresh process each. The plain implementation is `reference/rmi_plain.py`. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hmsa_core.losses import rmi_loss
from research.bench.memory import status_kib
from research.bench.reference.rmi_plain import rmi_plain


def scene(shape: tuple[int, int, int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels in 8 x 8 blocks with a tenth ignored, and one-hot labels for the cross-entropy."""
    generator = torch.Generator().manual_seed(0)
    n, classes, height, width = shape
    logits = 2 * torch.randn(shape, generator=generator)
    labels = torch.randint(0, classes, (n, -(-height // 8), -(-width // 8)), generator=generator)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width].clone()
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    onehot = F.one_hot(torch.where(labels < classes, labels, 0), classes).permute(0, 3, 1, 2).float().contiguous()
    return logits.to(device).requires_grad_(), labels.to(device), onehot.to(device)


def candidates(logits: Tensor, labels: Tensor, onehot: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {
        "plain": lambda: rmi_plain(logits, labels),
        "ours": lambda: rmi_loss(logits, labels),
        "ours_masked": lambda: rmi_loss(logits, labels, rmi_ignore="masked"),
        "bce": lambda: F.binary_cross_entropy_with_logits(logits, onehot),
    }


def run_once(loss: Callable[[], Tensor], logits: Tensor) -> float:
    if logits.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    torch.autograd.grad(loss(), logits)
    if logits.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def extra_memory(name: str, arguments: argparse.Namespace) -> float:
    """Peak memory in MiB that one forward + backward needs on top of its inputs, in a process of its own."""
    command = [sys.executable, "-m", "research.bench.bench_rmi", "--memory-of", name, "--shape", arguments.shape]
    command += ["--threads", str(arguments.threads), "--device", arguments.device]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(name: str, shape: tuple[int, int, int, int], device: str) -> float:
    small = scene((1, shape[1], 32, 32), device)
    run_once(candidates(*small)[name], small[0])  # libraries and thread pools are not what is asked for
    inputs = scene(shape, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(candidates(*inputs)[name], inputs[0])
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark (Linux)
    before = status_kib("VmRSS")
    run_once(candidates(*inputs)[name], inputs[0])
    return (status_kib("VmHWM") - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1x19x512x1024")
    parser.add_argument("--quick", action="store_true", help="small maps: shows that it runs, measures little")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds = 3 if arguments.quick else 7
    arguments.shape = "1x19x256x512" if arguments.quick else arguments.shape
    n, classes, height, width = (int(part) for part in arguments.shape.split("x"))
    shape = (n, classes, height, width)
    if arguments.memory_of:
        sys.stdout.write(f"{measure_memory(arguments.memory_of, shape, arguments.device)}\n")
        return

    inputs = scene(shape, arguments.device)
    losses = candidates(*inputs)
    times: dict[str, list[float]] = {name: [] for name in losses}
    for loss in losses.values():
        run_once(loss, inputs[0])
    for _ in range(rounds):
        for name, loss in losses.items():
            times[name].append(run_once(loss, inputs[0]))
    best = {name: min(values) for name, values in times.items()}
    median = {name: statistics.median(values) for name, values in times.items()}
    memory = {name: extra_memory(name, arguments) for name in losses}
    report = {
        "best_s": {name: round(value, 4) for name, value in best.items()},
        "median_s": {name: round(value, 4) for name, value in median.items()},
        "extra_peak_mib": {name: round(value, 1) for name, value in memory.items()},
        "plain_over_ours": {k: round(v["plain"] / v["ours"], 2) for k, v in (("best", best), ("median", median))},
        "ours_over_bce": {k: round(v["ours"] / v["bce"], 2) for k, v in (("best", best), ("median", median))},
        "memory_share": round(memory["ours"] / memory["plain"], 3),
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
