"""Build the wheel and the source archive, and check what is in them: `python -m tools.release [OUT]` (make release).

Built from a copy of the checkout's own files, so that nothing that lies around gets in. Needs no network.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

from packaging.metadata import Metadata

from tools.lock import REPO

__all__ = ["build", "check_wheel", "main"]

_BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # setuptools writes its own commands into sys.argv
names = build_meta.build_sdist(out), build_meta.build_wheel(out)
print(*names, sep="\\n")
"""
_PACKAGES = ("hmsa_core/", "pipeline/")
_NEEDED = (
    "hmsa_core/py.typed",
    "hmsa_core/taxonomy/cityscapes.json",
    "pipeline/profiles/cityscapes.yaml",
    "pipeline/inspector/static/index.html",
)


def build(out: Path) -> tuple[Path, Path]:
    """Build into the folder `out`; returns the source archive and the wheel."""
    out.mkdir(parents=True, exist_ok=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        check=True,
        capture_output=True,
    )
    with tempfile.TemporaryDirectory(prefix="autolabel-release-") as folder:
        for name in listed.stdout.decode().split("\0"):
            if name and (REPO / name).is_file():
                target = Path(folder, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPO / name, target)
        command = [sys.executable, "-c", _BUILD, str(out.resolve())]
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    sdist, wheel = (out / name for name in done.stdout.splitlines()[-2:])  # setuptools tells of its steps before
    return sdist, wheel


def check_wheel(wheel: Path) -> list[str]:
    """What is wrong with a wheel: metadata that tools refuse, files that are missing, files that do not belong."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(archive.read(about), validate=True)
        message = BytesParser().parsebytes(archive.read(about))
    found = [f"{name}: missing" for name in _NEEDED if name not in names]
    belongs = (*_PACKAGES, about.partition("/")[0])
    found += [f"{name}: is not part of the package" for name in names if not name.startswith(belongs)]
    if not metadata.license_expression or not message.get_payload():
        found.append(f"{about}: no licence or no description")
    return found


def main() -> int:
    """Build into dist/, print what was built, and fail where something is wrong."""
    sdist, wheel = build(Path(sys.argv[1]) if len(sys.argv) > 1 else REPO / "dist")
    wrong = check_wheel(wheel)
    sys.stdout.write("".join(f"{line}\n" for line in (sdist, wheel, *wrong)))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
