"""How right the kept pixels are, and how that is known: best evidence first.

1. audit: a person judged random kept pixels of this very store (an interval that rests on the draw alone).
2. coarse-corrected: agreement with coarse human labels of these images, corrected by what such labels get wrong
   where the truth is known (needs `curves.json` and `pairs.npz` of `calibrate`, and coarse labels; not where
   `calibrate.region` leaves out what people drew).
3. calibration: counted on images the teacher never saw, with a lower bound over blocks; from the curves file at any
   cut, or from the policy's own evidence at its own cut. "outside-coarse": on the pixels that people left open.
4. expected: the policy's table code -> P(correct), weighted with this store's own histogram; no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.thresholds.intervals import clopper_pearson
from hmsa_core.labels.thresholds.policy import ThresholdPolicy
from pipeline.inspector.intervals import Stratum, stratified

if TYPE_CHECKING:
    from hmsa_core.labels.thresholds.curves import Curves

__all__ = ["AuditAnswer", "Coarse", "Precision", "PrecisionSources"]

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


@dataclass(frozen=True)
class Coarse:
    """Counts over (human class, class, code) of this store and of the calibration images."""

    here: NDArray[np.int64]
    calibration: NDArray[np.int64]


class PrecisionSources:
    """Everything that is known about precision for one store.

    Args:
        totals: pixels of each class and code in the store, (C, 256).
        policy: policy with a calibration table, or None.
        curves: the calibration counts behind the policy, or None.
        coarse: counts against coarse labels, or None; needs `curves`.
        answers: judged pixels of an audit of this store.
        audited: per class the code from which on the audit drew pixels (256 = not drawn).
        outside: `curves` leave out what people drew.
    """

    def __init__(
        self,
        totals: NDArray[np.int64],
        policy: ThresholdPolicy | None = None,
        curves: Curves | None = None,
        coarse: Coarse | None = None,
        answers: Sequence[AuditAnswer] = (),
        audited: Sequence[int] = (),
        *,
        outside: bool = False,
    ) -> None:
        self.totals, self.policy = totals, policy
        self.table = None if policy is None else policy.table
        self._curves, self._coarse = curves, coarse
        self._counts = None if curves is None else (curves.kept("total"), curves.kept("correct"))
        self._source = "outside-coarse" if outside else "calibration"
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

    def of_classes(self, codes: NDArray[np.integer]) -> list[Precision | None]:
        """Precision of what each class keeps from its code on; None where nothing is kept or known."""
        corrected: list[float | None] = [None] * len(codes)
        if self._curves is not None and self._coarse is not None:
            from hmsa_core.labels.merge import corrected_precision

            rows = corrected_precision(self._coarse.here, self._coarse.calibration, self._curves, codes)
            corrected = [row["corrected"] for row in rows]
        return [self._of_class(c, int(code), corrected[c]) for c, code in enumerate(codes)]

    def _of_class(self, c: int, code: int, corrected: float | None) -> Precision | None:
        if not self.totals[c, min(code, NUM_CODES) :].any():
            return None
        marginal = None if self.table is None else float(self.table[c, code])
        judged = self._judged(c, code)
        if len(judged) >= FEW:
            low, high = clopper_pearson(sum(judged), len(judged))
            return Precision(sum(judged) / len(judged), low, high, "audit", marginal)
        if corrected is not None:
            return Precision(corrected, None, None, "coarse-corrected", marginal)
        return self._calibrated(c, code, marginal)

    def _calibrated(self, c: int, code: int, marginal: float | None) -> Precision | None:
        if self._counts is not None and self._counts[0][:, c, code].sum():
            from hmsa_core.labels.thresholds.intervals import lower_bound

            total, correct = (counts[:, c, code] for counts in self._counts)
            bound = float(lower_bound(total, correct, CONFIDENCE))
            return Precision(float(correct.sum() / total.sum()), bound, None, self._source, marginal)
        entry = None if self.policy is None else self.policy.entries[c]
        if entry is not None and entry.code == code and entry.evidence.get("precision") is not None:
            known = entry.evidence
            region = None if self.policy is None else self.policy.settings.get("region")
            source = "outside-coarse" if region == "outside_coarse" else "calibration"
            return Precision(float(known["precision"]), known.get("lower"), None, source, marginal)
        only = np.full(len(self.totals), NUM_CODES)
        only[c] = code
        value = self.expected(only)
        return None if value is None else Precision(value, None, None, "expected", marginal)

    def overall(self, codes: NDArray[np.integer], known: Sequence[Precision | None]) -> Precision | None:
        """Precision of everything that is kept: from the audit when it covers every kept class, else from the classes.

        A total of classes with several sources has the source "by class"; they weigh by the pixels that they keep.

        Args:
            codes: one a class.
            known: `of_classes` at these codes.
        """
        kept = [int(self.totals[c, min(int(code), NUM_CODES) :].sum()) for c, code in enumerate(codes)]
        strata = []
        for c, code in enumerate(codes):
            judged = self._judged(c, int(code))
            strata.append(Stratum(sum(judged), len(judged), float(kept[c])))
        if any(kept) and all(s.n >= FEW for s in strata if s.weight):
            share = stratified(strata)
            if share is not None:
                return Precision(share.value, share.low, share.high, "audit")
        rows = [(p, pixels) for p, pixels in zip(known, kept, strict=True) if pixels]
        found = [p for p, _ in rows if p is not None]
        if not found or len(found) < len(rows):
            return None
        sources = {p.source for p in found}
        value = sum(p.value * pixels for p, (_, pixels) in zip(found, rows, strict=True)) / sum(n for _, n in rows)
        return Precision(value, None, None, sources.pop() if len(sources) == 1 else "by class")
