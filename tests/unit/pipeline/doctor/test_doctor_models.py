"""The doctor on models and label stores: the command that it names never makes a damaged model the teacher."""

from __future__ import annotations

import subprocess

import pytest

from hmsa_core import atomic
from pipeline import doctor
from pipeline.cli.main import main
from pipeline.registry import Registry
from pipeline.workspace import Workspace
from tests.support.findings import states


@pytest.mark.parametrize("damage", ['{"teacher": "foo"}', '{"teacher": "models/registry/v0009-abcdef00"}', "{", '"x"'])
def test_a_teacher_that_is_not_there_is_mended_by_the_command_that_is_named(
    workspace: Workspace, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.path("models/current.json").write_text(damage)
    (told,) = [f for f in doctor.examine(workspace.root) if f.name == "teacher"]
    assert told.state == "broken"
    monkeypatch.chdir(workspace.root)
    assert main(told.mend.split()[1:]) == 0
    assert "teacher" not in states(workspace.root)


def test_changed_weights_are_named(workspace: Workspace) -> None:
    sha = atomic.write_bytes(workspace.path("models/teacher/model.safetensors"), b"weights")
    atomic.write_json(workspace.path("models/teacher/model.json"), {"weights_sha256": sha})
    assert states(workspace.root)["models/teacher"] == "ok"
    workspace.path("models/teacher/model.safetensors").write_bytes(b"weightz")
    found = [f for f in doctor.examine(workspace.root) if f.name == "models/teacher"]
    assert found[0].state == "broken"
    assert "dvc checkout models/teacher" in found[0].mend


def test_a_damaged_model_of_which_dvc_has_no_copy_is_not_promised_back(workspace: Workspace) -> None:
    atomic.write_bytes(workspace.path("models/imported/model.safetensors"), b"weights")
    atomic.write_json(workspace.path("models/imported/model.json"), {"weights_sha256": "0" * 64})
    found = {f.name: f for f in doctor.examine(workspace.root)}["models/imported"]
    assert found.state == "broken"
    assert found.mend == "rm -r models/imported  # then import it again: DVC has no copy of it"


@pytest.mark.parametrize("damaged", ["a", "b", "ab"])
@pytest.mark.parametrize("gone", [None, "model.json"])
def test_damaged_registered_models_are_dropped_and_a_whole_one_teaches(
    workspace: Workspace, damaged: str, gone: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, versions = Registry(workspace.root), {}
    for name in "ab":
        folder = workspace.path("models/student")
        sha = atomic.write_bytes(folder / "model.safetensors", name.encode())
        atomic.write_json(folder / "model.json", {"weights_sha256": sha})
        versions[name] = registry.register(folder, role="student", metrics={}, verdict=None)
        registry.promote(versions[name])
    for name in damaged:
        path = versions[name].path / (gone or "model.safetensors")
        path.unlink()
        if not gone:
            path.write_bytes(b"?")
    found = [f for f in doctor.examine(workspace.root) if f.state == "broken"]
    assert {f.name for f in found} >= {f"models/registry/{versions[name].name}" for name in damaged}
    monkeypatch.chdir(workspace.root)
    for command in (c for f in found for c in f.mend.split(" && ")):
        if command.startswith("autolabel "):
            assert main(command.split()[1:]) == 0, command
        else:
            subprocess.run(command, shell=True, check=True)
    assert "broken" not in states(workspace.root).values()
    left = {"a": f"models/registry/{versions['b'].name}", "b": f"models/registry/{versions['a'].name}"}
    assert registry.current() == left.get(damaged, "stage:teacher-train")
    assert registry.champion() == (versions["a"] if damaged == "b" else None)


@pytest.mark.parametrize("gone", ["model.safetensors", "model.json"])
def test_half_a_checkpoint_and_a_torn_record_are_named(workspace: Workspace, gone: str) -> None:
    folder = workspace.path("models/teacher")
    sha = atomic.write_bytes(folder / "model.safetensors", b"weights")
    atomic.write_json(folder / "model.json", {"weights_sha256": sha})
    (folder / gone).unlink()
    found = [f for f in doctor.examine(workspace.root) if f.name == "models/teacher"]
    assert f"{gone} is missing" in found[0].text
    (folder / "model.json").write_text('{"weights_sha')
    (folder / "model.safetensors").write_bytes(b"weights")
    found = [f for f in doctor.examine(workspace.root) if f.name == "models/teacher"]
    assert (found[0].state, found[0].mend) == ("broken", "rm -r models/teacher && dvc checkout models/teacher")
    assert "model.json: not valid JSON" in found[0].text


def test_a_teacher_that_is_gone_is_named(workspace: Workspace) -> None:
    assert "teacher" not in states(workspace.root)
    atomic.write_json(workspace.path("models/current.json"), {"teacher": "models/registry/v0007-01234567"})
    found = [f for f in doctor.examine(workspace.root) if f.name == "teacher"]
    assert (found[0].state, found[0].mend) == ("broken", "autolabel models rollback")


@pytest.mark.parametrize("deep", [True, False])
def test_a_torn_manifest_is_named_with_its_store(workspace: Workspace, deep: bool) -> None:
    atomic.write_text(workspace.path("labels/raw/manifest.json"), '{"digest"')
    found = [f for f in doctor.examine(workspace.root, deep=deep) if f.name == "labels/raw"]
    assert (found[0].state, found[0].mend) == ("broken", "rm -r labels/raw && dvc checkout labels/raw")
