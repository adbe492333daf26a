"""Labels of one image: the prepared model at all scales, fused by rows, in tiles where memory ends.

All that labels goes through `Tiler(Predictor(model))`. A tile sees less context than the whole image (OCR gathers its
regions from what it sees), so labels near tile borders can differ. Whether an image is tiled depends on its size
alone; only when memory runs out is the tile halved, and the log says so.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmsa_core import models
from hmsa_core.config import Passes, RuntimeConfig, check_scales
from hmsa_core.data.transforms import resize_label
from hmsa_core.inference.network import on_gpu
from hmsa_core.inference.network.optimised import effective_precision, prepare, run_scale
from hmsa_core.io.errors import CheckpointError, HmsaError, InputError, TrainingError
from hmsa_core.models.checkpoint import check_class_count
from hmsa_core.models.model import MultiScaleModel
from hmsa_core.models.passes import ScalePass
from hmsa_core.models.rows import Size, block_rows
from hmsa_core.runtime.memory import is_out_of_memory, release_memory
from hmsa_core.runtime.ranks import DTYPES, JobContext

_LOG = logging.getLogger(__name__)
WHOLE_PIXELS = 1 << 22  # larger images are tiled; Cityscapes has 2.1, Mapillary at long edge 2177 about 3.6 million
TILE = 2048  # pixels; side of the tiles of such images
_SMALLEST = 256
_GRID = 32  # pixels; the trunk's coarsest grid: tiles start on it, so that they see what the whole would see

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Labelled = tuple[UInt8, Float32]
T = TypeVar("T")


def prepare_process(threads: int) -> None:
    """Set what OpenCV and torch read of a process that runs networks; before the first network is loaded."""
    cv2.setNumThreads(threads)
    # Torch reads this at its first allocation: large pages for large tensors. On narrow networks page faults
    # cost as much as the convolutions (docs/inference.md).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Trials of algorithms would choose others on each rank, and take long where sizes differ.
    torch.backends.cudnn.benchmark = False


def load_predictor(checkpoint: Path, context: JobContext) -> Predictor:
    """Load a checkpoint for this rank's device in the precision that the job asks for."""
    prepare_process(context.runtime.thread_count)
    return Predictor(models.load(checkpoint), context.ranks.device, context.runtime.precision, in_place=True)


def open_tiler(checkpoint: Path, runtime: RuntimeConfig) -> Tiler:
    """Load a checkpoint for work outside of a job: one process, the device and precision of `runtime`."""
    return Tiler(load_predictor(checkpoint, JobContext.alone(runtime)))


def label_image(
    model: Predictor | MultiScaleModel, image: UInt8, scales: Sequence[float], flip: bool, *, kind: str = "model"
) -> tuple[UInt8, Float32]:
    """Label one image.

    Args:
        model: a Predictor; a plain model is prepared for inference first (seconds: not in a loop).
        image: uint8 HxWx3 RGB of any size.
        scales: different positive numbers, one of them 1.0.
        flip: average the scores with those of the mirror image.
        kind: "model" = as it was trained; "single", "average", "max" fuse its scales another way.

    Returns:
        label: uint8 HxW trainIds; confidence: float32 HxW, softmax probability of the label.
    """
    if isinstance(model, MultiScaleModel):
        model = Predictor(model, next(model.parameters()).device)
    return Tiler(model).label(image, Passes(check_scales(scales), flip, kind))


class Engine(ABC):
    """A network on one device, as `ImagePass` and `Tiler` run it."""

    device: torch.device
    kind: str  # of the fusion over scales
    precision: str
    num_classes: int  # of the scores; of a network of another tool known after its first image
    pairs = False  # image and mirror image in one batch
    resizes = False  # brings images of any size to one of its own

    @abstractmethod
    def open(self, image: UInt8) -> ImagePass:
        """Begin with one image, uint8 HxWx3 RGB."""

    @abstractmethod
    def run(self, images: Tensor, attention: bool) -> tuple[Tensor, Tensor | None]:
        """Raw scores and attention (float32, on any grid) of B x 3 x H x W normalised images."""

    def release_memory(self) -> None:
        """Give back what is kept for speed: memory has run out."""
        release_memory(self.device)


class Predictor(Engine):
    """A model made ready for inference on one device.

    Args:
        model: a model of `hmsa_core.models`; not changed, unless `in_place`.
        device: where it computes.
        precision: "fp32", "bf16" (fp32 on a CPU without bf16 units: see `.precision`) or "fp16".
        in_place: rewrite the model itself, which cannot be trained or saved afterwards: no second copy of
            the weights in memory.
    """

    def __init__(
        self,
        model: MultiScaleModel,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        *,
        in_place: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.precision = effective_precision(precision, self.device)
        self.kind, self.num_classes, self.meta = model.kind, model.num_classes, model.meta
        check_class_count(self.num_classes)
        mean, std = (np.array(values, float) for values in model.normalisation)
        if mean.shape != (3,) or std.shape != (3,) or not (std > 0).all():
            raise CheckpointError("the checkpoint's mean and std must be three numbers each, std above 0")
        self._table = normalising_table(mean, std)
        self._dtype = DTYPES[self.precision]
        prepared = prepare(model, self.device, self._dtype, in_place=in_place)
        self._pass: on_gpu.Pass = partial(run_scale, prepared)
        self.pairs = self.device.type == "cuda"  # image and mirror image in one batch: better use of a GPU
        if self.device.type == "cuda":
            self._pass = on_gpu.Graphs(self._pass)
            self._table_there = torch.from_numpy(self._table).to(self.device)

    def open(self, image: UInt8) -> ImagePass:
        """Begin with one image, uint8 HxWx3 RGB."""
        if self.device.type != "cuda":
            return ImagePass(self, normalised(image, self._table).to(self.device))
        _check_image(image)
        with torch.inference_mode():
            pixels = on_gpu.normalised_on(on_gpu.upload(image, self.device), self._table_there)
        return ImagePass(self, pixels)

    def run(self, images: Tensor, attention: bool) -> tuple[Tensor, Tensor | None]:
        """Raw scores and attention (float32, on the trunk's grid) of B x 3 x H x W normalised images."""
        with torch.inference_mode():
            return self._pass(images.to(self._dtype, memory_format=torch.channels_last), attention)

    def release_memory(self) -> None:
        """Give back what is kept for speed: captured passes, free blocks."""
        if isinstance(self._pass, on_gpu.Graphs):
            self._pass.release()
        super().release_memory()


def normalising_table(mean: NDArray[np.float64], std: NDArray[np.float64]) -> Float32:
    """256 values per channel: (value / 255 - mean) / std, as in training."""
    return ((np.arange(256)[:, None] / 255 - mean) / std).astype(np.float32)[:, None]


def normalised(image: UInt8, table: Float32) -> Tensor:
    """An image, uint8 HxWx3 RGB, as 1 x 3 x H x W float32 by a `normalising_table`. InputError: no such image."""
    _check_image(image)
    pixels = np.asarray(cv2.LUT(np.ascontiguousarray(image), table), np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def _check_image(image: UInt8) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"an image must be uint8 HxWx3 RGB, found {image.dtype} {image.shape}")


class ImagePass(ScalePass):
    """One image, normalised: labels and weights under any setting."""

    def __init__(self, predictor: Engine, images: Tensor, size: Size | None = None) -> None:
        super().__init__(images, predictor.kind, lambda images, attention: predictor.run(images, attention), size=size)
        self._predictor = predictor

    def label(self, passes: Passes, size: Size | None = None) -> Labelled:
        """Best class (uint8 HxW) and its probability (float32 HxW, softmax after all fusing).

        Args:
            passes: scales, mirroring and fusion.
            size: size of the result; the fused scores are resized (default: the image's).
        """
        return self.begin(passes, size)()

    def begin(self, passes: Passes, size: Size | None = None) -> Callable[[], Labelled]:
        """Begin `label`; the function that is returned waits for a GPU. A CPU is through with it already."""
        height, width = size or self.size
        with torch.inference_mode():
            fused = self.scores(passes).resized((height, width))
            label, confidence = (self._empty((height, width), dtype) for dtype in ("uint8", "float32"))
            for block in self._blocks(height, width):
                label[block], confidence[block] = decide(fused(block.start, block.stop)[0])
            found = on_gpu.download(label, confidence) if isinstance(label, Tensor) else lambda: [label, confidence]

        def wait() -> Labelled:
            label, confidence = found()
            _check_finite(confidence)
            return label, confidence

        return wait

    def _empty(self, size: Size, dtype: str) -> Any:
        """A map that goes with the outputs: numpy on a CPU."""
        device = self._images.device
        return (
            np.empty(size, dtype)
            if device.type == "cpu"
            else torch.empty(size, dtype=getattr(torch, dtype), device=device)
        )

    def probabilities(self, passes: Passes) -> Float32:
        """Softmax of the fused scores, C x H x W float32."""
        fused, (height, width) = self.scores(passes), self.size
        found = np.empty((self._channels(), height, width), np.float32)
        with torch.inference_mode():
            for block in self._blocks(height, width):
                found[:, block] = softmax(fused(block.start, block.stop)[0])
        _check_finite(found)
        return found

    def _channels(self) -> int:
        return int(next(iter(self._outputs.values())).logits.shape[1])

    def _blocks(self, height: int, width: int) -> Iterator[slice]:
        step = block_rows(self._channels() * max(width, self.size[1]) * 4, self._predictor.device.type)
        for y in range(0, height, step):
            yield slice(y, min(y + step, height))

    def weight_maps(self, passes: Passes) -> dict[float, Float32]:
        """Weight of each scale at each pixel (float32 HxW); they sum to 1. "max" has none."""
        return {scale: one.reshape(self.size).cpu().numpy() for scale, one in self.weights(passes).items()}

    def _compute(self, size: Size, mirrored: bool, attention: bool, flip: bool) -> None:
        """Run the image and its mirror image in one batch, apart (from now on) where that does not fit."""
        if flip and self._predictor.pairs:
            try:
                return self._run(size, (False, True), attention)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self._predictor.pairs = False
            self._predictor.release_memory()
        return super()._compute(size, mirrored, attention, flip)


def resized_maps(maps: Labelled, size: Size) -> Labelled:
    """Finished maps at another size: labels by the nearest pixel, confidence bilinearly."""
    label, confidence = maps
    return resize_label(label, size), np.asarray(cv2.resize(confidence, size[::-1]), np.float32)


def decide(scores: Any) -> tuple[Any, Any]:
    """Best class and its softmax probability of C x r x W scores; the lower class wins a tie. numpy or torch, as given.

    A score that is not a number is no class: label 255, and a probability that is not a number.
    """
    if isinstance(scores, Tensor):
        best, index = scores.max(dim=0)
        probability = (scores - best).exp_().sum(dim=0).reciprocal_()
        return torch.where(best.isnan(), 255, index).to(torch.uint8), probability
    best = scores.max(0)
    below = np.ascontiguousarray(scores - best).reshape(len(scores), -1)
    cv2.exp(below, dst=below)
    return first_of(scores, best), np.reciprocal(below.sum(0)).reshape(best.shape)


def first_of(scores: Float32, best: Float32) -> UInt8:
    """The first class of C x r x W scores (C < 256) that has the best score, uint8; 255 where none has."""
    # Bytes instead of argmax's 64-bit indices: 6 to 12 times as fast.
    is_best = (scores == best).view(np.uint8)
    is_best *= np.arange(len(scores), 0, -1, dtype=np.uint8)[:, None, None]
    rank = is_best.max(0)
    return np.where(rank == 0, np.uint8(255), np.uint8(len(scores)) - rank)


def softmax(scores: Any) -> Float32:
    """Probabilities of C x r x W scores (numpy or torch)."""
    if isinstance(scores, Tensor):
        return np.asarray(torch.softmax(scores, dim=0).cpu().numpy(), np.float32)
    below = np.ascontiguousarray(scores - scores.max(0)).reshape(len(scores), -1)
    cv2.exp(below, dst=below)
    below /= below.sum(0)
    return below.reshape(scores.shape)


def _check_finite(probabilities: Float32) -> None:
    if not np.isfinite(probabilities).all():
        raise HmsaError(
            "the model's scores are NaN or infinite", hint="use precision fp32, or train the checkpoint again"
        )


class Window(NamedTuple):
    """One tile: what the model sees, the part of it that is kept, and that part in coordinates of the tile."""

    seen: tuple[slice, slice]
    kept: tuple[slice, slice]
    inner: tuple[slice, slice]


def windows(size: Size, tile: int) -> Iterator[Window]:
    """Tiles of at most `tile` pixels a side that overlap by a quarter and keep each pixel exactly once."""
    for row, column in itertools.product(*(_spans(length, tile) for length in size)):
        yield Window(*zip(row, column, strict=True))


def _spans(length: int, tile: int) -> list[tuple[slice, slice, slice]]:
    """(seen, kept, inner) along one axis."""
    if length <= tile:
        return [(slice(0, length),) * 3]
    margin = tile // 8 // _GRID * _GRID
    starts = [*range(0, length - tile, tile - 2 * margin), _floor(length - tile + _GRID - 1)]
    spans = []
    for i, start in enumerate(starts):
        stop = min(start + tile, length)
        first = 0 if i == 0 else start + margin
        last = length if i == len(starts) - 1 else starts[i + 1] + margin
        spans.append((slice(start, stop), slice(first, last), slice(first - start, last - start)))
    return spans


def _floor(pixels: int) -> int:
    return pixels // _GRID * _GRID


def _shape(image: UInt8) -> Size:
    return image.shape[0], image.shape[1]


class Tiler:
    """Labels images whole or in tiles, and remembers which sizes did not fit."""

    def __init__(self, predictor: Engine, *, whole_pixels: int = WHOLE_PIXELS, tile: int = TILE) -> None:
        self.predictor = predictor
        # A tile that is brought to the network's own size would show it another scale than the whole image does.
        self._whole_pixels, self._tile = math.inf if predictor.resizes else whole_pixels, tile
        self._pairs = predictor.pairs  # as it was before memory ever ran out
        self._fits: dict[Size, int] = {}  # image size -> tile side that did fit after a failure
        self._last: tuple[UInt8, ImagePass] | None = None

    def label(self, image: UInt8, passes: Passes, size: Size | None = None) -> Labelled:
        """Label and confidence of an image (see `ImagePass.label`), tiled where it must be.

        The same array again, with other settings, shares what the model has computed for it already. At another
        `size` than the image's, a whole image's fused scores are resized. Of a tiled one the finished maps are
        (label by the nearest pixel, confidence bilinearly), since tiles do not end on that size's pixels.

        Raises:
            TrainingError: not even tiles of 256 pixels fit into memory (exit status 6).
        """
        return self.begin(image, passes, size)()

    def begin(self, image: UInt8, passes: Passes, size: Size | None = None) -> Callable[[], Labelled]:
        """Begin `label`; the function that is returned waits for a GPU, so that the next image can begin before."""
        return self._fitted(image, lambda tile: self._begin_at(image, passes, size, tile))

    def forced(self, image: UInt8) -> int | None:
        """Side of the tiles that lack of memory forced on images of this size; None where it forced nothing.

        The image's own longer side: it was run whole, but not in one batch with its mirror image.
        """
        shape = _shape(image)
        return self._fits.get(shape, max(shape) if self._pairs and not self.predictor.pairs else None)

    def probabilities(self, image: UInt8, passes: Passes) -> Float32:
        """Probabilities of an image, C x H x W float32 (see `ImagePass.probabilities`); tiles and errors as `label`."""

        def at(tile: int) -> Float32:
            if max(_shape(image)) <= tile:
                return self._open(image).probabilities(passes)
            found = np.empty((0, *_shape(image)), np.float32)
            for window, part in self._tiles(image, tile):
                values = part.probabilities(passes)
                found = found if len(found) else np.empty((len(values), *_shape(image)), np.float32)
                found[:, *window.kept] = values[:, *window.inner]
            return found

        return self._fitted(image, at)

    def _fitted(self, image: UInt8, compute: Callable[[int], T]) -> T:
        """Compute with the tile's side that this image's size has, a smaller one each time that memory ends."""
        shape = _shape(image)
        tile = self._side(shape)
        while True:
            try:
                return compute(tile)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                smaller = _floor(min(tile, max(shape)) // 2)
            # Outside of the handler: its traceback would keep the failed pass's tensors alive.
            self._last = None
            self.predictor.release_memory()
            if smaller < _SMALLEST:
                raise TrainingError(
                    f"out of memory on {self.predictor.device} with tiles of {tile} pixels",
                    hint="use fewer or smaller scales, precision bf16, or a machine with more memory",
                )
            _LOG.warning("an image of %dx%d does not fit: tiles of %d pixels now", *shape, smaller)
            self._fits[shape] = tile = smaller

    def weights(self, image: UInt8, passes: Passes) -> dict[float, Float32]:
        """Weight of each scale at each pixel of an image that `label` has been called for before."""
        shape = _shape(image)
        tile = self._side(shape)
        if max(shape) <= tile:
            return self._open(image).weight_maps(passes)
        maps = {scale: np.empty(shape, np.float32) for scale in sorted(passes.scales)}
        for window, part in self._tiles(image, tile):
            for scale, values in part.weight_maps(passes).items():
                maps[scale][window.kept] = values[window.inner]
        return maps

    def _side(self, shape: Size) -> int:
        whole = shape[0] * shape[1] <= self._whole_pixels
        return self._fits.get(shape, max(shape) if whole else self._tile)

    def _open(self, image: UInt8) -> ImagePass:
        if self._last is None or self._last[0] is not image:
            self._last = (image, self.predictor.open(image))
        return self._last[1]

    def _tiles(self, image: UInt8, tile: int) -> Iterator[tuple[Window, ImagePass]]:
        for window in windows(_shape(image), tile):
            yield window, self._open(np.ascontiguousarray(image[window.seen]))

    def _begin_at(self, image: UInt8, passes: Passes, size: Size | None, tile: int) -> Callable[[], Labelled]:
        shape = _shape(image)
        if max(shape) <= tile:
            return self._open(image).begin(passes, size)
        label, confidence = np.empty(shape, np.uint8), np.empty(shape, np.float32)
        for window, part in self._tiles(image, tile):
            maps = part.label(passes)
            label[window.kept], confidence[window.kept] = (one[window.inner] for one in maps)
        if size is None or size == shape:
            return lambda: (label, confidence)
        resized = resized_maps((label, confidence), size)
        return lambda: resized
