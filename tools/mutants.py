"""Do the tests notice? A mutation run over the code that must not lie: `python -m tools.mutants` (make mutants).

mutmut changes one thing at a time (a comparison, a number, an argument, a text) in MODULES and runs those of TESTS
that reach it; what no test noticed is printed as a diff. It works on a copy of the tracked files below build/.
Statements that raise or log are not changed: whether they are reached is decided by conditions, which are; the rest
is wording. Status: 0 at least LEAST of the mutants were caught, 1 fewer, 3 mutmut is not there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

__all__ = ["LEAST", "MODULES", "TESTS", "main", "report"]

REPO = Path(__file__).resolve().parents[1]
COPY = REPO / "build" / "mutation"
LEAST = 0.9
MODULES = (
    "hmsa_core/io/atomic.py",
    "hmsa_core/io/trees.py",
    "hmsa_core/io/locks.py",
    "hmsa_core/models/checkpoint.py",
    "hmsa_core/labels/merge.py",
    "hmsa_core/labels/store/format.py",
    "hmsa_core/io/sealed.py",
)
TESTS = (
    "tests/unit/hmsa_core/io/test_atomic.py",
    "tests/unit/hmsa_core/io/test_trees.py",
    "tests/unit/hmsa_core/io/test_locks.py",
    "tests/unit/hmsa_core/labels/test_merge.py",
    "tests/unit/hmsa_core/io/test_sealed.py",
    "tests/unit/hmsa_core/models/test_checkpoint_folder.py",
    "tests/unit/test_stored_formats.py",
)
_CAUGHT = ("killed", "timeout", "segfault", "caught by type check")  # a test failed, hung or died
_CONFIG = """[mutmut]
source_paths=hmsa_core
  pipeline
only_mutate={modules}
do_not_mutate_patterns=^\\s*raise
  ^\\s*_log\\.
pytest_add_cli_args_test_selection={tests}
pytest_add_cli_args=-q
  -p
  no:randomly
  -m
  not slow and not gpu
also_copy=params.yaml
  dvc.yaml
  tools
"""


def report(verdicts: Mapping[str, str]) -> tuple[list[str], float]:
    """Lines (module, caught of all, share) and the share over all modules, from verdicts by mutant name."""
    total: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    for name, verdict in verdicts.items():
        module = name.partition(".x")[0]
        total[module] += 1
        caught[module] += verdict in _CAUGHT
    lines = [f"{m}: {caught[m]} of {total[m]} caught ({caught[m] / total[m]:.1%})" for m in sorted(total)]
    return lines, sum(caught.values()) / max(1, sum(total.values()))


def _copy() -> None:
    shutil.rmtree(COPY, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, check=True, text=True).stdout
    for name in listed.split("\0"):
        if name and (REPO / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, COPY / name)
    modules, tests = ("\n  ".join(names) for names in (MODULES, TESTS))
    (COPY / "setup.cfg").write_text(_CONFIG.format(modules=modules, tests=tests), encoding="utf-8")


def _mutmut(*args: str, quiet: bool = True) -> str:
    path = os.pathsep.join(p for p in sys.path if p and Path(p) != REPO)  # mutmut prepends the mutated code
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command, out = [sys.executable, "-m", "mutmut", *args], subprocess.PIPE if quiet else None
    done = subprocess.run(command, cwd=COPY, env=env, check=False, text=True, stdout=out)
    if done.returncode:
        raise SystemExit(f"mutmut {args[0]} ended with status {done.returncode}; run it in {COPY} to see why")
    return done.stdout or ""


def main() -> int:
    """Make the copy, run mutmut, print what survived."""
    if importlib.util.find_spec("mutmut") is None:
        sys.stderr.write("mutmut is not there: `make mutants` lays it into build/mutmut\n")
        return 3
    _copy()
    _mutmut("run", "--max-children", str(os.cpu_count() or 1), quiet=False)
    found = _mutmut("results", "--all", "true")
    verdicts = dict(line.strip().rsplit(": ", 1) for line in found.splitlines() if ": " in line)
    missed = {name: verdict for name, verdict in verdicts.items() if verdict not in _CAUGHT}
    for name, verdict in missed.items():
        changed = (line for line in _mutmut("show", name).splitlines() if line[:1] in ("+", "-"))
        diff = [line for line in changed if line[:3] not in ("+++", "---")]
        sys.stdout.write("\n".join([f"{verdict}: {name}", *diff, ""]))
    lines, share = report(verdicts)
    lines.append(f"all: {share:.1%} of {len(verdicts)} caught, at least {LEAST:.0%} wanted")
    sys.stdout.write("\n".join([*lines, ""]))
    (COPY.with_suffix(".json")).write_text(json.dumps({"caught": share, "missed": missed}, indent=1), encoding="utf-8")
    return 0 if share >= LEAST else 1


if __name__ == "__main__":
    raise SystemExit(main())
