"""The page of benchmarks: goals beside figures, and figures found by the paths that the scripts write."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa_core.io.atomic import read_json
from research.bench import run
from research.bench.goals import GOALS, Goal, table

REPO = Path(run.REPO)
FASTER = Goal("ours over plain", "case", ("fp32.speedup", "bf16.speedup"), 1.6)
LEANER = Goal("memory", "case", ("fp32.share",), 0.5, at_least=False)


def test_the_best_way_counts_and_a_figure_on_the_bound_keeps_it() -> None:
    figures = {"case": {"fp32.speedup": 1.5, "bf16.speedup": 1.6, "fp32.share": 0.51}}
    rows = table(figures, (FASTER, LEANER))[2:]
    assert rows[0].endswith("| >= 1.6 | 1.6 | yes |")
    assert rows[1].endswith("| <= 0.5 | 0.51 | **no** |")


def test_what_was_not_measured_is_not_met() -> None:
    assert table({}, (FASTER,))[2].endswith("| - | not measured |")


def test_figures_in_lists_go_by_their_case() -> None:
    assert run.ratios({"cases": [{"case": "w48", "ratio": 1.3}], "size": [1, 2], "ok": True}) == {
        "cases.w48.ratio": 1.3
    }


@pytest.mark.parametrize("path", sorted((REPO / "research/bench/results").glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_result_holds_the_figures_that_its_goals_name(path: Path) -> None:
    figures = run.ratios(read_json(path)["result"])
    missing = [p for goal in GOALS if goal.result == path.stem for p in goal.paths if p not in figures]
    assert not missing


def test_the_page_is_made_from_the_committed_results() -> None:
    assert (REPO / "docs/benchmarks.md").read_text("utf-8") == run.page(), "run `make bench`, commit what it wrote"
