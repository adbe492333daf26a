"""Real workspaces: commands as a user types them, with what they said, how long they took, which stages ran."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from pipeline.night.parameters import set_keys
from pipeline.workspace.yaml_text import read_yaml

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Done:
    """A finished command."""

    text: str
    status: int

    @property
    def ran(self) -> list[str]:
        """Stages that DVC ran, but for the first one, which writes the settings in effect."""
        return [stage for stage in re.findall(r"Running stage '([a-z-]+)'", self.text) if stage != "settings"]


@dataclass(frozen=True)
class Whole:
    """A workspace after one `dvc repro`, how that went, and whether the machine had nothing else to do."""

    root: Path
    done: Done
    was_idle: bool


def environment() -> dict[str, str]:
    """As in a user's shell with the virtual environment active; this checkout's code wins.

    DVC runs commands by $SHELL: /bin/sh, because dash stays the parent of a command where bash makes way for it.
    """
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    path = f"{BIN}:{env['PATH']}"
    return env | {"PATH": path, "PYTHONPATH": str(REPO), "DVC_NO_ANALYTICS": "1", "SHELL": "/bin/sh"}


def run(folder: Path, *command: str, status: int | None = 0) -> Done:
    """Run a command to its end; any other exit status than `status` fails the test (None = any is fine)."""
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    assert status is None or done.returncode == status, text[-3000:]
    return Done(text, done.returncode)


def dvc(folder: Path, *arguments: str, status: int | None = 0) -> Done:
    """Run `dvc ARGUMENTS`."""
    return run(folder, sys.executable, "-m", "dvc", *arguments, status=status)


def change_param(workspace: Path, old: str, new: str) -> None:
    """Replace the first occurrence of a piece of params.yaml."""
    path = workspace / "params.yaml"
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new, 1))


def set_params(workspace: Path, changes: Mapping[str, Any]) -> None:
    """Set dotted keys of params.yaml, as a person's edit would."""
    path = workspace / "params.yaml"
    values = read_yaml(path).values
    set_keys(values, changes)
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def add_images(workspace: Path, count: int = 1) -> list[str]:
    """Put new photographs among those without labels, and return their names.

    They are mirrored photographs of another split: a copy of a known one would be quarantined.
    """
    photographs = workspace / "data/demo/cityscapes/leftImg8bit"
    known, names = sorted((photographs / "test").rglob("*_leftImg8bit.png")), []
    for number, path in enumerate(known[:count]):
        names.append(f"augsburg_{990 + number:06d}_000019")
        with Image.open(path) as image:
            mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mirrored.save(photographs / f"train_extra/augsburg/{names[-1]}_leftImg8bit.png")
    return names


def lock_file(workspace: Path) -> str:
    """Content of dvc.lock: digests of everything."""
    return (workspace / "dvc.lock").read_text()
