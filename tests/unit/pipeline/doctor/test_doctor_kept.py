"""The doctor on what no stage makes again: each damaged line and missing file has a command that mends it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmsa_core.io.errors import HmsaError
from hmsa_core.labels.review import ReviewFile
from pipeline.cli.main import main
from pipeline.doctor import checks as doctor
from pipeline.doctor.finding import Finding
from pipeline.nightly import overrides
from pipeline.params import Params
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


def test_marks_beside_the_final_store_are_moved_to_where_they_are_read(workspace: Workspace) -> None:
    mark = ReviewFile(workspace.path("labels/final")).add("a", "flag")
    (told,) = [f for f in doctor.examine(workspace.root) if f.name == "labels/final.review.jsonl"]
    assert (told.state, "1 mark" in told.text) == ("warning", True)
    subprocess.run(told.mend, shell=True, check=True, cwd=workspace.root)
    assert [found.id for found in ReviewFile(workspace.path("labels/raw")).marks()] == [mark.id]
    assert "labels/final.review.jsonl" not in states(workspace.root)


@pytest.fixture
def killed(workspace: Workspace) -> Iterator[tuple[str, Path]]:
    """params.yaml as it was before a night that was killed, and the night's record, damaged."""
    original = workspace.path("params.yaml").read_text()
    night = overrides.overridden(workspace.root, {"pseudo_label.threshold": 0.5})
    night.__enter__()  # and nobody leaves it
    written = workspace.path("work/nightly/params.written.json")
    written.write_text("garbage")
    yield original, written
    workspace.path("work/nightly/params.saved.yaml").unlink(missing_ok=True)  # nothing to undo for who collects it


def test_a_killed_nights_parameters_are_undone_though_its_record_is_damaged(
    workspace: Workspace, killed: tuple[str, Path]
) -> None:
    (original, written), params = killed, workspace.path("params.yaml")
    nights = params.read_text()
    assert nights != original
    assert main(["doctor", "--fix", "--workspace", str(workspace.root)]) == 0
    assert params.read_text() == original
    assert not written.exists()
    assert workspace.path("work/nightly/params.replaced.yaml").read_text() == nights, "somebody may have typed it"
    Params.load(params)


@pytest.mark.parametrize("delete", ["params.written.json", "params.saved.yaml"])
def test_where_somebody_edited_meanwhile_the_doctor_says_what_to_delete(
    workspace: Workspace, killed: tuple[str, Path], delete: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (original, _), params = killed, workspace.path("params.yaml")
    edited = params.read_text() + "# mine\n"
    params.write_text(edited)
    assert main(["doctor", "--fix", "--workspace", str(workspace.root)]) == 4
    said = capsys.readouterr().err
    assert "params.written.json: not valid JSON" in said
    assert f"`rm work/nightly/{delete}`" in said
    assert params.read_text() == edited
    workspace.path(f"work/nightly/{delete}").unlink()
    assert main(["doctor", "--fix", "--workspace", str(workspace.root)]) == 0
    assert params.read_text() == (original if delete == "params.written.json" else edited)


@pytest.mark.parametrize("text", ['{"text": 1, "keys": []}', '{"text": "x"}', "[]"])
def test_a_record_that_no_night_wrote_is_damaged_too(workspace: Workspace, killed: tuple[str, Path], text: str) -> None:
    (_, written), params = killed, workspace.path("params.yaml")
    written.write_text(text)
    params.write_text(params.read_text() + "# mine\n")
    with pytest.raises(HmsaError, match=r"params\.written\.json"):
        overrides.restore(workspace.root)
