"""The label store: bytes against two Pillow PNGs and the released layout, speed of one core, statistics of a big store.

    python -m research.bench.bench_store [--store labels/raw ...] [--quick]

Maps of the scene generator at 1024x2048 with an imitated teacher are always measured; each --store adds the sizes of a
real raw store. Sizes are exact. Speeds: best of the rounds, one process, one thread, a second of processor time.
    pillow     label and code as two PNGs at Pillow's default settings
    released   ids and floor(255 p) (here of the code's edge) as two PNGs at Pillow's default settings
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from examples.streets.annotate import cityscapes_polygons, draw_cityscapes
from examples.streets.scene import city_picture
from hmsa_core.labels import ConfidenceCode, LabelStore, LabelStoreWriter, StoreStatistics
from hmsa_core.labels.formats.released import prob_bytes_of_codes
from hmsa_core.labels.store.format import encode
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.taxonomy import cityscapes
from tests.support.label_scenes import imitate_teacher

CODE = ConfidenceCode()
Maps = tuple[str, np.ndarray, np.ndarray]  # name, label, confidence or code


def generated(images: int) -> Iterator[Maps]:
    """Label and confidence of generated scenes at 1024x2048."""
    for i in range(images):
        picture = city_picture(11, "train_extra", "aachen", i // 3, i, (2048, 1024), 1)
        ids, _ = draw_cityscapes(picture.size, cityscapes_polygons(picture.objects))
        yield f"scene{i}", *imitate_teacher(np.asarray(cityscapes().id_to_train[ids], np.uint8), i)


def imitated(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Label and confidence of a small map of blobs."""
    height, width = shape
    fields = rng.standard_normal((19, height // 8, width // 8)).astype(np.float32)
    logits = np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_CUBIC) for f in fields])
    logits = logits * 6 + 0.3 * rng.standard_normal(logits.shape).astype(np.float32)
    exps = np.exp(logits - logits.max(axis=0))
    return logits.argmax(axis=0).astype(np.uint8), (1 / exps.sum(axis=0)).astype(np.float32)


def processor_seconds(action: Callable[[], Any], rounds: int) -> float:
    """Least processor time of the rounds: what one core needs, whatever else the machine does."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times)


def pillow_bytes(*arrays: np.ndarray) -> int:
    """Size of the arrays as PNGs at Pillow's default settings."""
    size = 0
    for array in arrays:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        size += len(file.getvalue())
    return size


def sizes(maps: list[Maps]) -> dict[str, float]:
    """Bytes of label and code against both yardsticks."""
    ours = sum(len(encode(label, "label", "png")) + len(encode(code, "confidence", "png")) for _, label, code in maps)
    pillow = sum(pillow_bytes(label, code) for _, label, code in maps)
    released = sum(pillow_bytes(label, prob_bytes_of_codes(code)) for _, label, code in maps)
    return {
        "bytes_per_image": round(ours / len(maps)),
        "over_pillow": round(ours / pillow, 4),
        "over_released": round(ours / released, 4),
    }


def speeds(folder: Path, maps: list[Maps]) -> dict[str, float]:
    """Encoding (float confidence to stored row with its histogram), reading and thresholding, images a second."""
    rounds = iter(range(1000))

    def write() -> None:
        with LabelStoreWriter(folder / f"w{next(rounds)}", {}, 64) as writer:
            for name, label, confidence in maps:
                writer.add(name, label, confidence)

    took = processor_seconds(write, 3)
    store = LabelStore.open(folder / "w0")
    policy = from_threshold(0.9, store.classes)

    def read() -> None:
        for name in store.names():
            policy.apply(*store.read(name))

    return {
        "encode_per_s": round(len(maps) / took, 1),
        "read_threshold_per_s": round(len(maps) / processor_seconds(read, 5), 1),
    }


def statistics(folder: Path, rows: int) -> dict[str, float]:
    """A store of many small, varied maps; a new threshold over all of them."""
    rng = np.random.default_rng(0)
    base = [imitated(rng, (96, 128)) for _ in range(40)]
    root = folder / "many"
    start = time.perf_counter()
    with LabelStoreWriter(root, {}, 256) as writer:
        for i in range(rows):
            label, confidence = base[i % len(base)]
            writer.add(f"n{i:06d}", np.roll(label, i, 1), np.roll(confidence, i + i % 7, 1), city=f"c{i % 23}")
    wrote = time.perf_counter() - start
    times = []
    for threshold in (0.9, 0.8, 0.95, 0.99):
        start = time.perf_counter()
        StoreStatistics.open(root).kept(CODE.code_for(threshold))
        times.append(time.perf_counter() - start)
    sidecar = sum(p.stat().st_size for p in (root / "sidecar").glob("*"))
    return {
        "rows": rows,
        "write_per_s": round(rows / wrote, 1),
        "warm_s": round(min(times), 3),
        "sidecar_mb": round(sidecar / 1e6, 1),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, action="append", default=[], help="a raw store of real teacher outputs")
    parser.add_argument("--quick", action="store_true", help="small counts: shows that it runs, measures little")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        maps = list(generated(1 if args.quick else 4))
        coded = [(name, label, CODE.encode(confidence)) for name, label, confidence in maps]
        result["generated"] = sizes(coded) | speeds(Path(folder) / "s", maps)
        for path in args.store:
            store = LabelStore.open(path)
            chosen = store.names()[:: max(1, len(store) // 4)][:4]
            result.setdefault("stores", {})[path.name] = sizes([(name, *store.read(name)) for name in chosen])
        result["statistics"] = statistics(Path(folder), 2_000 if args.quick else 20_000)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
