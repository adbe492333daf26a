"""Networks of other tools whose inputs, outputs or files can be understood in two ways: asked about, never guessed."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hmsa_core.config import Passes
from hmsa_core.inference.teachers.sources import Source, digest_of, onnx_metadata
from hmsa_core.inference.teachers.teacher import Teacher, open_teacher
from hmsa_core.inference.teachers.teacher_files import Table
from hmsa_core.io.errors import HmsaError, InputError
from tests.support.inference import job_context
from tests.support.teachers import table
from tests.support.training import class_table

WEIGHTS = np.linspace(-3, 5, 12).astype(np.float32).reshape(4, 3, 1, 1)
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
Node = onnx.NodeProto


def conv(given: str = "x") -> Node:
    return helper.make_node("Conv", [given, "w"], ["s"], kernel_shape=[1, 1])


def network(
    path: Path,
    nodes: list[Node],
    outputs: dict[str, list[Any] | None],
    *,
    weights: np.ndarray | None = WEIGHTS,
    shape: tuple[Any, ...] = (1, 3, "h", "w"),
    about: dict[str, str] | None = None,
    made: int = TensorProto.FLOAT,
    **saving: Any,
) -> Path:
    given = [] if weights is None else [numpy_helper.from_array(weights, "w")]
    ends = [helper.make_tensor_value_info(name, made, shape) for name, shape in outputs.items()]
    graph = helper.make_graph(nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)], ends, given)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, about or {})
    onnx.save(model, str(path), **saving)
    return path


def opened(path: Path) -> Teacher:
    return open_teacher([f"onnx:{path}"], Passes((1.0,), False), class_table(), job_context(Path("unused")))


def turned(given: str, made: str, *order: int) -> Node:
    return helper.make_node("Transpose", [given], [made], perm=order)


def one_channel(path: Path) -> Path:
    return network(path, [conv()], {"s": None}, weights=WEIGHTS[:1])


def sigmoid(path: Path) -> Path:
    return network(path, [conv(), helper.make_node("Sigmoid", ["s"], ["y"])], {"y": None})


def two_outputs(path: Path) -> Path:
    return network(path, [conv(), helper.make_node("Neg", ["s"], ["aux"])], {"aux": None, "s": None})


ASKED = {
    "one channel": (one_channel, "which class its one channel is, is not known", "classes: {0: OURS}"),
    "sigmoid": (sigmoid, r"its scores lie in \[0, 1\]", "`output: probabilities` .*or `output: logits`"),
    "two outputs": (two_outputs, "has the outputs aux, s; which of them", "say `scores: NAME` .* one of aux, s"),
    "argmax": (
        lambda path: network(path, [conv(), helper.make_node("ArgMax", ["s"], ["y"], axis=1)], {"y": None}, made=TensorProto.INT64),
        r"its output y is tensor\(int64\): numbers of classes",
        "without its last step",
    ),
    "quantised scores": (
        lambda path: network(
            path, [conv(), helper.make_node("Cast", ["s"], ["y"], to=TensorProto.UINT8)], {"y": [1, 4, "h", "w"]}, made=TensorProto.UINT8
        ),
        r"its output y is tensor\(uint8\): scores of whole numbers",
        "floating-point scores",
    ),
    "argmax without the axis of classes": (
        lambda path: network(
            path, [conv(), helper.make_node("ArgMax", ["s"], ["y"], axis=1, keepdims=0)], {"y": [1, "h", "w"]}, made=TensorProto.INT64
        ),
        r"its output y is tensor\(int64\): numbers of classes",
        "without its last step",
    ),
    "argmax as floats": (
        lambda path: network(
            path, [conv(), helper.make_node("ArgMax", ["s"], ["i"], axis=1), helper.make_node("Cast", ["i"], ["y"], to=1)], {"y": None}
        ),
        "its one channel holds whole numbers up to 3: numbers of classes",
        "without its last step",
    ),
    "mean of bytes": (
        lambda path: table(network(path, [conv()], {"s": None}), "mean: [123.675, 116.28, 103.53]\nstd: [58.395, 57.12, 57.375]"),
        "mean and std are of values from 0 to 255",
        r"mean: \[0.485, 0.456, 0.406\]",
    ),
    "a mean of no numbers": (
        lambda path: network(path, [conv()], {"s": None}, about={"mean": '"abc"'}),
        "its metadata 'mean' is not written as JSON, such as",
        r"write `mean: \[0.5, 0.5, 0.5\]`, with what is right, in net.onnx.teacher.yaml",
    ),
    "scores that are no numbers": (
        lambda path: network(path, [conv()], {"s": None}, weights=WEIGHTS * np.float32(np.nan)),
        "net.onnx: gives scores that are NaN or infinite",
        "do mean and std fit it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ASKED)
def test_what_can_be_understood_in_two_ways_is_one_line_that_says_what_to_write(tmp_path: Path, form: str) -> None:
    make, printed, hint = ASKED[form]
    with pytest.raises(HmsaError, match=printed) as caught:
        opened(make(tmp_path / "net.onnx")).label("a", IMAGE)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) + len(caught.value.hint) < 500
    assert re.search(hint, caught.value.hint)


def test_mean_and_deviation_stay_with_their_colour_where_blue_comes_first(tmp_path: Path) -> None:
    weights = np.concatenate([np.eye(3), np.zeros((1, 3))]).astype(np.float32)[:, :, None, None]
    net = network(tmp_path / "net.onnx", [conv()], {"s": None}, weights=weights)
    table(net, "order: bgr\nmean: [0.5, 0.25, 0.0]\nstd: [1.0, 0.5, 1.0]")
    shares = opened(net).predict("a", np.full((8, 8, 3), (255, 0, 51), np.uint8))
    np.testing.assert_allclose(np.log(shares[:3] / shares[3])[:, 0, 0], [0.2, -0.5, 0.5], atol=1e-5)


def test_the_answers_are_taken(tmp_path: Path) -> None:
    plain = opened(network(tmp_path / "plain.onnx", [conv()], {"s": None})).label("a", IMAGE)[0]
    chosen = table(two_outputs(tmp_path / "two.onnx"), "scores: s")
    assert np.array_equal(opened(chosen).label("a", IMAGE)[0], plain)
    for output in ("probabilities", "logits"):
        multi = table(sigmoid(tmp_path / f"{output}.onnx"), f"output: {output}")
        assert np.mean(opened(multi).label("a", IMAGE)[0] == plain) > 0.9
    largest = helper.make_node("ReduceMax", ["s"], ["m"], axes=[1], keepdims=0)
    both = network(tmp_path / "both.onnx", [conv(), largest], {"m": [1, "h", "w"], "s": [1, 4, "h", "w"]})
    assert np.array_equal(opened(both).label("a", IMAGE)[0], plain), "one alone can hold scores"


def test_a_logarithm_of_zero_is_the_lowest_score(tmp_path: Path) -> None:
    coarse = helper.make_node("AveragePool", ["s"], ["p"], kernel_shape=[4, 4], strides=[4, 4])
    ends = [helper.make_node("Softmax", ["p"], ["q"], axis=1), helper.make_node("Log", ["q"], ["y"])]
    plain = network(tmp_path / "plain.onnx", [conv(), coarse], {"p": None}, weights=100 * WEIGHTS)
    logs = network(tmp_path / "logs.onnx", [conv(), coarse, *ends], {"y": None}, weights=100 * WEIGHTS)
    assert np.mean(opened(logs).label("a", IMAGE)[0] == opened(plain).label("a", IMAGE)[0]) > 0.7
    assert np.isfinite(opened(logs).predict("a", IMAGE)).all()
    less = [helper.make_node("Constant", [], ["c"], value_float=1e6), helper.make_node("Sub", ["p", "c"], ["y"])]
    low = network(tmp_path / "low.onnx", [conv(), coarse, *less], {"y": None}, weights=100 * WEIGHTS)
    assert np.mean(opened(low).label("a", IMAGE)[0] == opened(plain).label("a", IMAGE)[0]) > 0.9, "numbers stay"


@pytest.mark.parametrize("shape", [(1, "h", "w", 3), ("n", "h", "w", "c"), (1, 24, 36, 3)], ids=str)
@pytest.mark.parametrize("ends", ["input", "output", "both"])
def test_channels_that_come_last_are_known_by_the_shape(tmp_path: Path, shape: tuple[Any, ...], ends: str) -> None:
    plain = opened(network(tmp_path / "plain.onnx", [conv()], {"s": None})).label("a", IMAGE)[0]
    nodes = [conv()] if ends == "output" else [turned("x", "n", 0, 3, 1, 2), conv("n")]
    nodes += [] if ends == "input" else [turned("s", "y", 0, 2, 3, 1)]
    given: dict[str, Any] = {} if ends == "output" else {"shape": shape}
    last = network(tmp_path / "last.onnx", nodes, {"s" if ends == "input" else "y": None}, **given)
    assert np.array_equal(opened(last).label("a", IMAGE)[0], plain)


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_one_channel_is_a_class_and_the_rest(tmp_path: Path, output: str) -> None:
    end = [helper.make_node("Sigmoid", ["s"], ["y"])] if output == "probabilities" else []
    path = network(tmp_path / "one.onnx", [conv(), *end], {"y" if end else "s": None}, weights=WEIGHTS[:1] - 1)
    teacher = opened(table(path, f"classes: {{0: road}}\noutput: {output}"))
    road = teacher.predict("a", IMAGE)[0]
    assert road.min() == 0
    assert road.max() > 0.5
    assert not teacher.predict("a", IMAGE)[1:].any()
    both = opened(table(path, f"classes: {{0: road, 1: car}}\noutput: {output}")).predict("a", IMAGE)
    assert np.allclose(both[0] + both[class_table().classes.index("car")], 1, atol=1e-4)
    assert np.allclose(road, np.where(both[0] >= 0.5, both[0], 0), atol=1e-4), "what is likelier the rest is no road"


NAMES = ["road", "building", "person", "car"]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(NAMES),
        json.dumps({str(i): name for i, name in enumerate(NAMES)}),
        json.dumps({name: i for i, name in reversed(list(enumerate(NAMES)))}),
        repr(dict(enumerate(NAMES))),
        ",".join(NAMES),
        "\n".join(NAMES),
    ],
)
def test_class_names_in_metadata_are_read_in_every_usual_form(tmp_path: Path, text: str) -> None:
    path = network(tmp_path / "net.onnx", [conv()], {"s": None}, about={"classes": text})
    assert onnx_metadata(path, Table())["classes"] == NAMES
    network(path, [conv()], {"s": None}, about={"classes": json.dumps({"1": "a", "2": "b"})})
    with pytest.raises(InputError, match="names no class for each number from 0 on"):
        onnx_metadata(path, Table())
    assert onnx_metadata(path, Table(names=("a", "b"))) == {}, "the table stands above it"


@pytest.mark.parametrize("of", ["weights", "constants", "a link"])
def test_weights_in_other_files_belong_to_the_digest(tmp_path: Path, of: str) -> None:
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHTS, "w"))
    outside = {"save_as_external_data": True, "location": "net.data", "size_threshold": 0, "convert_attribute": True}
    (tmp_path / "real").mkdir()
    nodes, weights = ([constant, conv()], None) if of == "constants" else ([conv()], WEIGHTS)
    path = network(tmp_path / "real/net.onnx", nodes, {"s": None}, weights=weights, **outside)
    if of == "a link":
        table(path, "output: logits")
        (tmp_path / "link.onnx").symlink_to(path)
        path = tmp_path / "link.onnx"
        assert Source("onnx", path).table.output == "logits"
    before = digest_of(f"onnx:{path}")
    assert opened(path).label("a", IMAGE)[0].shape == IMAGE.shape[:2]
    data = tmp_path / "real/net.data"
    (-np.fromfile(data, np.float32)).tofile(data)
    assert digest_of(f"onnx:{path}") != before
    data.unlink()
    with pytest.raises(InputError, match="its weights are in .*net.data, which is not there"):
        digest_of(f"onnx:{path}")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.array([900, 0, 0, 0], np.float32), "all pixels are road and each pixel is as good as certain"),
        (np.array([0.5, 0.4, 0, 0], np.float32), "2 of 4 classes never occur"),
    ],
)
def test_a_network_that_seems_to_be_run_wrongly_is_warned_of_after_three_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, weights: np.ndarray, message: str
) -> None:
    kernel = np.zeros((4, 3, 1, 1), np.float32)
    kernel[0, 0, 0, 0] = 0 if weights[0] > 1 else 1  # road where the picture is red
    add = helper.make_node("Add", ["s", "b"], ["y"])
    bias = helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(weights.reshape(1, 4, 1, 1), "b"))
    teacher = opened(network(tmp_path / "net.onnx", [bias, conv(), add], {"y": None}, weights=kernel))
    assert "net.onnx: nothing names its classes: taken for road, " in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            assert len(caplog.records) == (number >= 3)
            teacher.label(str(number), IMAGE)
    assert message in caplog.text
