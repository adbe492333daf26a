"""Networks that our package did not make: ONNX graphs written with onnx itself, folders that transformers saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.support.training import CLASSES

# The classes of `tests.support.training.picture` in another order and language, and one that nobody asked for.
FOREIGN = ("himmel", "auto", "hund", "haus", "fahrbahn")
TO_OURS = {"himmel": "sky", "auto": "car", "haus": "building", "fahrbahn": "road"}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def colour_network(path: Path, *, names: Sequence[str] = FOREIGN, ours: dict[str, str] = TO_OURS, **graph: Any) -> Path:
    """A network that knows the classes of `tests.support.training.picture` by their colours."""
    centres = np.full((len(names), 3), 5.0)  # far from every colour
    for i, name in enumerate(names):
        if name in ours:
            c = CLASSES.index(ours[name])
            centres[i] = np.array([60 * c, 255 - 60 * c, 20 + 30 * c]) / 255
    return nearest_colour(path, names, centres, **graph)


def nearest_colour(
    path: Path,
    names: Sequence[str],
    centres: NDArray[np.float64],
    *,
    sides: tuple[int | str, int | str] = ("height", "width"),
    channels: int = 3,
    opset: int = 17,
    operator: str = "Conv",
    softmax: bool = False,
    raw: bool = False,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """A network that finds the nearest of some colours (RGB in [0, 1]), on a grid of half the size; `raw`: of bytes."""
    # -|x - m|^2 without |x|^2, of x = std * normalised + mean
    weight, bias = 2 * centres * np.array(STD), 2 * centres @ np.array(MEAN) - (centres**2).sum(1)
    if raw:
        weight, bias = 2 * centres / 255, -(centres**2).sum(1)
    values = {"w": 50 * weight[:, :, None, None], "b": 50 * bias}
    nodes = [helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node(operator, ["pixels", "w", "b"], ["fine"]), _pool("fine", "scores")]
    nodes += [helper.make_node("Softmax", ["scores"], ["shares"], axis=1)] if softmax else []
    made = "shares" if softmax else "scores"
    graph = helper.make_graph(
        nodes,
        "colours",
        [
            helper.make_tensor_value_info(
                "image", TensorProto.UINT8 if raw else TensorProto.FLOAT, [1, channels, *sides]
            )
        ],
        [helper.make_tensor_value_info(made, TensorProto.FLOAT, [1, len(names), "h", "w"])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    said = {"classes": list(names), "mean": MEAN, "std": STD} if metadata is None else metadata
    helper.set_model_props(model, {key: json.dumps(value) for key, value in said.items()})
    onnx.save(model, str(path))
    return path


def _pool(given: str, made: str) -> Any:
    return helper.make_node("AveragePool", [given], [made], kernel_shape=[2, 2], strides=[2, 2])


def table(path: Path, text: str) -> Path:
    """The table next to a teacher."""
    place = path / "teacher.yaml" if path.is_dir() else path.with_name(f"{path.name}.teacher.yaml")
    place.write_text(text)
    return path


def segformer(folder: Path) -> Path:
    """A SegFormer with random weights and its processor."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(3)
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)},
        initializer_range=0.5,
    )
    SegformerForSemanticSegmentation(config).eval().save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder
