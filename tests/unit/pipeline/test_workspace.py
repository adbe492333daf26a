"""Workspaces: `init` makes them once and completely; paths, roots and the current teacher are found."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hmsa_core.io.errors import ConfigError, InputError, InterruptedRunError, LockedError
from pipeline.cli import stage as stage_cli
from pipeline.workspace import new_workspace
from pipeline.workspace.new_workspace import InitRequest, init_workspace
from pipeline.workspace.table import STAGES
from pipeline.workspace.workspace import Workspace
from tests.support.waiting import assert_left_at_once, leave

REPO = Path(__file__).resolve().parents[3]
FAKE_CAMVID = "splits.json"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def _make(folder: Path, profile: str = "tiny", **more: object) -> Workspace:
    init_workspace(InitRequest(folder, profile, make_data=False, **more))
    return Workspace(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One tiny workspace without data that tests only look at."""
    return _make(tmp_path_factory.mktemp("made") / "ws")


def test_a_new_workspace_is_a_committed_git_and_dvc_repository_with_the_stages(made):
    assert _git(made.root, "status", "--porcelain") == ""
    assert _git(made.root, "log", "--format=%an").strip() == "autolabel"
    config = (made.root / ".dvc" / "config").read_text()
    for line in ("analytics = false", "check_update = false", "autostage = true"):
        assert line in config
    assert not (made.root / ".autolabel-init").exists()
    command = [sys.executable, "-m", "dvc", "stage", "list", "--names-only"]
    listed = subprocess.run(command, cwd=made.root, capture_output=True, text=True, check=True).stdout.split()
    assert tuple(listed) == ("settings", *STAGES)


def test_git_ignores_every_cached_output_and_keeps_lock_and_metrics(made):
    stages = yaml.safe_load((made.root / "dvc.yaml").read_text())["stages"].values()
    outputs = [out for s in stages for out in [*s["outs"], *s.get("plots", ())]]
    for out in [*outputs, "work/teacher-train/0123", "data/demo/cityscapes", "models/registry/v1"]:
        assert subprocess.run(["git", "check-ignore", "-q", out], cwd=made.root, check=False).returncode == 0, out
    for kept in ("dvc.lock", "params.yaml", "metrics/evaluate.json", "models/current.json"):
        assert subprocess.run(["git", "check-ignore", "-q", kept], cwd=made.root, check=False).returncode == 1, kept


def test_the_repositorys_root_is_a_workspace_of_profile_demo():
    ws = Workspace.find(REPO / "pipeline")
    assert ws.root == REPO
    assert ws.params.profile == "demo"
    assert json.loads((REPO / "models" / "current.json").read_text())["teacher"].startswith(("stage:", "models/"))


def test_init_again_says_so_and_changes_nothing(made, said):
    before = {p: p.stat().st_mtime_ns for p in made.root.rglob("*")}
    assert "already a workspace of profile tiny; nothing changed" in said("init", made.root, "--profile", "tiny").err
    assert {p: p.stat().st_mtime_ns for p in made.root.rglob("*")} == before


def test_another_profile_a_full_folder_and_an_unknown_profile_are_refused(made, tmp_path):
    with pytest.raises(InputError, match="already a workspace of profile tiny"):
        _make(made.root, "demo")
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"holds other things \(thesis\.tex"):
        _make(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex"]
    with pytest.raises(ConfigError, match="unknown profile 'huge': expected one of tiny, demo"):
        _make(tmp_path / "new", "huge")


def test_the_next_commands_can_be_pasted_for_any_folder(tmp_path, no_tools, said):
    folder = tmp_path / "a work's space"
    lines = said("init", folder, "--profile", "tiny", "--no-data").err.splitlines()
    reported = [shlex.split(line)[1:4] for line in lines if line.startswith("next: ")]
    assert reported == [["autolabel", "demo-data", str(folder)], ["cd", str(folder), "&&"]]


@pytest.fixture
def unfinished(tmp_path: Path, no_tools: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of profile tiny whose `init` was killed while it generated the data."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(new_workspace, "generate_data", die)
        with pytest.raises(KeyboardInterrupt):
            init_workspace(InitRequest(tmp_path / "ws", "tiny"))
    return tmp_path / "ws"


@pytest.fixture
def generated(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Workspaces for which data are generated from now on."""
    found: list[Path] = []
    monkeypatch.setattr(new_workspace, "generate_data", lambda out, _: found.append(out.parents[1]))
    return found


def test_what_people_did_in_a_workspace_whose_init_was_killed_is_there_after_the_next_init(unfinished, generated):
    edited = ("params.yaml", "dvc.yaml", "labels/raw.review.jsonl", "README.md", ".gitignore", "policies/README.md")
    for name in edited:
        (unfinished / name).write_text((unfinished / name).read_text() + "# mine\n")
    before = {name: (unfinished / name).read_bytes() for name in edited}
    (unfinished / ".dvcignore").unlink()  # as where the kill came before it was written
    assert init_workspace(InitRequest(unfinished, "tiny"))
    assert {name: (unfinished / name).read_bytes() for name in edited} == before
    assert (unfinished / ".dvcignore").is_file()
    assert generated == [unfinished], "the data that were not finished"
    assert not init_workspace(InitRequest(unfinished, "tiny"))


def test_an_unfinished_workspace_is_not_gone_on_with_as_another_one(unfinished, generated, tmp_path):
    for name in ("cityscapes", "mapillary"):
        (tmp_path / "shared" / name).mkdir(parents=True)
    before = {p: p.read_bytes() for p in unfinished.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="unfinished workspace of profile tiny, not demo"):
        init_workspace(InitRequest(unfinished, "demo"))
    with pytest.raises(InputError, match=r"its data\.target\.root is data/demo/cityscapes, not .*/shared/cityscapes"):
        init_workspace(InitRequest(unfinished, "tiny", tmp_path / "shared"))
    assert {p: p.read_bytes() for p in unfinished.rglob("*") if p.is_file()} == before
    params = unfinished / "params.yaml"
    params.write_text(params.read_text().replace("root: data/demo/", f"root: {tmp_path}/shared/"))
    assert init_workspace(InitRequest(unfinished, "tiny"))
    assert generated == [], "params.yaml names other data"


def test_an_init_that_was_killed_before_it_wrote_params_writes_them_with_the_roots_that_are_given(
    tmp_path, no_tools, monkeypatch
):
    (tmp_path / "cs").mkdir()
    request = InitRequest(tmp_path / "ws", "cityscapes", tmp_path / "cs")
    real = new_workspace.atomic.write_text
    for stop in ("params.yaml", "dvc.yaml", "raw.review.jsonl"):

        def write(path: Path, text: str, stop: str = stop) -> str:
            if path.name == stop:
                raise KeyboardInterrupt
            return real(path, text)

        with monkeypatch.context() as patch:
            patch.setattr(new_workspace.atomic, "write_text", write)
            with pytest.raises(KeyboardInterrupt):
                init_workspace(request)
    assert init_workspace(request)
    assert Workspace(tmp_path / "ws").roots["target"] == tmp_path / "cs"
    assert json.loads((tmp_path / "ws/models/current.json").read_text()) == {"teacher": "stage:teacher-train"}


@pytest.mark.parametrize("name", ["my 😀 data", 'a "quoted" \\ one', "a b\u2028c\x85d\x7fe", "münchen süd", "𝒳"])
def test_a_data_folder_of_any_name_is_found_again(tmp_path, no_tools, name):
    (tmp_path / name).mkdir()
    ws = _make(tmp_path / "ws", "cityscapes", data=tmp_path / name)
    assert ws.roots["target"] == tmp_path / name
    from ruamel.yaml import YAML  # as DVC reads it

    assert YAML(typ="safe").load(ws.path("params.yaml"))["data"]["target"]["root"] == str(tmp_path / name)


def test_demo_data_for_a_folder_that_is_not_there_are_not_put_into_the_workspace_above_it(made, said, monkeypatch):
    from examples import streets as demodata

    generated: list[Path] = []
    monkeypatch.setattr(demodata, "generate", lambda _spec, out, _workers: generated.append(out))
    printed = said("demo-data", made.root / "nope" / "x", status=2).err
    assert printed.startswith(f"error: {made.root}/nope/x: no such folder\nhint: ")
    assert generated == []
    said("demo-data", made.root / "models")
    assert generated == [made.root / "data" / "demo"]


def test_inside_a_git_tree_no_second_repository_is_made_but_in_an_ignored_folder_it_is(tmp_path):
    _git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("/workspaces/\n")
    inside = _make(tmp_path / "sub" / "ws")
    assert not (inside.root / ".git").exists()
    assert (inside.root / ".dvc" / "config").exists()
    ignored = _make(tmp_path / "workspaces" / "ws")
    assert (ignored.root / ".git").is_dir()
    assert _git(ignored.root, "log", "--oneline").count("\n") == 1


def test_an_inherited_git_dir_does_not_lead_our_commits_astray(tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    _git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    ws = _make(tmp_path / "ws")
    monkeypatch.delenv("GIT_DIR")
    assert _git(ws.root, "log", "--format=%s").strip() == "Workspace"


def test_camvid_is_found_by_option_by_environment_and_its_absence_is_reported(tmp_path, no_tools, monkeypatch):
    data = tmp_path / "my data" / "camvid"
    data.mkdir(parents=True)
    (data / FAKE_CAMVID).write_text("{}")
    by_option = _make(tmp_path / "a", "camvid", data=data)
    monkeypatch.setenv("AUTOLABEL_CAMVID", str(data))
    by_environment = _make(tmp_path / "b", "camvid")
    assert by_option.roots == by_environment.roots == {"target": data}
    assert "data.pretrain.root" not in (tmp_path / "a" / "dvc.yaml").read_text()
    monkeypatch.setenv("AUTOLABEL_CAMVID", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere: data folder not found"):
        _make(tmp_path / "c", "camvid")
    assert not (tmp_path / "c").exists()


def test_a_data_root_given_at_init_stands_in_params(tmp_path, no_tools):
    (tmp_path / "cs").mkdir()
    (tmp_path / "mv").mkdir()
    ws = _make(tmp_path / "ws", "cityscapes", data=tmp_path / "cs", pretrain_data=tmp_path / "mv")
    assert ws.roots == {"target": tmp_path / "cs", "pretrain": tmp_path / "mv"}
    assert (
        f"  target: {{root: {tmp_path}/cs, splits: [train, val, train_extra]}}\n" in ws.path("params.yaml").read_text()
    )


def test_another_data_root_for_a_workspace_that_is_there_is_refused_not_ignored(tmp_path, no_tools):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert init_workspace(InitRequest(tmp_path / "ws", "cityscapes", tmp_path / "one"))
    assert not init_workspace(InitRequest(tmp_path / "ws", "cityscapes", tmp_path / "one"))
    with pytest.raises(InputError, match=r"its data\.target\.root is .*/one, not .*/two"):
        init_workspace(InitRequest(tmp_path / "ws", "cityscapes", tmp_path / "two"))
    with pytest.raises(InputError, match="no folder cityscapes; profile tiny takes what") as error:
        init_workspace(InitRequest(tmp_path / "tiny", "tiny", tmp_path / "one"))
    assert "--images DIR --labels DIR" in error.value.hint


def test_demo_data_of_one_workspace_can_serve_another_in_a_fresh_repository(tmp_path, no_tools):
    (tmp_path / "ws" / ".git").mkdir(parents=True)
    for name in ("cityscapes", "mapillary"):
        (tmp_path / "shared" / name).mkdir(parents=True)
    ws = _make(tmp_path / "ws", "tiny", data=tmp_path / "shared")
    assert ws.roots["pretrain"] == tmp_path / "shared" / "mapillary"


def test_a_workspace_is_found_from_a_folder_inside_it_and_missing_ones_are_explained(made, tmp_path, said):
    assert Workspace.find(made.root / "models").root == made.root
    with pytest.raises(ConfigError, match="not a workspace") as caught:
        Workspace.find(tmp_path)
    assert "autolabel init" in caught.value.hint
    mistyped = made.root / "nosuch"  # never the workspace around it
    for command in (["config", "show"], ["models", "register", tmp_path]):
        printed = said(*command, "--workspace", mistyped, status=2).err
        assert printed.startswith(f"error: {mistyped}: no such folder\nhint: ")


def test_the_current_teacher_is_the_trained_one_until_a_version_is_promoted(made, tmp_path):
    root = tmp_path / "ws"
    shutil.copytree(made.root, root, ignore=shutil.ignore_patterns(".git", ".dvc"))
    ws = Workspace(root)
    with pytest.raises(ConfigError, match="no checkpoint there"):
        ws.teacher()
    for folder in ("models/teacher", "models/registry/v0001-abc"):
        ws.path(folder).mkdir(parents=True)
        (ws.path(folder) / "model.json").write_text("{}")
    assert ws.teacher() == ws.path("models/teacher")
    assert not ws.is_promoted()
    ws.path("models/current.json").write_text('{"teacher": "models/registry/v0001-abc"}')
    assert ws.teacher() == ws.path("models/registry/v0001-abc")
    assert ws.is_promoted()


@pytest.mark.parametrize(
    "teacher", ["../elsewhere", "models/registry/../../x", "/etc", "stage:student-train", "models/teacher"]
)
def test_a_teacher_outside_the_registry_is_refused(tmp_path, teacher):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "current.json").write_text(json.dumps({"teacher": teacher}))
    with pytest.raises(ConfigError, match='expected "stage:teacher-train"'):
        Workspace(tmp_path).teacher()


def test_a_second_run_of_a_stage_leaves_at_once_and_names_the_first(made):
    with made.lock("prepare"):
        tries = [leave(made.root, "autolabel", "stage", "prepare") for _ in range(3)]
        with pytest.raises(LockedError):
            made.lock("prepare").acquire()
    assert_left_at_once(tries)
    for done in tries:
        assert "stage prepare of" in done.text
        assert f"is in use by process {os.getpid()}" in done.text
        assert done.text.count("\n") == 1  # error and hint, nothing else


def test_a_stage_refuses_a_file_system_whose_locks_keep_nobody_out(made, said, monkeypatch):
    monkeypatch.setattr(stage_cli, "die_with_parent", lambda _signal: None)
    monkeypatch.setattr(fcntl, "flock", lambda _fd, _how: None)  # as on network file systems that only pretend
    printed = said("stage", "prepare", "--workspace", made.root, status=2).err
    assert "file locks do not work on this file system" in printed


@pytest.fixture
def takes_in_orphans() -> Iterator[None]:
    """Processes whose parent dies become this process's children, as they otherwise become init's."""
    set_child_subreaper = 36
    libc = ctypes.CDLL(None)
    assert libc.prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    yield
    libc.prctl(set_child_subreaper, 0, 0, 0, 0)


START = """
import os, subprocess, sys
wait = f"while [ -d /proc/{os.getpid()} ]; do sleep 0.02; done; exec "  # the interpreter starts when dvc is gone
env = os.environ | {"DVC_STAGE": "prepare"}
print(subprocess.Popen(["sh", "-c", wait + sys.argv[1]], env=env, stdout=subprocess.DEVNULL).pid)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel for orphans")
def test_a_stage_whose_dvc_is_gone_before_it_can_ask_for_its_death_does_not_run(made, tmp_path, takes_in_orphans):
    said = tmp_path / "said.txt"
    stage = f"{sys.executable} -m pipeline.cli.main stage prepare --workspace {made.root} 2> {said}"
    start = [sys.executable, "-c", START, stage]
    dvc = subprocess.run(start, stdout=subprocess.PIPE, text=True, cwd=REPO, check=True, start_new_session=True)
    _, status = os.waitpid(int(dvc.stdout), 0)
    assert os.waitstatus_to_exitcode(status) == 143, said.read_text()
    assert "dvc, which started this stage, is gone" in said.read_text()


@pytest.mark.parametrize("arguments", [["stage", "prepar"], ["stage"]])
def test_an_unknown_stage_is_one_line_with_the_names(arguments, said, monkeypatch):
    monkeypatch.setattr(stage_cli, "die_with_parent", lambda _signal: None)
    error = said(*arguments, status=2).err
    assert "expected one of prepare, teacher-pretrain, teacher-train" in error
    assert error.count("\n") == 1


def test_a_stop_in_a_jobs_last_moment_is_not_lost(tmp_path):
    ws = Workspace(tmp_path)
    with pytest.raises(InterruptedRunError), ws.job():
        ws.stop.request()  # after the job has looked for the last time: it ends well
    assert not ws.job_running


HEARD_IN_A_LINE = """
import logging, os, signal, sys
from hmsa_core.io.errors import InterruptedRunError
from pipeline.cli.stage import prepare_process
from pipeline.workspace.workspace import Workspace

class Stopped:
    def __str__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return "never said"

prepare_process(Workspace(sys.argv[1]))
try:
    logging.info("%s", Stopped())
except InterruptedRunError:
    print("stopped")
logging.info("%d", "text")  # a line that cannot be written is told and ends nothing
print("goes on")
"""


def test_a_stop_that_is_heard_while_a_line_is_logged_is_not_lost(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HEARD_IN_A_LINE, str(tmp_path)], capture_output=True, text=True, check=False, cwd=REPO
    )
    assert (done.returncode, done.stdout) == (0, "stopped\ngoes on\n"), done.stderr
    assert done.stderr.count("Logging error") == 1
