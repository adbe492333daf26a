"""The doctor on DVC's files: what blocks every run is named and fixed, and no lock is taken from the living."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.doctor import dvc as doctor_dvc
from pipeline.doctor.dvc import Finding
from pipeline.workspace.workspace import Workspace
from tests.support.findings import found, states


@pytest.mark.parametrize("content", [b"", b'{"read": {"/x": [{"pid"'])
def test_a_torn_dvc_lock_is_found_explained_and_removed_on_request(workspace: Workspace, content: bytes, said) -> None:
    rwlock = workspace.path(".dvc/tmp/rwlock")
    rwlock.write_bytes(content)
    assert "autolabel doctor --fix" in said("doctor", "--workspace", workspace.root, status=1).out
    assert rwlock.exists(), "without --fix nothing is touched"
    assert main(["doctor", "--fix", "--workspace", str(workspace.root)]) == 0
    assert not rwlock.exists()


def test_a_torn_dvc_lock_is_left_alone_while_a_stage_or_dvc_is_at_work(workspace: Workspace) -> None:
    rwlock = workspace.path(".dvc/tmp/rwlock")
    rwlock.write_bytes(b"")
    with workspace.lock("auto-infer"):
        assert doctor_dvc.repair_lock(workspace) is None
    with workspace.path(".dvc/tmp/lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        finding = found(workspace.root, "dvc lock")
        assert (finding.state, finding.fix) == ("warning", "wait for it")
        assert doctor_dvc.repair_lock(workspace) is None
    assert rwlock.exists()
    assert doctor_dvc.repair_lock(workspace) is not None, "free again: nobody is at work"


def test_a_dead_process_in_the_dvc_lock_is_no_fault(workspace: Workspace) -> None:
    entry = {"write": {"models": {"pid": 99_999_999, "cmd": "dvc repro"}}, "read": {}}
    workspace.path(".dvc/tmp/rwlock").write_text(json.dumps(entry))
    findings = found(workspace.root, "dvc lock")
    assert findings.state == "ok"
    assert "drops it by itself" in findings.text


def test_a_process_that_got_the_number_of_a_dead_dvc_blocks_nobody_after_a_fix(workspace: Workspace) -> None:
    rwlock = workspace.path(".dvc/tmp/rwlock")
    rwlock.write_text(json.dumps({"write": {"models": {"pid": os.getpid(), "cmd": "dvc repro"}}, "read": {}}))
    findings = found(workspace.root, "dvc lock")
    assert (findings.state, findings.text) == ("warning", f"held by process {os.getpid()}")
    assert doctor_dvc.repair_lock(workspace) is None, "this process was there when the file was written"

    os.utime(rwlock, (1e9, 1e9))  # written by somebody who is gone since, before this process began
    findings = found(workspace.root, "dvc lock")
    assert (findings.state, findings.fix) == ("broken", "autolabel doctor --fix")
    assert f"names process {os.getpid()}, which began after it was written" in findings.text
    assert main(["doctor", "--fix", "--workspace", str(workspace.root)]) == 0
    assert not rwlock.exists()


@pytest.mark.parametrize(
    ("argument", "state"), [("/venv/bin/dvc", "warning"), ("tests/test_dvc.py", "broken"), ("dvc.yaml", "broken")]
)
def test_dvc_is_known_by_its_program_not_by_a_word_of_another_command_line(
    workspace: Workspace, argument: str, state: str
) -> None:
    rwlock = workspace.path(".dvc/tmp/rwlock")
    with subprocess.Popen([sys.executable, "-c", "input()", argument], stdin=subprocess.PIPE) as process:
        rwlock.write_text(json.dumps({"write": {"models": {"pid": process.pid, "cmd": "dvc repro"}}, "read": {}}))
        os.utime(rwlock, (1e9, 1e9))
        finding = found(workspace.root, "dvc lock")
        process.communicate(b"\n")
    assert finding.state == state


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"stages:\n<<<<<<< HEAD\n  a: {cmd: x}\n=======\n>>>>>>> b\n", "no stages can be read"),
        (b"", "no stages can be read"),
        (b"stages: 3\n", "no stages can be read"),
        ("stages: {}\n# größer\n".encode("latin-1"), "no stages can be read"),
    ],
)
def test_a_stage_file_that_cannot_be_read_is_reported_next_to_the_rest(
    workspace: Workspace, content: bytes, message: str, said
) -> None:
    workspace.path("dvc.yaml").write_bytes(content)
    findings = json.loads(said("doctor", "--json", "--workspace", workspace.root, status=1).out)
    assert any(f["state"] == "broken" and f["fix"] and f"dvc.yaml: {message}" in f["text"] for f in findings)
    assert {"packages", "dvc lock", "disk"} <= {f["name"] for f in findings}


CONFLICT = """schema: '2.0'
stages:
  report:
<<<<<<< HEAD
    cmd: exec autolabel stage report
=======
    cmd: exec autolabel stage report --theirs
>>>>>>> theirs
"""


@pytest.mark.parametrize(
    ("content", "said"), [(CONFLICT, "merge conflict"), ("schema: '2.0'\nstages:\n  report: {cm", "torn"), ("", "torn")]
)
def test_a_lock_file_of_two_branches_or_half_a_one_is_named_with_what_fixes_it(
    workspace: Workspace, content: str, said: str
) -> None:
    lock = workspace.path("dvc.lock")
    assert "dvc.lock" not in states(workspace.root), "a workspace in which nothing ran has none"
    lock.write_text("schema: '2.0'\nstages: {}\n")
    assert states(workspace.root)["dvc.lock"] == "ok"
    lock.write_text(content)
    findings = found(workspace.root, "dvc.lock")
    assert (findings.state, findings.fix) == ("broken", "rm dvc.lock && dvc repro")
    assert said in findings.text


def _site_cache(ws: Workspace, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Finding:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(folder))
    return found(ws.root, "dvc site cache")


def test_a_folder_of_pickles_that_others_can_write_is_reported_until_it_is_private(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folder is closed to others already
        folder = Path(name).resolve() / "cache"
        assert _site_cache(workspace, monkeypatch, folder).state == "ok", "closed to others further up"
        folder.parent.chmod(0o755)
        assert _site_cache(workspace, monkeypatch, folder).state == "warning", "dvc would make it 0777"
        (folder / "repo").mkdir(parents=True)
        (folder / "repo").chmod(0o777)
        printed = _site_cache(workspace, monkeypatch, folder)
        assert (printed.state, str(folder) in printed.text) == ("warning", True)
        (folder / "repo").chmod(0o1777)
        assert _site_cache(workspace, monkeypatch, folder).state == "warning", "they may still be first"
        folder.chmod(0o700)
        assert _site_cache(workspace, monkeypatch, folder).state == "ok"


def test_the_command_that_fixes_the_folder_of_pickles_fixes_it(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o755)
        printed = _site_cache(workspace, monkeypatch, home / "cache")
        monkeypatch.delenv("DVC_SITE_CACHE_DIR")
        monkeypatch.setenv("HOME", name)
        monkeypatch.setenv("XDG_CONFIG_HOME", f"{name}/.config")
        subprocess.run(printed.fix, shell=True, check=True, cwd=tmp_path)
        after = found(workspace.root, "dvc site cache")
        assert (after.state, f"{name}/.cache/dvc-site" in after.text) == ("ok", True)
