"""Counts of `prepare`, of evaluate jobs and of `calibrate`, read from their files."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.data.index import Index
from hmsa_core.data.sampling import CLASS, PIXELS, Centroids
from hmsa_core.io.errors import IntegrityError, one_line
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.metrics.gate import Judged
from pipeline.workspace.workspace import Workspace

Counts = NDArray[np.int64]


def row_shares(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Each row over its sum, float64 of the same shape; zeros where the sum is zero."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.zeros(counts.shape)
    np.divide(counts, totals, out=shares, where=totals > 0)
    return shares


def fine_pixels(ws: Workspace) -> dict[str, int]:
    """{class: pixels} of the fine labels that trainings learn from; {} before `prepare`.

    A tile in which a class has fewer than `sampling.min_pixels` pixels adds nothing to the count of that class.
    """
    learn, centroids = (ws.path(f"data/index/{name}.parquet") for name in ("learn", "centroids-target"))
    if not (learn.exists() and centroids.exists()):
        return {}
    index = Index.load(learn)
    found = Centroids.load(centroids).of([s.name for s in index.select(kinds=("fine",))]).values
    counted = np.bincount(found[:, CLASS], weights=found[:, PIXELS], minlength=index.classes.num_classes)
    return dict(zip(index.classes.classes, (int(n) for n in counted), strict=True))


def read_counts(path: Path, *wanted: str) -> tuple[NDArray[Any], ...]:
    """Read arrays by name from an evaluate job's file (`<setting>.npz`, published as evaluation/confusions-MODEL.npz).

    Raises:
        IntegrityError: the file is missing or damaged; the hint names the command that makes the file again.
    """
    place = "it" if path.name.startswith("confusions-") else f"the folder {path.parent}"
    return _arrays(path, wanted, f"delete {place}, then `dvc repro --force --single-item evaluate`")


def read_judged(path: Path, model: str) -> Judged:
    """Read a model's counts from an evaluate job's file; errors as `read_counts`."""
    names, blocks, confusions = read_counts(path, "names", "blocks", "confusions")
    return Judged(model, tuple(names.tolist()), tuple(blocks.tolist()), confusions)


def read_pairs(path: Path, num_classes: int) -> NDArray[np.int64]:
    """Read pixels by (human class, class, code) on calibration images: int64 (C+1, C, 256), human class C is "none".

    Raises:
        IntegrityError: the file is damaged, or counted for another number of classes.
    """
    hint = "delete it, then `dvc repro --force --single-item calibrate`; without it coarse labels correct no precision"
    (found,) = _arrays(path, ("pairs",), hint)
    expected = (num_classes + 1, num_classes, NUM_CODES)
    if found.shape != expected or found.dtype.kind not in "iu":
        said = f"{found.dtype.name} {found.shape}, expected whole numbers {expected}"
        raise IntegrityError(f"{path}: holds no counts of these classes ({said})", hint=hint)
    return np.asarray(found, np.int64)


def _arrays(path: Path, wanted: tuple[str, ...], hint: str) -> tuple[NDArray[Any], ...]:
    try:
        with zipfile.ZipFile(path) as file:
            members = [file.read(f"{name}.npy") for name in wanted]  # whole: numpy alone ignores a wrong checksum
        return tuple(np.lib.format.read_array(io.BytesIO(member), allow_pickle=False) for member in members)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        message = f"{path}: the counts of pixels in it cannot be read ({one_line(error)})"
        raise IntegrityError(message, hint=hint) from error
