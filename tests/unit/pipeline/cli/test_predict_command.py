"""`autolabel predict`: pictures for each image, and nothing heavy before it is needed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.inference import noise_image, save_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), scales=[0.5, 1.0], flip=True)


@pytest.fixture
def predict(checkpoint: Path, said):
    """Run the command and return what it wrote."""
    return lambda out, *images, **status: said(
        "predict", *images, "--checkpoint", checkpoint, "--out", out, "--device", "cpu", "--threads", "1", **status
    )


def test_each_image_gets_its_pictures_and_the_sheets_are_printed(predict, tmp_path):
    for i in range(2):
        cv2.imwrite(str(tmp_path / f"street{i}.png"), noise_image(i, 40, 60))
    out = tmp_path / "out"
    printed = predict(out, tmp_path / "street0.png", tmp_path / "street1.png").out
    assert printed.splitlines() == [str(out / f"street{i}_sheet.png") for i in range(2)]
    maps = ("label", "confidence", "weight_0.5x", "weight_1x", "sheet")
    assert sorted(p.name for p in out.iterdir()) == sorted(f"street{i}_{m}.png" for i in range(2) for m in maps)
    weights = [cv2.imread(str(out / f"street0_weight_{s}x.png"), 0).astype(int) for s in ("0.5", "1")]
    assert np.abs(sum(weights) - 255).max() <= 1
    predict(out, tmp_path / "street0.png", "--scales", "0.25 0.5 1", "--no-flip")
    assert (out / "street0_weight_0.25x.png").exists()


def test_two_images_of_one_name_and_unreadable_ones_are_refused(predict, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "b").mkdir()
    for name in ("a.png", "b/a.png"):
        cv2.imwrite(str(tmp_path / name), noise_image(3, 30, 30))
    assert "two of the images are named 'a'" in predict(out, tmp_path / "a.png", tmp_path / "b/a.png", status=3).err
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "not a PNG, JPEG, WebP or TIFF image" in predict(out, tmp_path / "broken.png", status=3).err


def test_a_missing_image_or_a_folder_in_place_of_images_is_reported_before_any_is_predicted(predict, tmp_path):
    out = tmp_path / "out"
    error, hint = predict(out, tmp_path, status=3).err.splitlines()
    assert (error, f"{tmp_path}/*" in hint) == (f"error: {tmp_path}: is a folder", True)
    cv2.imwrite(str(tmp_path / "there.png"), noise_image(0, 40, 60))
    error = predict(out, tmp_path / "there.png", tmp_path / "gone.png", status=3).err
    assert error == f"error: {tmp_path / 'gone.png'}: no such file\n"
    assert not out.exists()


def test_a_network_of_another_tool_is_sent_to_the_commands_that_run_it(said, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), noise_image(0, 40, 60))
    error, hint = said("predict", tmp_path / "a.png", "--checkpoint", "onnx:net.onnx", status=2).err.splitlines()
    assert (error, "autolabel label" in hint) == ("error: onnx:net.onnx: is no checkpoint of this project", True)


def test_a_class_table_of_a_checkpoint_is_refused_not_dropped(said, checkpoint, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), noise_image(0, 40, 60))
    given = f"{checkpoint}?map={tmp_path / 'table.yaml'}"
    assert "no checkpoint" in said("predict", tmp_path / "a.png", "--checkpoint", given, status=3).err
