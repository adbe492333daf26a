"""The doctor on models and label stores: the command that it names never makes a damaged model the teacher."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hmsa_core.io import atomic
from hmsa_core.io.errors import InputError
from hmsa_core.labels.review import ReviewFile
from pipeline.cli.main import main
from pipeline.doctor import checks as doctor
from pipeline.workspace.registry import Registry, Version
from pipeline.workspace.workspace import Workspace
from tests.support.chain import set_params
from tests.support.checkpoints import checkpoint
from tests.support.findings import broken, found, states

pytestmark = pytest.mark.long


def test_a_teacher_that_is_not_there_is_fixed_by_the_command_that_is_named(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "teacher" not in states(workspace.root)
    workspace.path("models/current.json").write_text("{")
    finding = found(workspace.root, "teacher")
    assert (finding.state, finding.fix) == ("broken", "autolabel models rollback")
    monkeypatch.chdir(workspace.root)
    assert main(finding.fix.split()[1:]) == 0
    assert "teacher" not in states(workspace.root)


def test_a_network_that_shall_label_and_is_not_there_is_named(workspace: Workspace) -> None:
    set_params(workspace.root, {"auto_infer.teacher": ["onnx:net.onnx", "models/teacher"]})
    finding = found(workspace.root, "auto_infer.teacher")
    assert (finding.state, finding.fix) == ("broken", "correct it in params.yaml")
    assert finding.text.endswith("net.onnx: no such file")


def test_a_damaged_model_of_which_dvc_has_no_copy_is_not_promised_back(workspace: Workspace) -> None:
    checkpoint(workspace.path("models/imported"), weights_sha256="0" * 64)
    finding = found(workspace.root, "models/imported")
    assert finding.state == "broken"
    assert finding.fix.startswith(
        "rm -f models/imported/model.safetensors models/imported/model.json  # then import it"
    )
    subprocess.run(finding.fix, shell=True, check=True, cwd=workspace.root)
    assert "models/imported" not in states(workspace.root)


def _two_promoted(workspace: Workspace) -> tuple[Registry, dict[str, Version]]:
    registry, versions = Registry(workspace.root), {}
    for name in "ab":
        versions[name] = registry.register(checkpoint(workspace.path("models/student"), name.encode()))
        registry.promote(versions[name])
    return registry, versions


def _fix_all(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Run the command of each finding; names of what was broken. Nothing is, afterwards."""
    found = [f for f in doctor.examine(workspace.root) if f.state == "broken"]
    monkeypatch.chdir(workspace.root)
    for command in (c for f in found for c in f.fix.split(" && ")):
        if command.startswith("autolabel "):
            assert main(command.split()[1:]) == 0, command
        else:
            subprocess.run(command, shell=True, check=True)
    assert "broken" not in states(workspace.root).values()
    return {f.name for f in found}


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights": lambda folder: (folder / "model.safetensors").write_bytes(b"?"),
    "model.json": lambda folder: (folder / "model.json").write_text("{"),
    "NaN": lambda folder: (folder / "model.json").write_text('{"weights_sha256": NaN}'),
    "no model.json": lambda folder: (folder / "model.json").unlink(),
    "weights, and no champion.json": lambda folder: (
        (folder / "model.safetensors").write_bytes(b"?"),
        folder.with_name("champion.json").unlink(missing_ok=True),
    ),
}


@pytest.mark.parametrize("damaged", ["a", "b", "ab"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_registered_models_are_dropped_and_a_whole_one_teaches(
    workspace: Workspace, damaged: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, versions = _two_promoted(workspace)
    shutil.rmtree(workspace.path("models/student"))
    for name in damaged:
        DAMAGES[kind](versions[name].path)
    assert _fix_all(workspace, monkeypatch) >= {f"models/registry/{versions[name].name}" for name in damaged}
    left = {"a": f"models/registry/{versions['b'].name}", "b": f"models/registry/{versions['a'].name}"}
    assert registry.current() == left.get(damaged, "stage:teacher-train")
    assert registry.champion() == (versions["a"] if damaged == "b" and "champion" not in kind else None)


@pytest.mark.parametrize("damaged", ["a", "b", "ab"])
@pytest.mark.parametrize("text", ["{", '{"number": 7, "metrics": null}'])
def test_a_torn_record_costs_no_weights_and_no_teacher(
    workspace: Workspace, damaged: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, versions = _two_promoted(workspace)
    shutil.rmtree(workspace.path("models/student"))
    before = registry.current(), registry.history(), [v.name for v in registry.versions()]
    for name in damaged:
        (versions[name].path / "record.json").write_text(text)
    assert _fix_all(workspace, monkeypatch) >= {f"models/registry/{versions[name].name}" for name in damaged}
    assert (registry.current(), registry.history(), [v.name for v in registry.versions()]) == before
    assert registry.champion() is not None


def test_a_damaged_registered_model_with_a_whole_twin_is_made_whole(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, versions = _two_promoted(workspace)  # models/student has b's weights
    (versions["b"].path / "model.safetensors").unlink()
    before = registry.history()
    assert _fix_all(workspace, monkeypatch) == {f"models/registry/{versions['b'].name}"}
    assert registry.versions() == list(versions.values())
    assert (registry.current(), registry.history()) == (f"models/registry/{versions['b'].name}", before)


@pytest.mark.parametrize("damage", ["{", "{}", '{"version": "v0009-01234567"}'])
def test_a_champion_that_nobody_can_find_is_named(
    workspace: Workspace, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, _ = _two_promoted(workspace)
    workspace.path("models/registry/champion.json").write_text(damage)
    with pytest.raises(InputError, match=r"champion\.json"):
        registry.champion()
    assert _fix_all(workspace, monkeypatch) == {"champion"}
    assert registry.champion() is None


def test_damage_of_a_checkpoint_is_named_next_to_the_other_models_and_taken_from_dvcs_cache(
    workspace: Workspace,
) -> None:
    workspace.path("dvc.lock").write_text("schema: '2.0'\n")
    checkpoint(workspace.path("models/student"))
    atomic.write_bytes(workspace.path("models/model.pth"), b"released")  # files of others are no checkpoints
    atomic.write_bytes(workspace.path("models/registry/model.txt"), b"notes")
    folder = workspace.path("models/teacher")
    damages: dict[str, Callable[[], object]] = {
        "model.safetensors: bytes differ": lambda: (folder / "model.safetensors").write_bytes(b"weightz"),
        "model.safetensors is missing": (folder / "model.safetensors").unlink,
        "model.json is missing": (folder / "model.json").unlink,
        "model.json: not one of our files": lambda: (folder / "model.json").write_text('{"weights_sha'),
        f"{folder / 'model.json'}: not one of our files": lambda: (folder / "model.json").write_text('{"extra": NaN}'),
    }
    for text, damage in damages.items():
        checkpoint(folder)
        damage()
        findings = broken(workspace.root)
        assert set(findings) == {"models/teacher"}
        assert text in findings["models/teacher"].text
        assert findings["models/teacher"].fix == "rm -r models/teacher && dvc checkout models/teacher"
    checkpoint(folder)
    assert states(workspace.root)["models/teacher"] == "ok"


@pytest.mark.parametrize("deep", [True, False])
def test_a_torn_manifest_is_named_with_its_store(workspace: Workspace, deep: bool) -> None:
    atomic.write_text(workspace.path("labels/raw/manifest.json"), '{"digest"')
    finding = found(workspace.root, "labels/raw", deep=deep)
    again = "rm -r labels/raw work/auto-infer && autolabel run --to auto-infer"  # DVC has no copy
    assert (finding.state, finding.fix) == ("broken", again)
    workspace.path("dvc.lock").write_text("schema: '2.0'\n")
    assert found(workspace.root, "labels/raw", deep=deep).fix == "rm -r labels/raw && dvc checkout labels/raw"


# -- files that no stage makes again ---------------------------------------------------------------------

REVIEW = '{"id": "0", "name": "", "withdraws": ""}\n'
WHOLE = {
    "work/nightly/history.jsonl": '{"night": {}}\n',
    "models/registry/history.jsonl": '{"action": "promote", "from": "stage:teacher-train", "to": "x"}\n',
    "models/registry/looks.jsonl": '{"candidate": "a", "images": "b"}\n',
    "labels/raw.review.jsonl": REVIEW,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_line_is_fixed_by_the_command_that_is_named(workspace: Workspace, name: str) -> None:
    path = workspace.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(WHOLE[name])
    assert name not in states(workspace.root)
    path.write_text(WHOLE[name] + '{"id": "q1", "name": "new__drive17_')
    findings = broken(workspace.root)
    assert set(findings) == {name}
    assert f"{path}: line 2 is not" in findings[name].text
    subprocess.run(findings[name].fix, shell=True, check=True, cwd=workspace.root)
    assert path.read_text() == WHOLE[name]
    assert name not in states(workspace.root)


@pytest.mark.parametrize("name", ["policies", "labels/raw.review.jsonl"])
def test_what_dvc_asks_for_and_no_stage_makes_is_named_when_it_is_gone(workspace: Workspace, name: str) -> None:
    path = workspace.path(name)
    path.rmdir() if path.is_dir() else path.unlink()
    findings = broken(workspace.root)
    assert set(findings) == {name}
    subprocess.run(findings[name].fix, shell=True, check=True, cwd=workspace.root)
    assert name not in states(workspace.root)
    assert ReviewFile(workspace.path("labels/raw")).marks() == []
