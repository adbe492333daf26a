"""Parameters of one run: checked first, undone whatever ends the run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from hmsa_core.io.errors import ConfigError
from pipeline.cli import stage
from pipeline.cli.main import main
from pipeline.nightly import overrides
from pipeline.nightly.reaper import nightly_lock
from pipeline.params import Params
from pipeline.stages import runner
from tests.conftest import REPO


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    shutil.copy(REPO / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


def test_a_run_sees_its_parameters_and_the_file_is_restored_with_its_comments(workspace: Path) -> None:
    original = (workspace / "params.yaml").read_bytes()
    with overrides.overridden(workspace, {"pseudo_label.threshold": 0.85}):
        assert Params.load(workspace / "params.yaml").pseudo_label.threshold == 0.85
        assert (workspace / "params.yaml").read_text().count("#") == original.decode().count("#")
    assert (workspace / "params.yaml").read_bytes() == original


def test_a_killed_runs_parameters_are_undone_by_the_next_start(workspace: Path) -> None:
    original = (workspace / "params.yaml").read_bytes()
    block = overrides.overridden(workspace, {"pseudo_label.threshold": 0.85})
    block.__enter__()  # and nobody leaves it: the process was killed
    assert (workspace / "params.yaml").read_bytes() != original
    with overrides.overridden(workspace, {}):
        assert (workspace / "params.yaml").read_bytes() == original
    assert not overrides.restore(workspace)


def test_what_a_person_wrote_meanwhile_stays_and_only_the_runs_own_keys_are_set_back(workspace: Path) -> None:
    params = workspace / "params.yaml"
    original = params.read_text()
    edited = original.replace("title: ", "title: My ", 1)
    assert edited != original
    with overrides.overridden(workspace, {"pseudo_label.threshold": 0.85, "evaluate.seed": 7}):
        params.write_text(params.read_text().replace("title: ", "title: My ", 1))
    assert params.read_text() == edited
    with overrides.overridden(workspace, {"pseudo_label.threshold": 0.85}):
        params.write_text("a: [broken")
        with pytest.raises(ConfigError, match="edited during a run and is no YAML text"):
            overrides.restore(workspace)
        params.unlink()  # gone altogether: the text from before the run comes back
    assert params.read_text() == edited


def test_a_section_that_a_person_emptied_meanwhile_is_told(workspace: Path) -> None:
    params = workspace / "params.yaml"
    original = params.read_text()
    with overrides.overridden(workspace, {"report.title": "tonight"}):
        params.write_text(re.sub(r"(?m)^report:\n(  .*\n)+", "report:\n", params.read_text()))
        with pytest.raises(ConfigError, match="edited during a run and report is no section now"):
            overrides.restore(workspace)
        params.unlink()
    assert params.read_text() == original


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pseudo_label.threshold": 1.5}, "pseudo_label.threshold"),
        ({"pseudo_labl.threshold": 0.5}, "no section 'pseudo_labl'"),
        ({"student_train.epoch": 3}, "did you mean epochs"),
        ({"student_train.epochs": "many"}, "student_train.epochs"),
        ({"student_train.epochs.last": 3}, r"student_train\.epochs is a value in params\.yaml, not a section"),
        ({"pseudo_label.threshold": 0.85123}, r"neighbours 0\.85 or 0\.86, found 0\.85123"),
        (
            {"pseudo_label.threshold": "policies/gone.json"},
            r"policies/gone\.json: no such file \(stage pseudo-label reads it\)",
        ),
    ],
)
def test_a_bad_parameter_is_named_and_nothing_is_written(
    workspace: Path, changes: dict[str, object], told: str
) -> None:
    original = (workspace / "params.yaml").read_bytes()
    with pytest.raises(ConfigError, match=told), overrides.overridden(workspace, changes):
        pytest.fail("the run must not start")
    assert (workspace / "params.yaml").read_bytes() == original
    assert sorted(p.name for p in (workspace / "work" / "nightly").glob("*") if p.is_file()) == []


def test_a_link_stays_a_link_and_what_it_leads_to_is_changed_and_restored(workspace: Path) -> None:
    link, file = workspace / "params.yaml", workspace / "shared" / "mine.yaml"
    file.parent.mkdir()
    link.rename(file)
    link.symlink_to(file)
    original = file.read_bytes()
    with overrides.overridden(workspace, {"pseudo_label.threshold": 0.85}):
        assert link.is_symlink()
        assert Params.load(file).pseudo_label.threshold == 0.85
    assert link.is_symlink()
    assert file.read_bytes() == original


def test_a_mistake_is_told_with_the_file_in_which_it_stands(workspace: Path) -> None:
    params = workspace / "params.yaml"
    with pytest.raises(ConfigError, match=r"^parameters of this run: pseudo_label\.threshold: ") as error:
        overrides.overridden(workspace, {"pseudo_label.threshold": 1.5}).__enter__()
    assert "params.trial" not in error.value.message
    params.write_text(params.read_text().replace("use_coarse:", "use_corse:"))
    with pytest.raises(ConfigError, match=r"params\.yaml:\d+: .*use_corse"):
        overrides.overridden(workspace, {"pseudo_label.threshold": 0.85}).__enter__()


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (b"a:\n\tb: 1\n", r"params\.yaml:\d+: expected spaces, found a tab"),
        (b"profile: tiny\n", r"params\.yaml:\d+: profile is given twice"),
        (b"a: b: c\n", r"params\.yaml:\d+: expected one `key: value` a line"),
        ("# größer\n".encode("latin-1"), r"params\.yaml: not a YAML text"),
        (b"a: !!int x\n", r"params\.yaml:\d+: a: tags such as"),
        (b"a: " + b"[" * 3000 + b"\n", r"params\.yaml"),
    ],
)
def test_a_file_that_is_no_yaml_is_told_in_one_line_though_parameters_are_given(
    workspace: Path, broken: bytes, told: str
) -> None:
    params = workspace / "params.yaml"
    params.write_bytes(params.read_bytes() + broken)
    before = params.read_bytes()
    with pytest.raises(ConfigError, match=told), overrides.overridden(workspace, {"pseudo_label.threshold": 0.85}):
        pytest.fail("the run must not start")
    assert params.read_bytes() == before
    assert not (workspace / "work").exists()


@pytest.mark.parametrize("wrong", ["1.5", ".nan", "many"])
def test_a_runs_parameters_may_mend_a_value_that_is_wrong_in_the_file(workspace: Path, wrong: str) -> None:
    params = workspace / "params.yaml"
    params.write_text(re.sub(r"(?m)^(  threshold:) \S+", rf"\1 {wrong}", params.read_text()))
    with pytest.raises(ConfigError, match=r"pseudo_label\.threshold"):
        Params.load(params)
    with overrides.overridden(workspace, {"pseudo_label.threshold": 0.85}):
        assert Params.load(params).pseudo_label.threshold == 0.85


def test_line_breaks_of_windows_are_what_they_were_after_a_night(workspace: Path) -> None:
    params = workspace / "params.yaml"
    original = params.read_bytes().replace(b"\n", b"\r\n")
    params.write_bytes(original)
    with overrides.overridden(workspace, {"pseudo_label.threshold": 0.85}):
        assert params.read_bytes().count(b"\n") == params.read_bytes().count(b"\r\n")
        assert Params.load(params).pseudo_label.threshold == 0.85
    assert params.read_bytes() == original
    with overrides.overridden(workspace, {"pseudo_label.threshold": 0.85}):
        params.write_bytes(params.read_bytes().replace(b"title: ", b"title: My ", 1))
    assert params.read_bytes() == original.replace(b"title: ", b"title: My ", 1)


def test_an_edit_during_a_night_that_is_no_utf8_is_told_and_stays(workspace: Path) -> None:
    params = workspace / "params.yaml"
    edited = params.read_bytes() + "# größer\n".encode("latin-1")

    def night() -> None:
        with overrides.overridden(workspace, {"pseudo_label.threshold": 0.85}):
            params.write_bytes(edited)

    with pytest.raises(ConfigError, match="edited during a run and is no YAML text now"):
        night()
    assert params.read_bytes() == edited


def test_a_stage_refuses_a_killed_nights_parameters_and_works_inside_of_a_night(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(REPO / "dvc.yaml", workspace / "dvc.yaml")
    ran: list[str] = []
    monkeypatch.setattr(stage, "die_with_parent", lambda *_: None)  # of this process
    monkeypatch.setattr(stage, "prepare_process", lambda _ws: None)
    monkeypatch.setattr(runner, "run_stage", lambda _ws, name: ran.append(name))
    command = ["stage", "prepare", "--workspace", str(workspace)]
    killed = overrides.overridden(workspace, {"pseudo_label.threshold": 0.85})
    killed.__enter__()
    with nightly_lock(workspace):
        assert main(command) == 0
    assert ran == ["prepare"]
    for refused in (command, ["models", "aa", "--workspace", str(workspace)]):
        assert main(refused) == 2
        assert "autolabel doctor --fix" in capsys.readouterr().err
    overrides.restore(workspace)
    assert main(command) == 0
    assert ran == ["prepare", "prepare"]
