"""The rule `aligned`: the kept pixels have about the classes' true shares (distribution alignment, He et al. 2021).

A teacher of few labels gives too many pixels to some classes and too few to others. A student that learns from all of
them exaggerates that. Here a class may keep `align` times as many pixels as it truly has on calibration images, the
surest ones. A class that the teacher gives fewer pixels keeps them all. No class is withheld.
"""

from __future__ import annotations

import numpy as np

from hmsa_core.labels.spec import CalibrateConfig
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.cuts import Choice, Cut, number


def choose(curves: Curves, config: CalibrateConfig) -> Choice:
    """Each class's lowest code at which it keeps no more than `config.align` times its true pixels."""
    kept = curves.kept("total").sum(axis=0)  # (C, 256)
    true = curves.truth.sum(axis=0)
    cuts = []
    for by_code, pixels in zip(kept, true, strict=True):
        fits = np.flatnonzero(by_code <= config.align * pixels)
        code = int(fits[0]) if len(fits) else NUM_CODES - 1
        counts = {"given": by_code[0], "kept": by_code[code]}
        shares = {what: number(n / pixels) if pixels else None for what, n in counts.items()}
        cuts.append(Cut(code, "estimate", "as many pixels as the class truly has; nothing is promised", shares))
    return Choice(cuts, {"target": config.align})
