"""Histories of a line an entry: a damaged line is named, none is skipped, and none is glued to the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa_core.io import records
from hmsa_core.io.errors import IntegrityError
from pipeline.cli.main import main
from pipeline.night import history
from pipeline.night.gatekeeper import count_look
from pipeline.workspace.registry import Registry
from pipeline.workspace.workspace import Workspace


@pytest.mark.parametrize("torn", ['{"torn": ', '{"other": 1}', "[1]", "\0\0\0"])
@pytest.mark.parametrize("is_last", [True, False])
def test_a_damaged_line_is_named_with_its_file_and_a_way_out(tmp_path: Path, torn: str, is_last: bool) -> None:
    path = tmp_path / "lines.jsonl"
    records.append(path, {"key": 1})
    path.write_text(path.read_text() + torn + ("" if is_last else '\n{"key": 2}\n'))
    with pytest.raises(IntegrityError, match=rf"{path}: line 2 is not a thing") as error:
        records.read(path, "a thing", ("key",))
    assert error.value.hint == "correct or remove that line"


def test_a_last_line_that_lost_its_line_break_is_not_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"key": 1}')
    records.append(path, {"key": "two\u2028lines"})
    assert records.read(path, "a thing", ("key",)) == [{"key": 1}, {"key": "two\u2028lines"}]


def test_each_history_names_its_damaged_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ws = Workspace(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        ws.path(name).touch()
    readers = {
        "work/nightly/history.jsonl": lambda: history.remember(ws, {"night": {}}),
        "models/registry/looks.jsonl": lambda: count_look(ws, "a", ("x",)),
        "models/registry/history.jsonl": Registry(tmp_path).history,
    }
    for name, read in readers.items():
        ws.path(name).parent.mkdir(parents=True, exist_ok=True)
        ws.path(name).write_text('{"torn": ')
        with pytest.raises(IntegrityError, match=rf"{name}: line 1 is not"):
            read()
        assert ws.path(name).read_text() == '{"torn": ', "nothing is written behind it"
        with pytest.raises(IntegrityError, match=rf"{name}: line 1"):
            history.check_readable(ws)
        ws.path(name).unlink()
    ws.path("models/registry/history.jsonl").write_text('{"torn": ')
    ws.path("models/current.json").write_text('{"teacher": "models/registry/v9-ab"}')
    assert main(["models", "rollback", "--workspace", str(tmp_path)]) == 4
    assert "history.jsonl: line 1 is not a switch of the teacher" in capsys.readouterr().err
