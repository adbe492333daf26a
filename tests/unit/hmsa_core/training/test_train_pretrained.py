"""The recipe for pretrained trunks: AdamW, rates by layer, frozen layers and norms, settings that say auto."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from hmsa_core.io.atomic import read_json
from hmsa_core.job import run_spec
from hmsa_core.models import load
from hmsa_core.models.model import build_fresh
from hmsa_core.training.recipe import make_optimiser, set_training, trunk_layers
from tests.support.training import config, train_spec, write_data

pytestmark = pytest.mark.long

LITE = {"model__trunk": "timm:tf_efficientnet_lite0", "model__attention_channels": 8}
ADAMW = {"optimiser__algorithm": "adamw", "optimiser__lr": 0.001, "loss__main": "cross_entropy"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    write_data(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder / "model").state_dict()


def stopped_and_resumed(data: Path, folder: Path, recipe: dict[str, object]) -> None:
    """Train in `a` without a stop, in `b` with one; both must end with the same bytes."""
    whole, short = (train_spec(data, folder / name, epochs=1, checkpoint_every=1, **recipe) for name in ("a", "b"))
    run_spec(whole)
    run_spec(short)
    states = sorted((folder / "b" / "state").iterdir())
    assert len(states) == 2, "the last two are kept"
    for path in ("model", "state/" + states[-1].name):
        shutil.rmtree(folder / "b" / path)
    run_spec(short)
    for name in ("model.safetensors", "model.json"):
        assert (folder / "a/model" / name).read_bytes() == (folder / "b/model" / name).read_bytes()


def test_adamw_from_a_packages_weights_stops_and_goes_on_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    recipe = LITE | ADAMW | {"model__trunk_weights": "package:efficientnet-lite0", "model__drop_path": 0.1}
    stopped_and_resumed(data, tmp_path, recipe)
    found = read_json(tmp_path / "a/model/model.json")["lineage"]["trunk_weights"]
    assert found["source"] == "package:efficientnet-lite0"
    assert len(found["sha256"]) == 64


@pytest.mark.parametrize(
    "trunk",
    [
        "timm:mobilenetv4_conv_small",
        *(pytest.param(f"timm:{n}", marks=pytest.mark.slow) for n in ("convnext_atto", "hrnet_w18", "regnetx_002")),
        pytest.param("timm:vit_small_patch14_dinov2", marks=pytest.mark.slow),
    ],
)
def test_a_training_of_every_family_stops_and_goes_on(trunk: str, data: Path, tmp_path: Path) -> None:
    stopped_and_resumed(data, tmp_path, LITE | ADAMW | {"model__trunk": trunk})


def test_frozen_layers_keep_their_weights_and_their_statistics(data: Path, tmp_path: Path) -> None:
    run_spec(train_spec(data, tmp_path, epochs=1, **LITE, **ADAMW, optimiser__frozen_layers=3, ema_decay=0.0))
    found = weights(tmp_path)
    frozen = [
        k for k in found if k.startswith(("backbone.body.conv_stem", "backbone.body.bn1", "backbone.body.blocks.0."))
    ]
    assert frozen
    for key in frozen:
        if key.endswith("running_mean"):
            assert not found[key].any(), key
        elif key.endswith("num_batches_tracked"):
            assert found[key] == 0, key
    assert found["backbone.body.blocks.4.0.bn1.running_mean"].any()


def test_rates_fall_layer_by_layer_and_adamw_spares_norms_and_biases() -> None:
    settings = config(
        **LITE, **ADAMW, optimiser__trunk_factor=0.5, optimiser__layer_decay=0.5, optimiser__weight_decay=0.1
    )
    model = build_fresh(settings.model, 3)
    optimiser = make_optimiser(settings, model)
    factor = {p: group["factor"] for group in optimiser.param_groups for p in group["params"]}
    decay = {p: group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    layers = trunk_layers(model)
    assert [factor[layer[0]] for layer in layers] == [0.5 * 0.5 ** (len(layers) - 1 - i) for i in range(len(layers))]
    assert set(factor) == set(model.parameters())
    assert factor[model.backbone.project[0][0].weight] == 1.0, "the projection is new: it learns at the full rate"
    assert {decay[p] for p in model.parameters() if p.ndim < 2} == {0.0}
    assert {decay[p] for p in model.parameters() if p.ndim >= 2} == {0.1}


def test_frozen_norms_stand_still_in_the_published_part_alone() -> None:
    settings = config(**LITE, optimiser__frozen_norms=True)
    model = build_fresh(settings.model, 3)
    set_training(model, settings)
    moving = {name for name, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d) and m.training}
    assert moving
    assert not [name for name in moving if name.startswith("backbone.body")]


def test_auto_is_measured_once_and_is_part_of_lineage(data: Path, tmp_path: Path) -> None:
    spec = train_spec(
        data, tmp_path, epochs=1, runtime__precision="auto", runtime__channels_last="auto", runtime__threads="auto"
    )
    run_spec(spec)
    chosen = read_json(tmp_path / "runtime.json")
    assert {t["channels_last"] for t in chosen["timed"]} == {True, False}
    machine = read_json(tmp_path / "model/model.json")["lineage"]["machine"]
    assert {name: machine[name] for name in ("precision", "channels_last", "threads")} == chosen["chosen"]
    written = (tmp_path / "runtime.json").stat().st_mtime_ns
    (tmp_path / "model/model.json").unlink()
    run_spec(spec)  # goes on from its state: the choice is the same, so the key is
    assert (tmp_path / "runtime.json").stat().st_mtime_ns == written


def test_what_is_asked_for_is_not_measured(data: Path, tmp_path: Path) -> None:
    runtime = {"runtime__precision": "bf16", "runtime__channels_last": True, "runtime__threads": "auto"}
    run_spec(train_spec(data, tmp_path, epochs=1, **runtime))
    assert {t.dtype for t in weights(tmp_path).values()} == {torch.float32, torch.int64}
    assert read_json(tmp_path / "runtime.json")["timed"] == []
    assert read_json(tmp_path / "model/model.json")["lineage"]["machine"]["precision"] == "bf16"
