"""The calibration table: class and raw code -> probability that the label is right, never falling with the code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io import sealed
from hmsa_core.io.errors import StoreError
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.store.format import binding
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.taxonomy import ClassTable

__all__ = ["calibration_table", "isotonic", "load_table", "save_table"]

FORMAT, VERSION = "hmsa-calibration-table", 1
# Weight of the prior in pixels. It only decides where a class has (nearly) no pixels of a code: there the
# curve of all classes together is the best guess.
_PRIOR_PIXELS = 50.0


def isotonic(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Non-decreasing least-squares fit (pool adjacent violators); weights must be positive."""
    means: list[float] = []
    masses: list[float] = []
    lengths: list[int] = []
    for value, weight in zip(values, weights, strict=True):
        means.append(float(value))
        masses.append(float(weight))
        lengths.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            mass = masses[-2] + masses[-1]
            means[-2] = (means[-2] * masses[-2] + means[-1] * masses[-1]) / mass
            masses[-2] = mass
            lengths[-2] += lengths[-1]
            del means[-1], masses[-1], lengths[-1]
    return np.repeat(np.array(means), lengths)


def calibration_table(curves: Curves) -> NDArray[np.float64]:
    """P(label is right | class, code) as float64 (C, 256), non-decreasing in the code."""
    total = curves.counts["total"].sum(axis=0).astype(np.float64)
    correct = curves.counts["correct"].sum(axis=0).astype(np.float64)
    everyone = _fit(correct.sum(axis=0) + 0.5, total.sum(axis=0) + 1.0)
    return np.stack([_fit(correct[c] + _PRIOR_PIXELS * everyone, total[c] + _PRIOR_PIXELS) for c in range(len(total))])


def _fit(correct: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(isotonic(correct / total, total), 0.0, 1.0)


def save_table(path: str | Path, table: NDArray[np.float64], classes: ClassTable, lineage: Mapping[str, Any]) -> str:
    """Write the table as a sealed JSON file, bound to teacher and inference; return its digest."""
    return sealed.write(
        Path(path),
        {
            "format": FORMAT,
            "version": VERSION,
            "class_table": classes.to_json(),
            "binding": binding(lineage),
            "table": {
                name: [round(float(p), 6) for p in row] for name, row in zip(classes.classes, table, strict=True)
            },
        },
    )


def load_table(path: str | Path) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Table (C, 256) and binding of a file of `save_table`."""
    value = sealed.read(Path(path))
    if value.get("format") != FORMAT or value.get("version") != VERSION:
        raise StoreError(f"{path}: not a calibration table of version {VERSION}")
    names = ClassTable.from_json(value["class_table"]).classes
    table = np.array([value["table"][name] for name in names], np.float64)
    if table.shape != (len(names), NUM_CODES):
        raise StoreError(f"{path}: table is {table.shape}, expected {(len(names), NUM_CODES)}")
    return table, value["binding"]
