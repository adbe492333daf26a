"""Per-image counts of an evaluate job (`<setting>.npz`, published as evaluation/confusions-MODEL.npz)."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from hmsa_core.errors import IntegrityError, one_line

__all__ = ["read_counts"]


def read_counts(path: Path, *wanted: str) -> tuple[NDArray[Any], ...]:
    """Arrays of an evaluate job's file, by name.

    Raises:
        IntegrityError: it is missing or damaged; the hint says what makes it anew.
    """
    try:
        with np.load(path) as file:
            return tuple(file[name] for name in wanted)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        place = "it" if path.name.startswith("confusions-") else f"the folder {path.parent}"
        raise IntegrityError(
            f"{path}: no counts can be read from it ({one_line(error)})",
            hint=f"delete {place}, then `dvc repro --force --single-item evaluate`",
        ) from error
