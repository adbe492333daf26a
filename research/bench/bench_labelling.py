"""`autolabel label` as users run it: image area, number of images, ranks; share of the time in the model; memory.

    python -m research.bench.bench_labelling [--counts 50,500,5000] [--quick]
    python -m research.bench.bench_labelling --device cuda      (W48 in bf16, 1024x2048: images a second of a whole job)

Scales {0.5, 1, 2} + flip, one thread a rank, random weights (times do not depend on them), structured pictures.
`loop_s`: from the plan of shards, when every process has loaded its model, to the end of the job; `check_s`: reading
and checking all files before, in one process. `images_per_s` counts the loop. `model_share`: by the job's own clocks,
time in the model over time in the loop; the rest is waiting for images and for the writer. Memory: peak resident set
of the largest process. `ranks` labels four shards: one shard is the work of one process. `images` uses the narrowest
trunk on 96x192 pixels, so that what grows with the number of images is not hidden by what a picture needs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hmsa_core import taxonomy
from hmsa_core.models import checkpoint
from research.bench.bench_infer import make_model

AREAS = ((256, 512), (512, 1024), (1024, 2048))
CPU, GPU = ["--device", "cpu", "--precision", "fp32"], ["--device", "cuda", "--precision", "bf16"]


def write_images(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """JPEGs of smooth pictures with hard edges; no two are the same."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        small = rng.integers(0, 256, (max(2, size[0] // 32), max(2, size[1] // 32), 3), np.uint8)
        image = cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.rectangle(image, (i % size[1], 0), (size[1] // 2, size[0] // 2), (i % 256, 80, 90), -1)
        cv2.imwrite(str(folder / f"image{i:05}.jpg"), image)
    return folder


def write_checkpoint(folder: Path, trunk: str, device: list[str] = CPU) -> list[str]:
    """Write a checkpoint with random weights whose labels vary; the options of `autolabel label` that run it."""
    checkpoint.save(make_model(trunk), folder, class_table=taxonomy.cityscapes().to_json(), lineage={})
    return ["--checkpoint", str(folder), "--scales", "0.5,1,2", "--flip", *device]


def label(images: Path, options: list[str], out: Path, ranks: int = 1, threads: int = 1) -> dict[str, Any]:
    """Run the command; the job's own figures, its times, and the peak memory of its largest process."""
    where = ["--images", str(images), "--out", str(out), "--ranks", str(ranks), "--threads", str(threads)]
    command = [sys.executable, "-m", "pipeline.cli.main", "label", *where, *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)  # peak memory of the process and of those it waited for
        if status:
            said.seek(0)
            raise SystemExit(said.read().decode()[-2000:])
    work = out.with_name(f"{out.name}.work")
    summary = json.loads((work / "summary.json").read_text())
    # Times at which the command wrote these files: before it checks images, after it, after loading, at the end.
    checking, checked, loaded, done = (
        (work / f"{name}.json").stat().st_mtime for name in ("folder", "spec", "plan", "summary")
    )
    return {
        "images": summary["images"],
        "images_per_s": round(summary["images"] / (done - loaded), 2),
        "check_s": round(checked - checking, 3),
        "loop_s": round(done - loaded, 3),
        "model_share": summary["model_share"],
        "timing_s": summary["timing"],
        "peak_mb": round(usage.ru_maxrss / 1024),
    }


def curves(folder: Path, counts: list[int], *, quick: bool) -> dict[str, Any]:
    """The three curves."""
    narrow = write_checkpoint(folder / "micro", "hrnet_micro")
    model = write_checkpoint(folder / "tiny", "hrnet_tiny")
    areas, many = {}, {}
    for height, width in AREAS[:1] if quick else AREAS:
        name = f"{height}x{width}"
        images = write_images(folder / name, 2 if quick else 8, (height, width))
        found = label(images, model, folder / f"{name}-store")
        areas[name] = found | {"megapixels_per_s": round(found["images_per_s"] * height * width / 1e6, 3)}
    count = 4 if quick else 32
    images, shards = write_images(folder / "ranks", count, AREAS[0]), ["--images-per-shard", str(count // 4)]
    ranks = {str(n): label(images, [*model, *shards], folder / f"ranks{n}-store", n) for n in (1, 2)}
    for count in counts:
        images = write_images(folder / f"many{count}", count, (96, 192))
        many[str(count)] = label(images, narrow, folder / f"many{count}-store")
    return {
        "area": areas,
        "ranks": ranks,
        "ranks_speedup": round(ranks["2"]["images_per_s"] / ranks["1"]["images_per_s"], 2),
        "images": many,
        "memory_growth_mb": many[str(counts[-1])]["peak_mb"] - many[str(counts[0])]["peak_mb"],
    }


def on_gpu(folder: Path, *, quick: bool) -> dict[str, Any]:
    """The paper's model at full size; choosing algorithms and capturing passes count, as in every job."""
    model = write_checkpoint(folder / "model", "hrnet_micro" if quick else "hrnet_w48", GPU)
    images = write_images(folder / "images", 4 if quick else 96, AREAS[-1])
    found = label(images, model, folder / "store")
    return found | {"seconds": 1 / found["images_per_s"]}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="50,500,5000", help="numbers of images, with commas")
    parser.add_argument("--quick", action="store_true", help="a few small images: shows that it runs")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    counts = [2, 4] if args.quick else [int(part) for part in args.counts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        found = on_gpu(out, quick=args.quick) if args.device == "cuda" else curves(out, counts, quick=args.quick)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
