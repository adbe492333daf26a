"""The registry: promotion writes current.json and nothing else of the workspace; a fault changes nothing."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from hmsa_core.io import atomic, sealed
from hmsa_core.io.errors import ConfigError, HmsaError, InputError, IntegrityError
from pipeline.checkpoint_folders import damage
from pipeline.cli.main import main
from pipeline.nightly.registry import Registry, Version
from pipeline.workspace import Workspace
from tests.support.faults import every_exit, every_fault


def _checkpoint(folder: Path, content: bytes) -> Path:
    sha = atomic.write_bytes(folder / "model.safetensors", content)
    sealed.write(folder / "model.json", {"weights_sha256": sha, "lineage": {"parents": ["p"]}})
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    for name in ("params.yaml", "dvc.yaml"):
        atomic.write_text(tmp_path / name, "")
    atomic.write_json(tmp_path / "models" / "current.json", {"teacher": "stage:teacher-train"})
    return Registry(tmp_path)


def test_promote_and_roll_back(registry: Registry, tmp_path: Path) -> None:
    first = registry.register(_checkpoint(tmp_path / "a", b"a"), metrics={"mean_iou": 0.5})
    registry.promote(first, by="ann", reason="better")
    second = registry.register(_checkpoint(tmp_path / "b", b"b"))
    registry.promote(second)
    assert registry.current() == f"models/registry/{second.name}"
    assert registry.champion() is not None
    assert registry.champion().name == first.name  # type: ignore[union-attr]
    assert registry.rollback() == f"models/registry/{first.name}"
    assert registry.rollback() == "stage:teacher-train"
    with pytest.raises(InputError, match="nothing to roll back"):
        registry.rollback()
    assert [h["action"] for h in registry.history()] == ["promote", "promote", "rollback", "rollback"]
    assert registry.history()[0]["by"] == "ann"


@pytest.mark.parametrize(
    ("promoted", "damage"),
    [
        *(
            (n, text)
            for n in range(3)
            for text in ('{"teacher": "foo"}', '{"teacher": "models/registry/v9-ab"}', "{", '"x"')
        ),
        (0, None),
        (1, None),
        (1, "its folder"),
        (2, "its folder"),
    ],
)
def test_rollback_mends_a_teacher_that_is_not_there(
    registry: Registry, tmp_path: Path, promoted: int, damage: str | None
) -> None:
    before = ["stage:teacher-train"]
    for name in ("a", "b")[:promoted]:
        version = registry.register(_checkpoint(tmp_path / name, name.encode()))
        registry.promote(version)
        before.append(f"models/registry/{version.name}")
    if damage == "its folder":
        shutil.rmtree(registry.root / before.pop())
    elif damage is None:
        registry.current_file.unlink()
    else:
        registry.current_file.write_text(damage)
        with pytest.raises(HmsaError) as told:
            Workspace(registry.root).teacher()
        assert "autolabel models rollback" in told.value.hint
    assert registry.rollback() == before[-1], "who taught last and is there"
    assert registry.current() == before[-1]


@pytest.mark.parametrize("folder", ["models", "nowhere"])
def test_a_folder_without_a_checkpoint_is_not_registered(registry: Registry, folder: str) -> None:
    with pytest.raises(InputError, match=rf"{folder}: no checkpoint \(model\.json is missing\)"):
        registry.register(registry.root / folder)
    assert registry.versions() == []


def test_the_same_weights_are_registered_once(registry: Registry, tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "a", b"a")
    versions = [registry.register(checkpoint) for _ in range(2)]
    assert versions[0].name == versions[1].name
    assert len(registry.versions()) == 1


def test_a_changed_weight_file_is_refused(registry: Registry, tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "a", b"a")
    (checkpoint / "model.safetensors").write_bytes(b"b")
    with pytest.raises(IntegrityError, match="differ"):
        registry.register(checkpoint)


def _promoted(registry: Registry, names: str) -> list[Version]:
    found = []
    for name in names:
        checkpoint = _checkpoint(registry.root / name, name.encode())
        found.append(registry.register(checkpoint))
        registry.promote(found[-1])
    return found


def _damaged(version: Version) -> Version:
    (version.path / "model.safetensors").unlink()  # a new file: the checkpoint that it came from shares the bytes
    (version.path / "model.safetensors").write_bytes(b"?")
    return version


def test_a_rollback_that_was_cut_short_can_be_done_again(registry: Registry) -> None:
    first, _ = _promoted(registry, "ab")
    saved = registry.root / "saved"
    shutil.copytree(registry.root / "models", saved)
    for faults in (every_exit(registry.rollback), every_fault(registry.rollback, errno.EIO)):
        for _ in faults:
            if registry.current().endswith("v0002-" + registry.get("v0002").record["weights_sha256"][:8]):
                assert registry.withdrawn(registry.get("v0002").name) is None, "it teaches still"
                assert registry.rollback().endswith(first.name)
            assert registry.rollback() == "stage:teacher-train"
            shutil.rmtree(registry.root / "models")
            shutil.copytree(saved, registry.root / "models")
        assert registry.rollback() == "stage:teacher-train" or registry.current().endswith(first.name)
        shutil.rmtree(registry.root / "models")
        shutil.copytree(saved, registry.root / "models")


def test_after_a_rollback_that_was_cut_short_the_stack_is_what_it_was(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _promoted(registry, "ab")
    real = atomic.write_json

    def write(path: Path, value: object) -> str:
        if path.name == "current.json":
            raise OSError(errno.EIO, "disk")
        return real(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_json", write)
        with pytest.raises(OSError, match="disk"):
            registry.rollback(by="ann")
    _promoted(registry, "c")
    assert [registry.rollback() for _ in range(3)] == [
        f"models/registry/{second.name}",
        f"models/registry/{first.name}",
        "stage:teacher-train",
    ]


def test_a_word_against_weights_holds_for_every_description_of_them(registry: Registry) -> None:
    first, _ = _promoted(registry, "ab")
    registry.rollback(by="ann")
    again = registry.root / "b2"
    shutil.copytree(registry.root / "b", again)
    meta = atomic.read_json(again / "model.json")
    sealed.write(again / "model.json", {**meta, "class_table": "of other colours"})
    third = registry.register(again)
    assert third.name.startswith("v0003")
    assert (registry.withdrawn(third.name) or {})["by"] == "ann"
    assert registry.withdrawn(first.name) is None
    registry.promote(third)
    assert registry.withdrawn("v0002-" + third.record["weights_sha256"][:8]) is None


def test_a_torn_record_beside_a_version_of_the_same_weights_is_mended_by_its_command(registry: Registry) -> None:
    (first,) = _promoted(registry, "a")
    (first.path / "record.json").write_text("{")
    twin = registry.register(registry.root / "a")
    assert twin.name != first.name
    assert registry.register(first.path).name == first.name
    assert registry.torn() == {}
    assert registry.register(twin.path).record == twin.record


def test_a_damaged_version_is_not_mended_with_another_description(registry: Registry) -> None:
    (first,) = _promoted(registry, "a")
    _damaged(first)
    other = registry.root / "a2"
    shutil.copytree(registry.root / "a", other)
    meta = atomic.read_json(other / "model.json")
    sealed.write(other / "model.json", {**meta, "class_table": "of other classes"})
    second = registry.register(other)
    assert second.name != first.name
    assert "class_table" not in atomic.read_json(first.path / "model.json")
    (first.path / "model.json").unlink()  # nothing is known of it any more
    assert registry.register(registry.root / "a").name == first.name


def test_nobody_rolls_back_to_a_damaged_model_or_promotes_one(registry: Registry) -> None:
    first, second = _promoted(registry, "ab")
    _damaged(first)
    with pytest.raises(InputError, match=r"cannot roll back: .*model\.safetensors: bytes differ"):
        registry.rollback()
    with pytest.raises(IntegrityError, match="bytes differ"):
        registry.promote(first)
    assert registry.current().endswith(second.name)


def test_a_damaged_teacher_is_rolled_back_to_the_last_whole_one(registry: Registry) -> None:
    first, second, third = _promoted(registry, "abc")
    _damaged(second)
    _damaged(third)
    assert registry.rollback().endswith(first.name)


def test_registering_the_same_weights_again_mends_a_damaged_version(registry: Registry) -> None:
    (version,) = _promoted(registry, "a")
    _damaged(version)
    again = registry.register(registry.root / "a")
    assert (again.name, damage(again.path)) == (version.name, "")
    assert [v.record for v in registry.versions()] == [version.record]


def test_a_kill_while_a_version_is_mended_or_made_loses_no_record(registry: Registry) -> None:
    first, second = _promoted(registry, "ab")
    _damaged(first)
    saved = registry.root / "saved"
    shutil.copytree(registry.root / "models", saved)
    new = _checkpoint(registry.root / "c", b"c")
    for checkpoint, expected in ((registry.root / "a", [first, second]), (new, [first, second, None])):
        for _ in every_exit(lambda folder=checkpoint: registry.register(folder)):
            found = registry.versions()
            assert [v.record for v in found[:2]] == [first.record, second.record]
            assert all(not damage(v.path) for v in found[2:]), "what is listed is whole"
            again = registry.register(checkpoint)
            assert damage(again.path) == ""
            assert len(registry.versions()) == len(expected)
            shutil.rmtree(registry.root / "models")
            shutil.copytree(saved, registry.root / "models")


def test_a_model_that_cannot_be_read_is_a_damaged_one(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = _promoted(registry, "ab")
    real = atomic.sha256_file

    def read(path: Path) -> str:
        if path.parent.name.startswith("v0002"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(atomic, "sha256_file", read)
    assert registry.rollback().endswith(first.name)


def test_a_withdrawn_model_is_no_bar_for_later_ones(registry: Registry) -> None:
    first, second = _promoted(registry, "ab")
    registry.rollback()
    assert registry.champion() == first, "it was the reference before, too"
    registry.pin_champion(second)
    registry.promote(second)
    registry.rollback()
    assert registry.champion() == first
    registry.rollback()
    assert registry.champion() is None
    registry.promote(second)
    assert registry.champion() == second


def test_a_repair_is_nobodys_word_against_a_model_and_a_rollback_stands(registry: Registry) -> None:
    first, second = _promoted(registry, "ab")
    registry.rollback(by="ann")
    _damaged(first)
    assert registry.rollback() == "stage:teacher-train", "not the one that ann withdrew"
    assert registry.withdrawn(first.name) is None
    assert (registry.withdrawn(second.name) or {})["by"] == "ann"


def test_a_reference_champion_that_is_gone_is_named_with_the_command_for_another(registry: Registry) -> None:
    first, second = _promoted(registry, "ab")
    shutil.rmtree(first.path)
    with pytest.raises(InputError, match=r"champion\.json: no single version") as error:
        registry.champion()
    assert "autolabel models pin" in error.value.hint
    registry.pin_champion(second)
    assert registry.champion() == second


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_models_are_listed_though_the_reference_champion_is_gone(
    registry: Registry, tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = _promoted(registry, "ab")
    shutil.rmtree(first.path)
    assert main(["models", "list", "--workspace", str(tmp_path), *option]) == 0
    said = capsys.readouterr()
    assert second.name in said.out
    assert f"no single version '{first.name}'" in said.err
    assert "autolabel models pin VERSION" in said.err
    assert main(["models", "pin", second.name, "--workspace", str(tmp_path)]) == 0


@pytest.mark.parametrize(("action", "given"), [("rollback", "v0001"), ("list", "v0001"), ("aa", "3")])
def test_a_version_is_refused_where_it_would_be_ignored(
    registry: Registry, tmp_path: Path, action: str, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _promoted(registry, "abc")
    before = registry.current()
    assert main(["models", action, given, "--workspace", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: autolabel models {action} {given}: takes no version")
    assert "`autolabel models promote VERSION` chooses" in told
    assert registry.current() == before


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_rollback_that_cannot_read_the_reference_champion_switches_nothing(registry: Registry, content: str) -> None:
    first, second = _promoted(registry, "ab")
    champion = registry.folder / "champion.json"
    champion.write_text(content)
    for _ in range(2):
        with pytest.raises(InputError, match=r"champion\.json") as told:
            registry.rollback()
        assert "autolabel models pin VERSION" in told.value.hint
        assert registry.current().endswith(second.name)
    assert [line["action"] for line in registry.history()] == ["promote", "promote"]
    champion.unlink()
    assert registry.rollback().endswith(first.name)


def _with_nan(version: Version) -> Version:
    text = (version.path / "model.json").read_text()
    (version.path / "model.json").unlink()  # a new file: the checkpoint that it came from shares the bytes
    (version.path / "model.json").write_text(text.replace("{", '{"digest": "0", "extra": NaN, ', 1))
    return version


def test_a_version_whose_description_holds_nan_is_a_damaged_one(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = _promoted(registry, "abc")
    _with_nan(second)
    for command in (["promote", second.name], ["rollback"], ["register", str(second.path)]):
        assert main(["models", *command, "--workspace", str(tmp_path)]) in (3, 4)
        assert f"{second.path / 'model.json'}: not one of our files" in capsys.readouterr().err
        assert registry.current().endswith(third.name)
    assert registry.register(registry.root / "b").name == second.name
    assert registry.rollback().endswith(second.name), "made whole"
    assert _with_nan(second)
    assert registry.rollback().endswith(first.name), "a damaged teacher"


@pytest.mark.parametrize("metrics", [None, [], {"mean_iou": "0.5"}, {"mean_iou": 1.5}, {"mean_iou": []}])
def test_a_record_with_figures_that_cannot_be_told_hides_one_version(
    registry: Registry, tmp_path: Path, metrics: object, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = _promoted(registry, "ab")
    (first.path / "record.json").write_text(json.dumps(first.record | {"metrics": metrics}))
    for option in ([], ["--json"]):
        assert main(["models", "list", "--workspace", str(tmp_path), *option]) == 0
        told = capsys.readouterr()
        assert second.name in told.out
        assert f"warning: {first.name} is not listed: {first.path / 'record.json'}: metrics" in told.err
    assert main(["models", "register", str(first.path), "--workspace", str(tmp_path)]) == 0
    assert [v.name for v in registry.versions()] == [first.name, second.name]


def test_a_record_without_a_mean_iou_is_listed(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = _promoted(registry, "a")
    atomic.write_json(first.path / "record.json", first.record | {"metrics": {"mean_iou": None}})
    assert main(["models", "list", "--workspace", str(tmp_path)]) == 0
    assert f"{first.name}  mIoU      ?" in capsys.readouterr().out


def test_a_fault_while_promoting_leaves_the_old_or_the_new_teacher(registry: Registry, tmp_path: Path) -> None:
    version = registry.register(_checkpoint(tmp_path / "a", b"a"))
    saved = tmp_path / "saved"
    shutil.copytree(tmp_path / "models", saved)
    for _ in every_fault(lambda: registry.promote(version), errno.ENOSPC):
        assert registry.current() in ("stage:teacher-train", f"models/registry/{version.name}")
        assert registry.current() == "stage:teacher-train" or registry.champion() == version, (
            "a teacher has a reference"
        )
        shutil.rmtree(tmp_path / "models")
        shutil.copytree(saved, tmp_path / "models")
    assert registry.current().endswith(version.name)


def test_the_command_lists_and_refuses_in_one_line(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.promote(registry.register(_checkpoint(tmp_path / "a", b"a"), metrics={"mean_iou": 0.5}))
    assert main(["models", "list", "--workspace", str(tmp_path)]) == 0
    assert "50.00" in capsys.readouterr().out
    assert main(["models", "list", "--json", "--workspace", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["versions"][0]["current"] is True
    assert main(["models", "promote", "v9", "--workspace", str(tmp_path)]) == 3
    assert capsys.readouterr().err.startswith("error: no single version 'v9'")
    assert main(["models", "register", "--workspace", str(tmp_path)]) == 2
    assert "which checkpoint?" in capsys.readouterr().err
    assert main(["models", "rollback", "--workspace", str(tmp_path / "nowhere" / "..")]) == 0
    assert main(["models", "list", "--workspace", str(tmp_path.parent)]) == 2
    assert "not a workspace" in capsys.readouterr().err


def test_a_workspace_without_a_teacher_file_says_how_to_mend_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"current\.json: missing"):
        Registry(tmp_path).current()


def _registered(registry: Registry, tmp_path: Path, *names: str) -> list[Version]:
    return [registry.register(_checkpoint(tmp_path / name, name.encode())) for name in names]


def test_rolling_back_never_goes_in_a_circle(registry: Registry, tmp_path: Path) -> None:
    first, second = _registered(registry, tmp_path, "a", "b")
    for version in (first, second, first):
        registry.promote(version)
    back = [registry.rollback() for _ in range(3)]
    assert back == [f"models/registry/{second.name}", f"models/registry/{first.name}", "stage:teacher-train"]
    with pytest.raises(InputError, match="nothing to roll back"):
        registry.rollback()
    registry.promote(second)
    registry.promote(first)
    shutil.rmtree(first.path)
    assert registry.rollback() == f"models/registry/{second.name}"  # a repair
    assert registry.rollback() == "stage:teacher-train"


def test_the_same_weights_with_another_description_are_another_version(registry: Registry, tmp_path: Path) -> None:
    (first,) = _registered(registry, tmp_path, "a")
    again = _checkpoint(tmp_path / "again", b"a")
    assert registry.register(again).name == first.name
    meta = atomic.read_json(again / "model.json") | {"lineage": {"parents": ["q"]}, "extra": {"steps": 2}}
    sealed.write(again / "model.json", meta)
    assert registry.register(again).name == first.name
    sealed.write(again / "model.json", meta | {"class_table": {"classes": ["kerb"]}})
    corrected = registry.register(again)
    assert (corrected.name, first.name) == (first.name.replace("v0001", "v0002"), first.name)
    assert atomic.read_json(corrected.path / "model.json")["class_table"] == {"classes": ["kerb"]}
    assert "class_table" not in atomic.read_json(first.path / "model.json")


@pytest.mark.parametrize("text", ["{", '{"number": "x"}', '{"number": null}'])
def test_a_torn_record_hides_one_version_and_is_written_anew(
    registry: Registry, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = _registered(registry, tmp_path, "a", "b")
    registry.promote(first)
    weights = (first.path / "model.safetensors").read_bytes()
    (first.path / "record.json").write_text(text)
    assert main(["models", "list", "--workspace", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert second.name in told.out
    assert f"warning: {first.name} is not listed: {first.path / 'record.json'}" in told.err
    with pytest.raises(IntegrityError, match="record.json"):
        registry.get(first.name)
    (third,) = _registered(registry, tmp_path, "c")
    assert third.name.startswith("v0003-")
    assert registry.register(first.path).name == first.name
    assert [v.name for v in registry.versions()] == [first.name, second.name, third.name]
    assert (first.path / "model.safetensors").read_bytes() == weights


def test_a_model_without_the_list_of_what_it_learned_from_is_damaged(registry: Registry, tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path / "a", b"a")
    digest = atomic.write_json(checkpoint / "lineage.json", {"images": []})
    meta = atomic.read_json(checkpoint / "model.json")
    sealed.write(checkpoint / "model.json", meta | {"lineage": {"lineage_sha256": digest}})
    version = registry.register(checkpoint)
    (version.path / "lineage.json").unlink()
    assert "lineage.json: missing, though model.json refers to it" in damage(version.path)
    with pytest.raises(IntegrityError, match="lineage"):
        registry.promote(version)
    registry.register(checkpoint)
    registry.promote(version)
    atomic.write_json(checkpoint / "lineage.json", {"images": ["other"]})
    with pytest.raises(IntegrityError, match="not the one in model.json"):
        registry.register(checkpoint)
