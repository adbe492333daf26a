"""`build` and a training make the same network from the same options, and a checkpoint gives it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hmsa_core.config import ModelConfig, TrainConfig
from hmsa_core.models import MultiScaleModel, build, load, save
from hmsa_core.runtime.ranks import Ranks
from hmsa_core.spec import FineData, Selection, TrainSpec
from hmsa_core.training.recipe import make_model

LITE = "timm:tf_efficientnet_lite0"
# Each option at another value than its default, with what else that needs.
OPTIONS: dict[str, dict[str, Any]] = {
    "kind": {"kind": "explicit"},
    "trunk": {"trunk": "hrnet_tiny"},
    "trunk_weights": {"trunk": LITE, "trunk_weights": "package:efficientnet-lite0"},
    "context": {"context": "psp"},
    "head": {"head": "released"},
    "ocr_mid": {"ocr_mid": 24},
    "ocr_key": {"ocr_key": 12},
    "attention_channels": {"attention_channels": 20},
    "dropout": {"dropout": 0.3},
    "drop_path": {"trunk": LITE, "drop_path": 0.2},
    "top_attention": {"top_attention": "released"},
    "low_scale": {"low_scale": 0.4},
    "train_scales": {"train_scales": (0.25, 0.5, 1.0)},
}


def trained(options: dict[str, Any]) -> MultiScaleModel:
    """The network that a training starts with."""
    config = TrainConfig(model=ModelConfig.model_validate(options))
    fine = FineData(selection=Selection(index=Path("i")), centroids=Path("c"))
    spec = TrainSpec(stage="teacher", config=config, fine=fine, work=Path("w"), roots={})
    return make_model(spec, 4, Ranks(0, 1, torch.device("cpu")))[0]


@pytest.mark.parametrize("name", [None, *ModelConfig.model_fields])
def test_build_and_train_make_one_network_of_one_set_of_options(name: str | None, tmp_path: Path) -> None:
    options = {"kind": "hierarchical", "trunk": "hrnet_micro"} | (OPTIONS[name] if name else {})
    built, learning = build(**options, num_classes=4), trained(options)
    assert built.config == learning.config == ModelConfig(**options)
    if name:
        assert getattr(built.config, name) != ModelConfig.model_fields[name].default
    ours, theirs = ({key: t.shape for key, t in m.state_dict().items()} for m in (built, learning))
    assert list(ours.items()) == list(theirs.items())
    assert str(built) == str(learning), "layers and what is no tensor in them: dropout, stochastic depth"
    if name == "trunk_weights":
        pairs = zip(built.backbone.state_dict().items(), learning.backbone.state_dict().values(), strict=True)
        assert all(torch.equal(t, other) for (key, t), other in pairs if key.startswith("body."))
        assert not torch.equal(
            built.backbone.body.conv_stem.weight, trained({"trunk": LITE}).backbone.body.conv_stem.weight
        )
    save(built, tmp_path / "model", class_table=None, lineage={})
    assert load(tmp_path / "model").config == built.config.model_copy(update={"trunk_weights": "none"})
