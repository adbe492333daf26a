"""Versions of packages and memory of this machine, found without importing torch."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from hmsa_core.io.errors import one_line

_PACKAGES = "torch torchvision numpy pyarrow opencv-python-headless pillow safetensors dvc prefect fastapi"
_LEAST_TORCH = (2, 11)


def versions() -> dict[str, str]:
    """Installed versions of the packages that matter ("" = not installed)."""
    found = dict.fromkeys(_PACKAGES.split(), "")
    for name in found:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def torch_pair() -> str | None:
    """Describe what is wrong with the installed torch and torchvision; None if they fit.

    torchvision's metadata names the versions of torch that it needs.
    """
    have = versions()
    if not have["torch"] or Version(have["torch"]).release < _LEAST_TORCH:
        return f"torch {have['torch'] or 'is missing'}: {'.'.join(map(str, _LEAST_TORCH))} or newer is needed"
    if not have["torchvision"]:
        return "torchvision is missing"
    for line in metadata.requires("torchvision") or []:
        need = Requirement(line)
        is_torch = need.name == "torch" and need.marker is None
        if is_torch and not need.specifier.contains(have["torch"].split("+")[0], prereleases=True):
            return f"torchvision {have['torchvision']} needs torch {need.specifier}, installed is {have['torch']}"
    return None


def torch_works() -> str | None:
    """Describe the error of torch and torchvision working together; None without one (starts a process: some seconds).

    Versions can match while the compiled parts do not: then torchvision's operators are missing.
    """
    code = "import torch, torchvision; torchvision.ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.tensor([1.]), 0.5)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines()
    return one_line(said[-1]) if said else f"importing both ended with status {done.returncode}, without a word"


def reinstall(*, anew: bool = False) -> str:
    """Command that installs the pinned packages into this environment again.

    Args:
        anew: remove the environment first, if `make setup` made it.
    """
    prefix = Path(sys.prefix)
    stamps = sorted(prefix.glob(".ready-*"))  # while one is there, `make setup` takes the environment for finished
    is_own = sys.prefix == sys.base_prefix or prefix == Path.cwd() / ".venv"
    make = "make setup" if is_own else f"make setup VENV={shlex.quote(str(prefix))}"
    if not stamps:
        return make
    gone = ["rm", "-r", prefix] if anew else ["rm", *stamps]
    return f"{shlex.join(map(str, gone))} && {make}"


def memory_gib() -> float:
    """Memory of this machine in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
