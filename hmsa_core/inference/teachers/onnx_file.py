"""`onnx:FILE`: a network that onnxruntime runs, on the CPU unless the table names another provider.

One input, an RGB image, 1 x 3 x H x W: floats, normalised by `mean` and `std` of the table, else of the metadata, else
ImageNet's; or bytes, which the graph normalises. The first output holds the scores, 1 x classes x h x w.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmsa_core.inference.teachers.network import Network
from hmsa_core.inference.teachers.sources import Source, onnx_metadata
from hmsa_core.io.errors import CheckpointError, ConfigError, needs_extra, one_line

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_BYTES = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # 0 to 255 stay what they are


class OnnxNetwork(Network):
    """An ONNX file in onnxruntime.

    Args:
        source: the file.
        threads: of each operator; the number can change last bits.
        is_single: whether scale 1 alone is asked for, all that a network of one input size can do.
    """

    def __init__(self, source: Source, threads: int, *, is_single: bool) -> None:
        known = onnx_metadata(source.path)
        self._session = _session(source, threads)
        self._input = _input(source, self._session)
        self._dtype = _TYPES[self._input.type]
        self._output = self._session.get_outputs()[0].name
        fixed = _fixed_size(source, self._input)
        if fixed and not is_single:
            raise ConfigError(
                f"{source}: takes images of {fixed[0]}x{fixed[1]} pixels only, so it can be run at scale 1 alone",
                hint="use scales 1 (--scales 1, auto_infer.scales: [1.0]), or export it with dynamic height and width",
            )
        table = source.table
        values: dict[str, Any] = {"mean": table.mean or known.get("mean"), "std": table.std or known.get("std")}
        if self._dtype == np.uint8:
            values = _BYTES
        # `autolabel export-model` says it in a sentence.
        output = str(known.get("output", "")).partition(":")[0]
        super().__init__(source, size=fixed or table.size, output=output, **values)

    def scores(self, images: Tensor) -> Tensor:
        """Run the graph."""
        pixels = images.cpu().numpy()
        given = np.ascontiguousarray((np.rint(pixels) if self._dtype == np.uint8 else pixels).astype(self._dtype))
        try:
            found = self._session.run([self._output], {self._input.name: given})[0]
        except _failures() as error:
            raise ValueError(_reason(error)) from error
        return torch.from_numpy(np.array(found, np.float32))


def _session(source: Source, threads: int) -> Any:
    with needs_extra("onnx"):
        import onnxruntime
    provider = source.table.provider
    if provider not in (there := onnxruntime.get_available_providers()):
        raise ConfigError(f"{source.table_path}: this onnxruntime has no {provider}, only {', '.join(there)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors; they are raised as well
    try:
        return onnxruntime.InferenceSession(str(source.path), options, providers=[provider])
    except _failures() as error:
        raise CheckpointError(
            f"{source}: onnxruntime {onnxruntime.__version__} cannot run it: {_reason(error)}",
            hint="export it again with an opset and operators that this onnxruntime knows",
        ) from error


def _failures() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its kinds have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as kinds

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    return (*(getattr(kinds, name) for name in names), kinds.RuntimeException, RuntimeError)


def _reason(error: Exception) -> str:
    return one_line(error).removeprefix("[ONNXRuntimeError] : ")[:300]


def _input(source: Source, session: Any) -> Any:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise CheckpointError(f"{source}: has {len(inputs)} inputs, expected one, an image")
    one = inputs[0]
    if one.type not in _TYPES:
        raise CheckpointError(f"{source}: its input is {one.type}, expected {' or '.join(_TYPES)}")
    shape = one.shape
    if (
        len(shape) != 4
        or (isinstance(shape[1], int) and shape[1] != 3)
        or (isinstance(shape[0], int) and shape[0] != 1)
    ):
        told = " x ".join(str(side) for side in shape)
        raise CheckpointError(f"{source}: its input is {told}, expected 1 x 3 x height x width (three channels, RGB)")
    return one


def _fixed_size(source: Source, given: Any) -> tuple[int, int] | None:
    sides = given.shape[2:]
    fixed = [side for side in sides if isinstance(side, int)]
    if len(fixed) == 1:
        raise CheckpointError(f"{source}: one side of its input is fixed, the other is not ({sides[0]} x {sides[1]})")
    return (fixed[0], fixed[1]) if fixed else None
