"""An index of many rows: planning `prepare`, near duplicates, statistics and the page's start; seconds and memory.

    python -m research.bench.bench_index [--rows 10000000] [--only plan,near] [--quick]

Rows are synthetic: names and paths of drives with cameras, random digests and hashes, one in 1,000 judged, some copies
and near copies. No image is decoded, and no folder is listed. Each part is a process of its own; memory is the most
that it held (ru_maxrss). `store` is a raw store with real totals, real lists of images, and shards that are empty files:
its sidecar tables of each image would take 270 GB.
    index      writing and reading the index: each row, and the rows of one role
    plan       from the list of files to tasks, with an earlier index at hand, and from checked images to the index
    near       near duplicates within 4 bits (`data.*.near_duplicate_bits`)
    leaks      which images that judge are near images that teach (within 2 bits)
    start      the page's first answers; then the figures of another threshold
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hmsa_core import taxonomy
from hmsa_core.data import prepare
from hmsa_core.data.checks import Checked, Task
from hmsa_core.data.index import Index, Sample
from hmsa_core.data.layouts import Found, Scan
from hmsa_core.data.near import near_duplicates
from hmsa_core.data.spec import RolesSpec, SourceSpec
from hmsa_core.data.tables import Rows

ROOT = "target"
_SEED = 0x9E3779B97F4A7C15  # odd: a product with it spreads numbers over 64 bits


def found(rows: int) -> Iterator[Found]:
    """Images of drives of 2,000 frames; one drive in 100 has labels."""
    for i in range(rows):
        drive, frame = divmod(i, 2000)
        name = f"city{drive // 100:03d}_{drive:06d}_{frame:06d}"
        label = f"labels/{name}.png" if drive % 100 == 0 and frame % 10 == 0 else ""
        yield Found(name, f"images/{name}.jpg", label, "", "train", name[:7], name[:14], frame)


def checked(task: Task) -> Checked:
    """As if the image had been decoded and hashed: one in 1,000 is a copy of the one before, one in 500 is near it."""
    f = task.found
    number = int(f.name[8:14]) * 2000 + f.frame
    value = (number - (number % 1000 == 7)) * _SEED & (1 << 63) - 1
    digest, phash = f"{value:016x}" * 4, f"{value ^ (number % 500 == 3):016x}"
    if number % 500 == 3:
        phash = f"{((number - 1) * _SEED & (1 << 63) - 1) ^ 1 << 17:016x}"
    kind, size = "fine" if f.label else "unlabelled", (1024, 2048)
    where = f.split, task.role, f.city, f.sequence, f.frame, task.block
    label = digest if f.label else ""
    return Checked(Sample(f.name, f.image, f.label, "", kind, *where, *size, digest, label, "", phash))


def plan(folder: Path, rows: int) -> dict[str, float]:
    """`prepare` without its files: `folder` gets the index; a second run finds it there."""
    prepare.scan = lambda _: Scan("synthetic", taxonomy.cityscapes(), Rows.of(Found, found(rows)))
    prepare._run = lambda _, tasks, *__: map(checked, tasks)
    source = SourceSpec(kind="folder", name=ROOT, root=str(folder), block="sequence", near_duplicate_bits=0)
    prepare.build(source, RolesSpec(report=("city000",)), folder, previous=folder)
    return {"bytes_per_row": round((folder / f"{ROOT}.parquet").stat().st_size / rows, 1)}


def index(folder: Path, rows: int) -> dict[str, float]:
    """Reading the index."""
    opened, result = Index.load(folder / f"{ROOT}.parquet"), {}
    for name, read in (
        ("judged", lambda: list(opened.select(roles=("report",), kinds=("fine",)))),
        ("pixels", opened.pixels),
        ("every_row", lambda: sum(1 for _ in opened.samples)),
    ):
        start = time.perf_counter()
        read()
        result[f"{name}_s"] = round(time.perf_counter() - start, 2)
    return result


def near(folder: Path, rows: int) -> dict[str, float]:
    """Near duplicates of even hashes and some near copies."""
    values = np.random.default_rng(0).integers(0, 1 << 63, rows, np.uint64)
    values[3::500] = values[2::500][: len(values[3::500])] ^ np.uint64(1 << 17)
    return {"pairs": len(near_duplicates(values, 4))}


PARTS: dict[str, Callable[[Path, int], dict[str, float]]] = {"plan": plan, "index": index, "near": near}


def in_process(part: str, folder: Path, rows: int) -> dict[str, float]:
    """Figures of one part, from a process of its own."""
    command = [sys.executable, "-m", "research.bench.bench_index", "--rows", str(rows), "--part", part, str(folder)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measured(part: str, folder: Path, rows: int) -> dict[str, float]:
    """Run a part here: its figures, seconds, seconds of processor time and the most memory of this process."""
    wall, processor = time.perf_counter(), time.process_time()
    figures = PARTS[part](folder, rows)
    return {
        "s": round(time.perf_counter() - wall, 2),
        "processor_s": round(time.process_time() - processor, 2),
        "gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
        **figures,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--only", help="parts, with commas; default: all")
    parser.add_argument("--quick", action="store_true", help="100,000 rows")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows = 100_000 if args.quick else args.rows
    if args.part:
        sys.stdout.write(json.dumps(measured(args.part[0], Path(args.part[1]), rows)))
        return
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {"rows": rows}
        for part in args.only.split(",") if args.only else PARTS:
            result[part] = in_process(part, Path(folder), rows)
            sys.stderr.write(f"{part}: {result[part]}\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
