from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from hmsa_core.io.errors import ConfigError
from hmsa_core.labels.calibration import choose_policy
from hmsa_core.labels.thresholds.choice import figures, marginal_ends, marginal_precision, smallest_global_code
from hmsa_core.labels.thresholds.curves import COUNTS, Conflicts, Curves
from hmsa_core.labels.thresholds.policy import WITHHELD, ClassPolicy, ThresholdPolicy
from hmsa_core.labels.thresholds.rules.promise import ceiling
from hmsa_core.labels.thresholds.settings import CalibrateConfig
from tests.support.label_maps import toy_classes
from tests.support.label_worlds import world

pytestmark = pytest.mark.long

CLASSES = toy_classes()
NONE = Conflicts(*(np.zeros(0, np.int64) for _ in range(6)))
CODES = np.arange(256)


def curves_of(total: np.ndarray, correct: np.ndarray, components: np.ndarray | int = 3) -> Curves:
    """Curves from counts (B, C, 256); classes beyond C are absent."""
    blocks, c = total.shape[:2]
    counts = {name: np.zeros((blocks, 5, 256), np.int64) for name in COUNTS}
    for prefix in ("", "interior_"):
        counts[f"{prefix}total"][:, :c], counts[f"{prefix}correct"][:, :c] = total, correct
    counts["components"][:, :c, 255] = components
    joint = np.zeros((5, 5, 256), np.int64)
    return Curves(CLASSES, [f"b{b:03d}" for b in range(blocks)], counts, counts["total"].sum(axis=2), joint, NONE)


def entry_of(total: np.ndarray, correct: np.ndarray, components: np.ndarray | int = 3, **settings: Any) -> ClassPolicy:
    """What `promise` decides for the first class."""
    return choose_policy(curves_of(total, correct, components), CalibrateConfig(**settings)).entries[0]


def _teacher(seed: int, blocks: int, cv: float, *, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    return _counts(np.random.default_rng(seed), blocks, cv, scale)


def _counts(rng: np.random.Generator, blocks: int, cv: float, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Counts of one class (B, 1, 256) whose true precision when cut at each code is `_truth`."""
    weight = np.exp(CODES / 60.0)
    weight /= weight.sum()
    error = scale * 0.6 * np.exp(-CODES / 45.0)
    s = np.sqrt(np.log1p(cv**2))
    hard = np.exp(s * rng.standard_normal((blocks, 1, 1)) - s * s / 2)
    sizes = 4e4 * np.exp(0.5 * rng.standard_normal((blocks, 1, 1)))
    total = np.round(sizes * weight).astype(np.int64)
    return total, np.round(total * (1 - np.minimum(1, error * hard))).astype(np.int64)


@cache
def _truth(cv: float, scale: float) -> np.ndarray:
    """Precision of all pixels with at least each code, over infinitely many blocks."""
    weight = np.exp(CODES / 60.0)
    s = np.sqrt(np.log1p(cv**2))
    many = np.exp(s * np.random.default_rng(0).standard_normal((20_000, 1)) - s * s / 2)
    right = weight * (1 - np.minimum(1, scale * 0.6 * np.exp(-CODES / 45.0) * many).mean(axis=0))
    return np.array([right[k:].sum() / weight[k:].sum() for k in range(256)])


@pytest.mark.parametrize("blocks", [8, 20, 40])
def test_the_promise_holds_in_nine_of_ten_simulated_calibrations(blocks: int) -> None:
    """Thresholds are chosen on simulated calibrations; the true precision there is known."""
    rng = np.random.default_rng(blocks)
    kept, statuses = [], []
    for _ in range(60):
        entry = entry_of(*_counts(rng, blocks, cv=0.8), components=9, min_blocks=8, cross_fit=False)
        statuses.append(entry.status)
        if entry.code < WITHHELD:
            kept.append(_truth(0.8, 1.0)[entry.code] >= 0.98)
    assert len(kept) > 40
    assert np.mean(kept) >= 0.84  # 0.9 less the error of 60 draws
    # Fewer than 20 blocks: an estimate, never a promise.
    assert statuses.count("measured") == 0 if blocks < 20 else statuses.count("measured") > 40
    assert set(statuses) <= {"withheld", "estimate", "measured"}


def test_blocks_that_differ_wildly_give_an_estimate_not_a_promise() -> None:
    rng = np.random.default_rng(1)
    entries = [entry_of(*_counts(rng, 24, cv=5.0, scale=0.2), cross_fit=False) for _ in range(20)]
    judged = [e for e in entries if e.status != "withheld"]
    assert len(judged) > 10
    assert all(e.status == "estimate" for e in judged if e.evidence["search_holds"] < 0.9)
    assert sum(e.status == "estimate" for e in judged) > len(judged) / 2


def test_the_lowest_code_that_passes_is_taken_and_its_numbers_are_in_the_policy() -> None:
    total, correct = _teacher(0, 40, cv=0.5)
    entry = entry_of(total, correct)
    assert entry.status == "measured"
    assert entry.evidence["lower"] >= 0.98
    assert entry.evidence["marginal"] >= 0.8
    lower_cut = figures(curves_of(total, correct), 0, entry.code - 1, 0.95, 0.02)
    assert lower_cut["lower"] < 0.98 or lower_cut["marginal"] < 0.8
    assert entry.evidence["cross_fit"]["folds"] == 5
    assert entry.evidence["precision"] == pytest.approx(
        correct[..., entry.code :].sum() / total[..., entry.code :].sum()
    )


def test_a_higher_target_never_keeps_more() -> None:
    counts = _teacher(3, 40, cv=0.5)
    codes = [entry_of(*counts, target=t, cross_fit=False).code for t in (0.9, 0.95, 0.98, 0.99)]
    assert codes == sorted(codes)
    assert codes[0] < codes[-1]


def test_easy_pixels_do_not_pay_for_coin_flips() -> None:
    """99 % of the pixels are perfect, 1 % just below are right half of the time: the precision of all would do."""
    total, correct = np.zeros((2, 24, 1, 256), np.int64)
    total[:, 0, 250], correct[:, 0, 250] = 100_000, 100_000
    total[:, 0, 100], correct[:, 0, 100] = 1_000, 500
    assert entry_of(total, correct).code == 250, "between the two heaps nothing was measured"
    assert entry_of(total, correct, floor=0.0).code <= 100


@pytest.mark.parametrize("surest", [254, 255])
def test_few_sure_pixels_are_kept_also_where_none_has_the_highest_code(surest: int) -> None:
    total, correct = np.zeros((2, 30, 1, 256), np.int64)
    total[:, 0, 100], correct[:, 0, 100] = 98_100, 58_860
    total[:, 0, surest], correct[:, 0, surest] = 1_900, 1_899
    entry = entry_of(total, correct, target=0.95)
    assert (entry.code, entry.status) == (surest, "measured")


def test_what_no_part_of_the_blocks_would_keep_is_no_promise() -> None:
    total, correct = np.zeros((2, 30, 1, 256), np.int64)
    total[:, 0, 200] = 1_000
    correct[:, 0, 200] = np.tile([970, 975, 980, 985, 990, 995], 5)
    whole = entry_of(total, correct, target=0.9)
    assert whole.status == "measured"
    entry = entry_of(total, correct, target=whole.evidence["lower"] - 1e-6)
    assert entry.evidence["cross_fit"]["precision"] is None
    assert (entry.code, entry.status) == (200, "estimate")
    assert "in no fold" in entry.evidence["reason"]


def test_a_cut_never_lies_below_all_that_was_measured() -> None:
    """A class that calibration images show sure alone: what it is worth when unsure, nobody knows."""
    total, correct = np.zeros((2, 24, 1, 256), np.int64)
    total[:, 0, 160:], correct[:, 0, 160:] = 1_000, 1_000
    assert entry_of(total, correct).code == 160


def test_a_class_that_never_gets_there_is_withheld_with_its_best_number_and_one_never_seen_too() -> None:
    total, correct = _teacher(0, 40, cv=0.3, scale=200)
    entries = choose_policy(curves_of(total, correct), CalibrateConfig()).entries
    entry, unseen = entries[0], entries[4]
    assert unseen.status == "withheld"
    assert unseen.evidence["reason"] == "the teacher never gave this class on calibration images"
    assert (entry.status, entry.code) == ("withheld", WITHHELD)
    assert "best lower bound" in entry.evidence["reason"]
    assert "warning" in entry.evidence


def _pair(own: tuple[np.ndarray, np.ndarray], blocks: int) -> Curves:
    """Class 0 (road) in its first blocks only, and class 1 (sidewalk, the same group) with full evidence."""
    total, correct = _teacher(5, 40, cv=0.4)
    both = np.zeros((2, 40, 2, 256), np.int64)
    both[0, :, 1], both[1, :, 1] = total[:, 0], correct[:, 0]
    both[0, :blocks, 0], both[1, :blocks, 0] = own[0][:blocks, 0], own[1][:blocks, 0]
    return curves_of(both[0], both[1])


def test_little_evidence_is_shrunk_to_the_group_when_both_agree() -> None:
    total, correct = _teacher(6, 40, cv=0.3)
    entry = choose_policy(_pair((total, correct), 4), CalibrateConfig(cross_fit=False)).entries[0]
    assert entry.status == "pooled"
    assert entry.code < WITHHELD
    assert "4 blocks of 20" in entry.evidence["reason"]
    assert "sidewalk" in entry.evidence["reason"]
    bad = choose_policy(_pair((total, correct // 20), 4), CalibrateConfig(cross_fit=False)).entries[0]
    assert bad.status == "withheld", "a good group never hides a bad class"


def test_too_few_components_are_little_evidence_too() -> None:
    total, correct = _teacher(0, 40, cv=0.3)
    components = np.zeros((40, 1), int)
    components[:29] = 1
    entry = entry_of(total, correct, components)
    assert entry.status == "withheld"
    assert "29 components of 30" in entry.evidence["reason"]
    components[:, 0] = np.arange(40) % 4 != 3
    entry = entry_of(total, correct, components)
    assert entry.status == "measured"
    assert entry.evidence["cross_fit"]["coverage"] > 0.9, "a fold needs its share of the 30 pieces"


def test_a_target_above_what_labels_allow_is_not_lowered() -> None:
    total, correct = _teacher(0, 40, cv=0.05, scale=0.0)
    noisy = np.round(correct * 0.97).astype(np.int64)  # 3 % of the labels are wrong whatever the teacher says
    curves = curves_of(total, noisy)
    assert ceiling(curves) == pytest.approx(0.97, abs=2e-3)
    policy = choose_policy(curves, CalibrateConfig(target=0.98))
    assert policy.evidence["ceiling"] < 0.975
    assert policy.evidence["target"] == 0.98
    assert {entry.status for entry in policy.entries} == {"withheld"}


def test_overrides_set_a_class_by_name_and_mistakes_are_reported() -> None:
    total, correct = _teacher(0, 40, cv=0.3)
    curves = curves_of(total, correct)
    policy = choose_policy(curves, CalibrateConfig(overrides={"Road": "withheld", "sidewalk": 0.5}))
    assert [e.status for e in policy.entries[:2]] == ["given", "given"]
    assert policy.codes()[:2].tolist() == [WITHHELD, 50]
    with pytest.raises(ConfigError, match="no class 'rood'"):
        choose_policy(curves, CalibrateConfig(overrides={"rood": 0.5}))
    with pytest.raises(ConfigError, match="neighbours"):  # also where nobody checked the settings
        choose_policy(curves, CalibrateConfig().model_copy(update={"overrides": {"road": 0.905001}}))


def test_a_policy_measured_on_pictures_reaches_its_target_on_new_ones(tmp_path) -> None:
    lineage = {"teacher": "t", "scales": [1.0], "flip": False, "precision": "fp32"}
    curves = Curves.measure(world(24, 2, seed=0), CLASSES, lineage=lineage)
    policy = choose_policy(curves, CalibrateConfig(target=0.95, min_components=10))
    policy.save(tmp_path / "p.json")
    assert ThresholdPolicy.load(tmp_path / "p.json").codes().tolist() == policy.codes().tolist()
    assert policy.binding == {**lineage, "scales": [1.0]}
    fresh = Curves.measure(world(40, 2, seed=77), CLASSES)
    judged = [figures(fresh, c, e.code, 0.95, 0.02) for c, e in enumerate(policy.entries) if e.code < WITHHELD]
    assert len(judged) >= 4
    assert min(f["precision"] for f in judged) >= 0.95
    kept = [c for c, e in enumerate(policy.entries) if e.code < WITHHELD]
    one = smallest_global_code(fresh, min(f["precision"] for f in judged), kept)
    of_one = [figures(fresh, c, one, 0.95, 0.02)["coverage"] for c in kept]
    assert np.mean([f["coverage"] for f in judged]) >= np.mean(of_one), "more than one threshold for all"


def test_marginal_bins_hold_their_share_of_the_pixels() -> None:
    counts = np.zeros(256, np.int64)
    counts[[10, 20, 30, 200]] = [1, 1, 98, 100]
    total = np.cumsum(counts[::-1])[::-1]
    ends = marginal_ends(total, 0.02)
    assert ends[10] == 30  # codes 10 and 20 hold one pixel each, together 1 %; 30 would make it half of all
    assert ends[30] >= 31
    assert ends[200] >= 201
    correct = np.cumsum((counts * (CODES == 200))[::-1])[::-1]
    assert marginal_precision(total, correct, ends)[[10, 200]].tolist() == [0.0, 1.0]


def test_void_under_kept_pixels_is_reported_as_a_second_kind_of_error() -> None:
    total, correct = _teacher(0, 10, cv=0.3)
    curves = curves_of(total, correct)
    curves.counts["void"][:, 0, 200] = total[:, 0].sum(axis=1)
    assert figures(curves, 0, 0, 0.95, 0.02)["void"] == pytest.approx(0.5)
    assert figures(curves, 0, 201, 0.95, 0.02)["void"] == 0


def test_the_smallest_global_threshold_reaches_the_worst_precision() -> None:
    total, correct = _teacher(0, 30, cv=0.3)
    curves = curves_of(total, correct)
    code = smallest_global_code(curves, 0.985, [0])
    assert (
        figures(curves, 0, code, 0.95, 0.02)["precision"]
        >= 0.985
        > figures(curves, 0, code - 1, 0.95, 0.02)["precision"]
    )
    assert smallest_global_code(curves, 1.1, [0]) == WITHHELD


def test_held_out_blocks_that_fall_short_make_an_estimate() -> None:
    """A large last fold is bad below code 200; the other folds cannot know that, and cut lower."""
    total, correct = _teacher(0, 40, cv=0.05, scale=0.05)
    total[32:], correct[32:] = 20 * total[32:], 20 * correct[32:]
    correct[32:, :, :200] = np.round(0.6 * correct[32:, :, :200])
    entry = entry_of(total, correct)
    assert entry.code >= 195
    assert entry.evidence["precision"] >= 0.98 > entry.evidence["cross_fit"]["precision"]
    assert entry.status == "estimate"
    assert "held-out blocks reach" in entry.evidence["reason"]


def test_a_single_block_cannot_be_cross_fitted_and_promises_nothing() -> None:
    entry = entry_of(*_teacher(0, 1, cv=0.3), components=99)
    assert entry.status == "withheld"
    assert entry.evidence["cross_fit"] is None
