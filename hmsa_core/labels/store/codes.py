"""The confidence code: one raw byte a pixel, and thresholds that keep exactly what the float would.

`code(p) = max{k : p >= edge[k]}` over 256 strictly increasing edges, edge and p compared as float32.
192 edges are the grid: every 0.01 in [0, 1), every 0.001 in [0.9, 1), 0.9995 and 0.9999. The other 64 refine it where
the pixels of a trained network lie. They were made once, by halving the widest gap in log-odds between 0.95 and
0.99999 again and again. The list is the format; it never changes.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import ConfigError, InputError

NUM_CODES = 256

_REFINED = """
0.9935191 0.9945226 0.9955277 0.9962775 0.9965358 0.9967762 0.9972891 0.9975504 0.9977866 0.9981659 0.9983181
0.9984577 0.9985857 0.9987031 0.9988107 0.9989094 0.999083 0.9991591 0.9992289 0.9992929 0.9993516 0.9994054
0.9994547 0.9995478 0.9995911 0.9996302 0.9996656 0.9996976 0.9997266 0.9997528 0.9997764 0.9997978 0.9998172
0.9998347 0.9998505 0.9998648 0.9998777 0.9998894 0.9999069 0.9999134 0.999925 0.9999302 0.9999351 0.9999396
0.9999438 0.9999477 0.9999514 0.9999579 0.9999635 0.999966 0.9999684 0.9999726 0.9999745 0.9999763 0.999978
0.9999795 0.9999822 0.9999834 0.9999846 0.9999857 0.9999867 0.9999876 0.9999885 0.99999
"""


def _all_edges() -> tuple[str, ...]:
    hundredths = [f"0.{i:02d}" for i in range(100)]
    thousandths = [f"0.{i}" for i in range(900, 1000) if i % 10]
    return tuple(sorted([*hundredths, *thousandths, "0.9995", "0.9999", *_REFINED.split()], key=Decimal))


EDGES: tuple[str, ...] = _all_edges()
_CODES = {Decimal(edge): code for code, edge in enumerate(EDGES)}
EDGE_VALUES = np.array([float(edge) for edge in EDGES])
EDGE_VALUES.setflags(write=False)
_VALUES = EDGE_VALUES.astype(np.float32)
_VALUES.setflags(write=False)

_SHIFT = 17  # bits of 1-p that are dropped: the coarsest table in which no cell holds two edges
_CHUNK = 1 << 15  # values at a time: the temporaries stay in the second-level cache
_ROUNDING = np.float32(1.001)  # a softmax in half precision may sum to slightly more than 1


class OffGridError(ConfigError):
    """A threshold that is no edge of the confidence code; `neighbours` are the nearest edges."""

    def __init__(self, given: str, neighbours: tuple[str, ...]) -> None:
        said = f"threshold {given} is not on the grid of the confidence code; its neighbours are "
        super().__init__(said + " and ".join(neighbours), hint=f"use {' or '.join(neighbours)}")
        self.given, self.neighbours = given, neighbours


class ConfidenceCode:
    """Maps confidences in [0, 1] to codes 0..255 and thresholds on the grid to the code that they need."""

    def __init__(self) -> None:
        self.edges: tuple[str, ...] = EDGES
        self.values: NDArray[np.float32] = _VALUES

    def encode(self, p: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Codes (uint8, shape of `p`) of confidences in [0, 1]; NaN, negative or > 1.001 is an InputError."""
        p = np.asarray(p)
        if not np.issubdtype(p.dtype, np.floating):
            raise InputError(f"confidences must be a float array, got {p.dtype}")
        flat = np.ascontiguousarray(p, np.float32).reshape(-1)
        if flat.size and not (flat.min() >= 0 and flat.max() <= _ROUNDING):  # also False for NaN
            raise InputError("confidences must lie in [0, 1]; found NaN or a value outside")
        out = np.empty(flat.size, np.uint8)
        for i in range(0, flat.size, _CHUNK):
            part = flat[i : i + _CHUNK]
            # The bits of 1-p order p and grow finer towards 1, where the edges are; in the cell of an
            # edge the edge itself decides, so that the comparison stays exact.
            cell = (np.maximum(np.float32(1) - part, np.float32(0)).view(np.uint32) >> _SHIFT).astype(np.intp)
            out[i : i + _CHUNK] = _BASE[cell] + (part >= _EDGE[cell])
        return out.reshape(p.shape)

    def code_for(self, threshold: str | float | Decimal) -> int:
        """Smallest code that a threshold keeps; one off the grid is an OffGridError with its neighbours."""
        code = _CODES.get(_decimal(threshold))
        if code is None:
            near = tuple(edge for edge in self.neighbours(threshold) if edge is not None)
            raise OffGridError(str(threshold), near)
        return code

    def neighbours(self, threshold: str | float | Decimal) -> tuple[str | None, str | None]:
        """Largest edge <= and smallest edge >= a threshold; None where there is none."""
        value = _decimal(threshold)
        below = [code for edge, code in _CODES.items() if edge <= value]
        above = [code for edge, code in _CODES.items() if edge >= value]
        return EDGES[below[-1]] if below else None, EDGES[above[0]] if above else None

    def threshold(self, code: int) -> str:
        """Edge of a code as its decimal string; 256 (keep nothing) reads "withheld"."""
        return "withheld" if code >= NUM_CODES else EDGES[code]


def _decimal(threshold: str | float | Decimal) -> Decimal:
    # repr gives the shortest decimal that means this float: 0.9 is "0.9", not 0.90000000000000002.
    text = str(threshold) if isinstance(threshold, (str, Decimal, np.floating)) else repr(threshold)
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ConfigError(f"threshold {threshold!r} is not a number", hint="give a number such as 0.9") from None
    if not value.is_finite():
        raise ConfigError(f"threshold {threshold!r} is not finite", hint="give a number such as 0.9")
    return value


def _cells() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """For each cell of the bits of 1-p: the code below its edge, and the edge (2 = no edge in it)."""
    cells = ((np.float32(1) - _VALUES).view(np.uint32) >> _SHIFT).astype(np.int64)
    if len(np.unique(cells)) != NUM_CODES:
        raise AssertionError("two edges share a cell")
    n = int(cells[0]) + 1
    edge = np.full(n, 2, np.float32)
    edge[cells] = _VALUES
    base = np.searchsorted(-cells, -np.arange(n), side="left") - 1
    edge[base < 0] = 2  # the cell of p = 0: code 0 whatever is in it
    return np.maximum(base, 0).astype(np.uint8), edge


_BASE, _EDGE = _cells()
