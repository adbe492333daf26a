"""Time, money, storage and files for 20 thousand, 1 million and 100 million images, from measured rates.

    python -m research.bench.scaling            print the tables
    python -m research.bench.scaling --write    put them into docs/scaling.md

Measured: research/bench/results/scaling.json (processor seconds of one core, bytes, files: `bench_scaling.py`).
Assumed: the figures of `Assumed`, which no measurement of ours backs; change them to your own. Everything else is
computed here, in the open.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmsa_core.io.atomic import read_json, write_text

REPO = Path(__file__).resolve().parents[2]
RATES, PAGE = REPO / "research" / "bench" / "results" / "scaling.json", REPO / "docs" / "scaling.md"
BEGIN, END = "<!-- computed by research/bench/scaling.py -->", "<!-- end -->"
COUNTS = (20_000, 1_000_000, 100_000_000)


@dataclass(frozen=True)
class Assumed:
    """What was not measured by us."""

    tflop_per_image: float = 32.1  # W48, 1024x2048, {0.5, 1, 2} + flip: 10.5 passes of 1.53 TMAC, counted
    gpu_tflops: float = 989.0  # dense bf16 peak of an H100 or H200, by its data sheet
    share_of_peak: float = 0.35  # that we believe inference reaches; the share on *your* GPU: bench_infer.py
    gpus: int = 8  # a node
    cores: int = 96  # of the node, for what runs on processors
    dollars_per_gpu_hour: float = 3.0
    dollars_per_tb_month: float = 20.0
    images_per_shard: int = 256
    student_crops: int = 2 * 2975 * 60  # half fine, half auto-labelled: 60 epochs over Cityscapes' 2,975 images
    final_share: float = 0.4  # bytes of the final store over the raw one's (demo's scenes: 0.37)
    tflop_per_crop: float = 11.5  # hierarchical {0.5, 1} training step, docs/training.md


def row_of(images: int, rates: dict[str, Any], given: Assumed) -> dict[str, float]:
    """All figures for a number of images; hours are of one node."""
    gpu_s = given.tflop_per_image / (given.gpu_tflops * given.share_of_peak)
    core_s = rates["prepare_s_per_image"], 1 / rates["encode_per_s"], 1 / rates["read_threshold_per_s"]
    shards = -(-images // given.images_per_shard)
    label_gb = images * rates["label_bytes_per_image"] / 1e9
    tables_gb = images * (rates["sidecar_bytes_per_image"] + rates["manifest_bytes_per_image"]) / 1e9
    files = 2 * shards * rates["files_per_shard"]  # raw and final store
    store_gb = (1 + given.final_share) * label_gb + 2 * tables_gb
    training_s = given.student_crops * given.tflop_per_crop / (given.gpu_tflops * given.share_of_peak)
    gpu_hours = images * gpu_s / 3600
    return {
        "images_tb": images * rates["image_bytes"] / 1e12,
        "prepare_h": images * core_s[0] / given.cores / 3600,
        "infer_gpu_h": gpu_hours,
        "infer_h": gpu_hours / given.gpus,
        "infer_cpu_h": images * 16 * rates["w48_cpu_s_for_256x512"] / given.cores / 3600,
        "encode_h": images * core_s[1] / given.cores / 3600,
        "pseudo_h": images * (core_s[1] + core_s[2]) / given.cores / 3600,
        "verify_h": (label_gb + tables_gb) / rates["sha256_gb_per_s"] / given.cores / 3600,
        "student_gpu_h": training_s / 3600,
        "gpu_dollars": (gpu_hours + training_s / 3600) * given.dollars_per_gpu_hour,
        "stores_tb": store_gb / 1e3,
        "with_cache_tb": 2 * store_gb / 1e3,
        "files": files,
        "dvc_core_h": (files * rates["dvc_s_per_file"] + store_gb * rates["dvc_s_per_gb"]) / 3600,
        "disk_dollars_month": 2 * store_gb / 1e3 * given.dollars_per_tb_month,
        "index_gb": images * rates["index_bytes_per_row"] / 1e9,
        "index_memory_gb": images * rates["index_memory_bytes_per_row"] / 1e9,
        "index_load_min": images / 1e6 * rates["index_load_s_per_million"] / 60,
        "manifest_gb": images * rates["manifest_bytes_per_image"] / 1e9,
        "near_h": rates["near_duplicates_s_for_20000"] * (images / 20_000) ** 2 / 3600,
        "threshold_s": images / 1e6 * rates["threshold_s_per_million"],
    }


ROWS = (
    ("**time**, one node", None),
    ("`prepare`: decode, check, hash", "prepare_h h"),
    ("`auto-infer`, W48 {0.5, 1, 2} + flip, GPU-hours", "infer_gpu_h GPU-h"),
    ("... on the node's 8 GPUs", "infer_h h"),
    ("... encoding on its cores meanwhile", "encode_h h"),
    ("... without a GPU, on its 96 cores (measured at 256x512, times 16)", "infer_cpu_h h"),
    ("`pseudo-label`: read, threshold, merge, write", "pseudo_h h"),
    ("`student-train`, 357,000 crops", "student_gpu_h GPU-h"),
    ("`autolabel verify`, every byte", "verify_h h"),
    ("DVC hashing and caching both stores, one process", "dvc_core_h h"),
    ("a new threshold over all statistics, one core", "threshold_s s"),
    ("**money**", None),
    ("GPU time of labels and student", "gpu_dollars $"),
    ("disk of both stores and DVC's cache, a month", "disk_dollars_month $"),
    ("**storage**", None),
    ("the images themselves (yours)", "images_tb TB"),
    ("raw and final store", "stores_tb TB"),
    ("... with DVC's copy", "with_cache_tb TB"),
    ("index file", "index_gb GB"),
    ("manifest of a store", "manifest_gb GB"),
    ("**files**", None),
    ("shards, tables, receipts of both stores", "files "),
    ("**what stops one workspace**", None),
    ("memory of the index in one process", "index_memory_gb GB"),
    ("loading it", "index_load_min min"),
    ("near duplicates, all pairs, one core", "near_h h"),
)


def tables(rates: dict[str, Any], given: Assumed) -> str:
    """The table as Markdown."""
    columns = [row_of(images, rates, given) for images in COUNTS]
    lines = [f"| | {' | '.join(f'{images:,}' for images in COUNTS)} |", "|---|" + "---:|" * len(COUNTS)]
    for title, key in ROWS:
        if key is None:
            lines.append(f"| {title} |" + " |" * len(COUNTS))
            continue
        name, _, unit = key.partition(" ")
        lines.append(f"| {title} | " + " | ".join(_told(column[name], unit) for column in columns) + " |")
    return "\n".join(lines)


def _told(value: float, unit: str) -> str:
    """Two digits are more than these figures are worth."""
    units = {
        "h": (("y", 24 * 365), ("d", 24), ("h", 1), ("min", 1 / 60), ("s", 1 / 3600)),
        "s": (("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)),
        "min": (("d", 1440), ("h", 60), ("min", 1), ("s", 1 / 60)),
        "TB": (("PB", 1000), ("TB", 1), ("GB", 1e-3), ("MB", 1e-6)),
        "GB": (("TB", 1000), ("GB", 1), ("MB", 1e-3)),
    }
    if unit in units:
        for name, size in units[unit]:
            if value >= size or name == units[unit][-1][0]:
                return f"{_rounded(value / size)} {name}"
    return f"${_rounded(value)}" if unit == "$" else f"{_rounded(value)} {unit}".strip()


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")
    args = parser.parse_args()
    made = tables(read_json(RATES)["result"], Assumed())
    if not args.write:
        sys.stdout.write(made + "\n")
        return 0
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    write_text(PAGE, f"{before}{BEGIN}\n{made}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
