"""PNG masks of trainIds, 255 = ignore."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hmsa_core.labels.formats._folder import update_folder
from hmsa_core.labels.formats._item import About, Item


def write(out: Path, about: About, items: Iterator[Item]) -> None:
    """`NAME.png`."""
    update_folder(out, about, items, lambda item: {("", f"{item.name}.png"): item.label})
