"""How much do the labels of a trained teacher change when it labels in bf16?

    python research/bench/agreement.py --workspace DIR [--limit 20] [--write]

The workspace's own teacher labels images of its report set with the scales and the flip of `auto_infer`, once in
fp32 and once in bf16 (a processor without bf16 units is refused: both would be fp32). Shares of pixels over all
images: same class, same label at threshold 0.9, codes within five steps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import torch

from hmsa_core import models
from hmsa_core.data.decode import read_image
from hmsa_core.inference.predictor import Predictor
from pipeline.workspace import Workspace
from research.bench.bench_infer import agreement
from research.bench.gateable_share import images_of
from research.bench.run import machine, record


def measure(ws: Workspace, limit: int) -> dict[str, Any]:
    """Agreement of the two precisions, averaged over images."""
    config = ws.params.auto_infer
    model = models.load(ws.path("models/teacher"))
    ways = [Predictor(model, "cpu", precision) for precision in ("fp32", "bf16")]
    if ways[1].precision != "bf16":
        raise SystemExit("this processor has no bf16 units: nothing to compare")
    found = []
    for path in images_of(ws, "report", limit):
        image = read_image(path)
        found.append(agreement(*(way.open(image).label(config.scales, config.flip) for way in ways)))
    means = {name: round(float(np.mean([f[name] for f in found])), 5) for name in found[0]}
    return {"images": len(found), "scales": list(config.scales), "flip": config.flip, "threshold": 0.9, **means}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="a finished one; its own teacher is looked at")
    parser.add_argument("--limit", type=int, default=20, help="images")
    parser.add_argument(
        "--write", action="store_true", help="to research/bench/results, and make docs/benchmarks.md anew"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    ws, where = Workspace(args.workspace), machine()
    result = measure(ws, args.limit)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if args.write:
        command = "python research/bench/agreement.py --workspace DIR --write"
        record(f"agreement-{ws.params.profile}", command, where, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
