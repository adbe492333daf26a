"""Build the wheel and the source archive, check and install them: `python -m tools.release [OUT]` (make release).

Both are built from a copy of the checkout's own files, so that nothing that lies around gets in. Needs no network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

from packaging.metadata import Metadata

from tools.lock import REPO

__all__ = ["build", "check_wheel", "install", "main"]

_BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # setuptools writes its own commands into sys.argv
names = build_meta.build_sdist(out), build_meta.build_wheel(out)
print(*names, sep="\\n")
"""
_PACKAGES = ("hmsa_core/", "pipeline/")


def build(out: Path) -> tuple[Path, Path]:
    """Build into the folder `out`; returns the source archive and the wheel."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="autolabel-release-") as folder:
        for name in _own_files():
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, target)
        command = [sys.executable, "-c", _BUILD, str(out.resolve())]
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    sdist, wheel = (out / name for name in done.stdout.splitlines()[-2:])  # setuptools tells of its steps before
    return sdist, wheel


def _own_files() -> list[str]:
    """Paths of the checkout's files, those that git ignores aside."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPO, check=True, capture_output=True).stdout.decode()
    return [name for name in listed.split("\0") if name and (REPO / name).is_file()]


def check_wheel(wheel: Path) -> list[str]:
    """What is wrong with a wheel: metadata that tools refuse, files that are missing, files that do not belong."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(archive.read(about), validate=True)
        message = BytesParser().parsebytes(archive.read(about))
    needed = {name for name in _own_files() if name.startswith(_PACKAGES)}
    there = {name for name in names if not name.startswith(about.partition("/")[0])}
    found = [f"{name}: missing" for name in sorted(needed - there)]
    found += [f"{name}: is not part of the package" for name in sorted(there - needed)]
    if not metadata.license_expression or not message.get_payload():
        found.append(f"{about}: no licence or no description")
    return found


def install(wheel: Path, environment: Path) -> Path:
    """Install a wheel alone into a new virtual environment that sees this one's other packages; returns its bin."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    packages = next((environment / "lib").glob("python*/site-packages"))
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), "install", "--quiet"]
    options = ["--no-index", "--no-deps", "--ignore-installed"]
    subprocess.run([*pip, *options, str(wheel)], check=True, capture_output=True)
    return environment / "bin"


def main() -> int:
    """Build into dist/, install the wheel, print what was built, and fail where something is wrong."""
    sdist, wheel = build(Path(sys.argv[1]) if len(sys.argv) > 1 else REPO / "dist")
    wrong = check_wheel(wheel)
    with tempfile.TemporaryDirectory(prefix="autolabel-release-") as folder:
        program = install(wheel.resolve(), Path(folder, "environment")) / "autolabel"
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # not the checkout's code
        subprocess.run([program, "--version"], cwd=folder, env=env, check=True)
    sys.stdout.write("".join(f"{line}\n" for line in (sdist, wheel, *wrong)))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
