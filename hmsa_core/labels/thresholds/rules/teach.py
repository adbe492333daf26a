"""The rule `teach`: what a student should learn from, which is another question than what a label is worth.

A class keeps the codes at which its label is right with probability `tau` or more. A pixel counts by its own chance to
be right, not by the precision of all kept pixels, and no class is withheld for want of blocks. Where blocks are few,
the class's curve is drawn to that of its group, and the group's to that of all classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.thresholds.choice import Choice, ClassThreshold, number
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.intervals import effective_blocks
from hmsa_core.labels.thresholds.policy import WITHHELD
from hmsa_core.labels.thresholds.probabilities import isotonic
from hmsa_core.labels.thresholds.settings import CalibrateConfig

Floats = NDArray[np.float64]
_PRIOR_BLOCKS = 3.0  # blocks' worth of evidence that the group has in a class's curve


def choose(curves: Curves, config: CalibrateConfig) -> Choice:
    """Each class's lowest code at which a label is right with probability `config.tau` or more."""
    table = shrunken_table(curves)
    thresholds = []
    for class_id, row in enumerate(table):
        code = int(np.searchsorted(row, config.tau - 1e-9))
        blocks = float(effective_blocks(curves.kept("total")[:, class_id, 0]))
        evidence = {"cross_fit": None, "probability": number(row[code]) if code < NUM_CODES else None}
        if code == NUM_CODES:
            reason = f"right with probability {row[-1]:.3f} at most, {config.tau:g} is asked for"
            thresholds.append(ClassThreshold(WITHHELD, "withheld", reason, evidence))
        elif blocks < _PRIOR_BLOCKS:
            reason = f"{blocks:.1f} effective blocks: the curve is mostly that of its group"
            thresholds.append(ClassThreshold(code, "pooled", reason, evidence))
        else:
            thresholds.append(
                ClassThreshold(code, "estimate", "right often enough at the margin; nothing is promised", evidence)
            )
    return Choice(thresholds, {"target": config.tau})


def shrunken_table(curves: Curves) -> Floats:
    """P(label is right | class, code) as float64 (C, 256), non-decreasing; groups help where blocks lack."""
    total = curves.counts["total"].astype(np.float64)  # (B, C, 256)
    correct = curves.counts["correct"].astype(np.float64)
    groups = np.array(curves.classes.groups)
    everyone = isotonic(correct.sum(axis=(0, 1)) + 0.5, total.sum(axis=(0, 1)) + 1.0)
    rows = []
    for class_id, group in enumerate(groups):
        members = np.flatnonzero(groups == group) if group != "other" else np.array([class_id])
        of_group = _shrunken(total[:, members].sum(axis=1), correct[:, members].sum(axis=1), everyone)
        rows.append(_shrunken(total[:, class_id], correct[:, class_id], of_group))
    return np.stack(rows)


def _shrunken(total: Floats, correct: Floats, prior: Floats) -> Floats:
    """A curve from counts (B, 256), drawn to `prior` by the weight of a few blocks spread over the codes alike."""
    pixels = total.sum(axis=0)
    blocks = float(effective_blocks(total.sum(axis=1)))
    per_block = pixels.sum() / blocks if blocks else 1.0
    weight = max(1.0, _PRIOR_BLOCKS * per_block / NUM_CODES)
    return isotonic(correct.sum(axis=0) + weight * prior, pixels + weight)
