"""The whole chain of profile `tiny` under DVC in a new workspace: seconds, and seconds of processor time.

`again_seconds` is a second `dvc repro`, which has nothing to run.

    python -m research.bench.bench_chain [--quick]

Nothing else may run at the same time. --quick changes nothing: one chain is one measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Make a workspace, run its chain once, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "ws"
        quiet = {"stdout": subprocess.DEVNULL, "check": True}
        subprocess.run([sys.executable, "-m", "pipeline.cli.main", "init", str(root), "--profile", "tiny"], **quiet)
        repro = [sys.executable, "-m", "dvc", "repro"]
        before, start = os.times(), time.monotonic()
        subprocess.run(repro, cwd=root, **quiet)
        ended, after = time.monotonic(), os.times()
        subprocess.run(repro, cwd=root, **quiet)
        again = time.monotonic() - ended
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    print(json.dumps({"seconds": ended - start, "cpu_seconds": spent, "again_seconds": again}))


if __name__ == "__main__":
    main()
