"""Random numbers that are the same on every machine and with every library version.

A key (any words and numbers) is hashed to 64 bits; draws follow the splitmix64 sequence from there. NumPy's
generators may change their streams between versions, and its normal draws use the platform's libm; these use
integers only, and floats are made from 53 bits with one exact multiplication.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["NOISE_SIZE", "Rng", "hash_grid", "noise_tile", "white_noise"]

T = TypeVar("T")
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
NOISE_SIZE = 256


def _key_to_state(words: Sequence[object]) -> int:
    text = "\x1f".join(str(word) for word in words)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Rng:
    """A stream of draws named by its key; `fork` gives an independent stream for a sub-object."""

    __slots__ = ("_key", "_state")

    def __init__(self, *key: object) -> None:
        self._key = key
        self._state = _key_to_state(key)

    def fork(self, *key: object) -> Rng:
        """Stream of a part: depends on the keys alone, not on how much was drawn before."""
        return Rng(*self._key, *key)

    def u64(self) -> int:
        """64 random bits."""
        self._state = (self._state + _GOLDEN) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * _MIX1) & _MASK
        z = ((z ^ (z >> 27)) * _MIX2) & _MASK
        return z ^ (z >> 31)

    def integer(self, low: int, high: int) -> int:
        """Uniform integer in [low, high], both ends included."""
        return low + (self.u64() * (high - low + 1) >> 64)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Uniform float in [low, high)."""
        return low + (high - low) * ((self.u64() >> 11) * 2.0**-53)

    def spread(self, scale: float) -> float:
        """Bell-shaped draw in (-scale, scale): the mean of four uniforms."""
        total = sum(self.uniform(-1.0, 1.0) for _ in range(4))
        return scale * total / 4.0

    def chance(self, probability: float) -> bool:
        """Whether an event of this probability happens."""
        return self.uniform() < probability

    def choice(self, items: Sequence[T]) -> T:
        """One of the items, all equally likely."""
        return items[self.integer(0, len(items) - 1)]

    def weighted(self, items: Sequence[tuple[T, int]]) -> T:
        """One of (item, integer weight)."""
        left = self.integer(1, sum(weight for _, weight in items))
        for item, weight in items:
            left -= weight
            if left <= 0:
                return item
        return items[-1][0]


def hash_grid(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], salt: int) -> npt.NDArray[np.int64]:
    """Hash integer coordinates to 0..255, element by element (the texture cells' random numbers)."""
    with np.errstate(over="ignore"):
        z = a.astype(np.uint32) * np.uint32(0x9E3779B1) + b.astype(np.uint32) * np.uint32(0x85EBCA77)
        z = z + np.uint32(salt & 0xFFFFFFFF)
        z = (z ^ (z >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
        z = (z ^ (z >> np.uint32(12))) * np.uint32(0x297A2D39)
        z = z ^ (z >> np.uint32(15))
    return np.asarray(z & np.uint32(255), dtype=np.int64)


def white_noise(shape: tuple[int, int], salt: int) -> npt.NDArray[np.int64]:
    """Independent bytes 0..255 for each pixel of an image."""
    rows, cols = np.indices(shape, dtype=np.int64)
    return hash_grid(rows, cols, salt)


@lru_cache(maxsize=8)
def noise_tile(level: int) -> npt.NDArray[np.int16]:
    """A wrapping 256x256 tile of noise in about -64..64, smoothed over 2**level cells."""
    tile = white_noise((NOISE_SIZE, NOISE_SIZE), 77 + level) - 128
    size = 1 << level
    for axis in (0, 1):
        if size > 1:
            tile = np.sum([np.roll(tile, k, axis) for k in range(size)], axis=0)
    # A box mean of n cells shrinks the spread n-fold in each axis' square root; bring it back.
    peak = max(int(np.abs(tile).max()), 1)
    return (tile * 64 // peak).astype(np.int16)
