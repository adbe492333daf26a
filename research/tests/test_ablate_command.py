"""`python -m research.ablate`: what it lists and refuses before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa_core.io.errors import ConfigError
from pipeline.workspace import new_workspace
from pipeline.workspace.workspace import Workspace
from research.ablate import main
from research.ablation.catalogue import make_ablation
from research.ablation.prepare import make_camvid_workspace
from research.figures import Made, replace
from research.tests.ablations import FakeJobs, bare_workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return bare_workspace(tmp_path / "ws")


def ablate(ws: Workspace, tmp_path: Path, *arguments: str) -> int:
    return main([*arguments, "--workspace", str(ws.root), "--tables", str(tmp_path / "tables")])


def test_the_list_needs_no_data_and_shows_every_row_and_seed(
    ws: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate(ws, tmp_path, "labels", "--list", "--seeds", "0,5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 12
    assert all("missing" in line for line in lines[1:])
    assert not (tmp_path / "tables").exists()


def test_a_dry_run_says_how_long_the_missing_rows_take_by_earlier_ones(
    ws: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Made("c0ffee", "a machine")
    lines = [
        made.figure("scales", row, metric, value, seed=0, setting=how)
        for row, how in (("hierarchical-1", "1"), ("hierarchical-0.5-1", "0.5,1"))
        for metric, value in (("mean_iou", 0.5), ("train_seconds", 600.0), ("evaluate_seconds", 60.0))
    ]
    replace(tmp_path / "tables" / "scales.parquet", lines)
    rows = "hierarchical-1,hierarchical-0.5-1,single-1"
    assert ablate(ws, tmp_path, "scales", "--dry-run", "--seeds", "0,1", "--rows", rows) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "mIoU  50.00" in line]
    assert lines[-1] == "4 missing: about 12 minutes by earlier runs, and 2 that were never timed", "one training"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scale"], "unknown ablation 'scale': choose one of scales, attention, labels"),
        (["labels", "--rows", "bothh"], "has no row 'bothh': choose from baseline"),
        (["labels", "--seeds", "one"], "expected whole numbers with commas"),
        (["labels", "--seeds=-1"], "a seed is 0 or more"),
        (["labels", "--epochs-scale", "0"], "expected a number above 0"),
        (["labels", "--freeze", "100"], "--freeze needs --variants N"),
        (["labels", "--variant", "default"], "--variant makes a workspace"),
        (["labels", "--teacher-epochs", "9"], "--teacher-epochs and --set go with --variant"),
        (["camvid-table", "--prepare", "--variant", "default", "--teacher-epochs", "0"], "expected 1 or more"),
        (["camvid-table"], "profile camvid, this one has profile demo"),
        (["labels"], "starts after the stage pseudo-label"),
    ],
)
def test_what_cannot_work_is_one_line(
    ws: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert ablate(ws, tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


def test_a_second_run_in_the_same_workspace_leaves_at_once(
    ws: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ws.lock("ablation"):
        assert ablate(ws, tmp_path, "labels") == 75
    assert "stage ablation" in capsys.readouterr().err


def test_a_frozen_seed_runs_from_the_command_line(
    ws: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ablate(ws, tmp_path, "labels", "--freeze", "100,101", "--variants", "2", "--note", "as shipped") == 0
    assert "seeds 100,101 may run" in capsys.readouterr().out
    FakeJobs(tmp_path / "jobs").install(monkeypatch)
    monkeypatch.setattr("research.ablate.check_ready", lambda *_: None)
    monkeypatch.setattr("research.ablate.prepare_process", lambda _ws: None)
    assert ablate(ws, tmp_path, "labels", "--rows", "both", "--seeds", "100") == 0
    assert "1 rows and seeds written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variant", "epochs", "table"),
    [("drive_shift", None, "camvid-table-drive_shift"), ("default", 7777, "camvid-table-default-7777")],
)
def test_a_camvid_workspace_is_made_for_its_variant_and_teacher_and_kept_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, epochs: int | None, table: str
) -> None:
    monkeypatch.setattr(new_workspace, "_set_up_version_control", lambda _folder: None)
    (tmp_path / "photographs").mkdir()
    folder = tmp_path / "camvid"
    settings = {"teacher_train.model.train_scales": [0.5, 1, 2]}
    for _ in range(2):
        make_camvid_workspace(folder, variant, epochs, tmp_path / "photographs", settings)
    params = Workspace(folder).params
    assert params.teacher_train.model.train_scales == (0.5, 1.0, 2.0)
    with pytest.raises(ConfigError, match=r"is a workspace without teacher_train\.loss\.main=jaccard"):
        make_camvid_workspace(folder, variant, epochs, None, {"teacher_train.loss.main": "jaccard"})
    assert (params.data.target.variant, params.data.target.root) == (variant, str(tmp_path / "photographs"))
    assert make_ablation("camvid-table", params).name == table
    with pytest.raises(ConfigError, match=f"is a workspace of variant {table[13:]}, not default"):
        make_camvid_workspace(folder, "default", None, tmp_path / "photographs")
