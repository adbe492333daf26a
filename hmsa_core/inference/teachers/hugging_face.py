"""`hf:FOLDER`: a network for semantic segmentation as transformers saves it; safetensors alone, no code, no download.

Its own image processor prepares each image (size, mean, std), so scale 1 without mirroring is what the library does.
Scales enlarge or reduce what the processor gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from hmsa_core.inference.predictor import ImagePass
from hmsa_core.inference.prepared import effective_precision
from hmsa_core.inference.teachers.network import Network
from hmsa_core.inference.teachers.sources import Source
from hmsa_core.io.errors import CheckpointError, ConfigError, needs_extra, one_line

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MOVES = ("do_center_crop", "do_pad")  # pixels of scores would not be those of the image


class HuggingFaceNetwork(Network):
    """A folder of transformers on one device."""

    def __init__(self, source: Source, device: torch.device, precision: str) -> None:
        super().__init__(source)
        table = source.table
        if table.size or table.mean or table.std:
            raise ConfigError(f"{source.table_path}: size, mean and std of an hf folder are its preprocessor_config's")
        self.device, self.precision = device, effective_precision(precision, device)
        self._dtype = _DTYPES[self.precision]
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
        pixels = self._processor(images=image, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
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
        model, told = AutoModelForSemanticSegmentation.from_pretrained(
            str(source.path), use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise CheckpointError(f"{source}: transformers cannot load it: {one_line(error)[:300]}") from error
    absent = sorted([*told["missing_keys"], *(str(row[0]) for row in told["mismatched_keys"])])
    if absent:
        raise CheckpointError(
            f"{source}: {len(absent)} weights of the network are not in its files (first {absent[0]})",
            hint="give a folder of a network that was trained for semantic segmentation",
        )
    return processor, model
