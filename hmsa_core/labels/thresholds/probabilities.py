"""The calibration table: P(label is right | class, code), measured on labelled images, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io import sealed
from hmsa_core.labels.store.format import binding
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.taxonomy import ClassTable

FORMAT, VERSION = "hmsa-calibration-table", 1
# Weight of the prior in pixels. It only decides where a class has (nearly) no pixels of a code: there the
# curve of all classes together is the best guess.
_PRIOR_PIXELS = 50.0


def calibration_table(curves: Curves) -> NDArray[np.float64]:
    """P(label is right | class, code) as float64 (C, 256), non-decreasing in the code."""
    total = curves.counts["total"].sum(axis=0).astype(np.float64)
    correct = curves.counts["correct"].sum(axis=0).astype(np.float64)
    everyone = isotonic(correct.sum(axis=0) + 0.5, total.sum(axis=0) + 1.0)
    return np.stack(
        [isotonic(correct[c] + _PRIOR_PIXELS * everyone, total[c] + _PRIOR_PIXELS) for c in range(len(total))]
    )


def isotonic(correct: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-decreasing curve of probabilities that is closest to correct / total, weighted by `total`."""
    from scipy.optimize import isotonic_regression  # a second to import, and only this function needs it

    fit: NDArray[np.float64] = isotonic_regression(correct / total, weights=total).x
    return np.clip(fit, 0.0, 1.0)


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
