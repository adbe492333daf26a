"""How a night begins (disk is asked for by what will run in it, and by nothing else), and ends without its server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from hmsa_core.io.errors import NoSpaceError
from pipeline.nightly import flow as nightly
from pipeline.nightly.runner import ServerGoneError
from pipeline.stages import STAGES
from pipeline.workspace import Workspace
from tests.conftest import REPO


@pytest.mark.parametrize(
    ("chosen", "unchanged", "asked"),
    [
        (list(STAGES), False, list(STAGES)),
        (["prepare", "auto-infer"], False, ["prepare", "auto-infer"]),
        (list(STAGES), True, []),
    ],
)
def test_the_disk_is_asked_for_the_stages_that_will_run(
    chosen: list[str], unchanged: bool, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def no_space(_ws: Workspace, stages: list[str]) -> None:
        told.append(stages)
        raise NoSpaceError("about 10.0 GiB are needed, 1.0 GiB are free")

    shutil.copy(REPO / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.setattr(nightly, "dvc_unchanged", lambda _root: unchanged)
    monkeypatch.setattr(nightly, "check_machine_task", no_space)
    monkeypatch.setattr(nightly, "_publish_failure", lambda *_: None)
    with pytest.raises(NoSpaceError):
        nightly._night(Workspace(tmp_path), chosen, {}, {"promote": False})
    assert told == [asked]


@pytest.mark.parametrize(
    ("run", "own", "ends"), [("a", "a", True), ("a", "b", False), ("a", None, False), (None, None, False)]
)
def test_without_its_server_a_run_ends_its_own_process_and_no_other(
    run: str | None, own: str | None, ends: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(nightly.os, "_exit", statuses.append)
    monkeypatch.setattr(nightly, "_run_id", lambda: run)
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    if own:
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", own)
    nightly._leave(ServerGoneError("auto-infer: the orchestration server is gone"))
    assert statuses == [1] * ends
    assert ("server is gone" in capsys.readouterr().err) == ends, "worker.log says why"
