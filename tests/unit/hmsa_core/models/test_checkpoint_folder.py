"""Our checkpoint folder: same weights back, digest first, no half-written state, parents by name."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hmsa_core import models, taxonomy
from hmsa_core.io import sealed
from hmsa_core.io.errors import CheckpointError, IntegrityError
from hmsa_core.models.checkpoint import read_weights, unwrap, write_checkpoint
from tests.support.faults import every_fault
from tests.support.hostile import HOSTILE, Gadget

TABLE = taxonomy.cityscapes().to_json()


def micro(kind: str = "hierarchical", classes: int = 5, seed: int = 0, **options: Any) -> models.MultiScaleModel:
    torch.manual_seed(seed)
    return models.build(kind, trunk="hrnet_micro", num_classes=classes, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.save(
        micro(head="paper", low_scale=0.4),
        tmp_path / "model",
        class_table=TABLE,
        lineage={"images": {"ab": "aachen_000000_000019"}},
        inference={"scales": [0.5, 1.0], "flip": False},
        extra={"epochs": 3},
    )
    return tmp_path / "model"


def _change_record(folder: Path, **change: Any) -> None:
    """Edit the JSON as somebody would who knows its digest."""
    meta = json.loads((folder / "model.json").read_text()) | change
    sealed.write(folder / "model.json", meta)


@pytest.mark.parametrize("name", ["", "model.json", "model.safetensors"])
def test_the_folder_or_either_file_gives_the_same_model_back(folder: Path, name: str) -> None:
    model = models.load(folder / name)
    original = micro(head="paper", low_scale=0.4)
    assert all(torch.equal(t, model.state_dict()[key]) for key, t in original.state_dict().items())
    assert model.config == original.config
    assert not model.training
    assert model.meta["class_table"] == TABLE
    assert model.meta["lineage"] == {"images": {"ab": "aachen_000000_000019"}}
    assert model.meta["inference"] == {"scales": [0.5, 1.0], "flip": False}
    assert model.meta["extra"] == {"epochs": 3}
    state = model.state_dict()
    assert (model.meta["tensors"], model.meta["values"]) == (len(state), sum(t.numel() for t in state.values()))
    image = torch.ones(1, 3, 32, 32)
    assert torch.equal(model.predict(image).logits, original.predict(image).logits)


def test_a_loaded_model_can_be_trained_on_and_is_on_the_device_that_is_asked_for(folder: Path) -> None:
    model = models.load(folder).train()
    model(torch.ones(2, 3, 32, 32)).logits.sum().backward()
    assert all(p.requires_grad for p in model.parameters())
    assert {p.device.type for p in models.load(folder, "meta").parameters()} == {"meta"}


def test_the_digest_depends_on_the_weights_only(tmp_path: Path) -> None:
    model = micro()
    first = models.save(model, tmp_path / "a", class_table=None, lineage={})
    other = models.save(
        micro().to(memory_format=torch.channels_last), tmp_path / "b", class_table=TABLE, lineage={"x": 1}
    )
    with torch.no_grad():
        model.backbone.conv1.weight[0, 0, 0, 0] += 1e-6
    changed = models.save(model, tmp_path / "c", class_table=None, lineage={})
    assert first == other != changed
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_reading_the_json_needs_no_torch(folder: Path) -> None:
    code = f"""
import sys
from hmsa_core.models import read_meta
meta = read_meta({str(folder)!r})
assert meta["kind"] == "hierarchical" and meta["num_classes"] == 5
assert "torch" not in sys.modules and "safetensors" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["single", "average", "max"])
def test_one_checkpoint_serves_the_baselines(folder: Path, kind: str) -> None:
    model = models.load(folder, kind=kind)
    assert model.kind == kind
    image = torch.randn(1, 3, 32, 32)
    expected = models.as_kind(models.load(folder), kind).predict(image, (0.5, 1.0)).logits
    assert torch.equal(model.predict(image, (0.5, 1.0)).logits, expected)
    models.save(model, folder.parent / "plain", class_table=None, lineage={})
    assert "scale_attn.conv0.weight" not in models.load(folder.parent / "plain").state_dict()
    with pytest.raises(Exception, match="attention head"):
        models.load(folder.parent / "plain", kind="hierarchical")


def test_wrapped_models_are_unwrapped(tmp_path: Path) -> None:
    class Wrapper(torch.nn.Module):  # DistributedDataParallel and torch.compile keep the model like this
        def __init__(self, inner: torch.nn.Module, name: str) -> None:
            super().__init__()
            setattr(self, name, inner)

    model = micro()
    wrapped = Wrapper(Wrapper(model, "_orig_mod"), "module")
    assert unwrap(wrapped) is model
    assert models.save(wrapped, tmp_path / "m", class_table=None, lineage={}) == models.save(
        model, tmp_path / "n", class_table=None, lineage={}
    )
    with pytest.raises(TypeError, match="Linear"):
        unwrap(torch.nn.Linear(1, 1))


# ------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("position", [8, 300, -1, 0.3, 0.7])
def test_a_flipped_bit_is_found_before_a_tensor_is_used(folder: Path, position: float) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    index = int(position * len(data)) if isinstance(position, float) else position
    data[index] ^= 1
    file.write_bytes(data)
    for use in (models.load, partial(models.initialise_from, micro())):
        with pytest.raises(IntegrityError, match="SHA-256"):
            use(folder)


def test_weights_and_record_of_two_checkpoints_do_not_go_together(folder: Path) -> None:
    models.save(micro(head="paper", low_scale=0.4, seed=9), folder.parent / "other", class_table=TABLE, lineage={})
    (folder.parent / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(IntegrityError, match="SHA-256"):
        models.load(folder)


def put_weights(folder: Path, data: bytes) -> None:
    """Other bytes as weights, below their own digest."""
    (folder / "model.safetensors").write_bytes(data)
    _change_record(folder, weights_sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_are_refused_even_below_their_own_digest(folder: Path, name: str) -> None:
    put_weights(folder, HOSTILE[name])
    for use in (models.load, partial(models.initialise_from, micro())):
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            use(folder)


def test_a_pickle_in_the_place_of_the_weights_is_not_run(folder: Path, tmp_path: Path) -> None:
    canary, stream = tmp_path / "canary", io.BytesIO()
    torch.save({"x": Gadget(canary)}, stream)
    put_weights(folder, stream.getvalue())
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        models.load(folder)
    assert not canary.exists()


def test_a_save_that_was_cut_short_is_no_checkpoint(folder: Path) -> None:
    (folder / "model.json").unlink()
    hint = "give a folder with model.json and model.safetensors"
    with pytest.raises(CheckpointError) as unfinished:
        models.load(folder)
    assert unfinished.value.message == f"{folder}: an unfinished save (weights without model.json); {hint}"
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as none:
        models.load(folder)
    assert none.value.message == f"{folder}: no checkpoint; {hint}"


@pytest.mark.parametrize("saved_before", [False, True])
def test_a_folder_that_holds_other_files_keeps_them_and_never_has_a_mixed_checkpoint(
    folder: Path, tmp_path: Path, saved_before: bool
) -> None:
    target, kept, about = tmp_path / "mine", tmp_path / "kept", models.read_meta(folder)
    target.mkdir()
    if saved_before:
        write_checkpoint(target, {"w": torch.zeros(3)}, about)
    (target / "notes.txt").write_text("mine")
    shutil.copytree(target, kept)

    def found() -> list[float]:
        return read_weights(target, models.read_meta(target))["w"].tolist()

    for _ in every_fault(lambda: write_checkpoint(target, {"w": torch.ones(3)}, about), errno.ENOSPC):
        assert (target / "notes.txt").read_text() == "mine"
        with suppress(CheckpointError):  # none at all; an IntegrityError would be a mixed one
            assert found() in ([[0.0] * 3] if saved_before else []) + [[1.0] * 3]
        shutil.rmtree(target)
        shutil.copytree(kept, target)
    assert {path.name for path in target.iterdir()} == {"notes.txt", "model.json", "model.safetensors"}
    assert found() == [1.0] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "trunk"}, "holds only the weights of a trunk"),
        ({"format": "other"}, "format 'other'"),
        ({"version": 2}, "version 2"),
        ({"kind": None}, "'kind' is missing"),
        ({"num_classes": "5"}, "'num_classes'"),
        ({"num_classes": 6}, r"model\.safetensors: .*keys do not fit: 4 of another shape"),
        ({"kind": "single"}, "13 left over"),
        ({"trunk": "hrnet_tiny"}, "missing"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    _change_record(folder, **change)
    with pytest.raises(CheckpointError, match=message):
        models.load(folder)


def test_a_changed_bit_of_the_record_is_found_even_if_it_still_fits(folder: Path) -> None:
    file = folder / "model.json"
    whole = file.read_bytes()
    right = models.read_meta(folder)
    for at in range(0, len(whole), 5):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        file.write_bytes(data)
        with suppress(CheckpointError):
            # White space and the name "digest" itself may change: all that is read is right then.
            found = models.read_meta(folder)
            assert {name: found.get(name) for name in right} == right, at


def test_a_torn_record_and_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "elsewhere")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        models.load(folder)
    (folder / "model.json").write_text('{"kind": ')
    with pytest.raises(CheckpointError, match="model.json: not one of our files"):
        models.read_meta(folder)


def test_weights_that_are_not_finite_are_not_loaded(tmp_path: Path) -> None:
    model = micro(head="released")
    with torch.no_grad():
        model.ocr.cls_head.bias[0] = float("nan")
    models.save(model, tmp_path / "bad", class_table=None, lineage={})
    with pytest.raises(CheckpointError, match=r"NaN or infinity \(ocr.cls_head.bias\)"):
        models.load(tmp_path / "bad")


# ------------------------------------------------------------------------------------------ parents


def test_heads_of_another_class_count_are_re_initialised_and_named(tmp_path: Path) -> None:
    parent = micro("single", classes=7)
    models.save(parent, tmp_path / "parent", class_table=None, lineage={})
    child = micro("hierarchical", classes=5, seed=1)
    fresh = {key: value.clone() for key, value in child.state_dict().items()}
    named = models.initialise_from(child, tmp_path / "parent")
    assert named == [
        "ocr.cls_head (7 classes in the checkpoint, 5 here)",
        "ocr.aux_head.2 (7 classes in the checkpoint, 5 here)",
        "scale_attn (not in the checkpoint)",
    ]
    own = ("ocr.cls_head.", "ocr.aux_head.2.", "scale_attn.")
    for key, value in child.state_dict().items():
        expected = fresh[key] if key.startswith(own) else parent.state_dict()[key]
        assert torch.equal(value, expected), key


def test_a_student_takes_everything_from_its_teacher(tmp_path: Path) -> None:
    teacher = micro(seed=3)
    models.save(teacher, tmp_path / "teacher", class_table=None, lineage={})
    student = micro(seed=4)
    assert models.initialise_from(student, tmp_path / "teacher" / "model.json") == []
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in student.state_dict().items())
    plain = micro("single", seed=5)  # leaves the teacher's attention behind
    assert models.initialise_from(plain, tmp_path / "teacher") == []


def test_another_form_of_head_is_named_and_another_trunk_refused(tmp_path: Path) -> None:
    models.save(micro(), tmp_path / "parent", class_table=None, lineage={})
    assert models.initialise_from(micro(head="paper", attention_channels=8), tmp_path / "parent") == [
        "ocr.cls_head (another form in the checkpoint)",
        "scale_attn (another form in the checkpoint)",
    ]
    with pytest.raises(CheckpointError, match="trunk hrnet_micro, the model has hrnet_tiny"):
        models.initialise_from(models.build("single", trunk="hrnet_tiny", num_classes=5), tmp_path / "parent")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        models.initialise_from(micro(ocr_mid=24), tmp_path / "parent")
