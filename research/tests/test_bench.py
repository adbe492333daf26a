"""Benchmarks: goals next to figures, figures by their path, and the sums of docs/scaling.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from research.bench import gpu_session
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


@pytest.mark.slow
@pytest.mark.parametrize("part", sorted(gpu_session.PARTS))
def test_each_part_of_a_gpu_session_runs_on_a_cpu_and_counts_operators(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_session.main(["--dry-run", "--part", part, "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if "error" in row] == []
    timed = [row for row in rows if "ms" in row]
    assert len(timed) == {"card": 4, "step": 1, "infer": 4, "levers": 7}[part]
    assert all(row["ms"] > 0 and row["operators"] > 0 for row in timed)


def test_a_gpu_session_goes_on_past_a_part_that_fails_or_hangs_and_keeps_what_was_measured(tmp_path: Path) -> None:
    figure = "import json, time; print(json.dumps({'part': 'step', 'ms': 257}), flush=True); "
    commands = {
        "step": [sys.executable, "-c", figure + "time.sleep(60)"],
        "levers": [sys.executable, "-c", "raise SystemExit(3)"],
        "infer": [sys.executable, "-c", figure],
    }
    limits = {"step": 2.0, "levers": 60.0, "infer": 60.0, "card": 60.0}
    assert not gpu_session.session(commands, tmp_path, 5.0, limits)
    text = (tmp_path / "tables.md").read_text()
    for line in ("| step | stopped after 2 s |", "| levers | failed with status 3 |", "| infer | done |"):
        assert line in text
    assert text.count("| 257 |") == 2
    assert not gpu_session.session({"card": commands["infer"]}, tmp_path, 0.0, limits)
    assert "| card | no time left |" in (tmp_path / "tables.md").read_text()


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
