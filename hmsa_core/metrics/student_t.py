"""Student's t for intervals over few runs, with degrees of freedom that need not be whole (no scipy here)."""

from __future__ import annotations

from math import lgamma

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["t_cdf", "t_quantile"]

_STEPS = 400  # of Simpson's rule: errors below 1e-9 up to some thousand degrees of freedom
_LARGEST = 2000.0  # more degrees of freedom change the fourth digit of a quantile


def t_cdf(x: ArrayLike, df: ArrayLike) -> NDArray[np.float64]:
    """Probability of a value up to `x`; x and df (at least 1) broadcast.

    With x = sqrt(df) tan(u) the density is cos(u)^(df - 1), smooth on a finite stretch, whatever df is.
    """
    x, df = np.broadcast_arrays(np.asarray(x, np.float64), np.minimum(np.asarray(df, np.float64), _LARGEST))
    end = np.arctan(x / np.sqrt(df))
    weights = np.ones(_STEPS + 1)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    u = end[..., None] * np.linspace(0.0, 1.0, _STEPS + 1)
    area = (np.cos(u) ** (df[..., None] - 1) * weights).sum(-1) * end / (3 * _STEPS)
    return np.asarray(0.5 + area * _scale(df) * np.sqrt(df))


def t_quantile(p: float, df: ArrayLike) -> NDArray[np.float64]:
    """The value that a share `p` (0.5 to 1) does not exceed, for each of `df`."""
    df = np.minimum(np.asarray(df, np.float64), _LARGEST)
    x, scale = np.zeros_like(df), _scale(df)
    for _ in range(100):  # Newton from below: above 0 the distribution is concave, no step passes its end
        step = (p - t_cdf(x, df)) / (scale * (1 + x**2 / df) ** (-(df + 1) / 2))
        x = x + step
        if np.all(np.abs(step) <= 1e-10 * (1 + x)):
            break
    return np.asarray(x)


def _scale(df: NDArray[np.float64]) -> NDArray[np.float64]:
    """Density at 0."""
    logs = [lgamma((v + 1) / 2) - lgamma(v / 2) for v in np.ravel(df).tolist()]
    return np.asarray(np.exp(np.reshape(logs, np.shape(df))) / np.sqrt(df * np.pi))
