"""Random numbers as a pure function of (seed, place): nothing about them has to be stored to resume exactly.

A training run seeds torch before every forward pass with (seed, step, pass of the step). Which rank runs
a pass does not enter, so dropout is the same on any number of ranks, and a resumed run draws what the
uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

__all__ = ["derive_seed", "seed_everything", "seed_pass"]


def derive_seed(*parts: int | str) -> int:
    """63-bit seed from any mix of numbers and words; a different place gives an unrelated seed."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(seed: int, what: str) -> None:
    """Seed Python, numpy and torch (all devices) for one purpose, e.g. "init"."""
    random.seed(derive_seed(seed, what, "python"))
    np.random.seed(derive_seed(seed, what, "numpy") % 2**32)  # noqa: NPY002 - libraries use the global one
    torch.manual_seed(derive_seed(seed, what, "torch"))


def seed_pass(seed: int, step: int, index: int) -> None:
    """Seed torch for forward pass `index` (0-based over all ranks) of optimiser step `step`."""
    torch.manual_seed(derive_seed(seed, "pass", step, index))
