"""`autolabel run`: the stages in the order of the table, up to the one that is named or the first that fails."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pipeline.cli import run as command
from pipeline.cli.main import main
from pipeline.workspace.settings import profile_text
from pipeline.workspace.table import STAGES


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the stages that were started in a workspace around the current folder; `calibrate` fails."""
    (tmp_path / "params.yaml").write_text(profile_text("tiny"))
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "labels").mkdir()
    monkeypatch.chdir(tmp_path / "labels")
    monkeypatch.setenv("DVC_STAGE", "report")
    monkeypatch.setattr(command.StopRequest, "install", lambda stop: stop)
    stages: list[str] = []

    def run_child(given: list[str], *, cwd: str, env: dict[str, str], **_: object) -> int:
        assert (Path(cwd), "DVC_STAGE" in env) == (tmp_path, False)
        stages.append(given[-1])
        return {"calibrate": 5, "evaluate": -signal.SIGKILL}.get(given[-1], 0)

    monkeypatch.setattr(command, "run_child", run_child)
    return stages


def test_stages_run_in_order_up_to_the_named_one(started: list[str]) -> None:
    assert main(["run", "--to", "teacher-train"]) == 0
    assert started == ["prepare", "teacher-pretrain", "teacher-train"]


def test_the_first_stage_that_fails_ends_the_run_with_its_status(started: list[str]) -> None:
    assert main(["run"]) == 5
    assert started[-1] == "calibrate"


def test_a_killed_stage_gives_the_status_that_a_shell_would(started: list[str], monkeypatch) -> None:
    monkeypatch.setattr(command, "STAGES", ("evaluate",))
    assert main(["run", "--to", "evaluate"]) == 128 + signal.SIGKILL


def test_an_unknown_stage_is_refused_before_anything_runs(started: list[str], capsys) -> None:
    assert main(["run", "--to", "training"]) == 2
    assert f"expected one of {', '.join(STAGES)}" in capsys.readouterr().err
    assert started == []
