"""Formats of other tools: each file of this folder is one format and is known by being here.

A file whose name begins with an underscore is no format; `label_studio.py` is the format `label-studio`. The first
line of a format's file is its description in `autolabel export --help`. Its functions:

    def write(out: Path, about: About, items: Iterator[Item]) -> None      # all images of an export
    def read(path: Path, exported: Exported) -> Iterator[Returned]        # where the tool sends labels back

A format with `read` gets an empty folder, which takes its place in one step at the end, and each image's photograph.
One without `read` gets the path that the user gave: `_folder.update_folder` keeps a folder of PNG files up to date.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from hmsa_core.io.errors import ConfigError

__all__ = ["find_format", "format_lines"]


def format_lines() -> dict[str, str]:
    """Description of each format by its name, sorted. No format is imported."""
    files = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    return {path.stem.replace("_", "-"): path.read_text("utf-8").split("\n", 1)[0].strip('". ') for path in files}


def find_format(name: str) -> Any:
    """The module of a format; an unknown name is a ConfigError that lists the known ones."""
    if name not in format_lines():
        raise ConfigError(f"unknown export format {name!r}", hint=f"one of {', '.join(format_lines())}")
    return import_module(f"{__name__}.{name.replace('-', '_')}")
