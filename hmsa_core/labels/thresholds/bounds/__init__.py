"""Bounds of certificates, one file each: `autolabel certify --bound` names the file.

A bound is a module of this folder with a function `log_evidence(answers, wrong, allowed)`: float64 log evidence of the
broadcast shape, from counted answers and wrong ones (integers) against the error rate `allowed` in (0, 1). It must be
an e-process: with independent answers that are wrong with a probability of `allowed` or more, the evidence is a
supermartingale that starts at 1 or less. It then ever reaches 1 / level with a probability of at most `level` (Ville).
A new file is found by its name; nothing else is edited.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hmsa_core.io.errors import ConfigError

__all__ = ["bound_names", "find_bound"]

Bound = Callable[[ArrayLike, ArrayLike, float], NDArray[np.float64]]


def bound_names() -> list[str]:
    """Names of all bounds, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_bound(name: str) -> Bound:
    """The function of a bound; an unknown name is a ConfigError that lists the known ones."""
    if name not in bound_names():
        raise ConfigError(f"no certificate bound {name!r}", hint=f"one of {', '.join(bound_names())}")
    bound: Bound = importlib.import_module(f"{__name__}.{name}").log_evidence
    return bound
