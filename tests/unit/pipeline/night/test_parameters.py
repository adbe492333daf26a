"""Parameters of one night: checked first, kept next to params.yaml, seen by the stages and by DVC."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hmsa_core.io.errors import ConfigError
from pipeline.night.parameters import parameters_of_night, set_keys
from pipeline.night.stage_process import DVC
from pipeline.workspace.params import Params
from pipeline.workspace.workspace import PARAMS_VARIABLE, Workspace
from tests.conftest import REPO
from tests.support.chain import set_params


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    shutil.copy(REPO / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


def test_a_night_works_with_its_own_parameters_and_params_yaml_is_never_written(workspace: Path) -> None:
    params = workspace / "params.yaml"
    params.chmod(0o444)
    before = params.read_bytes(), params.stat().st_mtime_ns, params.stat().st_ino
    with parameters_of_night(workspace, {"pseudo_label.threshold": 0.85}):
        assert Workspace(workspace).params.pseudo_label.threshold == 0.85
        see = "from pipeline.workspace.workspace import Workspace; print(Workspace('.').params.pseudo_label.threshold)"
        done = subprocess.run([sys.executable, "-c", see], cwd=workspace, capture_output=True, text=True, check=True)
        assert done.stdout == "0.85\n", "a stage of the night, which is a child"
    assert Workspace(workspace).params.pseudo_label.threshold == "policy"
    assert (params.read_bytes(), params.stat().st_mtime_ns, params.stat().st_ino) == before
    assert PARAMS_VARIABLE not in os.environ


def test_an_edit_of_params_yaml_during_a_night_does_not_reach_it(workspace: Path) -> None:
    params = workspace / "params.yaml"
    with parameters_of_night(workspace, {}):
        params.write_text("profile: [of somebody who is typing")
        assert Workspace(workspace).params.pseudo_label.threshold == "policy"


def test_dvc_records_the_nights_values_and_sees_the_difference_afterwards(workspace: Path) -> None:
    stage = {"cmd": "echo ${pseudo_label.threshold} > out", "params": ["pseudo_label.threshold"], "outs": ["out"]}
    (workspace / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"s": stage}}))
    plain = (sys.executable, "-m", "dvc")

    def dvc(*command: str) -> str:
        env = os.environ | {"PYTHONPATH": str(REPO), "DVC_NO_ANALYTICS": "1"}
        done = subprocess.run(command, cwd=workspace, env=env, capture_output=True, text=True, check=True)
        return done.stdout

    def recorded() -> object:
        lock = yaml.safe_load((workspace / "dvc.lock").read_text())
        return lock["stages"]["s"]["params"]["params.yaml"]["pseudo_label.threshold"]

    dvc(*plain, "init", "--no-scm")
    dvc(*plain, "repro")
    assert recorded() == "policy"
    with parameters_of_night(workspace, {"pseudo_label.threshold": 0.85}):
        dvc(*DVC, "repro", "--single-item", "s")
        assert "up to date" in dvc(*DVC, "status")
    assert recorded() == 0.85
    assert (workspace / "out").read_text() == "0.85\n"
    assert "pseudo_label.threshold" in dvc(*plain, "status"), "what was made with 0.85 is not what params.yaml asks for"
    with parameters_of_night(workspace, {}):
        dvc(*DVC, "repro", "--single-item", "s")
    assert recorded() == "policy"
    assert "up to date" in dvc(*plain, "status")


@pytest.mark.parametrize(
    "changes",
    [
        {"student_train": {"epochs": 4, "pseudo": {"mix": "none"}}},
        {"student_train.epochs": 4, "student_train.pseudo": {"mix": "none"}},
    ],
)
def test_a_mapping_keeps_what_it_does_not_name_as_params_yaml_has_it(
    workspace: Path, changes: dict[str, object]
) -> None:
    params = workspace / "params.yaml"
    set_params(workspace, {"student_train.pseudo": {"mix": "cutmix", "share": 0.4}})
    before = Params.load(params).student_train
    with parameters_of_night(workspace, changes):
        tonight = Workspace(workspace).params.student_train
    assert {name for name, value in tonight if value != getattr(before, name)} == {"epochs", "pseudo"}
    assert {name for name, value in tonight.pseudo if value != getattr(before.pseudo, name)} == {"mix"}


def test_an_empty_mapping_empties_its_section() -> None:
    values = {"calibrate": {"overrides": {"road": 0.5}, "floor": 0.8}}
    set_keys(values, {"calibrate.overrides": {}})
    assert values == {"calibrate": {"overrides": {}, "floor": 0.8}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pseudo_label.threshold": 1.5}, r"^parameters of this run: pseudo_label\.threshold: "),
        (
            {"pseudo_labl.threshold": 0.5},
            "^parameters of this run: pseudo_labl: unknown key; did you mean pseudo_label",
        ),
        ({"student_train.epoch": 3}, "did you mean epochs"),
        ({"student_train.epochs": "many"}, r"student_train\.epochs"),
        ({"student_train": {"epochs": {"last": 3}}}, r"student_train\.epochs"),
        ({"student_train.epochs.last": 3}, r"student_train\.epochs is a value in params\.yaml, not a section"),
        ({"pseudo_label.threshold": 0.85123}, r"neighbours 0\.85 or 0\.86, found 0\.85123"),
        (
            {"pseudo_label.threshold": "policies/gone.json"},
            r"gone\.json: no such file or folder \(it is needed until stage pseudo-label",
        ),
    ],
)
def test_a_bad_parameter_is_named_and_nothing_is_written(
    workspace: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message), parameters_of_night(workspace, changes):
        pytest.fail("the run must not start")
    assert [p.name for p in workspace.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("changes", [{}, {"pseudo_label.threshold": 0.85}])
def test_a_mistake_of_params_yaml_itself_is_reported_with_its_line(workspace: Path, changes: dict[str, object]) -> None:
    params = workspace / "params.yaml"
    params.write_text(params.read_text() + "report: {titel: Night}\n")
    with pytest.raises(ConfigError, match=r"params\.yaml:\d+: .*titel"), parameters_of_night(workspace, changes):
        pytest.fail("the run must not start")
    params.write_bytes(params.read_bytes() + b"a: b: c\n")
    with pytest.raises(ConfigError, match=r"params\.yaml:\d+: expected one"), parameters_of_night(workspace, changes):
        pytest.fail("the run must not start")


@pytest.mark.parametrize("wrong", ["1.5", "many"])
def test_a_nights_parameters_may_replace_a_value_that_is_wrong_in_the_file(workspace: Path, wrong: str) -> None:
    params = workspace / "params.yaml"
    params.write_text(re.sub(r"(?m)^(  threshold:) \S+", rf"\1 {wrong}", params.read_text()))
    with pytest.raises(ConfigError, match=r"pseudo_label\.threshold"):
        Params.load(params)
    with parameters_of_night(workspace, {"pseudo_label.threshold": 0.85}):
        assert Workspace(workspace).params.pseudo_label.threshold == 0.85
