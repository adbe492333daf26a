"""The bound `betting`: the wealth of bets that fewer answers are wrong than `allowed`.

A bet on an error rate p < allowed multiplies the wealth by p / allowed at a wrong answer and by (1 - p) / (1 - allowed)
at a right one. For each p its mean is at most 1 wherever answers are wrong with a probability of `allowed` or more. The
wealth is the mixture over a Beta distribution of p that is cut off at `allowed`, so it is an e-process too.

Source: Waudby-Smith and Ramdas 2024 (estimating means of bounded random variables by betting); mixtures of likelihood
ratios: Robbins 1970. The Beta's shape was chosen by simulation, for error rates of a tenth to a half of `allowed`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaln

_SHAPE, _WORTH = 0.7, 2.0  # of the Beta: its first parameter, and the second one times `allowed`


def log_evidence(answers: ArrayLike, wrong: ArrayLike, allowed: float) -> NDArray[np.float64]:
    """Log of the wealth after these answers, 0 after none."""
    w = np.asarray(wrong, np.float64)
    right = np.asarray(answers, np.float64) - w
    a, b = _SHAPE, _WORTH / allowed
    with np.errstate(divide="ignore"):  # answers that speak against the class leave no wealth at all
        below = np.log(betainc(a + w, b + right, allowed)) - np.log(betainc(a, b, allowed))
    mixed = betaln(a + w, b + right) - betaln(a, b)
    return np.asarray(below + mixed - w * np.log(allowed) - right * np.log1p(-allowed))
