"""`autolabel label` with a network of another tool beside a bare loop over the same runtime: images a second, on a CPU.

    python -m research.bench.bench_foreign [--rounds 3] [--quick]

`onnx`: LR-ASPP on MobileNetV3-Large, 240 JPEGs of 360x480. `hf`: SegFormer-B0, whose processor makes 512x512 of them,
48 JPEGs. 19 classes, scale 1, random weights: times depend on them only through the PNGs, so scores are spread.
The bare loop is `reference/label_plain.py`. Case 1 is one process on all cores, case 2 two processes on half of them
each. There the command gets --images-per-shard: one shard, of up to 256 images, would be the work of one process.

Both clocks begin when the networks are loaded. That of the command has its check of all files too, which decodes each
once more, and its store's counts, digests and manifest. Both ways take turns, in changing order. `ratio`: the bare
loop's time over the command's, median, best and worst of the rounds; `ratio_without_check`: of the job's loop alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from hmsa_core import taxonomy
from hmsa_core.data.decode import read_image
from hmsa_core.labels import LabelStore
from hmsa_core.models.export import OPSET
from research.bench.bench_labelling import label, write_images

CLASSES = taxonomy.cityscapes().classes
SIZE = (360, 480)
IMAGES = {"onnx": 240, "hf": 48}  # enough for what a run does once (imports, the index) to count little
SPREAD = 4.0  # standard deviation of a class's scores


def write_onnx(path: Path, pictures: torch.Tensor) -> str:
    """Write the ONNX file, of the pictures' size; what --teacher takes."""
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=len(CLASSES))
    scores, head = torch.nn.Sequential(network.backbone, network.classifier), network.classifier
    spread(scores, lambda: scores(pictures), [head.low_classifier, head.high_classifier])
    names = {"input_names": ["image"], "output_names": ["scores"]}
    made = torch.onnx.export(scores, (pictures[:1],), **names, opset_version=OPSET, verbose=False).model_proto
    onnx.helper.set_model_props(made, {"classes": json.dumps(CLASSES)})
    onnx.save(made, str(path))
    return f"onnx:{path}"


def write_hf(folder: Path, pictures: torch.Tensor) -> str:
    """Write the folder of transformers; what --teacher takes."""
    ids = {name: i for i, name in enumerate(CLASSES)}
    network = SegformerForSemanticSegmentation(SegformerConfig(id2label=dict(enumerate(CLASSES)), label2id=ids))
    spread(network, lambda: network(pixel_values=pictures).logits, [network.decode_head.classifier])
    network.save_pretrained(folder)
    SegformerImageProcessor().save_pretrained(folder)
    return f"hf:{folder}"


def spread(network: torch.nn.Module, run: Callable[[], torch.Tensor], heads: list[torch.nn.Conv2d]) -> None:
    """Make labels of random weights vary: norms take the pictures' statistics, scores have mean 0 and `SPREAD`."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()
        run()
        network.eval()
        scores = run()
        factor = SPREAD / scores.std((0, 2, 3))
        for head in heads:
            head.weight.mul_(factor.reshape(-1, 1, 1, 1))
            head.bias.mul_(factor)
        heads[0].bias.sub_(factor * scores.mean((0, 2, 3)))


def plain(images: list[Path], spec: str, out: Path, processes: int, threads: int) -> float:
    """Seconds of bare loops that share the images and begin together."""
    out.mkdir()
    command = [sys.executable, "-m", "research.bench.reference.label_plain", spec, str(threads), str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
    loops = [subprocess.Popen([*command, *map(str, images[i::processes])], **pipes) for i in range(processes)]
    for loop in loops:
        if not loop.stdout.readline():
            raise SystemExit(f"{spec}: the bare loop ended before its first image")
    for loop in loops:
        loop.stdin.write("\n")
        loop.stdin.flush()
    return max(float(loop.communicate()[0]) for loop in loops)


def compare(spec: str, images: Path, processes: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Both ways in turns."""
    folder.mkdir()
    paths, threads = sorted(images.iterdir()), max(1, len(os.sched_getaffinity(0)) // processes)
    options = ["--teacher", spec, "--device", "cpu"]
    if processes > 1:
        options += ["--images-per-shard", str(max(1, len(paths) // (2 * processes)))]
    ours: list[dict[str, Any]] = []
    bare: list[float] = []
    for i in range(rounds):
        for way in ("ours", "plain")[:: -1 if i % 2 else 1]:
            if way == "ours":
                ours.append(label(images, options, folder / f"ours{i}", processes, threads))
            else:
                bare.append(plain(paths, spec, folder / f"plain{i}", processes, threads))
    seconds = [one["check_s"] + one["loop_s"] for one in ours]
    ratios = [b / s for b, s in zip(bare, seconds, strict=True)]
    loops = [b / one["loop_s"] for b, one in zip(bare, ours, strict=True)]
    return {
        "threads": threads,
        "images_per_s": round(len(paths) / statistics.median(seconds), 2),
        "plain_images_per_s": round(len(paths) / statistics.median(bare), 2),
        "ratio": {n: round(f(ratios), 3) for n, f in (("median", statistics.median), ("best", max), ("worst", min))},
        "ratio_without_check": round(statistics.median(loops), 3),
        "equal_labels": equal_labels(LabelStore.open(folder / "ours0"), folder / "plain0"),
    }


def equal_labels(store: LabelStore, folder: Path) -> float:
    """Share of pixels with equal labels. The command enlarges scores, the loop probabilities."""
    bare = {name: cv2.imread(str(folder / f"{name}_label.png"), cv2.IMREAD_GRAYSCALE) for name in store.names()}
    return round(float(np.mean([store.read(name)[0] == theirs for name, theirs in bare.items()])), 4)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="four images, one round: shows that it runs")
    args = parser.parse_args()
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for family, write in (("onnx", write_onnx), ("hf", write_hf)):
            images = write_images(folder / f"{family}-images", 4 if args.quick else IMAGES[family], SIZE)
            seen = np.stack([read_image(path) for path in sorted(images.iterdir())[:2]])
            spec = write(folder / family, (torch.from_numpy(seen).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225)
            found[family] = {
                str(n): compare(spec, images, n, 1 if args.quick else args.rounds, folder / f"{family}{n}")
                for n in (1, 2)
            }
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
