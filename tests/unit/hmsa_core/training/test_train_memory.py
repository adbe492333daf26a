"""Out of memory: recognised, and answered with the crop that would have fitted."""

from __future__ import annotations

import pytest
import torch

from hmsa_core.runtime.memory import is_out_of_memory, largest_fitting_crop, out_of_memory_error, peak_memory_mb


def failing_above(pixels: int) -> tuple[list[tuple[int, int]], object]:
    tried: list[tuple[int, int]] = []

    def attempt(crop: tuple[int, int]) -> None:
        tried.append(crop)
        if crop[0] * crop[1] > pixels:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return tried, attempt


def test_the_largest_crop_of_the_same_shape_that_fits_is_found_and_none_is_named_when_none_fits() -> None:
    tried, attempt = failing_above(768 * 1536)
    crop = largest_fitting_crop(attempt, (1024, 2048))  # type: ignore[arg-type]
    assert crop is not None
    assert crop == tried[-1]
    assert crop[0] * crop[1] <= 768 * 1536
    assert crop[0] * crop[1] > 0.6 * 768 * 1536, "not much smaller than needed"
    assert all(side % 32 == 0 for side in crop)
    assert largest_fitting_crop(failing_above(0)[1], (1024, 2048)) is None  # type: ignore[arg-type]


def test_another_error_in_a_trial_is_not_swallowed() -> None:
    def attempt(crop: tuple[int, int]) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        largest_fitting_crop(attempt, (256, 256))


FULL = """
DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes
DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.
could not create a memory object
std::bad_alloc
CUDA error: out of memory
CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY
cudaErrorMemoryAllocation
CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`
CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`
cuDNN error: CUDNN_STATUS_ALLOC_FAILED
cuDNN error: CUDNN_STATUS_NOT_INITIALIZED
cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED
GET was unable to find an engine to execute this computation
cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`
cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`
NCCL error ...: unhandled cuda error. Last error: Cuda failure 2 'out of memory'"""
OTHERS = """
CUDA error: an illegal memory access was encountered
NCCL error: remote process exited or there was a network error
size mismatch"""


def test_only_failed_allocations_count_as_out_of_memory() -> None:
    for message in FULL.strip().splitlines():
        assert is_out_of_memory(RuntimeError(message)), message
    for message in OTHERS.strip().splitlines():
        assert not is_out_of_memory(RuntimeError(message)), message
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_a_real_cpu_allocation_that_is_too_large_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_the_message_says_what_did_not_fit_and_what_would() -> None:
    error = out_of_memory_error((1024, 2048), (768, 1536), step=7, batch=2, device=torch.device("cuda:3"))
    assert "cuda:3 at step 7 with 2 crop(s) of 1024x2048" in error.message
    assert "768x1536 would fit" in error.message
    assert "batch_per_rank below 2" in error.hint
    assert error.exit_code == 6
    plain = out_of_memory_error((64, 64), None, step=1, batch=1, device=torch.device("cpu"), searched=False)
    assert "fit" not in plain.message


def test_peak_memory_of_the_process_is_plausible() -> None:
    assert 10 < peak_memory_mb(torch.device("cpu")) < 1e6
