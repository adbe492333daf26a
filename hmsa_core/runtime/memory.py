"""Out of memory: recognise the error, and find by trial a crop that would have fitted."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable

import torch

from hmsa_core.io.errors import TrainingError

# Messages of the CPU's allocator, oneDNN, the CUDA runtime and its libraries, which have no error class for it.
_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "could not create a memory object",
    "CUDA error: out of memory",
    "CUDA out of memory",
    "cudaErrorMemoryAllocation",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "'out of memory'",  # NCCL: "Cuda failure 2 'out of memory'"
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_INSUFFICIENT_RESOURCES",
    # Libraries without memory for their handle or workspace report only a failure.
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUSOLVER_STATUS_INTERNAL_ERROR",
    "unable to find an engine",
)
_MULTIPLE = 32  # of the pixels of a crop's side: the trunk's coarsest grid


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch (CUDA or CPU) or Python failed to allocate."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def release_memory(device: torch.device) -> None:
    """Release cached blocks, so that a trial starts with the memory that is really needed."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far in MB (10^6 bytes): allocated on the GPU, or resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def largest_fitting_crop(attempt: Callable[[tuple[int, int]], None], crop: tuple[int, int]) -> tuple[int, int] | None:
    """Try crops of the same shape, each with about 3/4 of the pixels of the previous crop.

    Args:
        attempt: runs one forward and backward pass on a crop of that size (height, width).
        crop: the crop that did not fit.

    Returns:
        The first crop that fits, sides rounded down to multiples of 32 pixels, or None if not even 64 pixels fit.
    """
    tried = crop
    for exponent in range(1, 64):
        side = 0.75 ** (exponent / 2)
        smaller = (_floor(crop[0] * side), _floor(crop[1] * side))
        if min(smaller) < 64:
            return None
        if smaller == tried:
            continue
        tried = smaller
        try:
            attempt(smaller)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return smaller
    return None


def _floor(pixels: float) -> int:
    return int(pixels) // _MULTIPLE * _MULTIPLE


def out_of_memory_error(
    crop: tuple[int, int],
    fits: tuple[int, int] | None,
    *,
    step: int,
    batch: int,
    device: torch.device,
    searched: bool = True,
) -> TrainingError:
    """Return an error that names the crop that did not fit and, after a search, a crop that would fit."""
    room = f"; a crop of {fits[0]}x{fits[1]} would fit" if fits else "; no crop of 64 pixels or more fits either"
    room = room if searched else ""
    that_size = "set crop to that size, or " if fits else ""
    smaller_batch = f"batch_per_rank below {batch}, " if batch > 1 else ""
    return TrainingError(
        f"out of memory on {device} at step {step} with {batch} crop(s) of {crop[0]}x{crop[1]} a pass{room}",
        hint=f"{that_size}try {smaller_batch}runtime.activation_checkpointing, runtime.precision bf16",
    )
