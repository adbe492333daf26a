"""Random choices that never change: raw PCG64 output, permutations by sorting, shares by filling up.

numpy guarantees the stream of its bit generators across versions, not that of `Generator`'s methods; so
only raw 64-bit output is used where results must be the same for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Allotment", "allot", "cycle_capped", "permutation", "raw"]


def raw(*key: int, count: int) -> NDArray[np.uint64]:
    """`count` random 64-bit numbers that belong to the key, any sequence of integers."""
    # Hashed first: numpy's SeedSequence cannot tell (1,) from (1, 0), nor a long number from two short ones.
    text = ",".join(str(int(part)) for part in key)
    words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), "<u4")
    return np.random.PCG64(np.random.SeedSequence(words.tolist())).random_raw(count)


def permutation(n: int, *key: int) -> NDArray[np.intp]:
    """A random order of 0..n-1 that belongs to the key."""
    return np.argsort(raw(*key, count=n), kind="stable")


@dataclass(frozen=True)
class Allotment:
    """How many crops go to each class, and how many to none."""

    counts: tuple[int, ...]
    random: int
    empty: tuple[int, ...]
    capped: tuple[int, ...]


def allot(total: int, share: float, capacity: Sequence[int], order: Iterable[int], *, released: bool) -> Allotment:
    """Divide `total` crops between classes and random images.

    Args:
        total: crops of an epoch.
        share: part that is chosen by class.
        capacity: most crops each class can take (0 = the class has no centroid).
        order: classes in the order in which they get the left-overs of uneven divisions.
        released: as the released code: int(total * share / C) each, an empty class's part is lost, no caps.

    Returns:
        The allotment; unless `released`, counts and random add up to `total`, an empty or capped class's
        part goes to the other classes, and what no class can take goes to random images.
    """
    classes = len(capacity)
    empty = tuple(c for c in range(classes) if capacity[c] == 0)
    if released:
        each = int(total * share / classes) if classes else 0
        counts = tuple(0 if c in empty else each for c in range(classes))
        return Allotment(counts, total - each * classes, empty, ())
    filled, left = [0] * classes, int(total * share)
    open_classes = [int(c) for c in order if capacity[c] > 0]
    # All open classes have the same number at any time, so the result is as even as the capacities allow.
    while left and open_classes:
        each = left // len(open_classes)
        for c in open_classes if each else open_classes[:left]:
            taken = min(max(each, 1), capacity[c] - filled[c])
            filled[c] += taken
            left -= taken
        open_classes = [c for c in open_classes if filled[c] < capacity[c]]
    fair = -(-int(total * share) // max(classes, 1))
    capped = tuple(c for c in range(classes) if 0 < capacity[c] == filled[c] < fair)
    return Allotment(tuple(filled), total - sum(filled), empty, capped)


def cycle_capped(rows: NDArray[np.integer], owners: NDArray[np.integer], wanted: int, cap: int) -> list[np.integer]:
    """Go round `rows` taking each in turn, but no owner's rows more than `cap` times in all: `wanted` rows.

    Args:
        rows: what to choose from (centroids of one class), in the order to go through.
        owners: the image of each row.
        wanted: number of rows; the caller asks for no more than the caps allow.
        cap: most rows of one owner.
    """
    chosen: list[np.integer] = []
    used: dict[int, int] = {}
    while len(chosen) < wanted:
        before = len(chosen)
        for row, owner in zip(rows, owners.tolist(), strict=True):
            if used.get(owner, 0) < cap:
                used[owner] = used.get(owner, 0) + 1
                chosen.append(row)
                if len(chosen) == wanted:
                    return chosen
        if len(chosen) == before:
            raise ValueError(f"{len(set(owners.tolist()))} images with cap {cap} cannot give {wanted} crops")
    return chosen
