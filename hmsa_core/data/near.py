"""Search for near copies of images: perceptual hashes at most a few bits apart, without comparing all pairs.

A hash is divided into `bits + k` pieces. Two hashes at most `bits` apart agree in at least k pieces (pigeonhole). So
hashes are sorted by each choice of k pieces, and only hashes that agree in all k pieces are compared. The search is
exact, and fast while hashes differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, count, pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]
_Pairs = tuple[NDArray[np.int64], NDArray[np.uint8]]  # i * n + j, and bits apart
_ROWS = 1 << 20  # rows that are compared together: bounds memory


def hash_values(hashes: Iterable[str]) -> UInt64:
    """The first 16 hex digits of each hash as a number; "" = 0."""
    return np.fromiter((int(h[:16] or "0", 16) for h in hashes), np.uint64)


def near_duplicates(values: UInt64, bits: int, *, limit: int = 1_000_000) -> list[tuple[int, int, int]]:
    """Index pairs (i < j) whose hashes differ in at most `bits`, with the distance, in order.

    Of more than `limit` pairs (a standing camera), only the first are listed.
    """
    n, masks = len(values), _masks(len(values), bits)
    found, held = [(np.zeros(0, np.int64), np.zeros(0, np.uint8))], 0
    bound = np.iinfo(np.int64).max  # no pair from here on can be among the first `limit`
    for m, mask in enumerate(masks):
        keys = values & mask
        order = np.argsort(keys, kind="stable")  # stable: i < j among equal keys
        keys, in_order = keys[order], values[order]
        left = np.flatnonzero(keys[1:] == keys[:-1])
        for step in count(1):  # places in the order whose neighbour `step` on has the same key
            still = []
            for at in (left[a : a + _ROWS] for a in range(0, len(left), _ROWS)):
                at = at[at + step < n]
                at = at[keys[at] == keys[at + step]]
                pair = order[at] * n + order[at + step]
                at, pair = at[pair < bound], pair[pair < bound]
                apart = np.bitwise_count(in_order[at] ^ in_order[at + step])
                hit = np.flatnonzero(apart <= bits)
                differing = in_order[at[hit]] ^ in_order[at[hit] + step]
                # An earlier choice of pieces has already found a pair that agrees in it.
                new = hit[np.all([differing & earlier for earlier in masks[:m]], axis=0)] if m else hit
                found.append((pair[new], apart[new]))
                held += len(new)
                if held > 2 * limit:
                    found, held = [_first(found, limit)], limit
                    bound = int(found[0][0][-1])
                still.append(at)
            left = np.concatenate(still) if still else left[:0]
            if not len(left):
                break
    pairs, apart = _first(found, limit)
    return [(int(p) // n, int(p) % n, int(a)) for p, a in zip(pairs, apart, strict=True)]


def nearest(judged: UInt64, known: UInt64, bits: int) -> list[tuple[int, int]]:
    """(index of the nearest known hash, bits apart) for each judged hash, the first of ties; (-1, -1) beyond `bits`."""
    best = [(-1, -1)] * len(judged)
    for mask in _masks(len(known), bits) if len(known) else ():
        keys = known & mask
        order = np.argsort(keys, kind="stable")
        first, last = (np.searchsorted(keys[order], judged & mask, side) for side in ("left", "right"))
        for i in np.flatnonzero(first < last).tolist():
            places = order[first[i] : last[i]]
            apart = np.bitwise_count(known[places] ^ judged[i])
            k = int(apart.argmin())
            here = (int(places[k]), int(apart[k]))
            if here[1] <= bits and (best[i][0] < 0 or here[::-1] < best[i][::-1]):
                best[i] = here
    return best


def work(rows: int, bits: int) -> float:
    """Estimate the number of comparisons for evenly spread hashes, sorting included."""
    return min(_work(rows, bits, k) for k in _choices(bits))


def _work(rows: int, bits: int, k: int) -> float:
    # Sorting a row takes about as long as ten comparisons.
    return comb(bits + k, k) * rows * (10 + rows / 2 ** (1 + 64 * k / (bits + k)))


def _choices(bits: int) -> range:
    return range(1, max(2, min(6, 64 - bits)))


def _masks(rows: int, bits: int) -> list[np.uint64]:
    """Choices of pieces, as bits to compare: the number of pieces minimises the work for evenly spread hashes."""
    k = min(_choices(bits), key=lambda k: _work(rows, bits, k))
    ends = np.linspace(0, 64, bits + k + 1).astype(int).tolist()
    pieces = [(1 << b) - (1 << a) for a, b in pairwise(ends)]
    return [np.uint64(sum(chosen)) for chosen in combinations(pieces, k)]


def _first(parts: Sequence[_Pairs], limit: int) -> _Pairs:
    """The first `limit` pairs in order, with their distances."""
    pairs, apart = np.concatenate([p for p, _ in parts]), np.concatenate([a for _, a in parts])
    order = np.argsort(pairs, kind="stable")[:limit]
    return pairs[order], apart[order]
