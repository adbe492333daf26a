"""Perceptual hashes: 64 bits that stay nearly the same when a picture is re-encoded, resized or brightened."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["hamming", "near_duplicates", "perceptual_hash"]

_SIDE, _LOW = 32, 8


def perceptual_hash(image: NDArray[np.uint8]) -> str:
    """16 hex digits for an RGB image: signs of the 64 lowest cosine frequencies of its 32x32 grey thumbnail."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
    low = cv2.dct(small)[:_LOW, :_LOW].ravel()
    # The first coefficient is the mean brightness: left out of the median, always 0 in the hash.
    bits = low > np.median(low[1:])
    bits[0] = False
    return f"{int.from_bytes(np.packbits(bits).tobytes(), 'big'):016x}"


def hamming(a: str, b: str) -> int:
    """Number of different bits of two hashes."""
    return (int(a, 16) ^ int(b, 16)).bit_count()


def near_duplicates(hashes: Sequence[str], bits: int, *, limit: int = 1_000_000) -> list[tuple[int, int, int]]:
    """Index pairs (i < j) whose hashes differ in at most `bits`, with the distance, in order.

    All pairs are compared, some rows at a time: exact, in 32 MiB; N x N bytes are looked at, so 20,000 images take
    a second or two. More than `limit` pairs (a standing camera) are not listed.
    """
    values = np.array([int(h, 16) for h in hashes], np.uint64)
    chunk = max(1, (4 << 20) // max(len(values), 1))
    pairs: list[tuple[int, int, int]] = []
    for start in range(0, len(values), chunk):
        rows = values[start : start + chunk]
        apart = np.bitwise_count(rows[:, None] ^ values[None, start:])
        found = np.argwhere(np.triu(apart <= bits, 1))[: limit - len(pairs)].tolist()
        pairs += [(start + i, start + j, int(apart[i, j])) for i, j in found]
    return pairs
