"""Rates behind docs/scaling.md: what one core, one file and one image cost in each part of the chain.

    python -m research.bench.bench_scaling [--quick]

Times are processor seconds, so that other programs on the machine matter little; DVC's are by the clock, because it
waits for the disk: run it on a quiet machine. Images are 1024x2048: generated scenes for labels, textures that
compress like photographs for decoding.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmsa_core import taxonomy
from hmsa_core.data.checks import near_duplicates
from hmsa_core.data.index import Index, Sample
from hmsa_core.data.layouts import scan
from hmsa_core.data.prepare import build
from hmsa_core.data.spec import RolesSpec, SourceSpec
from hmsa_core.inference.predictor import Predictor, label_image
from hmsa_core.io.atomic import sha256_file
from hmsa_core.labels import LabelStore, LabelStoreWriter, StoreStatistics
from research.bench.bench_infer import SCALES, make_image, make_model
from research.bench.bench_loader import write_data
from research.bench.bench_store import CODE, generated, imitated, sizes, speeds

SIZE = (1024, 2048)


def processor_seconds(action: Callable[[], Any], rounds: int = 1) -> float:
    """Least processor time of the rounds, children included."""

    def spent() -> float:
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    times = []
    for _ in range(rounds):
        start = spent()
        action()
        times.append(spent() - start)
    return min(times)


def prepare(folder: Path, images: int) -> dict[str, float]:
    """Checks, digests, perceptual hashes and centroids of images with labels; listing a folder that is known."""
    root = folder / "cityscapes"
    write_data(root, images, SIZE)
    source = SourceSpec(root=str(root))
    took = processor_seconds(lambda: build(source, RolesSpec(), folder / "index"))
    pictures = [p.stat().st_size for p in root.rglob("*leftImg8bit.png")]
    listed = processor_seconds(lambda: scan(source), 3)
    return {
        "prepare_s_per_image": round(took / images, 4),
        "scan_s_per_image": round(listed / images, 6),
        "image_bytes": round(sum(pictures) / images),
    }


def index(folder: Path, rows: int) -> dict[str, float]:
    """A large index: bytes, seconds and memory a row; the search for near duplicates."""
    same = {"label": "", "coarse": "", "kind": "unlabelled", "split": "train_extra", "role": "unlabelled"}
    same |= {"city": "aachen", "sequence": "aachen_000000", "block": "aachen", "label_sha256": "", "coarse_sha256": ""}
    samples = []
    for i in range(rows):
        name, sha = f"aachen_{i:09d}_000019", hashlib.sha256(b"%d" % i).hexdigest()
        image = f"leftImg8bit/train_extra/aachen/{name}_leftImg8bit.png"
        own = {"name": name, "image": image, "image_sha256": sha, "phash": sha[:16]}
        samples.append(Sample(**same, **own, frame=19, height=SIZE[0], width=SIZE[1]))  # type: ignore[arg-type]
    path = folder / "large.parquet"
    Index.write(path, samples, taxonomy.cityscapes(), "target")
    hexes = [sample.phash for sample in samples[:20_000]]
    pairs = processor_seconds(lambda: near_duplicates(hexes, 4))
    samples.clear()
    before = resident()
    held: list[Index] = []
    took = processor_seconds(lambda: held.append(Index.load(path)))
    return {
        "index_rows": rows,
        "index_bytes_per_row": round(path.stat().st_size / rows, 1),
        "index_load_s_per_million": round(1e6 * took / rows, 2),
        "index_memory_bytes_per_row": round((resident() - before) / rows),
        "near_duplicates_s_for_20000": round(pairs, 2),
    }


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def store(folder: Path, rows: int) -> dict[str, float]:
    """Statistics and manifest of a store of many small images: what grows with the number of images alone."""
    rng = np.random.default_rng(0)
    base = [imitated(rng, (32, 64)) for _ in range(20)]
    root = folder / "many"
    with LabelStoreWriter(root, {}, 256) as writer:
        for i in range(rows):
            label, confidence = base[i % len(base)]
            writer.add(f"aachen_{i:09d}_000019", label, confidence, city=f"c{i % 23}", image_sha256=f"{i:064x}")
    files = [p for p in root.rglob("*") if p.is_file() and p.suffix != ".lock"]  # locks are not published
    opening = processor_seconds(lambda: LabelStore.open(root), 3)
    asking = processor_seconds(lambda: StoreStatistics.open(root).kept(CODE.code_for(0.9)), 3)
    return {
        "store_rows": rows,
        "files_per_shard": round(len(files) / -(-rows // 256), 2),
        "manifest_bytes_per_image": round((root / "manifest.json").stat().st_size / rows, 1),
        "open_s_per_million": round(1e6 * opening / rows, 2),
        "threshold_s_per_million": round(1e6 * asking / rows, 2),
    }


def labels(folder: Path, images: int) -> dict[str, float]:
    """Bytes and speed of labels at full size, and SHA-256 of a large file."""
    maps = list(generated(images))
    speed = speeds(folder, maps)
    tables = sum(p.stat().st_size for p in (folder / "w0" / "sidecar").glob("*"))
    large = folder / "large.bin"
    large.write_bytes(os.urandom(256 << 20))
    return speed | {
        "label_bytes_per_image": sizes([(n, label, CODE.encode(p)) for n, label, p in maps])["bytes_per_image"],
        "sidecar_bytes_per_image": round(tables / len(maps)),
        "sha256_gb_per_s": round((256 << 20) / 1e9 / processor_seconds(lambda: sha256_file(large), 3), 2),
    }


def dvc(here: Path, files: int) -> dict[str, float]:
    """What DVC spends on an output, a file and a gigabyte: hashing and copying into its cache, by the clock."""
    for name in ("small", "large", "one"):
        (here / name).mkdir(parents=True)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=here, check=True)
    for i in range(files):
        (here / "small" / f"{i}.bin").write_bytes(os.urandom(20_000))
    (here / "large" / "one.bin").write_bytes(os.urandom(512 << 20))
    (here / "one" / "one.bin").write_bytes(b"x")

    def add(name: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dvc", "add", "-q", name], cwd=here, check=True)
        return time.perf_counter() - start

    nothing = add("one")
    return {
        "dvc_s_per_file": round((add("small") - nothing) / files, 5),
        "dvc_s_per_gb": round((add("large") - nothing) / ((512 << 20) / 1e9), 2),
    }


def model() -> dict[str, float]:
    """W48 on one core, {0.5, 1, 2} with flip: seconds of one image of 256x512 (an eighth of each side's pixels)."""
    torch.set_num_threads(1)
    predictor = Predictor(make_model("hrnet_w48"), torch.device("cpu"), "fp32")
    image = make_image((256, 512))
    label_image(predictor, make_image((64, 128)), SCALES, flip=True)
    return {"w48_cpu_s_for_256x512": round(processor_seconds(lambda: label_image(predictor, image, SCALES, True)), 1)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small counts: shows that it runs, measures little")
    quick = parser.parse_args().quick
    rows = 2_000 if quick else 200_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = prepare(folder, 1 if quick else 6) | labels(folder / "labels", 1 if quick else 4)
        result |= index(folder, rows) | store(folder, rows // 10) | dvc(folder / "dvc", 20 if quick else 2_000)
    result |= {} if quick else model()
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
