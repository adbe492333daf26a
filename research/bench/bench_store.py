"""The label store: bytes against two Pillow PNGs and the released layout, speed of one core, statistics of a big store.

    python research/bench/bench_store.py [--store labels/raw ...] [--images 4] [--rows 20000] [--json-only]

Maps of the committed scene generator at 1024x2048 with an imitated teacher are always measured; each --store adds a
real raw store at its own size. Sizes are exact. Speeds: best of the rounds, one process, one thread, a second of
processor time; `_wall` by the clock.
    pillow     label and code as two PNGs at Pillow's default settings
    released   ids and floor(255 p) (here of the code's edge) as two PNGs at Pillow's default settings
Targets: bytes <= 1.05 x pillow; at 1024x2048 encode >= 8/s, read + threshold >= 25/s; statistics < 1 s.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
from PIL import Image

from hmsa_core.labels import ConfidenceCode, LabelStore, LabelStoreWriter, StoreStatistics
from hmsa_core.labels.exporting import prob_bytes_of_codes
from hmsa_core.labels.store.format import encode
from hmsa_core.labels.store.sidecar import count
from hmsa_core.labels.thresholds.policy import from_threshold

cv2.setNumThreads(1)
CODE = ConfidenceCode()
Maps = tuple[str, np.ndarray, np.ndarray]  # name, label, code


def generated(images: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Label and confidence of generated scenes at 1024x2048."""
    from examples.streets.annotate import cityscapes_polygons, draw_cityscapes
    from examples.streets.scene import city_picture
    from hmsa_core.taxonomy import cityscapes
    from tests.support.label_scenes import imitate_teacher

    for i in range(images):
        picture = city_picture(11, "train_extra", "aachen", i // 3, i, (2048, 1024), 1)
        ids, _ = draw_cityscapes(picture.size, cityscapes_polygons(picture.objects))
        label, confidence = imitate_teacher(np.asarray(cityscapes().id_to_train[ids], np.uint8), i)
        yield f"scene{i}", label, confidence


def pillow_bytes(*arrays: np.ndarray) -> int:
    size = 0
    for array in arrays:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        size += len(file.getvalue())
    return size


def best(action: Callable[[], Any], rounds: int = 3) -> float:
    """Least processor time of the rounds: what one core needs, whatever else the machine does."""
    return timed(action, rounds)[0]


def timed(action: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Least processor time and least wall time (with waiting for the disk and for other programs)."""
    times = []
    for _ in range(rounds):
        start = time.process_time(), time.perf_counter()
        action()
        times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return min(t[0] for t in times), min(t[1] for t in times)


def sizes(maps: list[Maps]) -> dict[str, float]:
    ours = {c: sum(len(encode(m[1], "label", c)) + len(encode(m[2], "confidence", c)) for m in maps) for c in ("png",)}
    pillow = sum(pillow_bytes(label, code) for _, label, code in maps)
    released = sum(pillow_bytes(label, prob_bytes_of_codes(code)) for _, label, code in maps)
    return {
        "bytes_per_image": round(ours["png"] / len(maps)),
        "over_pillow": round(ours["png"] / pillow, 4),
        "over_released": round(ours["png"] / released, 4),
        "code_255_share": round(float(np.mean([np.mean(m[2] == 255) for m in maps])), 4),
    }


def speeds(folder: Path, maps: list[tuple[str, np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Encoding (float confidence to stored row with its histogram), reading and thresholding, per second."""

    def write(root: Path) -> None:
        with LabelStoreWriter(root, {}, 64) as writer:
            for name, label, confidence in maps:
                writer.add(name, label, confidence)

    rounds = iter(range(1000))
    took, wall = timed(lambda: write(folder / f"w{next(rounds)}"), 3)
    store = LabelStore.open(folder / "w0")
    policy = from_threshold(0.9, store.classes)

    def read() -> None:
        for name in store.names():
            policy.apply(*store.read(name))

    reading, reading_wall = timed(read, 5)
    pixels = sum(m[1].size for m in maps)
    label, confidence = maps[0][1:]
    code = CODE.encode(confidence)
    return {
        "encode_per_s": round(len(maps) / took, 1),
        "encode_per_s_wall": round(len(maps) / wall, 1),
        "read_threshold_per_s": round(len(maps) / reading, 1),
        "read_threshold_per_s_wall": round(len(maps) / reading_wall, 1),
        "megapixels": round(pixels / len(maps) / 1e6, 3),
        "code_ms": round(1e3 * best(lambda: CODE.encode(confidence)), 2),
        "histogram_ms": round(1e3 * best(lambda: count(label, code)), 2),
        "label_png_ms": round(1e3 * best(lambda: encode(label, "label", "png")), 2),
        "code_png_ms": round(1e3 * best(lambda: encode(code, "confidence", "png")), 2),
        "threshold_ms": round(1e3 * best(lambda: policy.apply(label, code)), 2),
    }


def forget_cache(root: Path) -> None:
    """Ask the kernel to drop its pages of these files: the next read comes from the disk."""
    for path in root.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def statistics(folder: Path, rows: int) -> dict[str, Any]:
    """A store of many small, varied maps; a new threshold over all of them, from cold and warm files."""
    rng = np.random.default_rng(0)
    base = [imitated(rng, (96, 128)) for _ in range(40)]
    root = folder / "many"
    start = time.perf_counter()
    with LabelStoreWriter(root, {}, 256) as writer:
        for i in range(rows):
            label, confidence = base[i % len(base)]
            writer.add(f"n{i:06d}", np.roll(label, i, 1), np.roll(confidence, i + i % 7, 1), city=f"c{i % 23}")
    wrote = time.perf_counter() - start

    def query(code: int) -> float:
        begin = time.perf_counter()
        StoreStatistics.open(root).kept(code)
        return time.perf_counter() - begin

    forget_cache(root)
    cold = query(CODE.code_for(0.9))
    warm = min(query(CODE.code_for(t)) for t in (0.8, 0.95, 0.99))
    opened = StoreStatistics.open(root)
    opened.kept(0)
    begin = time.perf_counter()
    opened.kept(CODE.code_for(0.97))
    sidecar = sum(p.stat().st_size for p in (root / "sidecar").glob("*"))
    return {
        "rows": rows,
        "write_per_s": round(rows / wrote, 1),
        "cold_s": round(cold, 3),
        "warm_s": round(warm, 3),
        "open_already_s": round(time.perf_counter() - begin, 4),
        "sidecar_mb": round(sidecar / 1e6, 1),
    }


def imitated(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    height, width = shape
    fields = rng.standard_normal((19, height // 8, width // 8)).astype(np.float32)
    logits = np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_CUBIC) for f in fields])
    logits = logits * 6 + 0.3 * rng.standard_normal(logits.shape).astype(np.float32)
    exps = np.exp(logits - logits.max(axis=0))
    return logits.argmax(axis=0).astype(np.uint8), (1 / exps.sum(axis=0)).astype(np.float32)


def real(path: Path, limit: int) -> tuple[list[Maps], int]:
    store = LabelStore.open(path)
    names = store.names()
    chosen = names[:: max(1, len(names) // limit)][:limit]
    return [(name, *store.read(name)) for name in chosen], len(names)


def commit() -> str:
    here = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=here)
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, action="append", default=[], help="a raw store of real teacher outputs")
    parser.add_argument("--images", type=int, default=4, help="generated maps, and maps read of each store")
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the store for statistics; 0 = leave out")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "commit": commit(),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cv2": cv2.__version__,
    }
    with tempfile.TemporaryDirectory() as folder:
        maps = list(generated(args.images))
        result["generated"] = sizes([(n, lab, CODE.encode(p)) for n, lab, p in maps]) | speeds(Path(folder) / "s", maps)
        del maps
        for path in args.store:
            found, images = real(path, args.images)
            result.setdefault("stores", {})[path.name] = sizes(found) | {"images": images}
        if args.rows:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            result["statistics"] = statistics(Path(folder), args.rows)
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            result["statistics"]["peak_mb_before_and_after"] = [round(before), round(after)]
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
