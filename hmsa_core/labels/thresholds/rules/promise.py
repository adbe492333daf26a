"""The rule `promise`: the lowest code whose kept pixels are right often enough, for each class.

A class keeps a code under two conditions. (a) The lower bound on the precision of all its pixels with at least this
code reaches the target. (b) The marginal bin, the pixels just above the threshold, is right at least `floor` of
the time: many easy pixels must not make up for uncertain ones. Both must hold through the whole marginal bin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmsa_core.labels.store.codes import NUM_CODES, ConfidenceCode
from hmsa_core.labels.thresholds.choice import Choice, ClassThreshold, marginal_ends, marginal_precision, number, share
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.intervals import lower_bound, simulated_search, spread_of_errors
from hmsa_core.labels.thresholds.policy import WITHHELD, Status
from hmsa_core.labels.thresholds.settings import CalibrateConfig

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

RELIABLE_BLOCKS = 20  # with fewer a spread cannot be estimated well enough for a promise
RELIABLE_SEARCHES = 0.9  # share of simulated searches whose threshold has to reach the target: what `measured` promises
_SIMULATED_THRESHOLDS = 16
_CEILING_SHARE = 0.2  # of all pixels: the ceiling is looked for among thresholds that keep at least so many
_CODE = ConfidenceCode()


@dataclass(frozen=True)
class _Evidence:
    """Pixels, and connected pieces, of one class with at least each code in each block, (B, 256)."""

    total: Counts
    correct: Counts
    components: Counts

    def blocks(self, code: int) -> int:
        return int(np.count_nonzero(self.total[:, code])) if code < NUM_CODES else 0


def choose(curves: Curves, config: CalibrateConfig) -> Choice:
    """Each class's lowest code whose kept pixels are right often enough, and how far that can be trusted."""
    honest = _cross_fit(curves, config) if config.cross_fit else {}
    thresholds = []
    for class_id in range(curves.classes.num_classes):
        code, status, reason = _pick(curves, class_id, config, config.min_blocks)
        threshold = ClassThreshold(code, status, reason, {"cross_fit": honest.get(class_id)})
        thresholds.append(_promise(curves, class_id, threshold, config) if status == "measured" else threshold)
    return Choice(thresholds, {"ceiling": ceiling(curves)})


def ceiling(curves: Curves) -> float:
    """Best precision of all classes together when 2 px at boundaries are left out: what teacher and labels allow."""
    total = curves.kept("interior_total").sum(axis=(0, 1))
    correct = curves.kept("interior_correct").sum(axis=(0, 1))
    enough = total >= max(1.0, _CEILING_SHARE * float(total[0]))
    return float((correct[enough] / total[enough]).max()) if enough.any() else 1.0


def _of_class(curves: Curves, class_id: int) -> _Evidence:
    return _Evidence(*(curves.kept(n)[:, class_id] for n in ("total", "correct", "components")))


def _pick(curves: Curves, class_id: int, config: CalibrateConfig, min_blocks: float) -> tuple[int, Status, str]:
    """Code, status (measured still without its promise) and the reason in words."""
    evidence = _of_class(curves, class_id)
    if not evidence.total.any():
        return WITHHELD, "withheld", "the teacher never gave this class on calibration images"
    code = _lowest_code(evidence, config)
    at = code if code < NUM_CODES else 0
    lack = _lacking(evidence, at, config, min_blocks)
    if not lack:
        if code < NUM_CODES:
            return code, "measured", "reaches the target"
        return WITHHELD, "withheld", _best_bound(evidence, config, min_blocks)
    pooled, members = _pooled(curves, class_id, evidence)
    code = _lowest_code(pooled, config) if members else WITHHELD
    if code == WITHHELD or _lacking(pooled, code, config, min_blocks):
        return WITHHELD, "withheld", f"little evidence ({lack}), and its group does not make up for it"
    pixels, right = evidence.total[:, code].sum(), evidence.correct[:, code].sum()
    if not pixels or right / pixels < config.target:  # a group never speaks against its class
        return WITHHELD, "withheld", f"little evidence ({lack}), and what there is does not reach the target"
    names = ", ".join(curves.classes.classes[i] for i in members)
    return code, "pooled", f"little evidence ({lack}); shrunk to its group with {names}"


def _lacking(evidence: _Evidence, code: int, config: CalibrateConfig, min_blocks: float) -> str:
    lack = []
    if (blocks := evidence.blocks(code)) < min_blocks:
        lack.append(f"{blocks} blocks of {min_blocks:g}")
    # Connected pieces of the class, kept or not: how often the teacher met it at all.
    if (pieces := int(evidence.components[:, 0].sum())) < config.min_components:
        lack.append(f"{pieces} components of {config.min_components}")
    return " and ".join(lack)


def _best_bound(evidence: _Evidence, config: CalibrateConfig, min_blocks: float) -> str:
    enough = np.count_nonzero(evidence.total, axis=0) >= min_blocks
    bound = np.where(enough, lower_bound(evidence.total, evidence.correct, config.confidence), -1.0)
    best = int(np.argmax(bound))
    return (
        f"target {config.target:.3f} not reached through a whole marginal bin: best lower bound {bound[best]:.3f} "
        f"at {_CODE.threshold(best)} (of thresholds with {min_blocks:g} blocks)"
    )


def _pooled(curves: Curves, class_id: int, evidence: _Evidence) -> tuple[_Evidence, list[int]]:
    """The class's counts plus those of its group, which together never weigh more than the class itself."""
    group = curves.classes.groups[class_id]
    alike = [i for i, g in enumerate(curves.classes.groups) if g == group != "other" and i != class_id]
    members = [i for i in alike if curves.counts["total"][:, i].any()]
    others = [_of_class(curves, i) for i in members]
    weight = min(1.0, evidence.total[:, 0].sum() / max(1, sum(int(o.total[:, 0].sum()) for o in others)))
    total, correct = evidence.total.astype(np.float64), evidence.correct.astype(np.float64)
    components = evidence.components
    for other in others:
        total, correct = total + weight * other.total, correct + weight * other.correct
        components = components + other.components
    return _Evidence(total, correct, components), members  # type: ignore[arg-type]  # weighted counts are floats


def _lowest_code(evidence: _Evidence, config: CalibrateConfig) -> int:
    """Lowest code from which on bound and marginal precision hold through its marginal bin; 256 = none.

    Only a code that holds pixels: below it, down to the next one that does, nothing was measured.
    """
    bound = lower_bound(evidence.total, evidence.correct, config.confidence)
    total, correct = evidence.total.sum(axis=0), evidence.correct.sum(axis=0)
    ends = marginal_ends(total, config.marginal_share)
    marginal = marginal_precision(total, correct, ends)
    with np.errstate(invalid="ignore"):
        passes = (bound >= config.target) & (marginal >= config.floor) & (total > 0)
    failed_before = np.concatenate([[0], np.cumsum(~passes & (total > 0))])
    holds_pixels = total > np.append(total[1:], 0)
    for code in np.flatnonzero(passes & holds_pixels):
        if failed_before[min(ends[code], NUM_CODES)] == failed_before[code]:
            return int(code)
    return WITHHELD


def _promise(curves: Curves, class_id: int, threshold: ClassThreshold, config: CalibrateConfig) -> ClassThreshold:
    """Keep "measured" only where the search for the threshold can be trusted and held-out blocks agree."""
    found = _of_class(curves, class_id)
    blocks = found.blocks(threshold.code)
    spread = spread_of_errors(found.total[:, threshold.code], found.correct[:, threshold.code])
    shares, errors, chosen = _curve(found, threshold.code)
    holds = simulated_search(blocks, *spread, config.confidence, shares, errors, chosen)
    evidence = {**threshold.evidence, "search_holds": round(holds, 3), "error_spread": [round(s, 3) for s in spread]}
    held_out = (evidence["cross_fit"] or {}).get("precision")
    doubts = []
    if blocks < RELIABLE_BLOCKS:
        doubts.append(f"only {blocks} blocks")
    if holds < RELIABLE_SEARCHES:
        doubts.append(f"the search for the threshold ends well in {holds:.0%} of simulations")
    if evidence["cross_fit"] and held_out is None:
        doubts.append("the other blocks alone keep it in no fold")
    if held_out is not None and held_out < config.target:
        doubts.append(f"held-out blocks reach {held_out:.3f}")
    if doubts:
        return ClassThreshold(threshold.code, "estimate", "reaches the target, but " + " and ".join(doubts), evidence)
    return threshold._replace(evidence=evidence)


def _curve(evidence: _Evidence, code: int) -> tuple[Floats, Floats, int]:
    """Shares kept and error rates of thresholds, the surest first, and which of them is `code`: what a search tries."""
    total, correct = evidence.total.sum(axis=0), evidence.correct.sum(axis=0)
    real = np.flatnonzero(total > np.append(total[1:], 0))[::-1]  # codes that hold pixels, the surest first
    wanted = np.linspace(0, 1, _SIMULATED_THRESHOLDS) * total[0]
    picked = {int(real[i]) for i in np.minimum(np.searchsorted(total[real], wanted), len(real) - 1)}
    codes = np.array(sorted(picked | {code}, reverse=True))
    return total[codes] / total[0], 1 - correct[codes] / total[codes], int(np.flatnonzero(codes == code)[0])


def _cross_fit(curves: Curves, config: CalibrateConfig) -> dict[int, dict[str, Any]]:
    """Precision and coverage on blocks that did not choose the threshold, summed over folds of neighbouring blocks."""
    n, c = len(curves.blocks), curves.classes.num_classes
    folds = min(config.folds, n)
    if folds < 2:
        return {}
    kept = {name: curves.kept(name) for name in ("total", "correct")}
    total, correct, everything = np.zeros((n, c), np.int64), np.zeros((n, c), np.int64), kept["total"][:, :, 0]
    for held_out in np.array_split(np.arange(n), folds):
        rest = np.setdiff1d(np.arange(n), held_out)
        some = curves.subset(list(rest))
        part = len(rest) / n  # of the evidence: what it must show at least shrinks with it
        smaller = config.model_copy(update={"min_components": int(config.min_components * part)})
        for class_id in range(c):
            code = _pick(some, class_id, smaller, config.min_blocks * part)[0]
            if code < NUM_CODES:
                total[held_out, class_id] = kept["total"][held_out, class_id, code]
                correct[held_out, class_id] = kept["correct"][held_out, class_id, code]
    bound = lower_bound(total, correct, config.confidence)
    return {
        i: {
            "precision": share(correct[:, i].sum(), total[:, i].sum()),
            "lower": number(bound[i]),
            "coverage": share(total[:, i].sum(), everything[:, i].sum()),
            "folds": folds,
        }
        for i in range(c)
    }
