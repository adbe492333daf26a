"""Tables from cells: paired on seeds and images, verdicts that can go against the claim, warnings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmsa_core.io.errors import InputError
from hmsa_core.metrics import Interval
from research.ablation.cells import write_cell
from research.ablation.plan import Comparison
from research.ablation.statistics import Compared, Table, after_holm, between_trainings, load_cells, summarise
from research.tests.ablations import counts_of, put_cell, record_of

BETTER = Comparison("good", "bad", "good > bad")


def table(folder: Path, *comparisons: Comparison, confirming: bool = False) -> Table:
    cells = load_cells(folder, confirming=confirming)
    return summarise(cells, comparisons, ["bad", "good"], draws=300, seed=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in (0, 1, 2):
        put_cell(tmp_path, "good", seed, 0.8)
        put_cell(tmp_path, "bad", seed, 0.6)
    return tmp_path


def test_rows_come_in_the_tables_order_with_the_interval_of_all_seeds(folder: Path) -> None:
    found = table(folder)
    assert [r.row for r in found.rows] == ["bad", "good"]
    assert found.rows[1].interval.runs == 3
    assert found.rows[1].interval.blocks == 8
    assert found.rows[1].interval.low < found.rows[1].interval.value < found.rows[1].interval.high
    assert found.rows[1].boundary is not None


def test_a_clear_difference_is_shown_and_the_same_one_contradicts_the_opposite_claim(folder: Path) -> None:
    worse = Comparison("good", "bad", "good hurts", hurts=True)
    reverse = Comparison("bad", "good", "bad > good")
    drops = Comparison("bad", "good", "bad hurts", hurts=True)
    verdicts = [c.verdict for c in table(folder, BETTER, worse, reverse, drops).compared]
    assert verdicts == ["shown", "contradicted", "contradicted", "shown"]


@pytest.mark.parametrize(("score", "verdict"), [(0.8, "shown"), (0.79, "shown"), (0.5, "contradicted")])
def test_a_claim_of_no_harm_is_shown_by_a_tie_and_by_less_than_its_allowance(
    folder: Path, score: float, verdict: str
) -> None:
    for seed in (0, 1, 2):
        put_cell(folder, "twin", seed, score)
    (found,) = table(folder, Comparison("twin", "good", "twin does no harm", allowed=0.05)).compared
    assert found.verdict == verdict


def test_two_rows_that_are_the_same_show_nothing(folder: Path) -> None:
    for seed in (0, 1, 2):
        put_cell(folder, "twin", seed, 0.8)
    (found,) = table(folder, Comparison("twin", "good", "twin > good")).compared
    assert (found.interval.value, found.verdict) == (0.0, "not shown")


def test_only_seeds_that_both_rows_have_are_compared(folder: Path) -> None:
    put_cell(folder, "good", 7, 0.1)
    (found,) = table(folder, BETTER).compared
    assert found.seeds == (0, 1, 2)
    assert found.interval.runs == 3
    assert table(folder, Comparison("good", "nobody", "?")).compared == ()


def test_only_images_that_both_rows_judged_are_compared(folder: Path) -> None:
    counts = counts_of(0.6, seed=0)
    write_cell(folder, record_of("bad", 0), counts.of_images(counts.names[3:]).to_bytes())
    (found,) = table(folder, BETTER).compared
    assert found.images == 21
    strangers = counts.of_images(counts.names[:1])
    renamed = type(counts)(("x",), strangers.blocks, strangers.hits, strangers.truth, strangers.predicted)
    write_cell(folder, record_of("bad", 0), renamed.to_bytes())
    with pytest.raises(InputError, match="share no image"):
        table(folder, BETTER)


def test_a_row_without_seeds_stands_beside_every_seed_of_the_other(tmp_path: Path) -> None:
    put_cell(tmp_path, "bad", 0, 0.6, training=None, images_seen=0)
    for seed in (4, 5):
        put_cell(tmp_path, "good", seed, 0.8)
    (found,) = table(tmp_path, BETTER).compared
    assert found.seeds == (4, 5)
    assert found.verdict == "shown"


def test_exploring_and_confirming_seeds_are_never_mixed(folder: Path) -> None:
    assert load_cells(folder, confirming=True) == {}
    put_cell(folder, "good", 100, 0.5)
    put_cell(folder, "bad", 100, 0.8)
    (explored,) = table(folder, BETTER).compared
    (confirmed,) = table(folder, BETTER, confirming=True).compared
    assert (explored.seeds, explored.verdict) == ((0, 1, 2), "shown")
    assert (confirmed.seeds, confirmed.verdict) == ((100,), "contradicted")


def test_unequal_budgets_and_mixed_variants_are_named(folder: Path) -> None:
    assert table(folder).unequal == ()
    assert table(folder).mixed == ()
    put_cell(folder, "short", 0, 0.7, images_seen=500)
    put_cell(folder, "good", 1, 0.8, settings={"training": {"seed": 1, "lr": 0.2}})
    assert table(folder).unequal == ("short",)
    put_cell(folder, "long", 0, 0.7, images_seen=5000)
    assert table(folder).unequal == ("long", "short"), "one long training does not make all others short"
    assert table(folder).mixed == ("good",)


def compared(
    row: str, chance: float, *, seeds: tuple[int, ...] = (0, 1, 2), allowed: float = 0.0, sign: int = 1
) -> Compared:
    """A comparison that would be seen by chance so often, of an interval that fits."""
    ends = (0.01, 0.03) if chance < 0.05 else (-0.01, 0.05)
    above = 1 - chance / 2 if sign > 0 else chance / 2
    none = np.zeros(0)
    interval = Interval(
        0.02 * sign,
        *sorted(sign * e for e in ends),
        (0.02,) * len(seeds),
        none,
        none,
        none,
        0.95,
        8,
        len(seeds),
        2000,
        above,
    )
    return Compared(Comparison(row, "control", row, allowed=allowed), seeds, 24, interval, None)


def test_what_excludes_zero_alone_may_not_do_so_among_all_of_a_table() -> None:
    table = [compared("a", 0.01), compared("b", 0.03, sign=-1), compared("c", 0.02), compared("d", 0.3)]
    number, fallen = after_holm(table)
    assert (number, [c.comparison.row for c in fallen]) == (4, ["c", "b"]), "0.01 <= 0.05/4; 0.02 > 0.05/3"
    assert after_holm(table[:1]) == (1, ())
    number, fallen = after_holm([*table[:2], compared("a", 0.01), compared("harmless", 0.001, allowed=0.005)])
    assert (number, fallen) == (2, ()), "said twice; held against its allowance, not against zero"


def test_draws_of_one_seed_cannot_tell_less_than_one_of_them() -> None:
    sure = [compared(f"r{k}", 0.0, seeds=(0,)) for k in range(99)]
    assert sure[0].chance == 1 / 2000
    assert after_holm(sure) == (99, ())
    assert (
        len(after_holm([*sure, compared("one more", 0.0, seeds=(0,)), compared("and one", 0.0, seeds=(0,))])[1]) == 101
    )
    assert compared("never different", float("nan")).chance == 1.0


def test_a_training_that_several_rows_run_is_counted_once(tmp_path: Path) -> None:
    for seed, by_row in ((0, {"a": 0.50, "b": 0.60, "c": 0.5}), (1, {"a": 0.53, "b": 0.61, "c": 0.7})):
        for row, score in by_row.items():
            weights = {"images_seen": 1000, "weights_sha256": f"{'c' if row == 'c' else 'ab'}{seed}"}
            put_cell(tmp_path, row, seed, 0.5, mean_iou=score, training=weights)
    usual, largest, pairs = between_trainings(load_cells(tmp_path, confirming=False))
    assert pairs == 2
    assert largest == pytest.approx(0.2)
    assert usual == pytest.approx((((0.03**2 + 0.01**2) / 2 + 0.2**2) / 2) ** 0.5)
