"""An index of many rows: planning `prepare`, near duplicates, statistics and the page's start; seconds and memory.

    python -m research.bench.bench_index [--rows 20000,1000000,10000000] [--only plan,near] [--quick]

Rows are synthetic: names and paths of drives with cameras, random digests and hashes, one in 1,000 judged, some copies
and near copies. No image is decoded, and no folder is listed. Each part is a process of its own; memory is the most
that it held (ru_maxrss). `store` is a raw store with totals and its list of images; its shards are empty files,
for the sidecar tables of so many images would take 270 GB.
    index      writing and reading the index: each row, and the rows of one role
    plan       from the list of files to tasks, with an earlier index at hand, and from checked images to the index
    near       near duplicates within 4 bits (`data.*.near_duplicate_bits`)
    leaks      which images that judge are near images that teach (within 2 bits)
    start      the page's first answers; then the figures of another threshold
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hmsa_core import taxonomy
from hmsa_core.data import prepare
from hmsa_core.data.checks import Checked, Task
from hmsa_core.data.found import Found, Scan
from hmsa_core.data.index import Index, Sample
from hmsa_core.data.near import near_duplicates
from hmsa_core.data.source import RolesSpec, SourceSpec
from hmsa_core.io import sealed
from hmsa_core.io.engine import Engine
from hmsa_core.labels.store.format import (
    IMAGES_SCHEMA,
    KEPT_SCHEMA,
    MANIFEST,
    SIDECAR,
    TOTALS_SCHEMA,
    ParquetSink,
    full_lineage,
)
from hmsa_core.leaks import possible_leaks

ROOT = "target"
_SHARD = 256  # images
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


class _Unread(Engine):
    """Gives back what `checked` makes up: no file is read."""

    def map(self, _: Any, units: Iterable[Task], **__: Any) -> Generator[Checked]:  # type: ignore[override]
        yield from map(checked, units)


def plan(folder: Path, rows: int) -> dict[str, float]:
    """`prepare` without its files: `folder` gets the index; a second run finds it there."""
    scanned = Scan("synthetic", taxonomy.cityscapes(), list(found(rows)))
    prepare.scan = lambda _: scanned  # type: ignore[attr-defined]  # no folder is listed
    source = SourceSpec(kind="folder", name=ROOT, root=str(folder), block="sequence", near_duplicate_bits=0)
    cities = tuple(f"city{c:03d}" for c in range(min(10, -(-rows // 200_000))))
    prepare.build(source, RolesSpec(report=cities), folder, engine=_Unread(), previous=folder)
    return {"bytes_per_row": round((folder / f"{ROOT}.parquet").stat().st_size / rows, 1)}


def index(folder: Path, _: int) -> dict[str, float]:
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


def near(_: Path, rows: int) -> dict[str, float]:
    """Near duplicates of even hashes and some near copies."""
    values = np.random.default_rng(0).integers(0, 1 << 63, rows, np.uint64)
    values[3::500] = values[2::500][: len(values[3::500])] ^ np.uint64(1 << 17)
    return {"pairs": len(near_duplicates(values, 4))}


def leaks(folder: Path, _: int) -> dict[str, float]:
    """What `prepare` warns of: images that judge against images that teach."""
    opened = Index.load(folder / f"{ROOT}.parquet")
    judged = opened.select(roles=("report",), kinds=("fine",))
    near = possible_leaks(judged, opened.select(roles=("learn", "unlabelled")), max_gap=0, max_distance=2)
    return {"judged": len(judged), "near": len(near)}


def store(folder: Path, rows: int) -> dict[str, float]:
    """Write what the page's start reads of a raw store; its shards are empty files."""
    root, classes = folder / "raw", taxonomy.cityscapes()
    shards, nothing, rng = -(-rows // _SHARD), hashlib.sha256(b"").hexdigest(), np.random.default_rng(0)
    (root / SIDECAR).mkdir(parents=True)
    empty = {"size_bytes": 0, "sha256": nothing, "footer_sha256": nothing}
    entries = []
    for shard in range(shards):
        files = [f"shard-{shard:05d}.parquet", f"{SIDECAR}/shard-{shard:05d}.parquet"]
        for file in files:
            (root / file).touch()
        receipt = {"file": f"receipts/shard-{shard:05d}.json", "digest": nothing}
        row = {"index": shard, "key": nothing, "file": files[0], **empty, "sidecar": {"file": files[1], **empty}}
        entries.append({**row, "receipt": receipt, "rows": min(_SHARD, rows - shard * _SHARD), "skipped": []})
    with ParquetSink(root / SIDECAR / "images-0.parquet", IMAGES_SCHEMA) as images:
        for part in Index.load(folder / f"{ROOT}.parquet").samples.tables():
            at = np.arange(part.num_rows)  # of the group: which shard and row do not matter here
            values = {
                "image_path": part["image"],
                "coarse_path": part["coarse"],
                "shard": at // _SHARD,
                "row": at % _SHARD,
            }
            columns = {n: values.get(n, part[n] if n in part.column_names else None) for n in IMAGES_SCHEMA.names}
            images.append(pa.table(columns).cast(IMAGES_SCHEMA))
        records = {"images": images.commit(root)}
    cities, ids, codes = 500, classes.num_classes, 256
    cells = np.indices((cities, ids, codes)).reshape(3, -1)
    table = {"city": [f"city{c:03d}" for c in cells[0]], "class": cells[1], "human": np.full(cells.shape[1], 255)}
    table |= {"code": cells[2], "pixels": rng.integers(1, 10**7, cells.shape[1])}
    with ParquetSink(root / SIDECAR / "totals-0.parquet", TOTALS_SCHEMA, dictionary=["city"]) as totals:
        totals.append(pa.table(table).cast(TOTALS_SCHEMA))
        records["totals"] = totals.commit(root)
    with ParquetSink(root / SIDECAR / "kept-0.parquet", KEPT_SCHEMA) as kept:
        records["kept"] = kept.commit(root)
    value = {"format": "hmsa-label-store", "version": 2, "kind": "raw", "codec": "png", "policy": None, "extras": []}
    value |= {"classes": classes.to_json(), "lineage": full_lineage({}), "images": rows, "shards": entries}
    sealed.write(root / MANIFEST, value | {"statistics": {n: asdict(r) for n, r in records.items()}})
    return {"manifest_mb": round((root / MANIFEST).stat().st_size / 1e6, 1)}


def start(folder: Path, rows: int) -> dict[str, float]:
    """Open the store for the page: answers to `api/store` and `api/stats`, then to another threshold."""
    from pipeline.review.session import Session
    from pipeline.review.stats import store_stats

    begun, processor = time.perf_counter(), time.process_time()
    session = Session(folder / "raw")
    described, first = session.describe(), store_stats(session.view, session.thresholds("0.9"), session.sources())
    used, opened = time.process_time() - processor, time.perf_counter()
    anew = store_stats(session.view, session.thresholds("0.95"), session.sources())
    if not described["images"] == first["images"] == rows or anew["kept"] >= first["kept"]:
        raise RuntimeError("the page's figures are not those of the store")
    seconds = time.perf_counter() - opened
    return {
        "page_s": round(opened - begun, 2),
        "page_processor_s": round(used, 2),
        "new_threshold_s": round(seconds, 4),
    }


PARTS: dict[str, Callable[[Path, int], dict[str, float]]] = {"plan": plan, "index": index, "near": near, "leaks": leaks}
PARTS |= {"store": store, "start": start}


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
        "gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        **figures,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="20000,1000000,10000000", help="sizes, with commas")
    parser.add_argument("--only", help="parts, with commas; default: all")
    parser.add_argument("--quick", action="store_true", help="100,000 rows")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = [100_000] if args.quick else [int(rows) for rows in args.rows.split(",")]
    if args.part:
        sys.stdout.write(json.dumps(measured(args.part[0], Path(args.part[1]), sizes[0])))
        return
    result: dict[str, Any] = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for part in args.only.split(",") if args.only else PARTS:
                found = in_process(part, Path(folder), rows)
                result.setdefault(str(rows), {})[part] = found
                sys.stderr.write(f"{rows} {part}: {found}\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
