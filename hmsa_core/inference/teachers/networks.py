"""Networks of other tools: one image at several scales and mirrored, fused as the averaging baseline fuses ours.

    onnx:FILE   a network that onnxruntime runs, on the CPU unless the table names another provider
    hf:FOLDER   a network for semantic segmentation as transformers saves it; safetensors alone, no code, no download

A network gives scores on any grid; they are enlarged bilinearly to the image. Probabilities are taken by their
logarithm, so that scales are averaged as logits are: at one scale the softmax gives the same probabilities back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from hmsa_core.config import MEAN, STD
from hmsa_core.inference.network.optimised import effective_precision
from hmsa_core.inference.network.predictor import Engine, ImagePass, normalised, normalising_table
from hmsa_core.inference.teachers.sources import Source, onnx_home, onnx_metadata
from hmsa_core.io.errors import CheckpointError, ConfigError, needs_extra, one_line
from hmsa_core.models.layers.blocks import resize
from hmsa_core.runtime.memory import is_out_of_memory
from hmsa_core.runtime.ranks import DTYPES

_LEAST = 1e-30  # a probability below is taken for it: no logarithm of zero
_LOWEST = -1e30  # stands for minus infinity, the logarithm of zero: enlarging that gives no number
_ROUNDING = 1e-3  # of probabilities that half precision has been through
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_BYTES = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # 0 to 255 stay what they are
_MOVES = ("do_center_crop", "do_pad")  # pixels of scores would not be those of the image


class Network(Engine):
    """A network of another tool, ready for inference.

    Args:
        source: where it comes from, and the table next to it.
        size: height, width that images are brought to first; None = their own.
        mean, std: of RGB values in [0, 1]; None = ImageNet's.
        output: logits or probabilities.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        output: str | None = None,
    ) -> None:
        self.kind, self.device, self.precision = "average", torch.device("cpu"), "fp32"
        self.source, self.size = source, size
        self._is_bgr = source.table.order == "bgr"
        values = [np.array(given or usual, float) for given, usual in ((mean, MEAN), (std, STD))]
        if any(value.shape != (3,) for value in values) or not (values[1] > 0).all():
            raise ConfigError(f"{source}: mean and std must be three numbers each, std above 0")
        if max(value.max() for value in values) > 1:
            mean, std = ([round(float(v) / 255, 4) for v in value] for value in values)
            raise ConfigError(
                f"{source}: mean and std are of values from 0 to 255, here pixels lie in [0, 1]",
                hint=f"divide them by 255: write `mean: {mean}` and `std: {std}` in {source.table_path}",
            )
        # Columns are the channels in the order in which the network takes them.
        self._table = normalising_table(*(v[::-1] if self._is_bgr else v for v in values))
        self.gives = source.table.output or output  # None: not known
        self.is_tried = False  # by `adopt`, which takes scores in [0, 1] for probabilities and says so
        self._is_checked = False
        self.resizes = size is not None  # whatever the image's size is
        self.is_fixed = False  # whether it takes one size alone
        self.takes_bytes = False  # as they are, without mean and std

    def open(self, image: NDArray[np.uint8]) -> ImagePass:
        """Begin with one image, uint8 HxWx3 RGB."""
        size = (image.shape[0], image.shape[1])
        image = np.ascontiguousarray(image[:, :, ::-1]) if self._is_bgr else image
        if self.size is not None and self.size != size:
            smaller = self.size[0] * self.size[1] < image.shape[0] * image.shape[1]
            how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            image = np.asarray(cv2.resize(image, self.size[::-1], interpolation=how), np.uint8)
        return ImagePass(self, normalised(image, self._table).to(self.device), size)

    def run(self, images: Tensor, _attention: bool) -> tuple[Tensor, Tensor | None]:
        """Scores of 1 x 3 x H x W normalised images, float32 on the network's own grid."""
        sides = self._rounded(images.shape[2]), self._rounded(images.shape[3])
        try:
            with torch.inference_mode():
                found = self.scores(resize(images, sides))
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            size = "" if self.source.family == "hf" else "`size: [HEIGHT, WIDTH]` or "
            raise ConfigError(
                f"{self.source}: fails on an image of {sides[0]}x{sides[1]} pixels: {one_line(error)[:200]}",
                hint=f"say {size}`multiple: 32` in {self.source.table_path}, or use scale 1 alone",
            ) from error
        found = self._channels_first(found, sides).float()
        if not bool((found < torch.inf).all()):
            raise ConfigError(
                f"{self.source}: gives scores that are NaN or infinite",
                hint=f"do mean and std fit it (in {self.source.table_path})? fp16 can overflow, too",
            )
        scores = self._logits(found)
        self.num_classes = scores.shape[1]
        return scores, None

    def _channels_first(self, found: Tensor, sides: tuple[int, int]) -> Tensor:
        """Scores 1 x classes x h x w; those with the channels last are known by the proportions of the image."""
        shape = tuple(found.shape)
        output = f"{self.source}: its output has the shape {' x '.join(map(str, shape))}"
        if len(shape) != 4 or shape[0] != 1:
            raise CheckpointError(f"{output}, expected 1 x classes x H x W of scores")
        if _is_grid(shape[1:3], sides) and not _is_grid(shape[2:], sides):
            found = found.permute(0, 3, 1, 2)
        if found.shape[1] == 1 and found.max() > 1 and bool((found == found.round()).all()):
            raise _class_numbers(f"{self.source}: its one channel holds whole numbers up to {int(found.max())}")
        if found.shape[1] == 1 and self.source.is_unnamed:
            raise CheckpointError(
                f"{output}: which class its one channel is, is not known",
                hint=f"say `classes: {{0: OURS}}` in {self.source.table_path}; 1 is the rest, ignored if not listed",
            )
        return found

    @abstractmethod
    def scores(self, images: Tensor) -> Tensor:
        """Run the network as it is; any of its own errors may be raised."""

    def _rounded(self, side: int) -> int:
        unit = self.source.table.multiple
        return max(unit, round(side / unit) * unit)

    def _logits(self, found: Tensor) -> Tensor:
        if self.gives == "probabilities" or not (self._is_checked or self.gives):
            self._check_range(found)
        is_given = self.gives == "probabilities"
        if found.shape[1] == 1:  # a sigmoid's class, and the rest
            found = torch.cat([found, 1 - found if is_given else torch.zeros_like(found)], 1)
        return found.clamp(min=_LEAST).log() if is_given else found.nan_to_num(neginf=_LOWEST)

    def _check_range(self, found: Tensor) -> None:
        self._is_checked = True
        in_range = bool(found.min() >= -_ROUNDING and found.max() <= 1 + _ROUNDING)
        if self.gives and not in_range:
            raise ConfigError(
                f"{self.source}: gives {float(found.min()):.3g} to {float(found.max()):.3g}, no probabilities",
                hint=f"say `output: logits` in {self.source.table_path}",
            )
        if not self.gives and in_range and not self.is_tried:
            sums = bool(((found.sum(1) - 1).abs() < 10 * _ROUNDING).all())
            reason = "sum to 1 at each pixel, so they are probabilities and no logits" if sums else "lie in [0, 1]"
            other = "" if sums else " (of a sigmoid, too), or `output: logits`,"
            raise ConfigError(
                f"{self.source}: its scores {reason}",
                hint=f"say `output: probabilities`{other} in {self.source.table_path}",
            )
        self.gives = self.gives or ("probabilities" if in_range else "logits")


def _is_grid(shape: tuple[int, ...], sides: tuple[int, int]) -> bool:
    """Whether a grid has the proportions of an image, up to a position that padding adds."""
    return abs(shape[0] * sides[1] - shape[1] * sides[0]) <= 2 * max(sides)


class OnnxNetwork(Network):
    """An ONNX file in onnxruntime.

    One input, an RGB image, 1 x 3 x H x W or 1 x H x W x 3: floats, normalised by `mean` and `std` of the table, else
    of the metadata, else ImageNet's; or bytes, which the graph normalises. One output holds the scores,
    1 x classes x h x w or 1 x h x w x classes.

    Args:
        source: the file.
        threads: of each operator; the number can change last bits.
        is_single: whether scale 1 alone is requested, all that a network of one input size can do.
    """

    def __init__(self, source: Source, threads: int, *, is_single: bool) -> None:
        known = onnx_metadata(source.path, source.table)
        self._session = _session(source, threads)
        self._input, self._is_last = _input(source, self._session)
        self._dtype = _TYPES[self._input.type]
        self._output = _output(source, self._session)
        fixed = _fixed_size(source, self._input.shape[1:3] if self._is_last else self._input.shape[2:])
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
        self.is_fixed, self.takes_bytes = fixed is not None, self._dtype == np.uint8

    def scores(self, images: Tensor) -> Tensor:
        """Run the graph."""
        pixels = (images.permute(0, 2, 3, 1) if self._is_last else images).cpu().numpy()
        given = np.ascontiguousarray(np.rint(pixels) if self._dtype == np.uint8 else pixels, self._dtype)
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
    options.log_severity_level = 4  # errors are raised; they need no second line
    try:
        return onnxruntime.InferenceSession(str(onnx_home(source.path)), options, providers=[provider])
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


def _output(source: Source, session: Any) -> str:
    """Name of the output that holds the scores: the one that the table names, or the only one that can."""
    outputs = {str(one.name): one for one in session.get_outputs()}
    wanted = source.table.scores
    fit = [name for name, one in outputs.items() if not one.shape or len(one.shape) == 4] or list(outputs)
    if wanted in outputs or (wanted is None and len(fit) == 1):
        chosen = wanted or fit[0]
        if "int" in (kind := str(outputs[chosen].type)):
            what = f"{source}: its output {chosen} is {kind}"
            shape = list(outputs[chosen].shape or [])
            if len(shape) == 4 and 1 not in (shape[1], shape[3]):
                hint = "export it with floating-point scores: logits or probabilities"
                raise CheckpointError(f"{what}: scores of whole numbers, whose scale is not known", hint=hint)
            raise _class_numbers(what)
        return chosen
    why = f"none is called {wanted!r}" if wanted else "which of them holds the scores is not known"
    raise ConfigError(
        f"{source}: has the outputs {', '.join(outputs)}; {why}",
        hint=f"say `scores: NAME` in {source.table_path}; NAME is one of {', '.join(fit)}",
    )


def _class_numbers(what: str) -> CheckpointError:
    return CheckpointError(f"{what}: numbers of classes, no scores", hint="export it without its last step, the argmax")


def _input(source: Source, session: Any) -> tuple[Any, bool]:
    """The input, and whether its channels come last."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise CheckpointError(f"{source}: has {len(inputs)} inputs, expected one, an image")
    one = inputs[0]
    if one.type not in _TYPES:
        raise CheckpointError(f"{source}: its input is {one.type}, expected {' or '.join(_TYPES)}")
    shape = one.shape
    is_last = len(shape) == 4 and shape[1] != 3 and (shape[3] == 3 or str(shape[3]).lower().startswith("c"))
    if (
        len(shape) != 4
        or (isinstance(shape[1], int) and shape[1] != 3 and not is_last)
        or (isinstance(shape[0], int) and shape[0] != 1)
    ):
        sides = " x ".join(str(side) for side in shape)
        raise CheckpointError(
            f"{source}: its input is {sides}, expected 1 x 3 x height x width (three channels, RGB)",
            hint="export it for one RGB image",
        )
    return one, is_last


def _fixed_size(source: Source, sides: Sequence[int | str]) -> tuple[int, int] | None:
    fixed = [side for side in sides if isinstance(side, int)]
    if len(fixed) == 1:
        raise CheckpointError(f"{source}: one side of its input is fixed, the other is not ({sides[0]} x {sides[1]})")
    return (fixed[0], fixed[1]) if fixed else None


class HuggingFaceNetwork(Network):
    """A folder of transformers on one device. Its own image processor prepares each image (size, mean, std).

    So scale 1 without mirroring is what the library does. Scales enlarge or reduce what the processor gives.
    """

    def __init__(self, source: Source, device: torch.device, precision: str) -> None:
        super().__init__(source, output="logits")
        self.resizes, table = True, source.table
        if table.size or table.mean or table.std:
            raise ConfigError(f"{source.table_path}: size, mean and std of an hf folder are its preprocessor_config's")
        self.device, self.precision = device, effective_precision(precision, device)
        self._dtype = DTYPES[self.precision]
        self._processor, model = _load(source)
        moving = [name for name in _MOVES if getattr(self._processor, name, None)]
        if moving:
            raise ConfigError(
                f"{source}: its processor has {moving[0]}: scores would not lie on the image's pixels",
                hint=f"set {moving[0]} to false in preprocessor_config.json",
            )
        self._model = model.eval().to(device=device, dtype=self._dtype)

    def open(self, image: NDArray[np.uint8]) -> ImagePass:
        """Prepare one image, uint8 HxWx3 RGB, as the library does."""
        try:
            given = self._processor(images=image, input_data_format="channels_last", return_tensors="pt")
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.source.path / 'preprocessor_config.json'}: its processor fails: {one_line(error)[:200]}",
                hint="save the processor of the same network with save_pretrained",
            ) from error
        pixels = given["pixel_values"]
        return ImagePass(self, pixels.float().to(self.device), (image.shape[0], image.shape[1]))

    def scores(self, images: Tensor) -> Tensor:
        """Run the network."""
        found: Tensor = self._model(pixel_values=images.to(self._dtype)).logits
        return found


def _load(source: Source) -> tuple[Any, Any]:
    with needs_extra("huggingface"):
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
        from transformers.utils import logging
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # missing weights are reported below, in one line
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]  # untyped library
            str(source.path), **options
        )
        model, loading = AutoModelForSemanticSegmentation.from_pretrained(
            str(source.path), use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise CheckpointError(f"{source}: transformers cannot load it: {one_line(error)[:300]}") from error
    absent = sorted([*loading["missing_keys"], *(str(row[0]) for row in loading["mismatched_keys"])])
    if absent:
        raise CheckpointError(
            f"{source}: {len(absent)} weights of the network are not in its files (first {absent[0]})",
            hint="give a folder of a network that was trained for semantic segmentation",
        )
    return processor, model
