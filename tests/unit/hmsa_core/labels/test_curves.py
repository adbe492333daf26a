from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmsa_core.io.errors import InputError
from hmsa_core.labels import ConfidenceCode
from hmsa_core.labels.thresholds.curves import COUNTS, CalibrationImage, Curves
from hmsa_core.labels.thresholds.settings import CalibrateConfig
from tests.support.label_maps import toy_classes
from tests.support.label_worlds import world

CLASSES = toy_classes()
CODE = ConfidenceCode()


def _image(label, code, truth, human=None, block="b", name="n") -> CalibrationImage:
    arrays = [np.array(a, np.uint8) for a in (label, code, truth)]
    return CalibrationImage(name, block, *arrays, None if human is None else np.array(human, np.uint8))


def test_counts_are_those_of_a_loop_over_pixels() -> None:
    images = list(world(3, 2, seed=1))
    curves = Curves.measure(images, CLASSES)
    expected = {name: np.zeros((3, 5, 256), int) for name in ("total", "correct", "void")}
    for image in images:
        b = curves.blocks.index(image.block)
        for label, code, truth in zip(image.label.flat, image.code.flat, image.truth.flat, strict=True):
            if truth == 255:
                expected["void"][b, label, code] += 1
            else:
                expected["total"][b, label, code] += 1
                expected["correct"][b, label, code] += label == truth
    for name, array in expected.items():
        assert np.array_equal(curves.counts[name], array)
    assert np.array_equal(curves.joint.sum(axis=0), expected["total"].sum(axis=0))
    assert np.array_equal(np.einsum("cck->ck", curves.joint), expected["correct"].sum(axis=0))
    assert curves.truth.sum() == sum(np.count_nonzero(i.truth != 255) for i in images)


def test_only_pixels_of_the_region_count_and_conflicts_count_everywhere() -> None:
    label, truth = [[0, 0, 1, 1]], [[0, 1, 1, 255]]
    whole = _image(label, [[9, 9, 9, 9]], truth, human=[[0, 1, 255, 255]])
    inner = whole._replace(region=np.array([[False, False, True, True]]))
    curves = Curves.measure([inner], CLASSES)
    assert int(curves.counts["total"].sum()) == int(curves.counts["correct"].sum()) == 1
    assert int(curves.counts["total"][0, 1, 9]) == int(curves.counts["void"][0, 1, 9]) == 1
    assert curves.truth.tolist() == [[0, 1, 0, 0, 0]]
    assert int(curves.joint.sum()) == 1
    assert curves.conflicts.pixels.tolist() == Curves.measure([whole], CLASSES).conflicts.pixels.tolist()


def test_a_pixel_without_a_label_is_missed_by_its_class() -> None:
    curves = Curves.measure([_image([[0, 255, 1, 1]], [[9, 9, 9, 9]], [[0, 0, 1, 255]])], CLASSES)
    assert curves.iou[:2].tolist() == [0.5, 1.0]
    assert np.isnan(curves.iou[2:]).all(), "no image shows them"


def test_the_bands_lie_at_the_boundary_and_away_from_it_and_scale_with_the_height_of_the_image() -> None:
    truth = np.zeros((1024, 64), np.uint8)
    truth[:, 32:] = 1
    wrong = truth.copy()
    wrong[:, 31] = 1  # an error right at the boundary, and one far away
    wrong[:, 0] = 1
    curves = Curves.measure([_image(wrong, np.full_like(truth, 200), truth)], CLASSES)
    at = {name: int(curves.counts[name][0, 1].sum()) for name in COUNTS}
    assert (at["total"], at["correct"]) == (34 * 1024, 32 * 1024)
    assert 7 * 1024 <= at["boundary_correct"] <= 9 * 1024
    assert at["boundary_total"] - at["boundary_correct"] == 1024
    assert at["interior_total"] - at["interior_correct"] == 1024  # column 0; column 31 lies within 2 px
    assert 29 * 1024 <= at["interior_correct"] <= 31 * 1024
    half = truth[:512]
    curves = Curves.measure([_image(half, np.full_like(half, 200), half)], CLASSES)
    band = int(curves.counts["boundary_total"][0].sum()) / 512
    assert 7 <= band <= 10  # 4 px on each side of the boundary, not 8


def test_components_are_counted_by_their_best_code_and_specks_are_none() -> None:
    label = np.zeros((1024, 40), np.uint8)
    code = np.full_like(label, 100)
    label[10:20, 10:20] = 1
    code[10:20, 10:20] = 50
    code[15, 15] = 201
    label[50:60, 10:20] = 1
    label[100, 5] = 1  # one pixel
    curves = Curves.measure([_image(label, code, label)], CLASSES)
    kept = curves.kept("components")[0, 1]
    assert (kept[0], kept[101], kept[201], kept[202]) == (2, 1, 1, 0)


def test_conflicts_are_counted_by_who_was_right() -> None:
    label, human, truth = [[1, 1, 1, 1]], [[0, 0, 0, 255]], [[0, 1, 2, 1]]
    found = Curves.measure([_image(label, [[9, 9, 9, 9]], truth, human)], CLASSES).conflicts
    rows = sorted(zip(found.human, found.teacher, found.outcome, found.code, found.pixels, strict=True))
    assert rows == [(0, 1, 0, 9, 1), (0, 1, 1, 9, 1), (0, 1, 2, 9, 1)]


def test_a_curves_file_gives_back_every_number(tmp_path: Path) -> None:
    images = [i._replace(human=np.roll(i.truth, 3)) for i in world(3, 2, seed=1)]
    curves = Curves.measure(images, CLASSES, lineage={"teacher": "t"})
    curves.save(tmp_path / "c.json")
    back = Curves.load(tmp_path / "c.json")
    assert all(np.array_equal(back.counts[n], curves.counts[n]) for n in COUNTS)
    assert np.array_equal(back.joint, curves.joint)
    assert np.array_equal(back.truth, curves.truth)
    for column, array in vars(curves.conflicts).items():
        assert np.array_equal(getattr(back.conflicts, column), array)
    assert (back.blocks, back.images, back.lineage) == (curves.blocks, curves.images, curves.lineage)
    assert back.save(tmp_path / "again.json") == curves.save(tmp_path / "c.json")


def test_no_image_and_maps_of_different_sizes_are_refused() -> None:
    for images, message in (
        ([], "no calibration images"),
        ([_image([[1]], [[1]], [[1, 2]])], "n: the truth is"),
        ([_image([[1]], [[1]], [[1]], [[1, 2]])], "human label"),
    ):
        with pytest.raises(InputError, match=message):
            Curves.measure(images, CLASSES, config=CalibrateConfig())


@pytest.mark.parametrize("part", ["label", "truth", "human"])
def test_raw_ids_and_other_dtypes_are_refused_with_the_image_and_the_map(part: str) -> None:
    whole = CalibrationImage("street_7", "b", *(np.full((2, 3), v, np.uint8) for v in (0, 200, 255, 255)))
    raw_ids = whole._replace(**{part: np.array([[0, 33, 7], [255, 26, 4]], np.uint8)})
    with pytest.raises(InputError, match=rf"street_7: the {part}[ a-z]* holds 7, 26, 33, no class of 5") as error:
        Curves.measure([raw_ids], CLASSES)
    assert error.value.hint == "give trainIds 0..4, and 255 for pixels that do not count"
    for wide in (part, "code"):
        with pytest.raises(InputError, match=rf"street_7: the {wide}[ a-z]* is int64, expected uint8"):
            Curves.measure([whole._replace(**{wide: np.full((2, 3), 300)})], CLASSES)
