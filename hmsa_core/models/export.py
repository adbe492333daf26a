"""A model as one graph for other runtimes: raw pixels in, probabilities or labels out, all scales fused inside.

    trace(model, scales) -> program --to_onnx--> bytes of an ONNX file --quantise--> the same in int8
                                `--to_pt2--> bytes of a torch.export file
    open_graph(data, suffix) -> function images -> output, run by onnxruntime or torch

Normalising is part of the graph: no runtime can get mean and standard deviation wrong. Batch and size are dynamic.
Fusion, softmax and normalising stay in float32 in every precision. Legend: N images, C classes, H x W pixels.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hmsa_core.io.atomic import write_bytes
from hmsa_core.io.errors import CheckpointError, ConfigError, InputError, needs_extra, one_line
from hmsa_core.models.fusion import Level, explicit_weights, fuse
from hmsa_core.models.layers.blocks import promote, resize
from hmsa_core.models.model import MultiScaleModel

UInt8 = NDArray[np.uint8]
Graph = Callable[[UInt8], NDArray[Any]]  # N x 3 x H x W RGB -> the graph's output

OPSET = 18  # the lowest opset that torch writes: every current runtime reads it
_SMALLEST = 34  # pixels of a side at the lowest scale: the trunk's coarsest grid has two positions
_STEPS = 64  # a scale is a multiple of its inverse: sizes are computed in whole numbers in the graph
_CONVOLUTIONS = ["Conv"]  # operators that int8 computes; the fusion and the softmax stay in float32


class FusedModel(nn.Module):
    """The exported graph: N x 3 x H x W uint8 RGB -> N x C x H x W float32 probabilities, or N x H x W uint8 trainIds.

    Args:
        model: its weights are copied, not changed.
        scales: different fractions, one of them 1.0.
        argmax: give labels instead of probabilities.
        half: trunk and heads compute in float16.

    Raises:
        ConfigError: a scale is no multiple of 1/64.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, model: MultiScaleModel, scales: Sequence[float], *, argmax: bool, half: bool) -> None:
        super().__init__()
        self.model, self.argmax, self._dtype = copy.deepcopy(model).eval(), argmax, torch.float32
        if half:
            self.model, self._dtype = self.model.half(), torch.float16
        self._scales = [1.0] if model.kind == "single" else sorted(scales, reverse=True)
        self._steps = [_fraction(scale) for scale in self._scales]
        mean, std = model.normalisation
        # (value / 255 - mean) / std as one product and one sum.
        self.register_buffer("factor", torch.tensor([1 / 255 / s for s in std]).reshape(1, 3, 1, 1))
        self.register_buffer(
            "offset", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).reshape(1, 3, 1, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Run all scales and fuse them; the same order of operations as `MultiScaleModel.predict`."""
        kind, size = self.model.kind, (images.shape[2], images.shape[3])
        pixels = images.float() * self.factor + self.offset
        sizes = [(_scaled(size[0], step, kind), _scaled(size[1], step, kind)) for step in self._steps]
        outputs = [
            self.model.forward_scale(resize(pixels, grid).to(self._dtype), attention=kind == "explicit" or i > 0)
            for i, grid in enumerate(sizes)
        ]
        attention: list[Any] = [None if one.attention is None else promote(one.attention) for one in outputs]
        if kind == "explicit":
            attention = explicit_weights(attention, size)
        elif kind == "hierarchical":
            attention = [None if a is None else resize(a, grid) for a, grid in zip(attention, sizes, strict=True)]
        logits = [resize(promote(one.logits), grid) for one, grid in zip(outputs, sizes, strict=True)]
        fused = fuse(kind, map(Level, self._scales, logits, attention), size)
        return fused.argmax(1).to(torch.uint8) if self.argmax else torch.softmax(fused, dim=1)


def least_side(model: MultiScaleModel, scales: Sequence[float]) -> int:
    """Smallest side of an image in pixels; a torch program refuses smaller images."""
    return math.ceil(_SMALLEST / (1.0 if model.kind == "single" else min(scales)))


def _fraction(scale: float) -> Fraction:
    found = Fraction(scale)  # exact: at scales that are no power of two, float rounding could shift a size by a pixel
    if found.denominator > _STEPS:
        raise ConfigError(f"scale {scale:g}: only multiples of 1/{_STEPS} can be exported", hint="for example 0.75")
    return found


def _scaled(length: int, scale: Fraction, kind: str) -> int:
    """`layers.scaled_size` in whole numbers, which a graph computes exactly: floored, or rounded half to even."""
    whole, rest = (length * scale.numerator) // scale.denominator, (length * scale.numerator) % scale.denominator
    if kind not in ("average", "max") or scale.denominator == 1:
        return whole
    return whole + (2 * rest + whole % 2) // (scale.denominator + 1)


def trace(
    model: MultiScaleModel, scales: Sequence[float], *, argmax: bool = False, half: bool = False
) -> torch.export.ExportedProgram:
    """Trace the model with dynamic batch, height and width.

    Raises:
        ConfigError: a scale cannot be exported, or torch cannot trace this model.
    """
    fused = FusedModel(model, scales, argmax=argmax, half=half)
    least = least_side(model, scales)
    # Unnamed sizes: for named sizes torch prints suggestions, and fails at these for some trunks.
    side = torch.export.Dim.DYNAMIC(min=least)
    dims = {0: torch.export.Dim("batch", min=1), 2: side, 3: side}
    example = torch.zeros(2, 3, 2 * least, 3 * least, dtype=torch.uint8)
    with (
        torch.no_grad(),
        _whole_paddings(),
        _one_line_error(f"a model of {model.config.trunk}"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # about torch's code
        return torch.export.export(
            fused,
            (example,),
            dynamic_shapes={"images": dims},
            strict=False,
            # The model compares sizes at every stride; torch cannot prove all comparisons for all sizes.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


@contextmanager
def _whole_paddings() -> Iterator[None]:
    """Let timm compute TensorFlow's paddings in whole numbers: same values, and torch traces them within seconds."""
    from timm.layers import padding

    original = padding.get_same_padding

    def whole(x: int, kernel_size: int, stride: int, dilation: int) -> Any:
        reach = (kernel_size - 1) * dilation + 1
        # In few trunks the stride exceeds the kernel's reach.
        return reach - stride + (-x) % stride if reach >= stride else original(x, kernel_size, stride, dilation)

    padding.get_same_padding = whole
    try:
        yield
    finally:
        padding.get_same_padding = original


@contextmanager
def _one_line_error(what: str) -> Iterator[None]:
    """Return one line for torch's error of many pages."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # torch wraps the cause in advice
            cause = cause.__cause__
        first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ConfigError(f"{what} cannot be exported: {one_line(first)[:200]}") from error


def check_onnx() -> None:
    """Raise a ConfigError, before minutes of work, if packages are missing."""
    with needs_extra("onnx"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def metadata(model: MultiScaleModel, scales: Sequence[float], *, argmax: bool, precision: str) -> dict[str, str]:
    """Return the facts that a runtime needs, as JSON texts; the digest covers the checkpoint's weights."""
    mean, std = model.normalisation
    table = model.meta.get("class_table")
    names = [row["name"] for row in table["classes"]] if table else [str(i) for i in range(model.num_classes)]
    values = {
        "classes": names,
        "mean": mean,
        "std": std,
        "scales": [1.0] if model.kind == "single" else sorted(scales),
        "checkpoint": model.meta.get("weights_sha256"),
        "input": "images: uint8 N x 3 x H x W, RGB, 0 to 255; the graph normalises by mean and std itself",
        "output": "labels: uint8 N x H x W, trainIds"
        if argmax
        else "probabilities: float32 N x C x H x W, after softmax",
        "precision": precision,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def to_onnx(program: torch.export.ExportedProgram, about: dict[str, str], *, argmax: bool) -> bytes:
    """Bytes of an ONNX file; the same program gives the same bytes.

    Raises:
        ConfigError: ONNX lacks an operator.
    """
    with _one_line_error("this model"), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program,
            (),
            input_names=["images"],
            output_names=["labels" if argmax else "probabilities"],
            opset_version=OPSET,
            verbose=False,
        )
        proto = made.model_proto  # type: ignore[union-attr]  # None only for the old exporter
    return _with_metadata(proto, about)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence advice of torch and onnxruntime; onnxruntime's advice goes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _with_metadata(proto: Any, about: dict[str, str]) -> bytes:
    # Runtimes refuse an IR version newer than they know, and torch writes its newest version.
    from onnx.helper import find_min_ir_version_for

    proto.ir_version = min(proto.ir_version, find_min_ir_version_for(proto.opset_import))
    # Torch records lines and paths of source files at each node, which differ between machines.
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, proto.graph):
        del part.metadata_props[:]
    del proto.metadata_props[:]
    for name in sorted(about):
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, about[name]
    names = {
        dim.dim_param: name
        for dim, name in zip(_dims(proto.graph.input[0]), ("batch", "", "height", "width"), strict=True)
    }
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in _dims(value):
            if names.get(dim.dim_param):
                dim.dim_param = names[dim.dim_param]
    return bytes(proto.SerializeToString(deterministic=True))


def _dims(value: Any) -> Any:
    return value.type.tensor_type.shape.dim


def to_pt2(program: torch.export.ExportedProgram, about: dict[str, str]) -> bytes:
    """Bytes of a torch.export file; its extra file `metadata.json` holds the metadata of an ONNX file."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    torch.export.save(program, file := io.BytesIO(), extra_files={"metadata.json": json.dumps(about, sort_keys=True)})
    return file.getvalue()


def quantise(data: bytes, images: Iterable[UInt8]) -> bytes:
    """Return the graph with int8 convolutions (QDQ nodes) except `_kept_in_float`; images give the value ranges.

    Args:
        data: an ONNX file in float32.
        images: H x W x 3 uint8 RGB, like those that will be labelled.
    """
    with needs_extra("onnx"):
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            self._images = iter(images)

        def get_next(self) -> dict[str, UInt8] | None:
            image = next(self._images, None)
            return None if image is None else {"images": as_batch(image)}

    about = {entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, folded, made = (Path(folder, name) for name in ("fp32.onnx", "folded.onnx", "int8.onnx"))
        # A file, not the graph in memory: onnxruntime cannot fold the external data of a graph in memory.
        write_bytes(given, data)
        quant_pre_process(given, folded, skip_symbolic_shape=True)
        quantization.quantize_static(
            folded,
            made,
            Reader(),
            per_channel=True,
            op_types_to_quantize=_CONVOLUTIONS,
            nodes_to_exclude=_kept_in_float(onnx.load(folded).graph),
            quant_format=quantization.QuantFormat.QDQ,
        )
        return _with_metadata(onnx.load(made), about | {"precision": '"int8"'})


def _kept_in_float(graph: Any) -> list[str]:
    """Names of the convolutions that lose most in int8: convolutions of the pixels, and depthwise convolutions."""
    shapes = {weight.name: weight.dims for weight in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type == "Conv"
        and (shapes[node.input[1]][1] == 3 or any(a.name == "group" and a.i > 1 for a in node.attribute))
    ]


def as_batch(*images: UInt8) -> UInt8:
    """H x W x 3 images of one size as the graph's input, N x 3 x H x W."""
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def open_graph(data: bytes, suffix: str, *, where: str = "the exported file") -> Graph:
    """Open an exported file as a function that onnxruntime (`.onnx`) or torch (`.pt2`) runs on the CPU.

    Raises:
        InputError: the file is damaged or of another type, or the runtime lacks an operator or the opset.
    """
    if suffix == ".pt2":
        return _open_program(data, where)
    with needs_extra("onnx"):
        import onnxruntime
    state = onnxruntime.capi.onnxruntime_pybind11_state
    faults = (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented, state.InvalidArgument)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except faults as error:
        version = onnxruntime.__version__
        raise InputError(f"{where}: onnxruntime {version} cannot run it ({one_line(error)[:200]})") from error
    return lambda images: np.asarray(session.run(None, {"images": images})[0])


def _open_program(data: bytes, where: str) -> Graph:
    try:
        module = torch.export.load(io.BytesIO(data)).module()
    except (BadZipFile, RuntimeError, ValueError, KeyError, OSError) as error:
        raise InputError(f"{where}: not a whole torch.export file ({one_line(error)[:200]})") from error
    return torch.no_grad()(lambda images: module(torch.from_numpy(images)).numpy())


def labels_of(output: NDArray[Any]) -> UInt8:
    """Labels N x H x W of a graph's output, probabilities or labels."""
    return output if output.ndim == 3 else output.argmax(1).astype(np.uint8)


def reference_labels(model: MultiScaleModel, images: UInt8, scales: Sequence[float]) -> UInt8:
    """Labels N x H x W of `model.predict`, the reference for an exported graph."""
    mean, std = (np.array(values, np.float64)[:, None, None] for values in model.normalisation)
    pixels = torch.from_numpy(((images / 255 - mean) / std).astype(np.float32))
    logits = model.predict(pixels, scales).logits
    if not logits.isfinite().all():
        hint = "train this checkpoint again, or give another one"
        raise CheckpointError("the checkpoint's scores are NaN or infinite", hint=hint)
    return logits.argmax(1).to(torch.uint8).numpy()
