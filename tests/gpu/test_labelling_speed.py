"""Labelling with W48 at 1024x2048, {0.5, 1, 2} + flip: kernels, waits, bytes, memory."""

from __future__ import annotations

import pytest
import torch

from hmsa_core import models
from hmsa_core.config import Passes
from hmsa_core.inference.network.predictor import Predictor, Tiler
from tests.support.inference import noise_image

SCALES = (0.5, 1.0, 2.0)
SIZE = (1024, 2048)


@pytest.fixture(scope="module")
def tiler() -> Tiler:
    """Has labelled three images: its passes are captured."""
    torch.manual_seed(0)
    model = models.build("hierarchical", trunk="hrnet_w48", num_classes=19).eval()
    made = Tiler(Predictor(model, "cuda", "bf16", in_place=True))
    for seed in range(3):
        made.label(noise_image(seed, *SIZE), SCALES, True)
    return made


def profiled(tiler: Tiler) -> list:
    image = noise_image(9, *SIZE)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        tiler.label(image, Passes(SCALES, True))
    return [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]


def test_an_image_takes_at_most_half_of_the_kernels_that_it_took_unfused(tiler):
    kernels = [event for event in profiled(tiler) if not event.name.startswith(("Memcpy", "Memset"))]
    assert 300 < len(kernels) <= 1700


def test_all_passes_are_captured(tiler):
    assert len(tiler.predictor._pass._captured) == len(SCALES)


def test_an_image_is_uploaded_and_downloaded_by_three_copies_of_pinned_memory(tiler):
    copies = [event.name for event in profiled(tiler) if "HtoD" in event.name or "DtoH" in event.name]
    assert len(copies) == 3
    assert all("Pinned" in name for name in copies)


def test_the_host_waits_for_nothing_while_an_image_is_begun(tiler):
    image = noise_image(4, *SIZE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        wait = tiler.begin(image, Passes(SCALES, True))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert wait()[0].shape == SIZE


def test_peak_memory_stays_below_20_gb(tiler):
    torch.cuda.reset_peak_memory_stats()
    tiler.label(noise_image(6, *SIZE), Passes(SCALES, True))
    assert torch.cuda.max_memory_allocated() < 20e9
