"""Images a second of one core: our crop data set against a plain PIL + numpy loader with the same augmentation.

    python -m research.bench.bench_loader [--size 1024x2048] [--crop 1024x2048] [--quick]

Both take the same images and centres, one process, one thread, in turns (so that another load on the machine
hits both); the best and the median of the rounds are reported. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from hmsa_core import taxonomy
from hmsa_core.data.dataset import CropDataset
from hmsa_core.data.index import Index
from hmsa_core.data.plan import EpochPlan
from hmsa_core.data.prepare import build
from hmsa_core.data.sampling import Centroids
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.data.transforms import normalise
from research.bench.reference.loader_plain import PlainLoader


def street(seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A picture that compresses like a photograph (about 1.1 bytes a pixel as PNG) and a blobby label map."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((8, 60), (32, 30), (128, 15)):
        noise = rng.standard_normal((cells, cells * 2, 3)).astype(np.float32)
        image += weight * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    image += 110 + rng.normal(0, 1.6, image.shape)
    field = cv2.resize(rng.standard_normal((12, 24)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    ids = np.array([7, 8, 11, 21, 23, 26, 24, 17, 0], np.uint8)
    return np.clip(image, 0, 255).astype(np.uint8), ids[np.clip((field + 2) * 2.2, 0, 8).astype(int)]


def write_data(root: Path, count: int, size: tuple[int, int]) -> None:
    for i in range(count):
        image, label = street(i, size)
        for folder, name, array in (
            ("leftImg8bit", "leftImg8bit", image[..., ::-1]),
            ("gtFine", "gtFine_labelIds", label),
        ):
            path = root / folder / "train" / "aachen" / f"aachen_{i:06d}_000019_{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), array)


def seconds(fetch: Callable[[int], object], count: int) -> float:
    started = time.process_time()
    for i in range(count):
        fetch(i)
    return (time.process_time() - started) / count


def normalised(crops: CropDataset) -> Callable[[int], object]:
    """What the other loader does, too; a training normalises on its device."""
    return lambda i: normalise(crops[i]["image"].numpy())


def run(size: tuple[int, int], crop: tuple[int, int], count: int, repeats: int) -> dict[str, object]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "cityscapes", Path(folder) / "index"
        write_data(root, count, size)
        build(SourceSpec(root=str(root)), RolesSpec(), out)
        index = Index.load(out / "target.parquet")
        plan = EpochPlan(
            index.samples,
            Centroids.load(out / "centroids-target.parquet"),
            num_classes=19,
            seed=1,
            epochs=1,
            epoch_samples=2 * count,
        )
        options = {"root": root, "classes": index.classes, "crop": crop}
        ours, cached = CropDataset(plan, **options), CropDataset(plan, cache_bytes=1 << 31, **options)
        items = [
            (root / c.sample.image, root / c.sample.label, (c.x, c.y) if c.x >= 0 else None) for c in plan.crops(0)
        ]
        plain = PlainLoader(items, taxonomy.cityscapes().id_to_train, crop)
        loaders = {"plain": plain.__getitem__, "ours": normalised(ours), "ours, cached in memory": normalised(cached)}
        times: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(repeats):
            for name, fetch in loaders.items():
                times[name].append(seconds(fetch, 2 * count))
        bytes_a_pixel = sum(p.stat().st_size for p in root.rglob("*leftImg8bit.png")) / count / size[0] / size[1]
    ratios = [p / o for p, o in zip(times["plain"], times["ours"], strict=True)]
    return {
        "size": size,
        "crop": crop,
        "png_bytes_a_pixel": round(bytes_a_pixel, 2),
        "images_a_second": {
            n: {"best": round(1 / min(t), 1), "median": round(1 / statistics.median(t), 1)} for n, t in times.items()
        },
        "ratio": {"median": round(statistics.median(ratios), 2), "worst": round(min(ratios), 2)},
    }


def size_of(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=size_of, default=(1024, 2048), help="stored images, HEIGHTxWIDTH")
    parser.add_argument("--crop", type=size_of, default=(1024, 2048), help="crops, HEIGHTxWIDTH")
    parser.add_argument("--quick", action="store_true", help="few images: shows that it runs, measures little")
    args = parser.parse_args()
    images, repeats = (2, 2) if args.quick else (6, 4)
    sys.stdout.write(json.dumps(run(args.size, args.crop, images, repeats), indent=1) + "\n")


if __name__ == "__main__":
    main()
