"""Published weights: every accepted form comes in whole, every damaged file is refused in one line."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hmsa_core import models
from hmsa_core.config import ModelConfig
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import CheckpointError
from hmsa_core.models.model import build_empty
from tests.reference import golden
from tests.support.hostile import HOSTILE, Gadget

pytestmark = pytest.mark.long

WIDTH = 4  # published depth and keys at a width that is quick: 1903 tensors, 0.6 M parameters
OPTIONS: dict[str, Any] = {"head": "released", "ocr_mid": 16, "ocr_key": 8, "attention_channels": 8}
CLASSIFICATION = {
    "incre_modules.0.0.conv1.weight": torch.ones(4, 4, 1, 1),
    "downsamp_modules.0.0.bias": torch.ones(3),
    "final_layer.0.weight": torch.ones(2, 2, 1, 1),
    "classifier.weight": torch.ones(2, 2),
    "classifier.bias": torch.ones(2),
}


def released_state(kind: str = "hierarchical", classes: int = 19) -> dict[str, Tensor]:
    shapes = build_empty(ModelConfig(kind=kind, trunk=f"hrnet_w{WIDTH}", **OPTIONS), classes).state_dict()
    return golden.fill(shapes)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return released_state()


def trunk_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("backbone."): t for key, t in state.items() if key.startswith("backbone.")}


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_released_checkpoint_loads_and_predicts_the_same(
    tmp_path: Path, state: dict[str, Tensor], prefix: str, legacy: bool
) -> None:
    path = tmp_path / "released.pth"
    content = {
        "state_dict": prefixed(state, prefix),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.01}]},
        "epoch": 174,
        "mean_iu": np.float64(0.861),  # the released code keeps a numpy scalar in it
        "command": "train.py --dataset cityscapes",
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    model = models.load_nvidia(path)
    assert (model.kind, model.config.trunk, model.num_classes) == ("hierarchical", f"hrnet_w{WIDTH}", 19)
    assert not model.training
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    logits = model.predict(torch.zeros(1, 3, 32, 32)).logits
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("kind", "classes"), [("hierarchical", 65), ("single", 19), ("single", 7)])
def test_class_count_and_attention_are_read_off_the_keys(tmp_path: Path, kind: str, classes: int) -> None:
    path = tmp_path / "released.pth"
    torch.save({"state_dict": released_state(kind, classes)}, path)
    report = models.import_checkpoint(path, tmp_path / "ours")
    assert (report.kind, report.num_classes) == (kind, classes)
    meta = models.read_meta(tmp_path / "ours")
    named = {19: "cityscapes", 65: "mapillary"}.get(classes)
    assert (meta["class_table"] is None) == (named is None)
    if named:
        assert meta["class_table"]["name"].startswith(named)
    again = models.load(tmp_path / "ours")
    direct = models.load_nvidia(path)
    image = torch.ones(1, 3, 32, 32)
    assert torch.equal(again.predict(image).logits, direct.predict(image).logits)


def test_the_import_says_what_came_in_and_its_hash(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "released.pth"
    torch.save({"state_dict": prefixed(state, "module.")}, path)
    report = models.import_checkpoint(path, tmp_path / "ours")
    assert report.tensors == 1903
    assert report.source_sha256 == sha256_file(path)
    assert report.weights_sha256 == sha256_file(tmp_path / "ours" / "model.safetensors")
    text = "\n".join(report.lines())
    for part in (f"hrnet_w{WIDTH}", "1903 tensors", "19 classes", report.source_sha256, report.weights_sha256):
        assert part in text
    assert models.read_meta(tmp_path / "ours")["lineage"]["source_sha256"] == report.source_sha256


@pytest.mark.parametrize(
    ("prefix", "extra", "container"),
    [
        ("", {}, "safetensors"),  # timm, head-less with the raw branches
        ("", CLASSIFICATION, "safetensors"),  # timm, whole
        ("", CLASSIFICATION, "pth"),  # hrnetv2_w*_imagenet_pretrained.pth
        ("model.", CLASSIFICATION, "pth"),
        ("module.backbone.", {}, "pth"),  # the trunk of a released checkpoint
    ],
)
def test_bare_trunks_come_in_under_any_prefix(
    tmp_path: Path, state: dict[str, Tensor], prefix: str, extra: dict[str, Tensor], container: str
) -> None:
    content = {prefix + key: tensor for key, tensor in {**trunk_of(state), **extra}.items()}
    path = tmp_path / f"trunk.{container}"
    if container == "safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    report = models.import_checkpoint(path, tmp_path / "ours")
    assert (report.kind, report.trunk, report.tensors) == ("trunk", f"hrnet_w{WIDTH}", 1830)
    assert sum(report.dropped.values()) == len(extra)
    assert ("left behind by rule" in "\n".join(report.lines())) == bool(extra)

    model = models.build("hierarchical", trunk=f"hrnet_w{WIDTH}", num_classes=5, **OPTIONS)
    assert models.initialise_from(model, tmp_path / "ours") == [
        "ocr (not in the checkpoint)",
        "scale_attn (not in the checkpoint)",
    ]
    assert torch.equal(model.backbone.conv1.weight, state["backbone.conv1.weight"])
    with pytest.raises(CheckpointError, match="only a trunk"):
        models.load_nvidia(path)
    with pytest.raises(CheckpointError, match="only the weights of a trunk"):
        models.load(tmp_path / "ours")


def test_half_precision_weights_become_float32(tmp_path: Path, state: dict[str, Tensor]) -> None:
    half = {key: t.half() if t.is_floating_point() else t for key, t in state.items()}
    torch.save({"state_dict": half}, tmp_path / "half.pth")
    model = models.load_nvidia(tmp_path / "half.pth")
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}


# ---------------------------------------------------------------------------------- damaged and hostile


def refused(path: Path, target: Path, *, both: bool = False) -> str:
    """The one-line refusal (of both entry points); nothing may have been written."""
    with pytest.raises(CheckpointError) as caught:
        models.import_checkpoint(path, target)
    assert not target.exists()
    if both:
        with pytest.raises(CheckpointError):
            models.load_nvidia(path)
    message = caught.value.message
    assert "\n" not in message
    assert str(path) in message
    return message


def write(path: Path, state: dict[str, Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_five_kinds_of_damage_give_five_different_lines(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    key = "backbone.stage3.1.branches.2.0.conv1.weight"
    files = {name: tmp_path / f"{name}{suffix}" for name in ("renamed", "reshaped", "code", "truncated", "empty")}
    write(files["renamed"], {("backbone.oops" if k == key else k): t for k, t in state.items()})
    write(files["reshaped"], {k: (t[:, :1].clone() if k == key else t) for k, t in state.items()})
    canary = tmp_path / "canary"
    torch.save({"state_dict": {**state, "x": Gadget(canary)}}, files["code"])
    whole = tmp_path / f"whole{suffix}"
    write(whole, state)
    files["truncated"].write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    files["empty"].write_bytes(b"")

    lines = {name: refused(path, tmp_path / "out", both=suffix == ".pth") for name, path in files.items()}
    assert len({line.replace(str(files[name]), "") for name, line in lines.items()}) == 5
    assert f"1 missing ({key}); 1 left over (backbone.oops)" in lines["renamed"]
    assert "1 of another shape" in lines["reshaped"]
    assert "(16, 1, 3, 3) instead of (16, 16, 3, 3)" in lines["reshaped"]
    assert "posix.system" in lines["code"]
    assert "nothing was run" in lines["code"]
    assert "truncated" in lines["truncated"] or "not a whole safetensors file" in lines["truncated"]
    assert "empty (0 bytes)" in lines["empty"]
    assert not canary.exists()


def test_many_keys_that_do_not_fit_are_counted_and_three_are_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "partial.pth"
    gone = [key for key in state if key.startswith("scale_attn.")][3:8]
    write(path, {key: tensor for key, tensor in state.items() if key not in gone})
    short = refused(path, tmp_path / "out")
    assert f"5 missing ({', '.join(gone[:3])}, ...)" in short


def test_a_wrong_prefix_is_an_error_and_not_an_empty_import(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "prefixed.pth"
    write(path, prefixed(trunk_of(state), "encoder."))
    assert "not a released HRNet" in refused(path, tmp_path / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, state: dict[str, Tensor], value: float) -> None:
    bad = {key: tensor.clone() for key, tensor in state.items()}
    bad["ocr.cls_head.weight"][3, 2] = value
    path = tmp_path / "nan.pth"
    write(path, bad)
    assert "NaN or infinity (ocr.cls_head.weight)" in refused(path, tmp_path / "out")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_safetensors_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(HOSTILE[name])
    refused(path, tmp_path / "out")


def _numpy_object_scalar() -> bytes:
    """A pickle that asks numpy's scalar constructor for a Python object."""
    stream = io.BytesIO()
    torch.save({"state_dict": {"a": torch.ones(1)}, "mean_iu": np.float64(0.5)}, stream)
    source, target = zipfile.ZipFile(stream), io.BytesIO()
    with zipfile.ZipFile(target, "w") as out:
        for item in source.infolist():
            data = source.read(item)
            out.writestr(item, data.replace(b"f8", b"O8") if item.filename.endswith("data.pkl") else data)
    return target.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00", "not a whole torch file"),
        (b"just some text, no weights at all" * 10, "not a whole torch file"),
        (_numpy_object_scalar(), "refused|not a whole torch file"),
    ],
)
def test_other_bytes_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        models.import_checkpoint(path, tmp_path / "out")


def test_a_plain_pickle_and_a_pickled_module_run_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    plain, module = tmp_path / "plain.pth", tmp_path / "module.pth"
    plain.write_bytes(pickle.dumps({"state_dict": Gadget(canary)}))
    torch.save(torch.nn.Linear(2, 2), module)
    refused(plain, tmp_path / "out")
    assert "torch.nn.modules.linear.Linear" in refused(module, tmp_path / "out")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "no state dict|not a released HRNet"),
        ([1, 2, 3], "no state dict"),
        ({"state_dict": {"ocr.x": "text", "b": torch.ones(1)}}, "1 entries of the state dict are no tensors"),
        ({"a": torch.ones(1)}, "not a released HRNet"),
    ],
)
def test_files_without_a_state_dict_say_so(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        models.load_nvidia(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "absent.pth", tmp_path / "out")
    assert "is a folder" in refused(tmp_path, tmp_path / "out")
