"""The evaluation job: per-image confusions of several settings, whatever the ranks and sizes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from hmsa_core.data.decode import read_image, read_label
from hmsa_core.data.index import Index, Sample
from hmsa_core.inference.evaluation import evaluate_job
from hmsa_core.inference.evaluation.scoring import Labelled, score
from hmsa_core.inference.network.predictor import Predictor, label_image
from hmsa_core.io.atomic import read_json
from hmsa_core.io.errors import ConfigError, InputError, IntegrityError, InterruptedRunError
from hmsa_core.metrics import confusion_counts, iou_of, mean_iou_of
from hmsa_core.spec import EvaluationSetting
from tests.support.inference import (
    StopAfter,
    evaluate_spec,
    job_context,
    noise_image,
    save_model,
    sizes_run,
    small_model,
)
from tests.support.ranks import on_ranks
from tests.support.training import sample, write_data

SIZE = (40, 56)
MULTI = EvaluationSetting(name="multi", scales=(0.5, 1.0), flip=True)
SINGLE = EvaluationSetting(name="single", scales=(1.0,), flip=False, mode="single")
AVERAGE = EvaluationSetting(name="average", scales=(0.5, 1.0), flip=False, mode="average")
MAXIMUM = EvaluationSetting(name="max", scales=(0.5, 1.0), flip=False, mode="max")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, images=5, size=SIZE)
    save_model(folder / "model")
    return folder


def run(data: Path, work: Path, *settings, ranks=None, stop=None, **changes):
    spec = evaluate_spec(data, work, data / "model", settings, **changes)
    return evaluate_job.run(spec, job_context(work, ranks, stop))


def decoded(of: Sample) -> Labelled:
    return Labelled(of, noise_image(1, *SIZE), np.zeros(SIZE, np.uint8))


def truth(data: Path, name: str) -> np.ndarray:
    return read_label(data / f"toy/{name}_label.png", Index.load(data / "toy.parquet").classes)


def test_confusions_are_those_of_label_image_for_every_setting(data, tmp_path):
    summary = run(data, tmp_path, MULTI, SINGLE, AVERAGE, MAXIMUM)
    predictor = Predictor(small_model())
    means = set()
    for setting in (MULTI, SINGLE, AVERAGE, MAXIMUM):
        expected = []
        for i in range(5):
            image = read_image(data / f"toy/toy_{i:03d}.png")
            label, _ = label_image(predictor, image, setting.scales, setting.flip, kind=setting.mode)
            expected.append(confusion_counts(label, truth(data, f"toy_{i:03d}"), 4)[:, :4])
        with np.load(tmp_path / f"{setting.name}.npz") as found:
            np.testing.assert_array_equal(found["confusions"], expected)
            assert found["names"].tolist() == [f"toy_{i:03d}" for i in range(5)]
            assert found["blocks"].tolist() == ["0"] * 5
            assert found["cities"].tolist() == ["toytown"] * 5
            assert found["classes"].tolist() == ["road", "building", "car", "sky"]
        figures = summary["settings"][setting.name]
        iou = iou_of(np.sum(expected, axis=0))
        assert figures["mean_iou"] == pytest.approx(mean_iou_of(iou))
        for value, found_iou in zip(iou, figures["iou"].values(), strict=True):
            assert (found_iou is None) == math.isnan(value)
        means.add(figures["mean_iou"])
    assert len(means) == 4, "the modes must differ"
    assert read_json(tmp_path / "summary.json") == summary
    assert summary["checkpoint"] == read_json(data / "model/model.json")["weights_sha256"]


def test_any_number_of_ranks_writes_the_same_files(data, tmp_path):
    run(data, tmp_path / "one", MULTI, SINGLE, details=True)

    on_ranks(3, lambda ranks: run(data, tmp_path / "three", MULTI, SINGLE, ranks=ranks, details=True))
    for name in ("multi.npz", "single.npz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()
    assert read_json(tmp_path / "one/summary.json") == read_json(tmp_path / "three/summary.json")


def test_settings_share_their_scales_in_whatever_order_they_are_given(tmp_path):
    predictor = Predictor(small_model())
    sizes = sizes_run(predictor)
    settings = (
        SINGLE,
        AVERAGE,
        EvaluationSetting(name="two", scales=(0.5, 1.0), flip=False),
        MULTI,
        EvaluationSetting(name="three", scales=(0.5, 1.0, 2.0), flip=True),
    )
    score(predictor, settings, [sample("a")], decoded, job_context(tmp_path))
    assert len(sizes) == 6, "three scales and their mirror images, each once"
    assert len(set(sizes)) == 3


def test_details_hold_boundaries_reliability_and_weights_that_add_up(data, tmp_path):
    summary = run(data, tmp_path, MULTI, SINGLE, details=True)
    with np.load(tmp_path / "multi.npz") as found:
        assert (found["band_confusions"] <= found["confusions"]).all()
        assert 0 < found["band_confusions"].sum() < found["confusions"].sum()
        assert (found["boundary"][:, 0] <= found["boundary"][:, 1]).all()
        assert found["reliability_pixels"].sum() == found["confusions"].sum()
        pixels = found["confusions"].sum(2)
        np.testing.assert_allclose(found["weights"].sum((1, 3)), pixels, rtol=1e-4)
    figures = summary["settings"]["multi"]
    assert set(figures["weights"]) == {"0.5", "1"}
    for place in ("interior", "band"):
        total = sum(figures["weights"][scale][place]["road"] for scale in ("0.5", "1"))
        assert total == pytest.approx(1.0, abs=1e-4)
    assert 0 <= figures["ece"] <= 1
    assert figures["boundary"]["mean_iou"] < figures["mean_iou"] + 0.2
    assert "weights" not in summary["settings"]["single"]
    with np.load(tmp_path / "single.npz") as found:
        assert "weights" not in found


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"label_sha256": "0" * 64}, IntegrityError, r"toy_000_label\.png: SHA-256 is"),
        ({"label": "", "kind": "unlabelled"}, InputError, "none of the 5 selected images has a label"),
    ],
)
def test_a_changed_file_ends_the_evaluation_and_images_without_labels_are_not_judged(
    data, tmp_path, change, error, message
):
    index = Index.load(data / "toy.parquet")
    samples = [dataclasses.replace(s, **change) for s in index.samples]
    Index.write(data / "wrong.parquet", samples, index.classes, index.root)
    with pytest.raises(error, match=message):
        run(data, tmp_path, SINGLE, index="wrong")


def test_a_model_is_only_judged_on_labels_of_its_own_classes(data, tmp_path):
    write_data(data, images=1, size=SIZE, names=("a", "b", "c", "d"), prefix="other")
    with pytest.raises(ConfigError, match="labels toy, the index holds labels of toy"):
        run(data, tmp_path, SINGLE, index="other")


def test_attention_cannot_be_asked_of_a_model_without_it(tmp_path):
    explicit = EvaluationSetting.model_construct(name="x", scales=(1.0,), flip=False, mode="explicit")
    with pytest.raises(ConfigError, match="cannot be run as explicit"):
        score(Predictor(small_model()), [explicit], [sample("a")], decoded, job_context(tmp_path))


def test_a_stop_request_ends_it_between_two_images(data, tmp_path):
    with pytest.raises(InterruptedRunError):
        run(data, tmp_path, SINGLE, stop=StopAfter(2))
    assert not (tmp_path / "summary.json").exists()
