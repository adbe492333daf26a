"""How right the kept pixels are, and how that is known: best evidence first.

1. audit: a person judged random kept pixels of this very store (an interval that rests on the draw alone).
2. calibration: counted on images the teacher never saw, with a lower bound over blocks (needs the curves file).
3. expected: the policy's table code -> P(correct), weighted with this store's own histogram; no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hmsa_core.labels.codes import NUM_CODES
from hmsa_core.labels.curves import Curves
from hmsa_core.labels.intervals import lower_bound
from hmsa_core.labels.policy import ThresholdPolicy
from pipeline.inspector.intervals import Stratum, clopper_pearson, stratified

__all__ = ["AuditAnswer", "Precision", "PrecisionSources"]

CONFIDENCE = 0.95  # of intervals and bounds
FEW = 5  # fewer answers than this say nothing; the calibration speaks instead


@dataclass(frozen=True)
class Precision:
    """A precision in [0, 1] with its 95 % interval (None where the source has none) and its source."""

    value: float
    low: float | None
    high: float | None
    source: str
    marginal: float | None = None


@dataclass(frozen=True)
class AuditAnswer:
    """One judged pixel: its class, its code, and whether the class is right."""

    class_id: int
    code: int
    right: bool


class PrecisionSources:
    """Everything that is known about precision for one store.

    Args:
        totals: pixels of each class and code in the store, (C, 256).
        policy: policy with a calibration table, or None.
        curves: the calibration counts behind the policy, or None.
        answers: judged pixels of an audit of this store.
        audited: per class the code from which on the audit drew pixels (256 = not drawn).
    """

    def __init__(
        self,
        totals: NDArray[np.int64],
        policy: ThresholdPolicy | None = None,
        curves: Curves | None = None,
        answers: Sequence[AuditAnswer] = (),
        audited: Sequence[int] = (),
    ) -> None:
        self.totals, self.policy = totals, policy
        self.table = None if policy is None else policy.table
        self._counts = None if curves is None else (curves.kept("total"), curves.kept("correct"))
        self._answers = list(answers)
        self._audited = list(audited)

    def _judged(self, c: int, code: int) -> list[bool]:
        """Answers that are a random sample of what is kept: the audit drew from a set that contains it."""
        if c >= len(self._audited) or self._audited[c] > code:
            return []
        return [a.right for a in self._answers if a.class_id == c and a.code >= code]

    def expected(self, codes: NDArray[np.integer]) -> float | None:
        """Expected precision of all that is kept under one code per class (256 = nothing of it)."""
        if self.table is None:
            return None
        keeps = np.arange(NUM_CODES)[None, :] >= np.asarray(codes)[:, None]
        kept = np.where(keeps, self.totals, 0)
        return float((kept * self.table).sum() / kept.sum()) if kept.any() else None

    def of_class(self, c: int, code: int) -> Precision | None:
        """Precision of the pixels of class c with at least `code`; None when nothing is kept or known."""
        if not self.totals[c, min(code, NUM_CODES) :].any():
            return None
        marginal = None if self.table is None else float(self.table[c, code])
        judged = self._judged(c, code)
        if len(judged) >= FEW:
            low, high = clopper_pearson(sum(judged), len(judged))
            return Precision(sum(judged) / len(judged), low, high, "audit", marginal)
        if self._counts is not None and self._counts[0][:, c, code].sum():
            total, correct = (counts[:, c, code] for counts in self._counts)
            bound = float(lower_bound(total, correct, CONFIDENCE))
            return Precision(float(correct.sum() / total.sum()), bound, None, "calibration", marginal)
        only = np.full(len(self.totals), NUM_CODES)
        only[c] = code
        value = self.expected(only)
        return None if value is None else Precision(value, None, None, "expected", marginal)

    def overall(self, codes: NDArray[np.integer]) -> Precision | None:
        """Precision of everything that is kept: from the audit when it covers every kept class, else expected."""
        kept = [int(self.totals[c, min(int(code), NUM_CODES) :].sum()) for c, code in enumerate(codes)]
        total = sum(kept)
        if not total:
            return None
        strata = []
        for c, code in enumerate(codes):
            judged = self._judged(c, int(code))
            strata.append(Stratum(sum(judged), len(judged), float(kept[c])))
        if all(s.n >= FEW for s in strata if s.weight):
            share = stratified(strata)
            if share is not None:
                return Precision(share.value, share.low, share.high, "audit")
        value = self.expected(codes)
        return None if value is None else Precision(value, None, None, "expected")
