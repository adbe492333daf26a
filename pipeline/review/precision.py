"""Precision of the kept pixels, and the evidence for it. The first source of this list that exists is used.

0. certificate: answers prove that this threshold of this store reaches the target. No model of the errors is assumed.
1. audit: a person judged random kept pixels of this store, in an audit or for a certificate. The interval depends on
   the random draw alone, and is computed as for a fixed number of answers.
2. coarse-corrected: agreement with the coarse labels of these images. It is corrected by the errors of coarse labels
   on calibration images. It needs coarse labels, and `curves.json` and `pairs.npz` of `calibrate`. It is not used
   where `calibrate.region` leaves out pixels that people labelled.
3. calibration: counted on images that the teacher never saw, with a lower bound over blocks. Sources: the curves file
   at any threshold, the policy's evidence at its thresholds. "outside-coarse": only on pixels that people left open.
4. expected: the policy's table code -> P(correct), weighted with this store's histogram. It has no interval.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmsa_core.io.errors import ConfigError, HmsaError, InputError
from hmsa_core.labels.merge import corrected_precision
from hmsa_core.labels.store.codes import NUM_CODES
from hmsa_core.labels.store.format import binding, read_manifest
from hmsa_core.labels.store.reader import LabelStore
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.intervals import Stratum, clopper_pearson, lower_bound, stratified
from hmsa_core.labels.thresholds.policy import ThresholdPolicy
from hmsa_core.taxonomy import ClassTable
from pipeline.review.spot_check import Judged, judged
from pipeline.review.view import StoreView, codes_of_one
from pipeline.workspace.counts import read_pairs
from pipeline.workspace.workspace import JUDGED_CURVES, Workspace

AnyPath = str | os.PathLike[str]
CONFIDENCE = 0.95  # of intervals and bounds
FEW = 5  # with fewer answers the calibration is used instead


class Precision(NamedTuple):
    """A precision in [0, 1] with its 95 % interval (None where the source has none) and its source."""

    value: float
    low: float | None
    high: float | None
    source: str
    marginal: float | None = None


class Evidence(NamedTuple):
    """Evidence from calibration images about a store's labels."""

    curves: Curves | None = None
    # Counts over (human class, class, code) of this store and of the calibration images.
    coarse: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    outside: bool = False  # `curves` leave out the pixels that people labelled


NO_EVIDENCE = Evidence()


class PrecisionSources:
    """All sources of precision for one store.

    Args:
        totals: pixels of each class and code in the store, (C, 256).
        policy: policy with a calibration table, or None.
        evidence: evidence from calibration images.
        answers: judged pixels of spot checks of this store.
        certified: (class, code) of certified thresholds -> estimated precision and lower bound.
    """

    def __init__(
        self,
        totals: NDArray[np.int64],
        policy: ThresholdPolicy | None = None,
        evidence: Evidence = NO_EVIDENCE,
        answers: Sequence[Judged] = (),
        certified: Mapping[tuple[int, int], tuple[float, float]] | None = None,
    ) -> None:
        self.totals, self.policy = totals, policy
        self.table = None if policy is None else policy.table
        self._evidence, curves = evidence, evidence.curves
        self._counts = None if curves is None else (curves.kept("total"), curves.kept("correct"))
        self._answers, self._certified = list(answers), certified or {}

    def expected(self, codes: NDArray[np.integer]) -> float | None:
        """Expected precision of all pixels kept under one code per class (256 = the class is withheld)."""
        if self.table is None:
            return None
        keeps = np.arange(NUM_CODES)[None, :] >= np.asarray(codes)[:, None]
        kept = np.where(keeps, self.totals, 0)
        return float((kept * self.table).sum() / kept.sum()) if kept.any() else None

    def of_classes(self, codes: NDArray[np.integer]) -> list[Precision | None]:
        """Precision of the pixels that each class keeps from its code on; None where nothing is kept or known."""
        corrected: list[float | None] = [None] * len(codes)
        curves, coarse = self._evidence.curves, self._evidence.coarse
        if curves is not None and coarse is not None:
            corrected = corrected_precision(*coarse, curves, codes)
        return [self._of_class(c, int(code), corrected[c]) for c, code in enumerate(codes)]

    def _of_class(self, c: int, code: int, corrected: float | None) -> Precision | None:
        if not self.totals[c, min(code, NUM_CODES) :].any():
            return None
        marginal = None if self.table is None else float(self.table[c, code])
        if (c, code) in self._certified:
            value, least = self._certified[c, code]
            return Precision(value, least, None, "certificate", marginal)
        right = judged(self._answers, c, code)
        if len(right) >= FEW:
            low, high = clopper_pearson(sum(right), len(right))
            return Precision(sum(right) / len(right), low, high, "audit", marginal)
        if corrected is not None:
            return Precision(corrected, None, None, "coarse-corrected", marginal)
        return self._calibrated(c, code, marginal)

    def _calibrated(self, c: int, code: int, marginal: float | None) -> Precision | None:
        if self._counts is not None and self._counts[0][:, c, code].sum():
            total, correct = (counts[:, c, code] for counts in self._counts)
            bound = float(lower_bound(total, correct, CONFIDENCE))
            source = "outside-coarse" if self._evidence.outside else "calibration"
            return Precision(float(correct.sum() / total.sum()), bound, None, source, marginal)
        if self.policy is not None and self.policy.entries[c].code == code:
            known, region = self.policy.entries[c].evidence, self.policy.settings.get("region")
            if known.get("precision") is not None:
                source = "outside-coarse" if region == "outside_coarse" else "calibration"
                return Precision(float(known["precision"]), known.get("lower"), None, source, marginal)
        value = self.expected(codes_of_one(len(self.totals), c, code))
        return None if value is None else Precision(value, None, None, "expected", marginal)

    def overall(self, codes: NDArray[np.integer], known: Sequence[Precision | None]) -> Precision | None:
        """Precision of all kept pixels: from the audit when it covers every kept class, else from the classes.

        Classes with several sources give the source "by class"; each class weighs by the pixels that it keeps.

        Args:
            codes: one code per class.
            known: `of_classes` at these codes.
        """
        kept = [int(self.totals[c, min(int(code), NUM_CODES) :].sum()) for c, code in enumerate(codes)]
        answers = [judged(self._answers, c, int(code)) for c, code in enumerate(codes)]
        strata = [Stratum(sum(right), len(right), float(n)) for right, n in zip(answers, kept, strict=True)]
        if all(s.n >= FEW for s in strata if s.weight) and (share := stratified(strata)):
            return Precision(*share, "audit")
        rows = [(p, pixels) for p, pixels in zip(known, kept, strict=True) if pixels]
        found = [(p.value * pixels, p.source) for p, pixels in rows if p is not None]
        if not found or len(found) < len(rows):
            return None
        sources = {source for _, source in found}
        value = sum(right for right, _ in found) / sum(kept)
        return Precision(value, None, None, sources.pop() if len(sources) == 1 else "by class")


def load_policy(path: AnyPath, store: StoreView | LabelStore) -> ThresholdPolicy:
    """Read a policy; refuse one that was measured for other classes or another teacher."""
    if not Path(path).is_file():
        raise InputError(f"{path}: policy file not found")
    policy = ThresholdPolicy.load(Path(path))
    policy.check(store.lineage, store.classes, where=str(store.path))
    return policy.on(store.digest)


def find_curves(store: StoreView, policy: AnyPath | None) -> Evidence:
    """Calibration counts that belong to a store: the files next to its policy.

    `pairs.npz` next to them (coarse labels compared with fine ones on the calibration images) adds counts for
    coarse-corrected precision, where the store knows coarse labels. For a policy measured outside of coarse
    labels (`curves-judged.json`) only those pixels count: on the others training uses people's labels.
    """
    candidates = [] if policy is None else [Path(policy).with_name(name) for name in (JUDGED_CURVES, "curves.json")]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        return NO_EVIDENCE
    found = Curves.load(path)
    if found.classes != store.classes or binding(found.lineage) != binding(store.lineage):
        raise ConfigError(f"{path}: counted for other classes or another teacher than {store.path}")
    pairs = path.with_name("pairs.npz")
    if path.name == JUDGED_CURVES or not pairs.is_file() or not store.has_human:
        return Evidence(found, outside=path.name == JUDGED_CURVES)
    return Evidence(found, (store.statistics.pairs(), read_pairs(pairs, store.classes.num_classes)))


def workspace_around(store: AnyPath) -> Workspace | None:
    """The workspace that a store lies in, if it lies in one."""
    try:
        return Workspace.find(Path(store).resolve().parent)  # a store is missing for a time while it is made anew
    except HmsaError:
        return None


def calibration_policy(store: AnyPath) -> tuple[Path | None, str]:
    """The measured policy of the workspace around a raw store; or None, and why no policy fits this store.

    The reason is empty where there is no workspace or no calibration yet: then no policy was expected.
    """
    ws = workspace_around(store)
    path = None if ws is None else ws.path("calibration/policy.json")
    return fitting_policy(store, path) if path is not None and path.is_file() else (None, "")


def fitting_policy(store: AnyPath, path: Path) -> tuple[Path | None, str]:
    """`path` if this policy fits a raw store; else None, and why a raw store does not fit."""
    manifest = read_manifest(Path(store))
    if manifest["kind"] != "raw":
        return None, ""
    try:
        policy = ThresholdPolicy.load(path)
        policy.check(manifest["lineage"], ClassTable.from_json(manifest["classes"]), where=str(store))
    except HmsaError as error:
        return None, f"{path}: {error.message}"
    return path, ""
