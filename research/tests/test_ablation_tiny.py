"""A table of two rows on a finished workspace of profile `tiny`: real trainings, once; a clone has nothing left to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from research.ablation.cells import Cell
from tests.support.chain import REPO, Whole, run

pytestmark = [pytest.mark.chain, pytest.mark.slow]


def test_two_rows_are_trained_once_recorded_and_found_by_a_clone(workspace: Path, whole: Whole, tmp_path: Path) -> None:
    results = tmp_path / "results"
    asked = ["--rows", "control,t0.5", "--seeds", "1", "--epochs-scale", "0.5", "--results", str(results)]
    command = ["autolabel", "ablate", "threshold", *asked]

    done = run(REPO, *command, "--workspace", str(workspace))
    assert "2 cells written" in done.text
    folder = results / "threshold-tiny"
    cells = {cell.row: cell for cell in (Cell.load(path) for path in sorted(folder.glob("*.json")))}
    assert set(cells) == {"control", "t0.5"}
    control, mixed = cells["control"].record, cells["t0.5"].record
    assert control["images_seen"] == mixed["images_seen"] == 16
    assert (control["training"]["pseudo_seen"], mixed["training"]["pseudo_seen"]) == (0, 8)
    assert control["training"]["weights_sha256"] != mixed["training"]["weights_sha256"]
    assert control["macs"]["train_total"] == 16 * control["macs"]["train_per_crop"] > 0
    assert 0 < mixed["labels"]["labelled_share"] < 1
    assert mixed["labels"]["threshold"] == "0.50"
    assert cells["control"].counts().names == cells["t0.5"].counts().names
    summary = json.loads(next(workspace.glob("work/ablation/*/summary.json")).read_text())
    assert summary["images"] == control["evaluation"]["images"]
    assert not list(workspace.glob("work/ablation/*/state")), "states of finished trainings only take up the disk"

    bytes_before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert "0 cells written" in run(REPO, *command, "--workspace", str(whole.root)).text, "another copy: nothing to do"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == bytes_before
    listed = run(REPO, *command, "--list", "--workspace", str(whole.root)).text
    assert "missing" not in listed
    assert listed.count("mIoU") == 2


def test_a_conflict_that_the_human_wins_keeps_its_pixel(workspace: Path, tmp_path: Path) -> None:
    asked = ["--rows", "t0,t0-human", "--seeds", "1", "--epochs-scale", "0.5", "--results", str(tmp_path)]
    done = run(REPO, "autolabel", "ablate", "merging", *asked, "--workspace", str(workspace))
    assert "2 cells written" in done.text
    ignored, kept = (
        Cell.load(tmp_path / f"merging-tiny/{row}-seed1.json").record["labels"] for row in ("t0", "t0-human")
    )
    human = [sum(c["human"] for c in labels["classes"].values()) for labels in (ignored, kept)]
    assert human[0] < human[1]
    assert ignored["labelled_share"] < kept["labelled_share"] <= 1
