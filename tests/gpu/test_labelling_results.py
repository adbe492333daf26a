"""Labels of a GPU: those of the CPU, in every precision, size and fusion; the same however they are made."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hmsa_core import models
from hmsa_core.config import Passes
from hmsa_core.inference.network import on_gpu, optimised
from hmsa_core.inference.network.predictor import Predictor, Tiler, label_image, normalised, normalising_table
from tests.support.inference import noise_image, small_model

SCALES = (0.5, 1.0, 2.0)


@pytest.fixture(autouse=True)
def full_precision():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def agreement(one, other) -> tuple[float, float]:
    return float((one[0] == other[0]).mean()), float(np.abs(one[1] - other[1]).mean())


def network(trunk: str = "", **given):
    torch.manual_seed(0)
    return models.build("hierarchical", trunk=trunk, num_classes=7).eval() if trunk else small_model(**given)


@pytest.mark.parametrize(
    ("seed", "size", "precision", "share", "made"),
    [
        *((12, (128, 192), *one, {}) for one in [("fp32", 0.999), ("bf16", 0.97), ("fp16", 0.99)]),
        *((3, size, "fp32", 0.999, {}) for size in [(101, 67), (270, 480), (33, 35)]),
        *((4, (96, 128), "fp32", 0.999, {"kind": kind}) for kind in ("explicit", "average", "max", "single")),
        (5, (96, 128), "fp32", 0.999, {"classes": 65}),
        *(
            (6, (96, 128), "fp32", 0.995, {"trunk": trunk})
            for trunk in ("timm:resnet18", "timm:tf_efficientnet_lite0", "hrnet_tiny")
        ),
    ],
    ids=str,
)
def test_a_gpu_labels_as_the_cpu_does(seed, size, precision, share, made):
    model, image = network(**made), noise_image(seed, *size)
    on_cpu = label_image(Predictor(model), image, SCALES, True)
    labels, confidence = agreement(on_cpu, label_image(Predictor(model, "cuda", precision), image, SCALES, True))
    assert labels > share
    assert confidence < 0.02


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_image_of_2048_by_4096_is_labelled(precision):
    label, confidence = label_image(
        Predictor(small_model(), "cuda", precision), noise_image(7, 2048, 4096), SCALES, True
    )
    assert label.shape == confidence.shape == (2048, 4096)
    assert np.isfinite(confidence).all()
    assert len(np.unique(label)) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cudnn_has_the_fused_operators(dtype):
    assert on_gpu.can_fuse(torch.device("cuda"), dtype)


def test_a_fused_network_computes_what_the_folded_one_does():
    model, images = small_model().to("cuda"), torch.randn(2, 3, 128, 192, device="cuda")
    with torch.no_grad():
        optimised._fold(model, images[:1])
        fused = copy.deepcopy(model).to(memory_format=torch.channels_last)
        on_gpu.fuse(fused, images[:1])
        expected, found = model.forward_scale(images), fused.forward_scale(images)
    assert not [m for m in fused.modules() if isinstance(m, nn.ReLU)]
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-3)


def test_the_prepared_network_is_the_fused_one():
    network = Predictor(small_model(), "cuda", "bf16")._pass._run.args[0]
    assert [m for m in network.modules() if isinstance(m, on_gpu.FusedConv)]


def test_replayed_passes_give_the_bytes_of_the_first():
    predictor, images = Predictor(small_model(), "cuda", "bf16"), [noise_image(seed, 128, 192) for seed in range(3)]
    first = [Tiler(predictor).label(image, Passes(SCALES, True)) for image in images]
    assert predictor._pass._captured, "the second image was captured"
    again = [Tiler(predictor).label(image, Passes(SCALES, True)) for image in images]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_two_images_under_way_keep_their_own_labels():
    tiler, images = Tiler(Predictor(small_model(), "cuda", "bf16")), [noise_image(seed, 128, 192) for seed in range(4)]
    alone = [tiler.label(image, Passes(SCALES, True)) for image in images]
    waiting = [tiler.begin(image, Passes(SCALES, True)) for image in images]
    for expected, wait in zip(alone, waiting, strict=True):
        np.testing.assert_array_equal(expected[0], wait()[0])


def test_bytes_are_normalised_to_the_numbers_of_the_cpu():
    image = noise_image(1, 64, 96)
    image.flags.writeable = False
    table = normalising_table(np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
    there = on_gpu.normalised_on(on_gpu.upload(image, torch.device("cuda")), torch.from_numpy(table).cuda())
    torch.testing.assert_close(there.cpu(), normalised(image, table), rtol=0, atol=0)


def test_many_sizes_of_images_keep_memory_bounded():
    tiler = Tiler(Predictor(small_model(), "cuda", "bf16"))
    for height in range(64, 64 + 32 * 12, 32):
        for seed in range(3):
            tiler.label(noise_image(seed, height, 96), Passes(SCALES, True))
    assert len(tiler.predictor._pass._captured) == on_gpu._MOST_GRAPHS
    assert torch.cuda.memory_reserved() < 4e9
