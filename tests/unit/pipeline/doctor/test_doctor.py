"""The doctor on machine, parameters and data: each fault is named with the command that fixes it."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from hmsa_core.io import atomic
from pipeline.doctor import checks as doctor
from pipeline.jobs import machine
from pipeline.stages import disk
from pipeline.workspace.workspace import Workspace
from tests.conftest import REPO
from tests.support.chain import set_params
from tests.support.findings import broken, found, states

pytestmark = pytest.mark.long


def test_a_healthy_workspace_has_nothing_broken(workspace: Workspace) -> None:
    message = {f.name: f for f in doctor.examine(workspace.root)}
    assert "broken" not in {f.state for f in message.values()}
    assert re.fullmatch(r"\d+ processors, \d+ GiB memory, (no|\d+) GPUs?", message["machine"].text)
    assert message["python"].text == platform.python_version()
    assert (
        f"torch {metadata.version('torch')}, torchvision {metadata.version('torchvision')}" in message["packages"].text
    )


def test_data_that_are_not_there_or_lie_in_another_layout_are_named_with_what_to_correct(
    workspace: Workspace, tmp_path: Path
) -> None:
    demo = found(tmp_path, "data target")
    assert (demo.state, demo.text) == ("ok", f"{tmp_path}/data/demo/cityscapes")
    shutil.rmtree(tmp_path / "data/demo/mapillary")
    finding = found(tmp_path, "data pretrain")
    assert (finding.state, finding.fix) == ("broken", "autolabel demo-data")
    set_params(tmp_path, {"data.target.root": "gone"})
    finding = found(tmp_path, "data target")
    assert finding.text == f"{tmp_path}/gone: data set folder not found"
    assert finding.fix == "correct data.target.root in params.yaml"
    (tmp_path / "gone/images").mkdir(parents=True)
    finding = found(tmp_path, "data target")
    assert finding.state == "broken", "a folder, but not of the kind that params.yaml states"
    assert finding.text.startswith(f"{tmp_path}/gone: no Cityscapes images found (expected leftImg8bit/")
    assert finding.fix == "correct data.target.root or data.target.kind in params.yaml"


def test_a_shared_memory_that_the_loaders_would_overrun_is_reported_with_the_size_that_they_need(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_SHM", tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=64_000, f_frsize=1000))
    assert "shared memory" not in states(workspace.root), "no loader processes, no need"
    set_params(workspace.root, {"runtime.workers": 50})
    findings = [f for f in doctor.examine(workspace.root) if f.name == "shared memory"]
    (message,) = [f for f in findings if "of teacher_train fill" in f.text]
    assert message.state == "broken"
    assert message.text.startswith(f"{tmp_path} has 64 MB free, the loader processes of teacher_train fill ")
    assert re.search(r"--shm-size=\d+g .*, or lower teacher_train.runtime.workers", message.fix)
    config = workspace.params.teacher_train
    need = 50 * 4 * 4 * config.batch_per_rank * config.crop[0] * config.crop[1] / 1e6
    assert message.text.endswith(f"{need * config.runtime.ranks:.0f} MB")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_infer.scales": [0.25, 1.0, 2.0]}, None),  # half of 0.5: a training's pair
        ({"auto_infer.scales": [0.125, 1.0, 2.5]}, "0.125, 2.5 not among what teacher_train shows (0.25 to 2)"),
        ({"teacher_train.augment.scale_max": 1.0}, "2 not among what teacher_train shows (0.25 to 1)"),
        ({"teacher_train.model.kind": "average"}, None),
        (
            {"teacher_train.model.kind": "average", "teacher_train.augment.scale_min": 0.6},  # no pairs
            "0.5 not among what teacher_train shows (0.6 to 2)",
        ),
        # It learns from 2x of each crop.
        ({"teacher_train.model.kind": "explicit", "auto_infer.scales": [0.5, 1.0, 4.0]}, None),
        (
            {"teacher_train.model.train_scales": [1.0, 2.0], "auto_infer.scales": [0.25, 1.0, 4.0]},
            "0.25 not among what teacher_train shows (0.5 to 4)",
        ),
    ],
)
def test_scales_that_the_training_does_not_show_are_reported(
    workspace: Workspace, changes: dict[str, object], message: str | None
) -> None:
    set_params(workspace.root, changes)
    texts = [f.text for f in doctor.examine(workspace.root) if f.name == "scales"]
    assert texts == ([f"auto_infer.scales: {message}"] if message else [])


def test_a_pretraining_set_that_only_dvc_knows_is_named_with_the_line_to_delete(workspace: Workspace) -> None:
    set_params(workspace.root, {"data.pretrain": None})
    finding = found(workspace.root, "dvc.yaml")
    assert finding.state == "broken"
    subprocess.run(finding.fix, shell=True, check=True, cwd=workspace.root)
    assert "dvc.yaml" not in states(workspace.root)


def test_outside_of_a_workspace_only_the_machine_is_looked_at_unless_one_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = said("doctor", "--quick").out
    assert "not a workspace" in shown
    assert "autolabel init" in shown
    for folder, reported in ((".", "not a workspace"), ("nowhere", "no such folder")):
        assert reported in said("doctor", "--quick", "--workspace", tmp_path / folder, status=2).err


def test_a_folder_inside_of_a_workspace_means_that_workspace_and_commands_say_where_to_go(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, said
) -> None:
    workspace.path(".dvc/tmp/rwlock").write_bytes(b"")
    monkeypatch.chdir(workspace.path("data"))
    shown = said("doctor", "--quick", status=1).out
    assert shown.startswith(f"commands are meant for this folder: cd {workspace.root}\n")
    assert "params.yaml: profile" in shown
    monkeypatch.chdir(workspace.root)
    assert "commands are meant" not in said("doctor", "--quick", status=1).out


def test_a_workspace_that_lost_its_params_is_not_taken_for_the_one_around_it(workspace: Workspace, said) -> None:
    inner = workspace.path("inner")
    atomic.write_bytes(inner / "dvc.yaml", workspace.path("dvc.yaml").read_bytes())
    assert f"{inner}/params.yaml" in said("doctor", "--quick", "--workspace", inner, status=1).out


def test_a_mistake_in_params_is_reported_once(workspace: Workspace) -> None:
    set_params(workspace.root, {"pseudo_label.merge.use_corse": True})
    (message,) = [f for f in doctor.examine(workspace.root) if "use_corse" in f.text]
    assert (message.name, message.state) == ("params.yaml", "broken")
    assert message.fix


def test_more_gpus_than_there_are_and_files_that_are_not_there_are_reported_before_a_stage_refuses(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"pseudo_label.merge.mask": "policies/gone.png", "teacher_train.runtime.device": "cuda"}
    set_params(workspace.root, given)
    monkeypatch.setattr(doctor, "visible_devices", list)
    findings = broken(workspace.root)
    assert findings["params.yaml"].text == "pseudo_label.merge.mask: policies/gone.png is not there"
    assert "no GPU is visible" in findings["teacher_train.runtime"].text
    monkeypatch.setattr(doctor, "visible_devices", lambda: ["GPU-0"])
    assert found(workspace.root, "teacher_train.runtime").text == "ranks is 2, but 1 GPU(s) are visible"
    monkeypatch.setattr(doctor, "visible_devices", lambda: ["GPU-0", "GPU-1"])
    assert "teacher_train.runtime" not in states(workspace.root)


def test_a_torchvision_of_another_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    have = machine.versions() | {"torch": "2.12.0"}
    monkeypatch.setattr(machine, "versions", lambda: have)
    monkeypatch.setattr(machine.metadata, "requires", lambda _name: ["torch==2.15.0", "numpy"])
    assert "needs torch ==2.15.0, installed is 2.12.0" in str(machine.torch_pair())
    monkeypatch.setattr(machine, "versions", lambda: have | {"torch": "2.4.1"})
    assert "2.11 or newer" in str(machine.torch_pair())


def test_a_torch_that_does_not_fit_and_a_disk_that_is_too_small_are_findings_with_their_fix(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "torch_pair", lambda: "torchvision needs torch ==2.15.0, installed is 2.12.0")
    monkeypatch.setattr(doctor, "disk_need", lambda *_: disk.Need(10 << 30, 10 << 30, {}, 1 << 30, Path("/big")))
    findings = broken(workspace.root)
    assert (findings["packages"].text, findings["packages"].fix) == (doctor.torch_pair(), machine.reinstall())
    assert findings["disk"].text == "1.0 GiB free in /big, at most 10.0 GiB needed by a full run"
    assert "dvc gc --workspace" in findings["disk"].fix


def test_the_command_for_wrong_packages_makes_setup_install_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = (REPO / "requirements.lock").read_bytes() + (REPO / "pyproject.toml").read_bytes()
    (tmp_path / f".ready-{hashlib.sha256(pinned).hexdigest()[:16]}").touch()
    monkeypatch.setattr(machine.sys, "prefix", str(tmp_path))
    *first, make = machine.reinstall().split(" && ")

    def installs() -> bool:
        done = subprocess.run(f"{make} -n", shell=True, cwd=REPO, check=True, capture_output=True, text=True)
        return "requirements.lock" in done.stdout

    assert not installs(), "the environment counts as finished, whatever was installed since"
    for command in first:
        subprocess.run(command, shell=True, check=True)
    assert installs()
    assert machine.reinstall() == make, "it failed on the way: the same environment again"


def test_damaged_packages_of_the_right_version_are_removed_first(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / ".ready-0123456789abcdef").touch()
    monkeypatch.setattr(machine.sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setattr(doctor, "torch_works", lambda: "operator torchvision::nms does not exist")
    assert found(workspace.root, "packages").fix == f"rm -r {tmp_path}/env && make setup VENV={tmp_path}/env"


@pytest.mark.parametrize(
    ("number", "fix"),
    [(errno.ENOSPC, "free space"), (errno.EROFS, "mount"), (errno.EACCES, "let this user"), (errno.EFBIG, "ulimit -f")],
)
def test_what_the_disk_refuses_to_the_doctor_has_the_fix_of_that_refusal(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, number: int, fix: str
) -> None:
    def refuses(_: Path) -> None:
        raise OSError(number, os.strerror(number), str(workspace.root / "work"))

    monkeypatch.setattr(doctor, "probe_locks", refuses)
    findings = broken(workspace.root)["check"]
    assert "work" in findings.text
    assert fix in findings.fix


def test_torch_and_torchvision_of_this_environment_work_together() -> None:
    assert machine.torch_works() is None


def test_what_killed_writers_left_is_reported_once_wherever_results_are_put_and_is_no_broken_checkpoint(
    workspace: Workspace,
) -> None:
    dead = "999999999-00000000.tmp"  # no process can have this number
    for name in (
        f"work/evaluate/.x.json.{dead}",
        f"models/.teacher.{dead}/model.safetensors",
        f"labels/.raw.{dead}/shard-00000.parquet",
        f".calibration.{dead}/policy.json",
        "work/.living.1-00000000.tmp",
    ):
        atomic.write_bytes(workspace.path(name), b"four")
    reported = "4 temporary files of killed writers, 16 bytes, swept when their place is written next"
    assert found(workspace.root, "leftovers").text == reported
    assert not [name for name in states(workspace.root) if ".tmp" in name]


def test_a_check_that_fails_in_a_way_nobody_thought_of_is_named_and_the_others_still_speak(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def need(_: Workspace) -> disk.Need:
        raise ZeroDivisionError("division\nby zero")

    whole = states(workspace.root).keys()
    monkeypatch.setattr(doctor, "disk_need", need)
    assert states(workspace.root).keys() == whole
    finding = broken(workspace.root)["disk"]
    assert finding.text == "the check of disk ended early: ZeroDivisionError: division by zero"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("AUTOLABEL_TRACEBACK", "1")
    list(doctor.examine(workspace.root))
    assert "in need" in capsys.readouterr().err, "the command that fixes it says where"
