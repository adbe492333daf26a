"""Benchmarks: goals beside figures, figures by their path, and the sums of docs/scaling.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from research.bench.goals import GOALS, Goal, goals_lines
from research.bench.run import SCRIPTS, flat, measure
from research.bench.scaling import COUNTS, Assumed, rows_of
from research.figures import TABLES, Made, figures, replace

FASTER = Goal("ours over plain", "case", "fp32.speedup", 1.6)
LEANER = Goal("memory", "case", "fp32.share", 0.5, at_least=False)


def test_a_figure_on_the_bound_keeps_it_and_what_was_not_measured_is_not_met(tmp_path: Path) -> None:
    made = Made("c0ffee", "a machine")
    figure = {"fp32.speedup": 1.6, "fp32.share": 0.51}
    replace(tmp_path / "bench.parquet", [made.figure("bench", "case", k, v) for k, v in figure.items()])
    rows = goals_lines(tmp_path, (FASTER, LEANER, Goal("other", "x", "y", 1)))[2:]
    assert rows[0].endswith("| >= 1.6 | 1.6 | yes |")
    assert rows[1].endswith("| <= 0.5 | 0.51 | **no** |")
    assert rows[2].endswith("| - | not measured |")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCRIPTS.keys() - {"chain"}))  # `chain` has no smaller size
def test_each_benchmark_runs(name: str) -> None:
    assert measure(name, SCRIPTS, quick=True)[1]


def test_figures_in_lists_go_by_their_case() -> None:
    assert flat({"cases": [{"case": "w48", "ratio": 1.3}], "size": [1, 2], "ok": True}) == {"cases.w48.ratio": 1.3}


def test_every_goal_was_measured() -> None:
    known = {(line.row, line.metric) for line in figures(TABLES / "bench.parquet")}
    assert [goal for goal in GOALS if (goal.bench, goal.path) not in known] == []


def test_a_few_figures_of_scaling_by_hand() -> None:
    shown = (x for x in figures(TABLES / "bench.parquet") if x.row in ("scaling", "index"))
    rates = {x.metric: x.value for x in shown if x.value is not None}
    rates |= {"gpu_s_per_image": 0.126, "gpu_s_per_crop": 0.257}
    small, middle, ten, large = ({title: v for title, _, v in rows_of(images, rates, Assumed())} for images in COUNTS)
    labels = "`auto-infer`, W48 {0.5, 1, 2} + flip, GPU-hours"
    assert middle[labels] == pytest.approx(1e6 * 0.126 / 3600)
    assert large[labels] == pytest.approx(100 * middle[labels])
    start = "the page's first answers, one core"
    assert ten[start] == rates["10000000.start.page_processor_s"], "measured"
    assert large[start] == pytest.approx(10 * ten[start]), "computed"
    assert small["shards, tables, receipts of both stores"] == pytest.approx(2 * 79 * rates["files_per_shard"])
