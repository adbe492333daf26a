"""Describe how a figure was made: machine, versions, commit. Host name, paths and times are left out."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.jobs import machine
from pipeline.jobs.devices import first_processor, gpu_list

REPOSITORY = Path(__file__).resolve().parents[2]


def describe_run(files: Sequence[str] = ()) -> dict[str, Any]:
    """Machine, versions and commit; only uncommitted changes of `files` are listed."""
    return {"machine": describe_machine(), "versions": versions(), **commit_of(REPOSITORY, files)}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    wanted = ("torch", "torchvision", "numpy", "opencv-python-headless")
    installed = machine.versions()
    return {"python": platform.python_version()} | {name: installed[name] for name in wanted}


def describe_machine() -> dict[str, Any]:
    """Processor with its family (which decides bits and speed; a name may hide it), cores and GPUs by name."""
    fields = first_processor()
    processor = fields.get("model name") or platform.processor() or platform.machine()
    family = {k: fields[k] for k in ("cpu family", "model") if k in fields}
    return {"processor": processor, "family": family, "cores": os.cpu_count(), "gpus": gpu_list("name")}


def commit_of(root: Path, files: Sequence[str] = ()) -> dict[str, Any]:
    """{"commit": hash or None where there is no git, "uncommitted": the given files that differ from it}."""
    if shutil.which("git") is None:
        return {"commit": None, "uncommitted": []}
    head = _git(root, "rev-parse", "HEAD")
    # An installed package may lie in a folder that another project's git ignores: that commit is not this program's.
    if head is None or _git(root, "ls-files", "--error-unmatch", "pipeline/__init__.py") is None:
        return {"commit": None, "uncommitted": []}
    changed = _git(root, "status", "--porcelain", "--", *files) if files else ""
    return {"commit": head.strip(), "uncommitted": sorted(line[3:] for line in (changed or "").splitlines())}


def _git(root: Path, *arguments: str) -> str | None:
    # A git hook that calls this program sets GIT_DIR and similar variables: git would use the hook's repository.
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    done = subprocess.run(["git", *arguments], cwd=root, env=env, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
