"""How fast this machine is beside the one on which the released code was timed.

    python research/bench/anchor.py [--rounds 5] [--threads 2]

The released code's own times (two shared cores of an AMD EPYC, torch 2.13, two threads, noisy by half): HRNet-W48
with hierarchical attention, evaluation, 256x512, scales {0.5, 1}, one pass, 0.72 - 0.79 s; RMI forward + backward at
1x19x512x1024 0.82 + 0.51 s, best of 4. The same network is run here the same plain way (reference/infer_plain.py):
`factor` is how many times as fast this machine is; times of the released code divided by it are what it would need
here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from research.bench.bench_infer import make_image, make_model
from research.bench.reference.infer_plain import hierarchical, normalise

RELEASED_W48_S = (0.72, 0.79)
RELEASED_RMI_S = 1.33


def measure(rounds: int, threads: int) -> dict[str, object]:
    """Best time of the plain pass, and what the released code's times amount to on this machine."""
    import torch

    torch.set_num_threads(threads)
    model, images = make_model("hrnet_w48"), normalise(make_image((256, 512)))
    seconds = []
    with torch.no_grad():
        hierarchical(model, images, (0.5, 1.0))  # warms up
        for _ in range(rounds):
            start = time.perf_counter()
            hierarchical(model, images, (0.5, 1.0))
            seconds.append(time.perf_counter() - start)
    best, released = min(seconds), sum(RELEASED_W48_S) / 2
    return {
        "w48_256x512_s": round(best, 4),
        "released_w48_s": list(RELEASED_W48_S),
        "factor": round(released / best, 3),
        "released_rmi_here_s": round(RELEASED_RMI_S * best / released, 3),
        "threads": threads,
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    sys.stdout.write(json.dumps(measure(args.rounds, args.threads), indent=1) + "\n")


if __name__ == "__main__":
    main()
