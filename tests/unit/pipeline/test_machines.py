"""Machines as they are: users without a name, copies without hidden folders, proxies, other encodings, closed pipes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hmsa_core.io.errors import ConfigError
from hmsa_core.labels import LabelStoreWriter
from pipeline.cli.main import main
from pipeline.night.prefect_services import Services, spare_loopback
from pipeline.stages.runner import free_space
from pipeline.workspace import new_workspace
from pipeline.workspace.workspace import Workspace
from tests.conftest import REPO
from tests.support.chain import dvc
from tests.support.findings import broken, found
from tests.support.web import answering

pytestmark = pytest.mark.long

INIT = "autolabel init . --profile tiny"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy it before a change."""
    root = tmp_path_factory.mktemp("made") / "ws"
    new_workspace.init_workspace(new_workspace.InitRequest(root, "tiny", make_data=False))
    return root


@pytest.mark.parametrize("gone", [[".dvc"], [".git"], [".dvc", ".git"]], ids="+".join)
def test_a_copy_without_hidden_folders_is_named_and_init_completes_it(
    workspace: Path,
    tmp_path: Path,
    gone: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = shutil.copytree(workspace, tmp_path / "ws", ignore=lambda _, names: set(names) & set(gone))
    assert dvc(root, "status", status=None).status != 0
    finding = broken(root)["dvc repository"]
    assert finding.fix == INIT
    monkeypatch.chdir(root)
    assert main(finding.fix.split()[1:]) == 0
    assert "workspace of profile tiny" in capsys.readouterr().err
    dvc(root, "status")
    assert found(root, "dvc repository", deep=False).state == "ok"
    assert main(finding.fix.split()[1:]) == 0
    assert "nothing changed" in capsys.readouterr().err


def test_where_git_is_not_installed_init_lets_dvc_do_without(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(workspace, tmp_path / "ws", ignore=shutil.ignore_patterns(".git"))
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "git" else which(name))
    assert new_workspace.init_workspace(new_workspace.InitRequest(root, "tiny", make_data=False)) is False
    assert found(root, "dvc repository", deep=False).state == "ok"


@pytest.mark.parametrize("lacking", ["name", "home"])
def test_a_user_id_without_a_name_or_a_home_is_reported_with_the_way_out(
    workspace: Path, tmp_path: Path, lacking: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", *(["HOME"] if lacking == "home" else [])):
        monkeypatch.delenv(name, raising=False)
    if lacking == "home":
        monkeypatch.setenv("USER", "me")
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert main(["init", str(tmp_path / "ws"), "--profile", "tiny", "--no-data"]) == 3
    said = capsys.readouterr().err
    assert "error: " in said
    assert "user id 54321 has no name or no home here" in said
    assert "hint: export USER=me LOGNAME=me HOME=" in said
    assert broken(workspace)["user"].fix == new_workspace.GIVE_NAME
    monkeypatch.setenv("USER", "me")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["init", str(tmp_path / "ws"), "--profile", "tiny", "--no-data"]) == 0


def test_a_cache_of_dvc_that_cannot_be_written_is_reported_before_a_stage_works(
    workspace: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(workspace, tmp_path / "ws")
    (root / ".dvc/config.local").write_text("[cache]\n    dir = /proc/dvc\n")
    with pytest.raises(ConfigError, match="DVC's cache cannot be written: /proc"):
        free_space(Workspace(root))
    assert any("cache cannot be written" in finding.text for finding in broken(root).values())


@pytest.fixture
def server() -> Iterator[int]:
    """Answers every request with 200."""
    with answering(200) as (address, _):
        yield int(address.rpartition(":")[2])


@pytest.mark.parametrize("given", ["", "intern.example"])
def test_a_server_of_this_machine_is_asked_without_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: int, given: str
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # a process that asked before keeps the proxies of then
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", given)
    services = Services(tmp_path, port=server)
    assert not services.healthy()
    assert "127.0.0.1,localhost" in spare_loopback()
    assert services.healthy()
    values = {services.environment()[name] for name in ("NO_PROXY", "no_proxy")}
    assert values == {",".join(filter(None, [given, "127.0.0.1,localhost"]))}
    assert spare_loopback() == ""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "raw"
    with LabelStoreWriter(folder, {"teacher": "0"}) as writer:
        for name in ("a", "街道"):
            writer.add(name, np.zeros((8, 8), np.uint8), np.full((8, 8), 0.95, np.float32))
    return folder


@pytest.mark.parametrize(
    "language", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii"}, {"LANG": "C", "LC_ALL": "C"}], ids=str
)
@pytest.mark.parametrize("command", ["inspect {} --threshold 0.9", "inspect {} --threshold 0.9 --sort name", "--help"])
def test_a_terminal_of_another_encoding_gets_the_whole_answer(
    store: Path, language: dict[str, str], command: str
) -> None:
    ran = [sys.executable, "-m", "pipeline.cli.main", *command.format(store).split()]
    environment = {**os.environ, **language, "PYTHONPATH": str(REPO)}
    done = subprocess.run(ran, env=environment, capture_output=True, check=False)
    assert (done.returncode, b"Error" in done.stderr) == (0, False), done.stderr[-500:]
    assert done.stdout


@pytest.mark.parametrize("command", ["--help", "export --help", "inspect {} --threshold 0.9", "completion bash"])
def test_a_reader_that_goes_away_is_no_error(store: Path, command: str) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = [sys.executable, "-m", "pipeline.cli.main", *command.format(store).split()]
    done = subprocess.run(
        ran, stdout=write, stderr=subprocess.PIPE, check=False, env={**os.environ, "PYTHONPATH": str(REPO)}
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_shell_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "autolabel.bash"
    script.write_text(capsys.readouterr().out)
    ask = f"source {script}; COMP_WORDS=(autolabel export --fo) COMP_CWORD=2 COMP_LINE='autolabel export --fo'; "
    help_text = subprocess.run(
        ["bash", "-c", ask + "_shtab_autolabel; echo ${COMPREPLY[@]}"], capture_output=True, text=True, check=True
    )
    assert "--format" in help_text.stdout
