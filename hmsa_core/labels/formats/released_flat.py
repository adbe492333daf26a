"""The same PNG pairs as `released`, all in one folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hmsa_core.labels.formats import released
from hmsa_core.labels.formats._item import About, Item


def write(out: Path, about: About, items: Iterator[Item]) -> None:
    """`NAME_leftImg8bit.png` and `NAME_leftImg8bit_prob.png`."""
    released.write(out, about, items, flat=True)
