"""Run the benchmarks, compare with the figures of `research/tables/bench.parquet`, write the new ones: `make bench`.

    python -m research.bench.run [--only rmi,store] [--quick] [--write]

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

from pipeline.provenance import describe_run
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
    "export": ["bench_export"],
    "chain": ["bench_chain"],
}


def measure(name: str, *, quick: bool) -> tuple[str, dict[str, float]]:
    """Run one benchmark; its command and its figures."""
    script, *arguments = SCRIPTS[name]
    command = ["-m", f"research.bench.{script}", *arguments, *(["--quick"] if quick else [])]
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


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SCRIPTS), help="names, with commas")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures little")
    parser.add_argument("--write", action="store_true", help="keep the figures, and write the pages that show them")
    args = parser.parse_args()
    before = {(line.row, line.metric): line.value for line in figures(TABLES / f"{TABLE}.parquet")}
    for name in args.only.split(","):
        command, found = measure(name, quick=args.quick)
        for path, value in found.items():
            old = before.get((name, path))
            change = f"  (in the table {old:g}, {100 * (value / old - 1):+.0f} %)" if old else ""
            sys.stdout.write(f"{name} {path}: {value:g}{change}\n")
        if args.write and not args.quick:
            record(name, command, found)
    return results.main([]) if args.write else 0


if __name__ == "__main__":
    sys.exit(main())
