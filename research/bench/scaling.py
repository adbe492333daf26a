"""Time, money, storage and files for 20 thousand to 100 million images, from measured rates.

Measured: `scaling` in research/tables/bench.parquet (processor seconds of one core, bytes, files), by
`benchmarks/bench_scaling.py` at commit 82376c0; seconds of one GPU by `gpu-labelling` and `gpu-train-1` there.
Of one workspace: `index`, by `bench_index.py`, at its sizes; more rows are computed from the largest.
Assumed: the figures of `Assumed`, which no measurement of ours backs; change them to your own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hmsa_core.data.near import work

COUNTS = (20_000, 1_000_000, 10_000_000, 100_000_000)
Row = tuple[str, str, float]  # title, unit, figure


@dataclass(frozen=True)
class Assumed:
    """What was not measured by us."""

    gpus: int = 8  # a node
    cores: int = 96  # of the node, for what runs on processors
    dollars_per_gpu_hour: float = 3.0
    dollars_per_tb_month: float = 20.0
    images_per_shard: int = 256
    student_crops: int = 2 * 2975 * 60  # half fine, half auto-labelled: 60 epochs over Cityscapes' 2,975 images
    final_share: float = 0.4  # bytes of the final store over the raw one's (demo's scenes: 0.37)


def rows_of(images: int, rates: Mapping[str, float], given: Assumed) -> list[Row]:
    """All figures for a number of images; times are of one node."""
    node_h = images / given.cores / 3600  # a core-second an image
    encode_s, read_s = 1 / rates["encode_per_s"], 1 / rates["read_threshold_per_s"]
    label_gb = images * rates["label_bytes_per_image"] / 1e9
    tables_gb = images * (rates["sidecar_bytes_per_image"] + rates["manifest_bytes_per_image"]) / 1e9
    files = 2 * -(-images // given.images_per_shard) * rates["files_per_shard"]  # raw and final store
    store_gb = (1 + given.final_share) * label_gb + 2 * tables_gb
    labels_h = images * rates["gpu_s_per_image"] / 3600
    student_h = given.student_crops * rates["gpu_s_per_crop"] / 3600
    return [
        ("**time**, one node", "", 0.0),
        ("`prepare`: decode, check, hash", "h", node_h * rates["prepare_s_per_image"]),
        ("`auto-infer`, W48 {0.5, 1, 2} + flip, GPU-hours", "GPU-h", labels_h),
        ("... on the node's 8 GPUs", "h", labels_h / given.gpus),
        ("... encoding on its cores meanwhile", "h", node_h * encode_s),
        (
            "... without a GPU, on its 96 cores (measured at 256x512, times 16)",
            "h",
            node_h * 16 * rates["w48_cpu_s_for_256x512"],
        ),
        ("`pseudo-label`: read, threshold, merge, write", "h", node_h * (encode_s + read_s)),
        ("`student-train`, 357,000 crops", "GPU-h", student_h),
        ("`autolabel verify`, every byte", "h", (label_gb + tables_gb) / rates["sha256_gb_per_s"] / given.cores / 3600),
        (
            "DVC hashing and caching both stores, one process",
            "h",
            (files * rates["dvc_s_per_file"] + store_gb * rates["dvc_s_per_gb"]) / 3600,
        ),
        ("**money**", "", 0.0),
        ("GPU time of labels and student", "$", (labels_h + student_h) * given.dollars_per_gpu_hour),
        ("disk of both stores and DVC's cache, a month", "$", 2 * store_gb / 1e3 * given.dollars_per_tb_month),
        ("**storage**", "", 0.0),
        ("the images themselves (yours)", "TB", images * rates["image_bytes"] / 1e12),
        ("raw and final store", "TB", store_gb / 1e3),
        ("... with DVC's copy", "TB", 2 * store_gb / 1e3),
        ("**files**", "", 0.0),
        ("shards, tables, receipts of both stores", "files", files),
        ("**one workspace**", "", 0.0),
        *_of_index(images, rates),
    ]


# Title, unit, path in the result of bench_index.py, and what makes the figure's number one of the unit.
_INDEX = (
    ("`prepare` beside the checks of files, one core", "min", "plan.processor_s", 1 / 60),
    ("... memory", "GB", "plan.gb", 1.0),
    ("near duplicates within 4 bits, one core", "min", "near.processor_s", 1 / 60),
    ("the page's first answers, one core", "s", "start.page_processor_s", 1.0),
    ("... memory", "GB", "start.gb", 1.0),
)


def _of_index(images: int, rates: Mapping[str, float]) -> list[Row]:
    sizes = sorted({int(path.split(".")[0]) for path in rates if path.endswith(".plan.gb")})
    at = next((size for size in sizes if size >= images), sizes[-1])
    grown = max(1.0, images / at)  # computed from the largest size
    rows = []
    for title, unit, path, scale in _INDEX:
        value = rates[f"{at}.{path}"] * grown
        if path == "near.processor_s" and grown > 1:
            value *= work(images, 4) / work(at, 4) / grown
        rows.append((title, unit, scale * value))
    return rows


def scaling_table(rates: Mapping[str, float]) -> list[str]:
    """The table as Markdown."""
    columns = [rows_of(images, rates, Assumed()) for images in COUNTS]
    lines = [f"| | {' | '.join(f'{images:,}' for images in COUNTS)} |", "|---|" + "---:|" * len(COUNTS)]
    for same in zip(*columns, strict=True):
        title, unit, _ = same[0]
        cells = "".join(f" {_amount(value, unit)} |" if unit else " |" for _, _, value in same)
        lines.append(f"| {title} |{cells}")
    return lines


_UNITS = {
    "h": (("y", 24 * 365), ("d", 24), ("h", 1), ("min", 1 / 60), ("s", 1 / 3600)),
    "s": (("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)),
    "min": (("d", 1440), ("h", 60), ("min", 1), ("s", 1 / 60)),
    "TB": (("PB", 1000), ("TB", 1), ("GB", 1e-3), ("MB", 1e-6)),
    "GB": (("TB", 1000), ("GB", 1), ("MB", 1e-3)),
}


def _amount(value: float, unit: str) -> str:
    """Two digits are more than these figures are worth."""
    for name, size in _UNITS.get(unit, ()):
        if value >= size or name == _UNITS[unit][-1][0]:
            return f"{_rounded(value / size)} {name}"
    return f"${_rounded(value)}" if unit == "$" else f"{_rounded(value)} {unit}".removesuffix(" files")


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
