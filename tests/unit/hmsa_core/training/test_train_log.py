"""The log: readable while it grows, whole after a kill, without what a resumed run does again."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from hmsa_core.runtime.progress import JsonLog, Progress, read_log


def test_each_line_is_a_json_object_and_nan_is_null(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log.jsonl")
    log.write("train", step=1, loss=math.nan, nested={"iou": [math.inf, 0.5]}, name="straße")
    line = json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"))
    assert line["event"] == "train"
    assert line["loss"] is None
    assert line["nested"] == {"iou": [None, 0.5]}
    assert line["name"] == "straße"


def test_half_a_line_of_a_killed_writer_is_removed_and_writing_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    JsonLog(path).write("train", step=1)
    with path.open("ab") as file:
        file.write(b'{"event": "train", "st')
    assert [line["step"] for line in read_log(path)] == [1]
    JsonLog(path).write("train", step=2)
    assert [line["step"] for line in read_log(path)] == [1, 2]


def test_lines_about_steps_that_are_done_again_are_forgotten_and_other_ranks_write_nothing(tmp_path: Path) -> None:
    for log in (JsonLog(tmp_path / "log.jsonl"), JsonLog(None)):
        for step in range(5):
            log.write("train", step=step)
        log.rewind(lambda line: line["step"] <= 2)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_without_a_terminal_progress_is_plain_lines_with_rate_and_time_left() -> None:
    stream = io.StringIO()
    progress = Progress(10, what="teacher-train", unit="crops", stream=stream, every_s=0.0)
    progress.update(4, loss=1.23456)
    progress.update(6)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("teacher-train: 4/10 crops, ")
    assert "crops/s" in lines[0]
    assert "left, loss 1.235" in lines[0]
    assert lines[-1].startswith("teacher-train: 10/10 crops in 0:0")
    assert "\r" not in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_progress_is_one_bar_with_rate_and_time_left() -> None:
    stream = Terminal()
    with Progress(4, what="auto-infer", stream=stream) as progress:
        progress.update(2, loss=0.5)
        progress.update(2)
    shown = stream.getvalue()
    assert "auto-infer: 100%" in shown
    assert "4/4" in shown
    assert "images/s" in shown


@pytest.mark.parametrize(
    ("given", "shown"), [({}, True), ({"enabled": False}, False), ({"initial": 1}, False)], ids=str
)
def test_hours_are_shown_as_such_and_old_work_counts_for_no_rate_and_silent_progress_says_nothing(
    given: dict[str, Any], shown: bool
) -> None:
    stream = io.StringIO()
    progress = Progress(10, what="x", stream=stream, every_s=0.0, **given)
    assert (progress.done, progress.rate) == (given.get("initial", 0), 0.0)
    progress._start -= 3600
    progress.update(1)
    progress.close()
    assert ("9:00:0" in stream.getvalue()) == shown, "nine tenths are left, one took an hour"
    assert (stream.getvalue() == "") == (given == {"enabled": False})
