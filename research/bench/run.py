"""Run the benchmarks, compare with the figures of `research/tables/bench.parquet`, write the new ones: `make bench`.

    python -m research.bench.run [--only rmi,store] [--quick] [--write]
    python -m research.bench.run --gpu [--write]      (what needs GPUs: `make bench-gpu`)

Each benchmark is a process of its own that prints one JSON object. With --write the figures replace the older ones
of the table, and the pages that show them are made anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib import metadata
from typing import Any

from pipeline.jobs.provenance import describe_run
from research import results
from research.bench.goals import TABLE
from research.figures import TABLES, Made, figures, replace

SCRIPTS: dict[str, list[str]] = {
    "rmi": ["bench_rmi"],
    "train_step": ["bench_train_step"],
    "loader": ["bench_loader"],
    "store": ["bench_store"],
    "infer": ["bench_infer", "--threads", "2"],
    "labelling": ["bench_labelling"],
    "foreign": ["bench_foreign"],
    "export": ["bench_export"],
    "index": ["bench_index"],
    "chain": ["bench_chain"],
    "roofline": ["roofline"],
}


def gpu_scripts(gpus: int) -> dict[str, list[str]]:
    """Benchmarks that need GPUs; trainings on 1, 2 and all of them."""
    ranks = sorted({1, min(2, gpus), gpus})
    return {
        "gpu-infer": ["bench_infer", "--device", "cuda", "--cases", "w48"],
        "gpu-labelling": ["bench_labelling", "--device", "cuda"],
        **{f"gpu-train-{n}": ["bench_train_step", "--device", "cuda"] for n in ranks},
    }


def measure(name: str, scripts: dict[str, list[str]], *, quick: bool) -> tuple[str, dict[str, float]]:
    """Run one benchmark; its command and its figures."""
    ranks = name.removeprefix("gpu-train-") if name.startswith("gpu-train-") else ""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    script, *arguments = scripts[name]
    command = [*start, "-m", f"research.bench.{script}", *arguments, *(["--quick"] if quick else [])]
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True)
    return "python " + " ".join(command), flat(json.loads(done.stdout))


def flat(value: Any, path: str = "") -> dict[str, float]:
    """Every number of a result, by its path; an entry of a list goes by its `case`, numbers in lists are settings."""
    if isinstance(value, list):
        value = {str(part["case"]): part for part in value if isinstance(part, dict)}
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{path}.{key}" if path else key).items()}
    if isinstance(value, bool) or not isinstance(value, int | float):
        return {}
    return {path: float(value)}


def record(name: str, command: str, found: dict[str, float]) -> None:
    """Put the figures of a benchmark into the table, in place of its older ones."""
    run = describe_run(("hmsa_core", "pipeline", "research"))
    here = Made.of(run)
    made = Made(here.commit, f"{here.machine}, torch {metadata.version('torch')}")
    lines = [made.figure("bench", name, path, value, setting=command) for path, value in found.items()]
    replace(TABLES / f"{TABLE}.parquet", lines, lambda line: line.row == name)


def _gpus(parser: argparse.ArgumentParser) -> int:
    import torch  # seconds

    if not torch.cuda.is_available():
        parser.error("--gpu, but torch finds no GPU")
    return torch.cuda.device_count()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names, with commas; default: all")
    parser.add_argument("--gpu", action="store_true", help="those that need GPUs, in place of the others")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures little")
    parser.add_argument("--write", action="store_true", help="keep the figures, and write the pages that show them")
    args = parser.parse_args()
    scripts = gpu_scripts(_gpus(parser)) if args.gpu else SCRIPTS
    before = {(line.row, line.metric): line.value for line in figures(TABLES / f"{TABLE}.parquet")}
    for name in args.only.split(",") if args.only else scripts:
        command, found = measure(name, scripts, quick=args.quick)
        for path, value in found.items():
            old = before.get((name, path))
            change = f"  (in the table {old:g}, {100 * (value / old - 1):+.0f} %)" if old else ""
            sys.stdout.write(f"{name} {path}: {value:g}{change}\n")
        if args.write and not args.quick:
            record(name, command, found)
    return results.main([]) if args.write else 0


if __name__ == "__main__":
    sys.exit(main())
