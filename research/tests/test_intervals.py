"""Intervals from counts: paired on seeds and images, as the bootstrap of the whole confusions and scipy's t have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hmsa_core.io.errors import InputError
from hmsa_core.metrics import bootstrap_difference, iou_of
from research.ablation.catalogue import setting
from research.ablation.intervals import TRAININGS, Cells, Counts, bootstrap_share, load_counts, summarise
from research.ablation.plan import Ablation, Row, Training
from research.figures import CONFIRMING, EXPLORING, Figure, Made
from research.tests.ablations import CLASSES, confusions, counts_of

HERE = Made("c0ffee", "a machine")
GOOD_MINUS_BAD = "good - bad"


def row(name: str, training: Training | None) -> Row:
    return Row(name, training, setting(name, (1.0,)))


def summary(
    cells: Cells, kind: str = EXPLORING, *, fixed: bool = False, rows: tuple[str, ...] = ("bad", "good")
) -> list[Figure]:
    trained = [Training("teacher_train", "pretrain", (("x", name),)) for name in rows]
    trained[0] = None if fixed else trained[0]
    made = tuple(row(name, training) for name, training in zip(rows, trained, strict=True))
    table = Ablation("t", "t", "teacher-pretrain", made, (("good", "bad"),))
    return summarise(table, cells, kind, HERE)


def value(lines: list[Figure], row: str, metric: str, *, seed: int | None = None, name: str = "") -> float | None:
    (found,) = (x.value for x in lines if (x.row, x.metric, x.seed, x.name) == (row, metric, seed, name))
    return found


@pytest.fixture(scope="module")
def cells() -> dict[str, dict[int, Counts]]:
    return {name: {k: counts_of(q, seed=k) for k in (0, 1, 2)} for name, q in (("good", 0.8), ("bad", 0.6))}


def test_counts_give_the_iou_and_the_intervals_of_the_whole_confusions(tmp_path: Path) -> None:
    full = [confusions(0.8, seed=1), confusions(0.6, seed=2)]
    for name, seed, quality in (("a", 1, 0.8), ("b", 2, 0.6)):
        counts_of(quality, seed=seed).save(tmp_path / f"{name}-seed{seed}.npz")
    small = load_counts(tmp_path)
    ours, theirs = small["a"][1], small["b"][2]
    np.testing.assert_array_equal(iou_of(ours.confusions().sum(0)), iou_of(full[0].sum(0)))
    exact = bootstrap_difference(full[0], full[1], ours.blocks, draws=300)
    again = bootstrap_difference(ours.confusions(), theirs.confusions(), ours.blocks, draws=300)
    assert again.to_json(CLASSES) == exact.to_json(CLASSES)


def test_a_row_has_its_interval_over_seeds_and_each_seeds_own_value(cells: Cells) -> None:
    lines = summary(cells)
    low, mean, high = (value(lines, "good", f"mean_iou{end}") for end in ("_low", "", "_high"))
    assert low < mean < high
    assert mean == pytest.approx(np.mean([value(lines, "good", "mean_iou", seed=k) for k in (0, 1, 2)]))
    assert value(lines, "good", "boundary_iou_low") < value(lines, "good", "boundary_iou")
    assert {line.setting for line in lines} == {EXPLORING}


def test_the_interval_of_equal_images_is_students_t_over_seeds() -> None:
    # Every block is the same: nothing is left to draw, and only the seeds differ.
    one = counts_of(0.7, images=3)
    scale = {k: np.array([[[8 - k], [10]]]) for k in (0, 1, 2)}
    same = {
        k: Counts(one.names, ("x", "y", "z"), ("road",), np.tile(s, (3, 1, 1)), np.tile(s, (3, 1, 1)))
        for k, s in scale.items()
    }
    lines = summary({"good": same})
    low, high = stats.t.interval(0.95, 2, loc=0.7, scale=stats.sem([0.8, 0.7, 0.6]))
    assert value(lines, "good", "mean_iou_low") == pytest.approx(low)
    assert value(lines, "good", "mean_iou_high") == pytest.approx(high)


def test_a_difference_is_of_the_seeds_that_both_rows_have(cells: Cells) -> None:
    more = {"good": {**cells["good"], 7: counts_of(0.1)}, "bad": cells["bad"]}
    lines = summary(more)
    assert value(lines, GOOD_MINUS_BAD, "difference_low") > 0
    assert value(lines, GOOD_MINUS_BAD, "chance") < 0.05
    seeds = [x.seed for x in lines if x.row == GOOD_MINUS_BAD and x.metric == "difference" and x.seed is not None]
    assert seeds == [0, 1, 2]
    assert value(lines, GOOD_MINUS_BAD, "difference_low", name="road") > 0
    assert not [x for x in summary({"good": cells["good"]}) if x.row == GOOD_MINUS_BAD]


def test_two_rows_that_are_the_same_differ_by_nothing(cells: Cells) -> None:
    lines = summary({"good": cells["good"], "bad": cells["good"]})
    assert [value(lines, GOOD_MINUS_BAD, m) for m in ("difference", "difference_low", "chance")] == [0.0, 0.0, 1.0]


def test_a_difference_is_of_the_images_that_both_rows_judged(cells: Cells) -> None:
    whole = cells["bad"][0]
    fewer = whole.of_images(whole.names[3:])
    lines = summary({"good": {0: cells["good"][0]}, "bad": {0: fewer}})
    assert value(lines, GOOD_MINUS_BAD, "images") == 21
    strangers = Counts(("x",), whole.blocks[:1], CLASSES, whole.regions[:1], whole.boundaries[:1])
    with pytest.raises(InputError, match="share no image"):
        summary({"good": {0: cells["good"][0]}, "bad": {0: strangers}})


def test_a_row_without_seeds_stands_next_to_every_seed_of_the_other(cells: Cells) -> None:
    lines = summary({"bad": {0: cells["bad"][0]}, "good": {4: cells["good"][1], 105: cells["good"][2]}}, fixed=True)
    assert value(lines, GOOD_MINUS_BAD, "difference", seed=4) > 0
    lines = summary({"bad": {0: cells["bad"][0]}, "good": {105: cells["good"][2]}}, CONFIRMING, fixed=True)
    assert value(lines, GOOD_MINUS_BAD, "difference", seed=105) > 0


def test_a_share_of_the_possible_gain_is_of_the_same_seeds_as_the_difference() -> None:
    training = Training("student_train", "teacher")
    rows = (row("teacher", None), row("good", training), row("truth", training))
    table = Ablation("t", "t", "teacher-pretrain", rows, (("good", "teacher"),), ceiling="truth")
    cells = {
        "teacher": {0: counts_of(0.6)},
        "good": {k: counts_of(0.7 + k / 200, seed=k) for k in (100, 102)},
        "truth": {k: counts_of(0.8, seed=k) for k in (100, 102)},
    }
    lines = summarise(table, cells, CONFIRMING, HERE)
    gain, share = (value(lines, "good - teacher", metric) for metric in ("difference", "recovered"))
    truth, teacher = value(lines, "truth", "mean_iou"), value(lines, "teacher", "mean_iou")
    assert share == pytest.approx(gain / (truth - teacher))


def test_the_share_of_a_possible_gain_lies_in_its_interval_and_has_none_where_nothing_can_be_gained() -> None:
    blocks = [f"block{i // 2}" for i in range(40)]
    low, half, top = (confusions(q, images=40, seed=s, pixels=4000) for s, q in enumerate((0.6, 0.7, 0.8)))
    value, below, above = bootstrap_share(half, low, top, blocks)
    whole, gain = bootstrap_difference(top, low, blocks).value, bootstrap_difference(half, low, blocks).value
    assert value == pytest.approx(gain / whole)
    assert below <= round(value, 2) <= above
    assert above - below < 0.5
    assert bootstrap_share(top, low, top, blocks)[1:] == (1.0, 1.0)
    assert bootstrap_share(low, low, top, blocks)[1:] == (0.0, 0.0)
    assert np.isnan(bootstrap_share(half, low, low, blocks)[1:]).all()
    assert np.isnan(bootstrap_share(half, top, low, blocks)[1:]).all(), "two losses are no share of a gain"


def test_exploring_and_confirming_seeds_are_never_mixed(cells: Cells) -> None:
    assert summary(cells, CONFIRMING) == []
    both = {"good": {0: cells["good"][0], 100: cells["bad"][0]}, "bad": {0: cells["bad"][0], 100: cells["good"][0]}}
    assert value(summary(both), GOOD_MINUS_BAD, "difference") > 0
    assert value(summary(both, CONFIRMING), GOOD_MINUS_BAD, "difference") < 0


def test_how_far_two_trainings_lie_apart_counts_each_pair_once(cells: Cells) -> None:
    lines = summary(cells)
    assert value(lines, TRAININGS, "pairs") == 6
    scores = {name: [value(lines, name, "mean_iou", seed=k) for k in (0, 1, 2)] for name in ("good", "bad")}
    apart = [abs(s[a] - s[b]) for s in scores.values() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert value(lines, TRAININGS, "apart_most") == pytest.approx(max(apart))
    assert value(lines, TRAININGS, "apart") == pytest.approx(np.sqrt(np.mean(np.square(apart))))
