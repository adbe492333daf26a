"""Run every benchmark, compare with the last committed results, write the new ones: `make bench`.

    python -m research.bench.run [--only rmi,store] [--quick]

Each script prints one JSON object; it goes to research/bench/results/NAME.json with machine, versions and command.
docs/benchmarks.md is made from these files alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from hmsa_core.io.atomic import read_json, write_json, write_text
from research.bench.goals import table

REPO = Path(__file__).resolve().parents[2]
RESULTS = REPO / "research" / "bench" / "results"
SCRIPTS: dict[str, list[str]] = {
    "anchor": ["research/bench/anchor.py"],
    "rmi": ["research/bench/bench_rmi.py"],
    "store": ["research/bench/bench_store.py"],
    "loader": ["research/bench/bench_loader.py"],
    "train_step": ["research/bench/bench_train_step.py"],
    "evaluate": ["research/bench/bench_evaluate.py"],
    "infer": ["research/bench/bench_infer.py", "--threads", "2"],
    "labelling": ["research/bench/bench_labelling.py"],
    "scaling": ["research/bench/bench_scaling.py"],
}
QUICK = {
    "anchor": ["--rounds", "1"],
    "rmi": ["--rounds", "3", "--shape", "1x19x256x512"],
    "store": ["--images", "1", "--rows", "2000"],
    "loader": ["--images", "2", "--repeats", "2"],
    "train_step": ["--rounds", "2"],
    "evaluate": ["--rounds", "1"],
    "infer": ["--quick"],
    "labelling": ["--quick"],
    "scaling": ["--quick"],
}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    packages = ("torch", "numpy", "opencv-python-headless", "pillow", "pyarrow")
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        **{name: metadata.version(name) for name in packages},
    }


def measure(name: str, *, quick: bool) -> dict[str, Any]:
    """Run one script; its JSON with machine and command."""
    command = [*SCRIPTS[name], *(QUICK[name] if quick else [])]
    before = machine()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {"command": "python " + " ".join(command), "machine": before, "result": json.loads(done.stdout)}


def ratios(value: Any, path: str = "") -> dict[str, float]:
    """Every number of a result, by its path; an entry of a list goes by its `case`, numbers in lists are settings."""
    if isinstance(value, list):
        value = {str(part["case"]): part for part in value if isinstance(part, dict)}
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in ratios(part, f"{path}.{key}" if path else key).items()}
    if isinstance(value, bool) or not isinstance(value, int | float):
        return {}
    return {path: float(value)}


def page() -> str:
    """docs/benchmarks.md from the committed files."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench` from `research/bench/results/*.json`. Both sides of a ratio run in turns, in one process "
        "or one run; absolute times hold for the machine named. `load_before` above about 0.5 means that the machine "
        "was busy: then trust ratios only.",
        "",
    ]
    results = {path.stem: read_json(path) for path in sorted(RESULTS.glob("*.json"))}
    figures = {name: ratios(found["result"]) for name, found in results.items()}
    lines += ["## Goals", "", *table(figures), ""]
    for name, found in results.items():
        where = ", ".join(f"{k} {v}" for k, v in found["machine"].items())
        lines += [f"## {name}", "", f"`{found['command']}` on {where}", "", "| figure | value |", "|---|---|"]
        lines += [f"| {key} | {value:g} |" for key, value in figures[name].items()]
        lines.append("")
    return "\n".join(lines)


def record(name: str, command: str, where: dict[str, Any], result: dict[str, Any]) -> None:
    """Write research/bench/results/NAME.json of a benchmark that needs a workspace; make docs/benchmarks.md anew."""
    write_json(RESULTS / f"{name}.json", {"command": command, "machine": where, "result": result})
    write_text(REPO / "docs" / "benchmarks.md", page())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SCRIPTS), help="names, with commas")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures little")
    args = parser.parse_args()
    for name in args.only.split(","):
        path = RESULTS / f"{name}.json"
        before = ratios(read_json(path)["result"]) if path.exists() else {}
        found = measure(name, quick=args.quick)
        for key, value in ratios(found["result"]).items():
            old = before.get(key)
            change = f"  (committed {old:g}, {100 * (value / old - 1):+.0f} %)" if old else ""
            print(f"{name} {key}: {value:g}{change}")
        if not args.quick:
            write_json(path, found)
    if not args.quick:
        write_text(REPO / "docs" / "benchmarks.md", page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
