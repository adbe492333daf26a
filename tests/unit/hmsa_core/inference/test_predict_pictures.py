"""Pictures of a prediction: what their pixels mean, and that weights sum to one whatever the scales."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from hmsa_core.config import Passes
from hmsa_core.inference.network.pictures import contact_sheet, picture, write_pictures
from hmsa_core.inference.network.predictor import Predictor, Tiler
from hmsa_core.taxonomy import plain
from tests.support.inference import noise_image, small_model
from tests.support.training import class_table

SCALES = (0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def tilers():
    return {kind: Tiler(Predictor(small_model(kind))) for kind in ("hierarchical", "max")}


def test_files_hold_train_ids_in_class_colours_and_grey_maps_with_white_for_one(tilers, tmp_path):
    shown = picture(tilers["hierarchical"], noise_image(2, 40, 60), Passes(SCALES, True))
    classes = class_table()
    paths = write_pictures(tmp_path, "street", shown, classes)
    np.testing.assert_allclose(sum(shown.weights.values()), 1.0, atol=1e-5)
    assert sorted(p.name for p in paths) == sorted(p.name for p in tmp_path.iterdir())
    names = ("label", "confidence", "weight_0.5x", "weight_1x", "weight_2x", "sheet")
    assert [p.name for p in paths] == [f"street_{name}.png" for name in names]
    with Image.open(tmp_path / "street_label.png") as image:
        np.testing.assert_array_equal(np.array(image), shown.label)
        np.testing.assert_array_equal(np.array(image.convert("RGB")), classes.palette()[shown.label])
    for name, values in (("confidence", shown.confidence), ("weight_2x", shown.weights[2.0])):
        grey = cv2.imread(str(tmp_path / f"street_{name}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_allclose(grey / 255, values, atol=0.51 / 255)


def test_the_sheet_shows_every_map_once(tilers):
    image = noise_image(3, 64, 640)
    shown = picture(tilers["hierarchical"], image, Passes(SCALES, False))
    sheet = contact_sheet(shown, class_table())
    panel = sheet[6 + 28 : 6 + 28 + 64, 6 : 6 + 640]
    np.testing.assert_array_equal(panel, image)
    few = contact_sheet(picture(tilers["hierarchical"], image, Passes((1.0,), False)), class_table())
    assert sheet.shape[0] > few.shape[0] or sheet.shape == few.shape
    assert contact_sheet(shown, class_table()).tobytes() == sheet.tobytes()


@pytest.mark.parametrize("size", [(100, 1), (480, 10), (1, 900)])
def test_the_sheet_of_a_narrow_picture_is_no_larger_than_that_of_another(tilers, size):
    shown = picture(tilers["hierarchical"], noise_image(4, *size), Passes((1.0,), False))
    height, width = contact_sheet(shown, class_table()).shape[:2]
    assert height <= 2 * (1280 + 28 + 6) + 6
    assert width == 3 * (640 + 6) + 6


def test_the_maximum_over_scales_has_no_weight_pictures(tilers, tmp_path):
    shown = picture(tilers["max"], noise_image(4, 30, 30), Passes(SCALES, False))
    assert shown.weights == {}
    names = [p.name for p in write_pictures(tmp_path, "x", shown, class_table())]
    assert names == ["x_label.png", "x_confidence.png", "x_sheet.png"]
    averaged = picture(tilers["hierarchical"], noise_image(4, 30, 30), Passes(SCALES, False, "average"))
    np.testing.assert_allclose(averaged.weights[0.5], 1 / 3, atol=1e-6)


def test_classes_without_names_get_numbers_and_different_colours():
    classes = plain([str(i) for i in range(7)])
    assert classes.classes == tuple("0123456")
    assert len(set(classes.colours)) == 7
