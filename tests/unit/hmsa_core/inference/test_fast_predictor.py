"""The network rewritten for inference computes what the trained one does, and shares work between settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hmsa_core.inference import fast, fast_weights
from hmsa_core.inference.predictor import Predictor
from hmsa_core.inference.predictor import label_image
from hmsa_core.io.errors import CheckpointError, ConfigError, HmsaError, InputError
from tests.support.inference import noise_image, small_model

SCALE_SETS = [(1.0,), (0.5, 1.0), (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 1.5)]


def normalised(image: np.ndarray) -> torch.Tensor:
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return ((torch.from_numpy(image).float() / 255 - mean) / std).permute(2, 0, 1)[None]


@pytest.mark.parametrize("kind", ["hierarchical", "explicit", "average", "max", "single"])
@pytest.mark.parametrize("scales", SCALE_SETS)
def test_scores_and_weights_equal_the_models_own_prediction(kind, scales):
    model, predictor = _pair(kind)
    for size, flip in (((64, 96), True), ((67, 45), False)):
        image = noise_image(1, *size)
        expected = model.predict(normalised(image), scales, flip)
        opened = predictor.open(image)
        scores = opened.scores(scales, flip)(0, size[0])
        spread = float(expected.logits.std())
        np.testing.assert_allclose(scores, expected.logits[0].numpy(), atol=2e-4 * spread)
        label, confidence = opened.label(scales, flip)
        assert (label == expected.logits[0].argmax(0).numpy()).mean() > 0.999
        np.testing.assert_allclose(confidence, expected.probabilities[0].amax(0).numpy(), atol=1e-4)
        if kind != "max":
            assert expected.weights is not None
            for scale, weight in opened.weights(scales, flip).items():
                np.testing.assert_allclose(weight, expected.weights[scale][0, 0].numpy(), atol=1e-4)


_pairs: dict[str, tuple[torch.nn.Module, Predictor]] = {}


def _pair(kind):
    if kind not in _pairs:
        model = small_model(kind, classes=5)
        _pairs[kind] = (model, Predictor(model))
    return _pairs[kind]


def test_the_labels_of_the_test_model_vary():
    label, _ = label_image(small_model(), noise_image(0, 64, 96), (0.5, 1.0), False)
    assert len(np.unique(label)) >= 3


def test_batch_norms_are_gone_and_the_given_model_is_as_it_was():
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rewritten = fast_weights.optimise(model, torch.device("cpu"), "fp32")
    assert not [m for m in rewritten.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_rewrite_that_changes_the_scores_is_refused(monkeypatch):
    def wrong(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        convolution.weight.mul_(1.1)

    monkeypatch.setattr(fast_weights, "_absorb", wrong)
    with pytest.raises(HmsaError, match="folding batch norms changed the scores by"):
        fast_weights.optimise(small_model(), torch.device("cpu"), "fp32")


def test_half_precision_is_only_used_where_the_processor_has_it(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(fast_weights, "cpu_has_bf16", lambda: False)
    assert fast_weights.effective_precision("bf16", cpu) == "fp32"
    assert fast_weights.effective_precision("bf16", gpu) == "bf16"
    assert Predictor(small_model(), "cpu", "bf16").precision == "fp32"
    monkeypatch.setattr(fast_weights, "cpu_has_bf16", lambda: True)
    assert fast_weights.effective_precision("bf16", cpu) == "bf16"


def test_half_precision_agrees_with_full_precision_on_nearly_all_pixels(monkeypatch):
    monkeypatch.setattr(fast_weights, "cpu_has_bf16", lambda: True)
    model, image = small_model(), noise_image(3, 64, 96)
    full = label_image(Predictor(model), image, (0.5, 1.0), True)
    half = label_image(Predictor(model, "cpu", "bf16"), image, (0.5, 1.0), True)
    assert (full[0] == half[0]).mean() > 0.97
    assert np.abs(full[1] - half[1]).mean() < 0.02
    assert (full[1] != half[1]).any(), "bf16 must really be used"


def test_a_models_own_mean_and_std_are_used():
    model, image = small_model(), noise_image(4, 32, 48)
    plain = label_image(model, image, (1.0,), False)[1]
    model.meta = {"inference": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    assert np.abs(label_image(model, image, (1.0,), False)[1] - plain).max() > 1e-3
    model.meta = {"inference": {"mean": [0.5], "std": [0.5, 0.5, 0.5]}}
    with pytest.raises(CheckpointError, match="three numbers each"):
        Predictor(model)


def test_settings_of_one_image_run_the_network_once_for_each_size_and_mirror_image():
    predictor = Predictor(small_model())
    sizes = []
    inner = predictor.run
    predictor.run = lambda images, *, attention: (
        sizes.append(tuple(images.shape[2:])),
        inner(images, attention=attention),
    )[1]
    opened = predictor.open(noise_image(5, 64, 96))
    opened.label((0.5, 1.0, 2.0), True)
    opened.label((0.5, 1.0), True)
    opened.label((0.5, 1.0, 2.0), False, kind="average")
    opened.label((1.0,), True, kind="single")
    opened.weights((0.5, 1.0, 2.0), True)
    assert sorted(sizes) == sorted([(32, 48), (64, 96), (128, 192)] * 2)


def test_image_and_mirror_image_can_share_a_batch_and_are_run_apart_where_that_does_not_fit():
    image = noise_image(11, 64, 96)
    expected = Predictor(small_model()).open(image).label((0.5, 1.0), True)
    predictor, batches = Predictor(small_model()), []
    predictor.pairs = True
    inner, limit = predictor.run, [2]

    def run(images, *, attention):
        batches.append(len(images))
        if len(images) > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(images, attention=attention)

    predictor.run = run
    for size in (2, 1):
        limit[0] = size
        found = predictor.open(image).label((0.5, 1.0), True)
        assert (found[0] == expected[0]).mean() > 0.999
        np.testing.assert_allclose(found[1], expected[1], atol=1e-4)
    assert batches == [2, 2, 2, 1, 1, 1, 1], "one failure is enough"
    predictor.open(image).label((0.5, 1.0), False)
    assert batches[-2:] == [1, 1]


def test_the_result_does_not_depend_on_how_many_rows_are_fused_at_once(monkeypatch):
    predictor, image = Predictor(small_model()), noise_image(6, 70, 90)
    whole = predictor.open(image).label((0.5, 1.0, 2.0), True)
    monkeypatch.setattr(fast, "_BLOCK_BYTES", {"cpu": 1})
    by_row = predictor.open(image).label((0.5, 1.0, 2.0), True)
    np.testing.assert_array_equal(whole[0], by_row[0])
    np.testing.assert_allclose(whole[1], by_row[1], atol=1e-6)


def test_the_result_can_have_another_size():
    opened = Predictor(small_model()).open(noise_image(7, 40, 60))
    label, confidence = opened.label((0.5, 1.0), False, size=(75, 111))
    assert label.shape == confidence.shape == (75, 111)
    same = opened.label((0.5, 1.0), False)[0]
    nearest = label[np.arange(40) * 75 // 40][:, np.arange(60) * 111 // 60]
    assert (nearest == same).mean() > 0.9


def test_impossible_requests_are_refused_in_one_line():
    predictor = Predictor(small_model("average"))
    image = noise_image(8, 20, 20)
    with pytest.raises(ConfigError, match="a average model cannot be run as hierarchical"):
        predictor.open(image).label((1.0,), False, kind="hierarchical")
    with pytest.raises(ConfigError, match="are not usable: give different positive numbers, one of them 1.0"):
        predictor.open(image).label((0.5, 2.0), False)
    with pytest.raises(InputError, match="an image must be uint8 HxWx3 RGB"):
        predictor.open(image.astype(np.float32))
    with pytest.raises(ConfigError, match="has no weights"):
        predictor.open(image).weights((1.0,), False, kind="max")


def test_weights_that_are_not_finite_never_become_labels():
    model = small_model()
    with torch.no_grad():
        model.ocr.cls_head.bias[1] = float("nan")
    with pytest.raises(HmsaError, match="not finite|changed the scores by nan"):
        label_image(model, noise_image(9, 32, 32), (1.0,), False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("precision", "share"), [("fp32", 0.999), ("bf16", 0.97)])
def test_a_gpu_labels_as_the_cpu_does(precision, share):
    torch.backends.cudnn.allow_tf32 = False
    model, image = small_model(), noise_image(12, 128, 192)
    on_cpu = label_image(Predictor(model), image, (0.5, 1.0, 2.0), True)
    on_gpu = label_image(Predictor(model, "cuda", precision), image, (0.5, 1.0, 2.0), True)
    assert (on_cpu[0] == on_gpu[0]).mean() > share
    assert np.abs(on_cpu[1] - on_gpu[1]).mean() < 0.02
