"""Labelling on a GPU, as far as it can be seen without one: counts on fake tensors, fused networks on the CPU."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from hmsa_core import models
from hmsa_core.config import Passes
from hmsa_core.inference.network import on_gpu, optimised
from hmsa_core.inference.network.predictor import Predictor, Tiler, normalised, normalising_table
from hmsa_core.models import model as model_module
from tests.support.counting import Counting, fake_gpu, fused_operators
from tests.support.inference import noise_image, small_model

pytestmark = pytest.mark.long

SIZE = (1024, 2048)
SCALES = (0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def counted() -> Counting:
    """W48 labels one image at {0.5, 1, 2} + flip."""
    with fake_gpu() as patch:
        for owner, name in ((model_module, "_initialise"), (nn.Conv2d, "reset_parameters")):
            patch.setattr(owner, name, lambda _: None)  # there are no values
        patch.setattr(optimised, "_absorb", lambda convolution, norm: setattr(convolution, "bias", norm.bias))
        model = models.build("hierarchical", trunk="hrnet_w48", num_classes=19).eval()
        tiler = Tiler(Predictor(model, "cuda", "bf16", in_place=True))
        image = np.zeros((*SIZE, 3), np.uint8)
        with Counting() as counter:
            tiler.begin(image, Passes(SCALES, True))
    return counter


def test_a_labelled_image_takes_half_of_the_kernels_without_fusing_one_copy_each_way_and_no_wait(counted):
    assert counted.kernels <= 3400 // 2
    # 104 residual blocks of two convolutions, 4 of three, at three scales: a kernel a convolution.
    assert counted.operators["cudnn_convolution_add_relu"] >= 3 * (104 + 4)
    assert counted.uploaded == 3 * SIZE[0] * SIZE[1] < 7e6, "the image's bytes, once"
    assert counted.downloaded == (1 + 4) * SIZE[0] * SIZE[1], "its maps, once"
    assert not counted.waits, "the host waits for nothing while an image is begun"


def test_the_count_sees_a_wait_and_an_upload_that_is_one_too_many():
    with fake_gpu(), Counting() as counter:
        there = torch.zeros(10).to("cuda")
        there.to("cpu", non_blocking=True)
        torch.conv2d(there.reshape(1, 1, 2, 5), there[:1].reshape(1, 1, 1, 1), there[:1])
    assert (counter.uploaded, counter.downloaded, counter.waits.total()) == (40, 40, 1)
    assert counter.operators["convolution"] == 2, "the bias has a kernel of its own"


def folded(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        optimised._fold(model, torch.randn(1, 3, 128, 128))
    return model


FUSED = [
    ("hrnet_micro", {}, (128, 96)),
    ("hrnet_micro", {"head": "paper"}, (101, 67)),
    ("hrnet_tiny", {"context": "none"}, (101, 67)),
    ("timm:resnet18", {}, (101, 67)),
]


@pytest.mark.parametrize(("trunk", "options", "size"), FUSED, ids=str)
def test_a_fused_network_computes_what_the_folded_one_does(trunk, options, size):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = models.build("hierarchical", trunk=trunk, num_classes=5, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    plain = folded(model)
    images, fused = torch.randn(2, 3, *size), copy.deepcopy(plain)
    with fused_operators(), torch.no_grad():
        on_gpu.fuse(fused, images[:1])
        expected, found = plain.forward_scale(images), fused.forward_scale(images)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.attention, expected.attention, rtol=1e-4, atol=1e-5)
    before, after = (sum(isinstance(m, nn.ReLU) for m in net.modules()) for net in (plain, fused))
    assert after < before
    if trunk.startswith("hrnet"):
        assert after == 0
        assert not [
            m for m in fused.backbone.modules() if type(m) is nn.Conv2d and m.bias is not None and m.stride[0] > 1
        ]


class Shifted(nn.Module):
    """A ReLU that gets what a convolution gave and something was added to in place, and one that gets it untouched."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second = nn.ReLU(), nn.ReLU()

    def forward_scale(self, x):
        y = self.first(self.one(x))
        z = self.two(y)
        z += y
        return self.second(z)


def test_a_relu_behind_a_sum_made_in_place_is_not_taken_for_the_convolutions_own():
    torch.manual_seed(0)
    model, x = Shifted(), torch.randn(1, 3, 8, 8)
    with fused_operators(), torch.no_grad():
        expected = model.forward_scale(x)
        on_gpu.fuse(model, x)
        torch.testing.assert_close(model.forward_scale(x), expected)
    assert isinstance(model.one, on_gpu.FusedConv)
    assert type(model.two) is nn.Conv2d
    assert isinstance(model.second, nn.ReLU)


def test_convolutions_stay_as_they_are_where_the_fused_operators_are_missing_or_wrong(monkeypatch, caplog):
    cpu = torch.device("cpu")
    with fused_operators():
        assert on_gpu.can_fuse(cpu, torch.float32)
        assert on_gpu.can_fuse(cpu, torch.bfloat16)
        monkeypatch.setattr(torch, "cudnn_convolution_relu", lambda x, *_: x)
        assert not on_gpu.can_fuse(cpu, torch.float32)
    assert "not fused with bias and ReLU on cpu in torch.float32: other values than convolution" in caplog.text

    def missing(*_args):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED\nmore")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", missing)
    assert not on_gpu.can_fuse(cpu, torch.float32)
    assert caplog.text.rstrip().endswith("CUDNN_STATUS_NOT_SUPPORTED")


def test_bytes_are_normalised_on_a_device_to_the_numbers_of_the_cpu():
    image = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    image[:, :, 1] = np.arange(256, dtype=np.uint8).reshape(16, 16)
    table = normalising_table(np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
    there = on_gpu.normalised_on(torch.from_numpy(image), torch.from_numpy(table))
    torch.testing.assert_close(there, normalised(image, table), rtol=0, atol=0)
    assert there.is_contiguous(memory_format=torch.channels_last)


class StubGraph:
    """Replays by running the captured pass again: memory addresses stay, as in a CUDA graph."""

    made = 0

    def __init__(self) -> None:
        StubGraph.made += 1
        self.work = None

    def replay(self) -> None:
        self.work()


@pytest.fixture
def graphs(monkeypatch):
    """`Graphs` around a pass that counts its runs, with stubs of CUDA's graphs."""
    ran, active = [], []
    StubGraph.made = 0

    def run(images, attention):
        ran.append(tuple(images.shape))
        scores = images * 2
        if active:

            def again(given=images, into=scores):
                into.copy_(given * 2)

            active[-1].work = again
        return scores, images[:, :1] + 1 if attention else None

    @contextmanager
    def capture(graph, **_options):
        active.append(graph)
        yield
        active.pop()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", StubGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    made = on_gpu.Graphs(run)
    return made, ran


def test_a_shape_is_captured_when_it_comes_again_and_results_outlive_the_next_replay(graphs):
    made, ran = graphs
    first, second, third = (torch.full((1, 3, 4, 4), float(value)) for value in (1, 2, 3))
    assert made(first, False)[0].unique().item() == 2
    assert StubGraph.made == 0, "the first pass of a shape is never captured"
    kept = made(second, False)[0]
    after = made(third, False)[0]
    assert len(ran) == 2, "the third pass was a replay"
    assert StubGraph.made == 1
    assert (kept.unique().item(), after.unique().item()) == (4, 6)


def test_the_number_of_captured_shapes_is_bounded_and_lack_of_memory_ends_capturing(graphs):
    made, _ = graphs
    for height in range(1, on_gpu._MOST_GRAPHS + 4):
        for _ in range(3):
            assert made(torch.ones(1, 3, height, 4), True)[0].shape[2] == height
    assert StubGraph.made == on_gpu._MOST_GRAPHS
    made.release()
    for _ in range(3):
        made(torch.ones(1, 3, 1, 4), True)
    assert StubGraph.made == on_gpu._MOST_GRAPHS
    assert not made._captured


def test_a_capture_that_fails_is_reported_and_the_pass_is_run_all_the_same(graphs, monkeypatch, caplog):
    made, _ = graphs

    @contextmanager
    def broken(*_args, **_options):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", broken)
    for _ in range(3):
        assert made(torch.ones(1, 3, 2, 2), False)[0].unique().item() == 2
    assert caplog.text.count("passes are not captured as CUDA graphs: CUDA error: operation not permitted") == 1


def test_two_images_under_way_keep_their_own_labels():
    images = [noise_image(seed, 64, 96) for seed in (1, 2)]
    tiler = Tiler(Predictor(small_model()))
    waiting = [tiler.begin(image, Passes((0.5, 1.0), True)) for image in images]
    for image, wait in zip(images, waiting, strict=True):
        for found, expected in zip(
            wait(), Tiler(Predictor(small_model())).label(image, Passes((0.5, 1.0), True)), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
