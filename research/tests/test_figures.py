"""Tables on disk: appended in one step, by one run after the other, and read by anybody."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hmsa_core.io import atomic
from hmsa_core.io.errors import InputError
from research.figures import Figure, Made, figures, replace

MADE = Made("c0ffee", "a machine")


def line(row: str, seed: int | None = 0, value: float | None = 0.5) -> Figure:
    return MADE.figure("scales", row, "mean_iou", value, seed=seed, setting="0.5,1,2 flip", name="road")


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "scales.parquet"
    assert figures(path) == []
    lines = [line("hierarchical", 3, 1 / 3), line("a - b", None, None)]
    replace(path, lines)
    replace(path, [line("later")])
    assert figures(path) == [*lines, line("later")]
    names = ["table", "row", "seed", "setting", "class", "metric", "value", "commit", "machine"]
    assert pq.read_table(path).column_names == names


def test_lines_are_replaced_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "scales.parquet"
    replace(path, [line("a", value=0.1), line("b")])
    replace(path, [line("a", value=0.2)], lambda old: old.row == "a")
    assert figures(path) == [line("b"), line("a", value=0.2)]


def test_a_kill_while_it_is_written_leaves_the_table_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scales.parquet"
    replace(path, [line("a")])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.ops, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        replace(path, [line("b")])
    assert figures(path) == [line("a")]


def _append(path: Path, row: str) -> None:
    for seed in range(10):
        replace(path, [line(row, seed)])


def test_two_runs_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "scales.parquet"
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=_append, args=(path, row)) for row in ("a", "b")]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert sorted((x.row, x.seed) for x in figures(path)) == [(row, seed) for row in ("a", "b") for seed in range(10)]


def test_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("no table")
    with pytest.raises(InputError, match=r"x\.parquet: no table of figures"):
        figures(tmp_path / "x.parquet")
