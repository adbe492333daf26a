"""Category and city figures, boundaries and reliability on the report page: from evaluation/'s files alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from hmsa_core.labels.thresholds.curves import CalibrationImage, Curves
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.metrics import by_category, by_city
from hmsa_core.taxonomy import cityscapes, mapillary
from pipeline.report.charts import confusion_matrix, curve_grid
from pipeline.report.quality import read_quality, section
from pipeline.report.render import Table

CAR, BUS = cityscapes().index("car"), cityscapes().index("bus")


def counts() -> np.ndarray:
    """Two images: in the first half of the cars are called buses, in the second all are right."""
    found = np.zeros((2, 19, 19), np.int64)
    found[0, CAR, CAR] = found[0, CAR, BUS] = 50
    found[1, CAR, CAR] = 100
    found[:, 0, 0] = 100
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    reported = {"mean_iou": 0.61, "boundary": {"mean_iou": 0.33}, "band": {"mean_iou": 0.44}, "ece": 0.123}
    for model in ("student", "teacher"):
        (tmp_path / f"summary-{model}.json").write_text(json.dumps({"settings": {"multi": reported}}))
        np.savez(
            tmp_path / f"confusions-{model}.npz",
            confusions=counts(),
            cities=np.array(["aachen", "ulm"]),
            reliability_confidence=[np.nan, 0.9],
            reliability_accuracy=[np.nan, 0.7],
            reliability_pixels=[0, 300],
        )
    return tmp_path


def _shown(folder: Path) -> str:
    """The section, without the meanings under the pointer."""
    html = section(read_quality(folder, cityscapes(), "multi"), cityscapes().classes)
    assert "<td title='IoU of the inner boundaries" in html
    return re.sub(r"(<t[dh]) title='[^']*'", r"\1", html)


def test_a_confusion_inside_a_category_is_forgiven() -> None:
    found = by_category(counts().sum(axis=0), cityscapes())
    assert found["vehicle"] == 1.0
    assert found["flat"] == 1.0
    assert found["sky"] is None
    assert set(found) == {"flat", "construction", "object", "nature", "sky", "human", "vehicle"}


def test_classes_of_another_set_are_put_together_by_their_groups() -> None:
    found = by_category(np.eye(65, dtype=np.int64), mapillary())
    assert found["person"] == 1.0
    assert set(found) == set(mapillary().groups) - {"other"}


def test_each_city_has_its_own_mean_and_images_without_a_city_are_left_out() -> None:
    found = by_city(counts(), ["aachen", "ulm"])
    assert (found["aachen"]["images"], found["ulm"]["mean_iou"]) == (1, 1.0)
    assert found["aachen"]["mean_iou"] == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert list(by_city(counts(), ["", "ulm"])) == ["ulm"]


def test_the_page_shows_categories_boundaries_cities_and_the_reliability_diagram(folder: Path) -> None:
    html = _shown(folder)
    assert html.index("teacher") < html.index("student")
    assert "<td>boundary IoU</td><td>33.0</td><td>33.0</td>" in html
    assert "<td>category vehicle</td><td>100.0</td><td>100.0</td>" in html
    assert "<td>ulm</td><td>1</td><td>100.0</td><td>100.0</td>" in html
    assert html.count("accuracy over confidence") == 2
    assert html.count("<circle") == 2, "an empty bin has no dot"
    assert "nan" not in html


def test_an_evaluation_without_details_shows_what_it_holds(folder: Path) -> None:
    for model in ("student", "teacher"):
        (folder / f"summary-{model}.json").write_text(json.dumps({"settings": {"multi": {"mean_iou": 0.61}}}))
        np.savez(folder / f"confusions-{model}.npz", confusions=counts(), cities=np.array(["", ""]))
    html = _shown(folder)
    assert "<td>boundary IoU</td><td>–</td><td>–</td>" in html
    assert html.count("<svg") == html.count("predicted class (columns)") == 2, "the confusions alone"
    assert "accuracy over confidence" not in html
    assert "by city" not in html


def test_the_confusion_picture_shows_of_each_true_class_what_it_is_taken_for(folder: Path) -> None:
    html = _shown(folder)
    assert html.count("predicted class (columns) of each true class (rows)") == 2
    assert "fill-opacity='0.25'><title>car, predicted as bus: 25.0 %</title>" in html
    assert "bus, predicted as" not in html, "no pixel of a bus is in the truth"
    assert "<td>student</td><td>car</td><td>bus</td><td>25.0</td><td>12.50</td>" in html
    assert "<td>road</td>" not in html, "what is right is no confusion"


def test_the_curve_of_a_class_that_is_mostly_wrong_shows_how_many_pixels_are_right() -> None:
    label, code = np.zeros((4, 4), np.uint8), np.full((4, 4), 250, np.uint8)
    truth = np.array([[0, 1, 1, 1]] * 4, np.uint8)
    curves = Curves.measure([CalibrationImage("a", "ulm", label, code, truth)], cityscapes())
    page = curve_grid(curves, from_threshold("0.5", cityscapes()), 0.9)
    (dot,) = re.findall("cy='([^']*)'", page)
    top, bottom = map(float, re.findall(r"class='axis' d='M[\d.]+,([\d.]+) V([\d.]+)", page)[0])
    assert (bottom - float(dot)) / (bottom - top) == pytest.approx(0.25, abs=0.01)
    assert ">0.75<" not in page, "the axis begins at 0"


def test_a_column_with_long_text_is_aligned_to_the_left_from_its_head_on() -> None:
    page = Table(
        ["class", "why"], [["road", "the teacher never gave this class on calibration images"], ["sky", "by hand"]]
    )
    assert re.findall("class=wrap>([^<]*)<", page.html())[1:] == [page.rows[0][1], "by hand"]


def test_without_judged_models_the_page_says_so(tmp_path: Path) -> None:
    assert "Nobody was judged" in section(read_quality(tmp_path, cityscapes(), "multi"), cityscapes().classes)


def test_names_that_begin_alike_stay_apart_in_the_matrix() -> None:
    names = mapillary().classes
    drawn = confusion_matrix(np.eye(65, dtype=np.int64), names)
    labels = re.findall(r"text-anchor='end'>([^<]*)<title>", drawn)
    assert len(set(labels)) == len(labels) == 65
    assert max(map(len, labels)) <= 14
