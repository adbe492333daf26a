"""Bootstrap intervals: they cover, they pair, and they do not take pixels or runs for evidence they are not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hmsa_core.io.errors import InputError
from hmsa_core.metrics import bootstrap_difference, bootstrap_iou, holm, iou_of, mean_iou_of


def confusions(rng, quality, classes=3, pixels=400):
    """Per-image counts (N, C, C) in which the share of right pixels is `quality[i]`."""
    out = np.zeros((len(quality), classes, classes), np.int64)
    for i, q in enumerate(np.clip(quality, 0.01, 0.99)):
        share = np.full((classes, classes), (1 - q) / (classes - 1))
        np.fill_diagonal(share, q)
        for k in range(classes):
            out[i, k] = rng.multinomial(pixels, share[k])
    return out


def ids(n, per_block=1):
    return [f"block{i // per_block}" for i in range(n)]


def test_the_value_is_the_iou_of_the_summed_counts_and_the_same_seed_gives_the_same_interval():
    counts = confusions(np.random.default_rng(0), np.full(20, 0.8))
    first = bootstrap_iou(counts, ids(20, 2), draws=200)
    np.testing.assert_allclose(first.class_value, iou_of(counts.sum(0)))
    assert first.value == pytest.approx(mean_iou_of(iou_of(counts.sum(0))))
    assert first.low < first.value < first.high
    assert (first.class_low < first.class_value).all()
    assert first.blocks == 10
    again = bootstrap_iou(counts, ids(20, 2), draws=200)
    assert (again.low, again.high) == (first.low, first.high)
    assert bootstrap_iou(counts, ids(20, 2), draws=200, seed=1).low != first.low


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    population = confusions(rng, 0.7 + 0.1 * rng.standard_normal(4000))
    truth = mean_iou_of(iou_of(population.sum(0)))
    hits = 0
    for trial in range(200):
        chosen = population[rng.integers(0, len(population), 40)]
        interval = bootstrap_iou(chosen, ids(40), draws=300, level=0.9, seed=trial)
        hits += interval.low <= truth <= interval.high
    assert 0.82 <= hits / 200 <= 0.96


def test_blocks_of_alike_images_widen_the_interval():
    rng = np.random.default_rng(2)
    quality = np.repeat(0.7 + 0.1 * rng.standard_normal(10), 10)
    counts = confusions(rng, quality)
    blocks = bootstrap_iou(counts, ids(100, 10), draws=400)
    images = bootstrap_iou(counts, ids(100), draws=400)
    assert blocks.high - blocks.low > 2 * (images.high - images.low)


def test_pairing_finds_a_small_difference_that_the_two_intervals_hide():
    rng = np.random.default_rng(3)
    quality = 0.7 + 0.1 * rng.standard_normal(40)
    better, worse = confusions(rng, quality + 0.02), confusions(rng, quality)
    paired = bootstrap_difference(better, worse, ids(40), draws=500)
    assert paired.excludes_zero
    assert paired.above_zero > 0.99
    alone = bootstrap_iou(better, ids(40), draws=500), bootstrap_iou(worse, ids(40), draws=500)
    assert alone[0].low < alone[1].high, "their own intervals overlap"
    same = bootstrap_difference(worse, worse, ids(40), draws=100)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert same.above_zero == 0.5, "not sure to be below"
    assert not same.excludes_zero


def test_runs_judged_on_the_same_images_do_not_make_the_images_more():
    rng = np.random.default_rng(4)
    counts = confusions(rng, 0.7 + 0.1 * rng.standard_normal(30))
    one = bootstrap_iou(counts, ids(30), draws=400)
    copies = bootstrap_iou([counts] * 5, ids(30), draws=400)
    assert copies.high - copies.low == pytest.approx(one.high - one.low, rel=0.2)
    assert copies.blocks == 30
    assert copies.runs == 5
    apart = [confusions(rng, 0.7 + 0.1 * rng.standard_normal(30)) for _ in range(5)]
    own = [[f"run{r}-{b}" for b in ids(30)] for r in range(5)]
    nested = bootstrap_iou(apart, own, draws=400)
    assert nested.blocks == 150
    assert nested.high - nested.low < copies.high - copies.low


@pytest.mark.parametrize(("runs", "at_least"), [(2, 0.82), (3, 0.91)])
@pytest.mark.parametrize("block_noise", [0.0, 0.05])
def test_an_interval_over_few_runs_holds_the_truth_about_as_often_as_it_says(runs, at_least, block_noise):
    # Two models that are equal but for the luck of each training: drawing the runs themselves finds 59 and 77 of 100.
    rng = np.random.default_rng(40 + runs)
    hits = 0
    for trial in range(300):
        quality = 0.7 + 0.05 * rng.standard_normal(30)
        blocks = rng.normal(0, block_noise, 30)
        ours = [confusions(rng, quality + blocks + rng.normal(0, 0.02)) for _ in range(runs)]
        theirs = [confusions(rng, quality) for _ in range(runs)]
        interval = bootstrap_difference(ours, theirs, ids(30), draws=300, seed=trial)
        hits += interval.low <= 0 <= interval.high
    assert hits / 300 >= at_least


def test_the_value_of_each_run_is_kept_runs_that_differ_widen_and_no_interval_leaves_what_is_possible():
    rng = np.random.default_rng(9)
    apart = [confusions(rng, np.full(10, q)) for q in (0.2, 0.9)]
    found = bootstrap_iou(apart, ids(10), draws=300)
    assert found.run_values == pytest.approx([mean_iou_of(iou_of(run.sum(0))) for run in apart])
    assert found.value == pytest.approx(np.mean(found.run_values))
    assert (found.low, found.high) == (0.0, 1.0), "two runs so far apart say nothing of their mean"
    assert found.excludes_zero is False
    close = bootstrap_iou([confusions(rng, np.full(10, 0.5)) for _ in range(2)], ids(10), draws=300)
    assert close.high - close.low < 0.3, "runs that agree"
    difference = bootstrap_difference(apart, apart[::-1], ids(10), draws=300)
    assert difference.run_values[0] == pytest.approx(-difference.run_values[1])
    assert -1 <= difference.low < 0 < difference.high <= 1


def test_of_one_block_and_of_a_class_that_one_run_scored_there_is_no_interval():
    rng = np.random.default_rng(10)
    counts = confusions(rng, np.full(6, 0.8))
    alone = bootstrap_iou(counts, ["a"] * 6, draws=50)
    assert np.isfinite(alone.value)
    assert np.isnan([alone.low, alone.high, alone.above_zero]).all()
    assert not alone.excludes_zero
    without = confusions(rng, np.full(6, 0.8))
    without[:, 2], without[:, :, 2] = 0, 0
    several = bootstrap_iou([counts, without], ids(6), draws=50)
    assert np.isfinite(several.class_value).all()
    assert np.isnan([several.class_low[2], several.class_high[2]]).all()
    assert np.isfinite([several.class_low[0], several.class_high[0]]).all()
    rare, other = (confusions(rng, np.full(6, quality)) for quality in (0.8, 0.7))
    rare[1:, 2], other[1:, 2] = 0, 0  # one image shows the class, pixels of others are taken for it
    for found in (
        bootstrap_iou(rare, ids(6), draws=50),
        bootstrap_difference([rare] * 2, [other] * 2, ids(6), draws=50),
    ):
        assert np.isfinite([*found.class_value, found.low, found.high, *found.class_low[:2]]).all()
        assert np.isnan([found.class_low[2], found.class_high[2]]).all()
    text = json.dumps(bootstrap_iou(without, ids(6), draws=50).to_json(["a", "b", "c"]), allow_nan=False)
    assert json.loads(text)["classes"]["c"] == [None, None, None]


def test_inputs_that_do_not_belong_together_are_refused():
    counts = confusions(np.random.default_rng(8), np.full(4, 0.8))
    with pytest.raises(InputError, match="for 3 block ids"):
        bootstrap_iou(counts, ids(3))
    with pytest.raises(InputError, match="2 runs but block ids for 1"):
        bootstrap_iou([counts, counts], [ids(4)])
    with pytest.raises(InputError, match="shapes differ"):
        bootstrap_difference(counts, counts[:, :2, :2], ids(4))


def test_holm_lets_the_smallest_fall_first_and_the_first_that_stands_saves_the_rest():
    assert holm([0.03, 0.01, 0.04], 0.05) == [False, True, False], "0.03 is above 0.05 / 2"
    assert holm([0.02, 0.01, 0.04], 0.05) == [True, True, True]
    assert holm([0.02, 0.018, 0.001], 0.05) == [True, True, True]
    assert holm([], 0.05) == []
    assert holm([0.05], 0.05) == [True], "equal to the level counts"
