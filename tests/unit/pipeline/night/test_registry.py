"""The registry: promotion writes current.json and nothing else of the workspace; a fault changes nothing."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
from pathlib import Path

import pytest

from hmsa_core.io import atomic, sealed
from hmsa_core.io.errors import ConfigError, HmsaError, InputError, IntegrityError
from hmsa_core.lineage import Lineage
from pipeline.night.reaper import nightly_lock
from pipeline.workspace.registry import Registry, Version, damage
from pipeline.workspace.workspace import Workspace
from tests.support.checkpoints import checkpoint, taught
from tests.support.faults import every_exit, every_fault


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    for name in ("params.yaml", "dvc.yaml"):
        atomic.write_text(tmp_path / name, "")
    atomic.write_json(tmp_path / "models" / "current.json", {"teacher": "stage:teacher-train"})
    return Registry(tmp_path)


@pytest.fixture
def models(registry: Registry, said):
    """`autolabel models ARGUMENTS` in the registry's workspace, as the fixture `said`."""
    return lambda *arguments, status=0: said("models", *arguments, "--workspace", registry.root, status=status)


def _registered(registry: Registry, names: str) -> list[Version]:
    return [registry.register(checkpoint(registry.root / name, name.encode())) for name in names]


def _promoted(registry: Registry, names: str) -> list[Version]:
    found = _registered(registry, names)
    for version in found:
        registry.promote(version)
    return found


def _described(registry: Registry, name: str, **changes: object) -> Path:
    """A checkpoint of the same weights as `name`'s, with another description."""
    other = registry.root / f"{name}2"
    shutil.copytree(registry.root / name, other, dirs_exist_ok=True)
    sealed.write(other / "model.json", atomic.read_json(other / "model.json") | changes)
    return other


def test_rounds_of_auto_labels_are_counted_by_lineage(registry: Registry) -> None:
    def model(name: str, source: str, *parents: str) -> Path:
        shas = (atomic.sha256_bytes(parent.encode()) for parent in parents)
        return checkpoint(registry.root / name, name.encode(), taught(source, *shas))

    assert registry.rounds(model("teacher", "fine")) == 0
    assert registry.rounds(registry.register(model("first", "pseudo", "teacher")).path) == 1
    assert registry.rounds(model("again", "pseudo", "teacher")) == 1, "another student of the first teacher"
    second = registry.register(model("second", "pseudo", "first", "teacher"))
    third = model("third", "pseudo", "second", "first", "teacher")
    assert (registry.rounds(second.path), registry.rounds(third)) == (2, 3)
    registry.register(_described(registry, "first", note="other"))
    assert registry.rounds(third) == 3, "two versions of the same weights are one round"
    assert registry.rounds(checkpoint(registry.root / "imported")) == 0


BAD_TEACHERS = ('{"teacher": "foo"}', '{"teacher": "models/registry/v9-ab"}', "{", '"x"')


@pytest.mark.parametrize(
    ("promoted", "damage"), [*itertools.product(range(3), [*BAD_TEACHERS, None]), (1, "its folder"), (2, "its folder")]
)
def test_rollback_fixes_a_teacher_that_is_not_there(registry: Registry, promoted: int, damage: str | None) -> None:
    found = _promoted(registry, "ab"[:promoted])
    before = ["stage:teacher-train", *(f"models/registry/{version.name}" for version in found)]
    if damage == "its folder":
        shutil.rmtree(registry.root / before.pop())
    elif damage is None:
        registry.current_file.unlink()
        with pytest.raises(ConfigError, match=r"current\.json: missing"):
            registry.current()
    else:
        registry.current_file.write_text(damage)
        with pytest.raises(HmsaError) as error:
            Workspace(registry.root).teacher()
        assert "autolabel models rollback" in error.value.hint
    assert registry.rollback() == before[-1], "who taught last and is there"
    assert registry.current() == before[-1]


def test_a_folder_that_is_no_whole_checkpoint_is_not_registered(registry: Registry) -> None:
    for folder in ("models", "nowhere"):
        with pytest.raises(InputError, match=rf"{folder}: no checkpoint \(model\.json is missing\)"):
            registry.register(registry.root / folder)
    whole = checkpoint(registry.root / "a", lineage=Lineage())
    atomic.write_json(whole / "lineage.json", {"images": ["other"]})
    with pytest.raises(IntegrityError, match="not the one in model.json"):
        registry.register(whole)
    (whole / "model.safetensors").write_bytes(b"b")
    with pytest.raises(IntegrityError, match="differ"):
        registry.register(whole)
    assert registry.versions() == []


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
    third = registry.register(_described(registry, "b", class_table="of other colours"))
    assert third.name.startswith("v0003")
    assert (registry.withdrawn(third.name) or {})["by"] == "ann"
    assert registry.withdrawn(first.name) is None
    registry.promote(third)
    assert registry.withdrawn("v0002-" + third.record["weights_sha256"][:8]) is None


def test_a_torn_record_next_to_a_version_of_the_same_weights_is_fixed_by_its_command(registry: Registry) -> None:
    (first,) = _promoted(registry, "a")
    (first.path / "record.json").write_text("{")
    twin = registry.register(registry.root / "a")
    assert twin.name != first.name
    assert registry.register(first.path).name == first.name
    assert registry.read()[1] == {}
    assert registry.register(twin.path).record == twin.record


def test_a_version_is_weights_and_their_description_and_the_same_ones_repair_it(registry: Registry) -> None:
    (first,) = _promoted(registry, "a")
    history = {"lineage": {"parents": ["q"]}, "extra": {"steps": 2}}  # how they came to be, not what they are
    assert registry.register(_described(registry, "a", **history)).name == first.name
    _damaged(first)
    second = registry.register(_described(registry, "a", class_table="of other classes", **history))
    assert second.name == first.name.replace("v0001", "v0002")
    assert "class_table" not in atomic.read_json(first.path / "model.json")
    again = registry.register(registry.root / "a")
    assert (again.name, damage(again.path)) == (first.name, "")
    assert [v.record for v in registry.versions()] == [first.record, second.record]
    (first.path / "model.json").unlink()  # nothing is known of it any more
    assert registry.register(registry.root / "a").name == first.name


def test_nobody_rolls_back_to_a_damaged_model_or_promotes_one(registry: Registry) -> None:
    first, second, third = _promoted(registry, "abc")
    _damaged(second)
    with pytest.raises(InputError, match=r"cannot roll back: .*model\.safetensors: bytes differ"):
        registry.rollback()
    with pytest.raises(IntegrityError, match="bytes differ"):
        registry.promote(second)
    with pytest.raises(IntegrityError, match="bytes differ"):
        registry.pin_champion(second)
    assert registry.champion() == first
    assert registry.current().endswith(third.name)
    _damaged(third)
    assert registry.rollback().endswith(first.name), "the last whole one, where the teacher is damaged, too"


@pytest.mark.parametrize("user", ["night", "calibrate", "auto-infer", "student-train", "evaluate"])
def test_the_teacher_stays_while_a_night_or_a_stage_uses_it(registry: Registry, models, user: str) -> None:
    first, second = _promoted(registry, "ab")
    with nightly_lock(registry.root) if user == "night" else Workspace(registry.root).lock(user):
        for switch in (["rollback"], ["promote", first.name]):
            assert "is in use by process" in models(*switch, status=75).err
        assert registry.current().endswith(second.name)
    assert first.name in models("rollback").out


def test_a_kill_while_a_version_is_fixed_or_made_loses_no_record(registry: Registry) -> None:
    first, second = _promoted(registry, "ab")
    _damaged(first)
    saved = registry.root / "saved"
    shutil.copytree(registry.root / "models", saved)
    new = checkpoint(registry.root / "c", b"c")
    for source, expected in ((registry.root / "a", 2), (new, 3)):
        for _ in every_exit(lambda folder=source: registry.register(folder)):
            found = registry.versions()
            assert [v.record for v in found[:2]] == [first.record, second.record]
            assert all(not damage(v.path) for v in found[2:]), "what is listed is whole"
            again = registry.register(source)
            assert damage(again.path) == ""
            assert len(registry.versions()) == expected
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


def test_a_reference_champion_that_is_gone_is_named_with_the_command_for_another(registry: Registry, models) -> None:
    first, second = _promoted(registry, "ab")
    shutil.rmtree(first.path)
    with pytest.raises(InputError, match=r"champion\.json: expected one version") as error:
        registry.champion()
    assert "autolabel models pin" in error.value.hint
    for option in ([], ["--json"]):
        printed = models("list", *option)
        assert second.name in printed.out, "models are listed all the same"
        assert f"expected one version named '{first.name}'" in printed.err
        assert "autolabel models pin VERSION" in printed.err
    models("pin", second.name)
    assert registry.champion() == second


def test_a_version_is_refused_where_it_would_be_ignored(registry: Registry, models) -> None:
    _promoted(registry, "abc")
    before = registry.current()
    for action, given in (("rollback", "v0001"), ("list", "v0001"), ("aa", "3")):
        printed = models(action, given, status=2).err
        assert printed.startswith(f"error: autolabel models {action} {given}: takes no version")
        assert "`autolabel models promote VERSION` makes a version the teacher" in printed
    assert registry.current() == before


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_rollback_that_cannot_read_the_reference_champion_switches_nothing(registry: Registry, content: str) -> None:
    first, second = _promoted(registry, "ab")
    champion = registry.folder / "champion.json"
    champion.write_text(content)
    for _ in range(2):
        with pytest.raises(InputError, match=r"champion\.json") as error:
            registry.rollback()
        assert "autolabel models pin VERSION" in error.value.hint
        assert registry.current().endswith(second.name)
    assert [line["action"] for line in registry.history()] == ["promote", "promote"]
    champion.unlink()
    assert registry.rollback().endswith(first.name)


def _with_nan(version: Version) -> Version:
    text = (version.path / "model.json").read_text()
    (version.path / "model.json").unlink()  # a new file: the checkpoint that it came from shares the bytes
    (version.path / "model.json").write_text(text.replace("{", '{"digest": "0", "extra": NaN, ', 1))
    return version


def test_a_version_whose_description_holds_nan_is_a_damaged_one(registry: Registry, models) -> None:
    first, second, third = _promoted(registry, "abc")
    _with_nan(second)
    for *command, status in (("promote", second.name, 4), ("rollback", 3), ("register", second.path, 4)):
        printed = models(*command, status=status).err
        assert f"{second.path / 'model.json'}: not one of our files" in printed
        assert registry.current().endswith(third.name)
    assert registry.register(registry.root / "b").name == second.name
    assert registry.rollback().endswith(second.name), "made whole"
    assert _with_nan(second)
    assert registry.rollback().endswith(first.name), "a damaged teacher"


def test_a_fault_while_promoting_leaves_the_old_or_the_new_teacher(registry: Registry, tmp_path: Path) -> None:
    version = registry.register(checkpoint(tmp_path / "a", b"a"))
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


def test_the_command_lists_and_refuses_in_one_line(registry: Registry, tmp_path: Path, models, said) -> None:
    version = registry.register(checkpoint(tmp_path / "a", b"a"), metrics={"mean_iou": 0.5})
    registry.promote(version)
    assert "50.00" in models("list").out
    first_line = models("list").out.splitlines()[0]
    assert first_line.startswith(f"teacher now: models/registry/{version.name} (promote by ")
    listed = json.loads(models("list", "--json").out)
    assert (listed["champion"], listed["versions"][0]["current"]) == (version.name, True)
    atomic.write_json(version.path / "record.json", version.record | {"metrics": {"mean_iou": None}})
    assert f"{version.name}  mIoU      ?" in models("list").out
    refused = models("promote", "models/student", status=3).err
    assert refused.startswith("error: expected one version named 'models/student'")
    assert "autolabel models register DIR" in refused
    other = registry.register(checkpoint(tmp_path / "teacher", b"b"))
    assert f"{other.name}  mIoU      ?  teacher\n" in models("list").out, "the folder that it was copied from"
    row = {"weights_sha256": other.record["weights_sha256"], "settings": {"multi": {"value": 0.25}}}
    metrics = {"main_setting": "multi", "models": {"student": row}}
    atomic.write_json(tmp_path / "evaluation" / "metrics.json", metrics)
    assert f"{other.name}  mIoU  25.00  teacher\n" in models("list").out, "as it was evaluated later"
    (other.path / "model.safetensors").unlink()
    assert f"(damaged: {other.path / 'model.safetensors'} is missing)" in models("list").out
    assert "which checkpoint?" in models("register", status=2).err
    said("models", "rollback", "--workspace", tmp_path / "nowhere" / "..")
    assert "not a workspace" in said("models", "list", "--workspace", tmp_path.parent, status=2).err


def test_the_list_names_the_network_that_labels_instead_of_the_teacher(registry: Registry, models) -> None:
    assert "auto_infer.teacher" not in models("list").out
    data = "profile: own\ndata: {target: {kind: plain, root: data, classes: cityscapes}}\n"
    atomic.write_text(registry.root / "params.yaml", f"{data}auto_infer: {{teacher: [teacher.yaml, hf:net]}}\n")
    second_line = models("list").out.splitlines()[1]
    assert second_line == "auto-infer labels with auto_infer.teacher instead: teacher.yaml, hf:net"


def test_promotions_are_rolled_back_one_by_one_and_never_in_a_circle(registry: Registry) -> None:
    first, second = _registered(registry, "ab")
    registry.promote(first, by="ann", reason="better")
    registry.promote(second)
    assert (registry.current(), registry.champion()) == (f"models/registry/{second.name}", first)
    registry.promote(first)
    back = [registry.rollback() for _ in range(3)]
    assert back == [f"models/registry/{second.name}", f"models/registry/{first.name}", "stage:teacher-train"]
    with pytest.raises(InputError, match="nothing to roll back"):
        registry.rollback()
    lines = registry.history()
    assert [line["action"] for line in lines] == ["promote"] * 3 + ["rollback"] * 3
    assert (lines[0]["by"], lines[0]["reason"]) == ("ann", "better")
    registry.promote(second)
    registry.promote(first)
    shutil.rmtree(first.path)
    assert registry.rollback() == f"models/registry/{second.name}"  # a repair
    assert registry.rollback() == "stage:teacher-train"


FIGURES = [{"metrics": m} for m in (None, [], {"mean_iou": "0.5"}, {"mean_iou": 1.5}, {"mean_iou": []})]


@pytest.mark.parametrize("record", ["{", '{"number": "x"}', '{"number": null}', *FIGURES])
def test_a_record_that_cannot_be_told_hides_one_version_and_is_written_anew(
    registry: Registry, models, record: str | dict[str, object]
) -> None:
    first, second = _promoted(registry, "ab")
    weights = (first.path / "model.safetensors").read_bytes()
    text = record if isinstance(record, str) else json.dumps(first.record | record)
    (first.path / "record.json").write_text(text)
    for option in ([], ["--json"]):
        printed = models("list", *option)
        assert second.name in printed.out
        why = "" if isinstance(record, str) else ": metrics"
        assert f"warning: {first.name} is not listed: {first.path / 'record.json'}{why}" in printed.err
    with pytest.raises(IntegrityError, match="record.json"):
        registry.get(first.name)
    (third,) = _registered(registry, "c")
    assert third.name.startswith("v0003-")
    models("register", first.path)
    assert [v.name for v in registry.versions()] == [first.name, second.name, third.name]
    assert (first.path / "model.safetensors").read_bytes() == weights


def test_a_model_without_the_list_of_what_it_learned_from_is_damaged(registry: Registry) -> None:
    whole = checkpoint(registry.root / "a", lineage=Lineage())
    version = registry.register(whole)
    (version.path / "lineage.json").unlink()
    assert "lineage.json: missing, though model.json refers to it" in damage(version.path)
    with pytest.raises(IntegrityError, match="lineage"):
        registry.promote(version)
    registry.promote(registry.register(whole))
