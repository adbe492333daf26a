"""An alarm when kept labels are wrong more often than promised, valid over any number of nights.

Each night some kept pixels of a class are drawn uniformly and judged. Under "on every night at most `allowed` of what
is kept is wrong", the likelihood ratio of a higher error rate is a bet that cannot win on average. The evidence is a
mixture over such rates, and over the night from which on errors may have risen: good nights before it do not hide a
fall. By Ville's inequality it ever reaches 1 / delta with a probability of at most delta, whenever people look.

Source: Podkopaev and Ramdas 2021 (tracking the risk of a deployed model); Shin, Ramdas and Rinaldo 2023 (start times).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_TIMES = np.array([1.5, 2.0, 3.0, 5.0, 10.0])  # of the allowed error rate: what a bet is on
_MOST = 0.95  # largest rate that is bet on


def risen_errors(judged: Sequence[int], wrong: Sequence[int], allowed: float) -> float:
    """Largest log evidence so far that more than `allowed` of a class's kept pixels are wrong.

    Args:
        judged: decided answers of each night, oldest first.
        wrong: those of them that are wrong.
        allowed: error rate that was promised, in (0, 1).
    """
    if not judged:
        return 0.0
    allowed = min(max(allowed, 1e-4), 0.9)
    rates = np.minimum(allowed * _TIMES, _MOST)
    n, x = (np.array(part, np.float64)[:, None] for part in (judged, wrong))
    nights: NDArray[np.float64] = x * np.log(rates / allowed) + (n - x) * np.log((1 - rates) / (1 - allowed))
    largest, running = -math.inf, np.full((len(judged), len(rates)), -np.inf)
    starts = np.arange(1, len(judged) + 1)
    weights = -np.log(starts * (starts + 1.0))[:, None] - math.log(len(rates))
    for night, found in enumerate(nights):
        running[night] = 0.0
        running[: night + 1] += found
        # Nights that are still to come have won and lost nothing: they hold their stake.
        waiting = math.log(1 / (night + 2))
        largest = max(
            largest, float(np.logaddexp(np.logaddexp.reduce((running + weights)[: night + 1], axis=None), waiting))
        )
    return largest
