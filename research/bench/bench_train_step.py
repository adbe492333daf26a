"""Time of one whole training step (passes, RMI, update): hierarchical {0.5, 1.0} against single scale.

    python -m research.bench.bench_train_step [--cases hrnet_tiny:128x192:4 hrnet_w18:256x512:1 ...] [--quick]
    torchrun --nproc-per-node N -m research.bench.bench_train_step --device cuda     (one rank a GPU; any N)

Both models have the same trunk, context block and crop, and the highest scale's unused attention is not
computed (`top_attention: skip`). They run in turns in one process, so that another load on the machine hits
both; on CPUs time is processor time of one thread, with freed memory kept as the stages start trainings. The
median of the rounds' ratios is the figure. A case is TRUNK:HEIGHTxWIDTH:CROPS A PASS.

Rank 0 prints one JSON object; on a GPU with the share of the bound of `roofline.py` that the hierarchical step reaches.
What ranks exchange is not in the bound. On GPUs batch norm sees the crops of all ranks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch

from hmsa_core.config import ModelConfig, RuntimeConfig, TrainConfig
from hmsa_core.io.process import StopRequest
from hmsa_core.models.layers.batch_norm import synchronise
from hmsa_core.models.model import build_fresh
from hmsa_core.runtime.memory import peak_memory_mb
from hmsa_core.runtime.ranks import Ranks, start_ranks
from hmsa_core.training.data import PassBatch, Timeline
from hmsa_core.training.trainer import Trainer
from pipeline.jobs.launcher import KEEP_HEAP
from research.bench import roofline

CLASSES = 19
CPU_CASES = ["hrnet_tiny:128x192:4", "hrnet_w18:256x512:1", "hrnet_w48:256x512:1"]
GPU_CASES = ["hrnet_w48:1024x2048:1"]
ROUND_S = 2.0  # seconds that a round of each model takes at least: one short step is noise


class _Plan:
    """As long as a bench needs: one epoch without end."""

    epochs = 1

    def __len__(self) -> int:
        return 1 << 30

    def locate(self, position: int) -> tuple[int, int]:
        return 0, position


def batches(crop: tuple[int, int], size: int) -> Iterator[PassBatch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, *crop, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (size, crop[0] // 16, crop[1] // 16), generator=generator)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2).to(torch.uint8)
    names = tuple(f"image-{i}" for i in range(size))
    if torch.cuda.is_available():  # as loaders hand them over: the host waits for the copy of other memory
        images, labels = images.pin_memory(), labels.pin_memory()
    counts = np.array([size, 0, *np.zeros(CLASSES)])
    return itertools.repeat(PassBatch(images, labels, names, counts))


def trainer(kind: str, trunk: str, crop: tuple[int, int], batch: int, runtime: RuntimeConfig, ranks: Ranks) -> Trainer:
    config = TrainConfig(
        model=ModelConfig(kind=kind, trunk=trunk),
        crop=crop,
        batch_per_rank=batch,
        global_batch=batch * ranks.world,
        runtime=runtime,  # type: ignore[arg-type]
    )
    torch.manual_seed(0)
    model = build_fresh(config.model, CLASSES)
    if ranks.norm_ranks > 1:
        synchronise(model, ranks.norm_group)
    model.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    return Trainer(config, model, ranks, timeline=Timeline(_Plan(), batch * ranks.world), stop=StopRequest())  # type: ignore[arg-type]


def seconds(one: Trainer, feed: Iterator[PassBatch], steps: int) -> float:
    is_gpu = one.ranks.device.type == "cuda"
    clock = time.perf_counter if is_gpu else time.process_time
    if is_gpu:
        torch.cuda.synchronize()
    start = clock()
    for _ in range(steps):
        one.run_step(feed)
    if is_gpu:
        torch.cuda.synchronize()
    return (clock() - start) / steps


def run(case: str, rounds: int, runtime: RuntimeConfig, ranks: Ranks, peaks: tuple[float, float]) -> dict[str, object]:
    trunk, size, batch = case.split(":")
    crop = int(size.split("x")[0]), int(size.split("x")[1])
    feed = batches(crop, int(batch))
    trainers = {k: trainer(k, trunk, crop, int(batch), runtime, ranks) for k in ("single", "hierarchical")}
    times: dict[str, list[float]] = {kind: [] for kind in trainers}
    warm = [seconds(one, feed, 2) for one in trainers.values()]
    steps = max(ranks.gather(math.ceil(ROUND_S / min(warm))))
    for _ in range(rounds):
        for kind, one in trainers.items():
            times[kind].append(seconds(one, feed, steps))
    ratios = [h / s for s, h in zip(times["single"], times["hierarchical"], strict=True)]
    median = {kind: statistics.median(t) for kind, t in times.items()}
    found: dict[str, object] = {}
    if ranks.device.type == "cuda":
        bound = roofline.training(roofline.empty_model(trunk), crop, *peaks).times(int(batch))
        found = {"roofline_share": roofline.share(bound, median["hierarchical"]), "roofline": bound.to_json()}
    return {
        "case": case,
        "precision": runtime.precision,
        "ranks": ranks.world,
        "crops_per_s": round(ranks.world * int(batch) / median["hierarchical"], 2),
        **found,
        "seconds_a_step": {kind: round(t, 4) for kind, t in median.items()},
        "ratio": {n: round(f(ratios), 3) for n, f in (("median", statistics.median), ("best", min), ("worst", max))},
        "peak_memory_mb": round(peak_memory_mb(trainers["single"].ranks.device)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    roofline.add_peaks(parser)
    given = parser.parse_known_args()[0].device
    gpu = given == "cuda" or (given == "auto" and torch.cuda.is_available())
    if not gpu and not KEEP_HEAP.items() <= os.environ.items():  # glibc reads them once, at the start
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **KEEP_HEAP})
    parser.add_argument("--cases", nargs="+", default=GPU_CASES if gpu else CPU_CASES)
    parser.add_argument("--quick", action="store_true", help="two rounds: shows that it runs, measures little")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16" if gpu else "fp32")
    args = parser.parse_args()
    rounds = 2 if args.quick else 5
    runtime = RuntimeConfig(precision=args.precision, device=args.device)
    ranks = start_ranks(runtime)  # those of torchrun, or one
    result = {"cases": [run(case, rounds, runtime, ranks, (args.tflops, args.tb_s)) for case in args.cases]}
    if ranks.is_main:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    ranks.stop()


if __name__ == "__main__":
    main()
