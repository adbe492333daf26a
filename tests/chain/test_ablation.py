"""A table of two rows on a finished workspace of profile `tiny`: real trainings, once; a clone has nothing left to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from research.figures import figures
from tests.support.chain import REPO, Whole, run

pytestmark = [pytest.mark.chain, pytest.mark.slow]
ABLATE = (sys.executable, "-m", "research.ablate")


def test_two_rows_are_trained_once_recorded_and_found_by_a_clone(workspace: Path, whole: Whole, tmp_path: Path) -> None:
    asked = ["--rows", "control,t0.5", "--seeds", "1", "--tables", str(tmp_path)]
    command = [*ABLATE, "threshold", *asked]
    done = run(REPO, *command, "--workspace", str(workspace))
    assert "2 rows and seeds written" in done.text
    table = tmp_path / "threshold-tiny.parquet"
    found = {(x.row, x.seed, x.name, x.metric): x.value for x in figures(table)}
    control, mixed = (
        {m: v for (r, s, n, m), v in found.items() if (r, s, n) == (row, 1, "")} for row in ("control", "t0.5")
    )
    assert control["images_seen"] == mixed["images_seen"] > 0
    assert control["gmac_training"] == mixed["gmac_training"] > 0
    assert 0 < mixed["labelled_share"] < 1
    assert "labelled_share" not in control
    assert found["control", None, "", "mean_iou_low"] <= found["control", None, "", "mean_iou"]
    assert not list(workspace.glob("work/*/*/state/ablation*")), "states of finished trainings only take up the disk"

    before = table.read_bytes()
    assert "0 rows and seeds written" in run(REPO, *command, "--workspace", str(whole.root)).text, "another copy"
    assert table.read_bytes() == before
    listed = run(REPO, *command, "--list", "--workspace", str(whole.root)).text
    assert "missing" not in listed
    assert listed.count("mIoU") == 2
