"""The doctor on what no stage makes again: each damaged line and missing file has a command that mends it."""

from __future__ import annotations

import subprocess

import pytest

from hmsa_core.labels.review import ReviewFile
from pipeline.doctor import checks as doctor
from pipeline.doctor.dvc import Finding
from pipeline.workspace import Workspace
from tests.support.findings import states

REVIEW = '{"id": "0", "name": "", "withdraws": ""}\n'
WHOLE = {
    "work/nightly/history.jsonl": '{"night": {}}\n',
    "models/registry/history.jsonl": '{"action": "promote", "from": "stage:teacher-train", "to": "x"}\n',
    "models/registry/looks.jsonl": '{"candidate": "a", "images": "b"}\n',
    "labels/raw.review.jsonl": REVIEW,
}


def _broken(ws: Workspace) -> dict[str, Finding]:
    return {f.name: f for f in doctor.examine(ws.root) if f.state == "broken"}


@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_line_is_mended_by_the_command_that_is_named(workspace: Workspace, name: str) -> None:
    path = workspace.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(WHOLE[name])
    assert name not in states(workspace.root)
    path.write_text(WHOLE[name] + '{"id": "q1", "name": "new__drive17_')
    found = _broken(workspace)
    assert set(found) == {name}
    assert f"{path}: line 2 is not" in found[name].text
    subprocess.run(found[name].mend, shell=True, check=True, cwd=workspace.root)
    assert path.read_text() == WHOLE[name]
    assert name not in states(workspace.root)


@pytest.mark.parametrize("name", ["policies", "labels/raw.review.jsonl"])
def test_what_dvc_asks_for_and_no_stage_makes_is_named_when_it_is_gone(workspace: Workspace, name: str) -> None:
    path = workspace.path(name)
    path.rmdir() if path.is_dir() else path.unlink()
    found = _broken(workspace)
    assert set(found) == {name}
    subprocess.run(found[name].mend, shell=True, check=True, cwd=workspace.root)
    assert name not in states(workspace.root)
    assert ReviewFile(workspace.path("labels/raw")).marks() == []
