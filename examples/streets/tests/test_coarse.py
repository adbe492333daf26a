import json

import numpy as np
import pytest

from examples.streets.annotate import cityscapes_polygons, draw_cityscapes
from examples.streets.coarse import coarse_polygons
from examples.streets.kinds import cityscapes
from examples.streets.rng import Rng
from examples.streets.scene import city_picture


@pytest.fixture(scope="module")
def pairs():
    """(fine, coarse) label ids and the coarse polygons of some pictures."""
    found = []
    for sequence in range(14):
        picture = city_picture(1, "train", "jena", sequence, 0, (256, 128), 1)
        fine, instances = draw_cityscapes(picture.size, cityscapes_polygons(picture.objects))
        polygons = coarse_polygons(fine, instances, Rng("coarse", sequence))
        found.append((fine, draw_cityscapes(picture.size, polygons)[0], polygons))
    return found


def recall(pairs, name):
    number = cityscapes().by_name(name).id
    hit = sum(((fine == number) & (coarse == number)).sum() for fine, coarse, _ in pairs)
    return hit / sum((fine == number).sum() for fine, _, _ in pairs)


def test_almost_all_that_is_labelled_is_right(pairs):
    labelled = sum((coarse > 2).sum() for _, coarse, _ in pairs)
    right = sum(((coarse > 2) & (coarse == fine)).sum() for fine, coarse, _ in pairs)
    assert 0.975 < right / labelled < 0.9995
    assert 0.4 < labelled / sum(coarse.size for _, coarse, _ in pairs) < 0.75


def test_the_thin_is_mostly_missing_and_the_big_is_mostly_there(pairs):
    assert recall(pairs, "pole") < 0.25
    assert recall(pairs, "traffic light") < 0.4
    assert recall(pairs, "road") > 0.6
    assert recall(pairs, "sky") > 0.45


def test_polygons_have_few_vertices(pairs):
    counts = [len(item.polygon) for _, _, polygons in pairs for item in polygons]
    assert np.median(counts) <= 9
    assert min(counts) >= 3


def test_a_row_of_cars_in_one_outline_is_a_group(pairs):
    names = {item.name for _, _, polygons in pairs for item in polygons}
    assert "cargroup" in names
    assert "car" in names


def test_the_same_picture_is_annotated_the_same_way_twice(pairs):
    picture = city_picture(1, "train", "jena", 2, 0, (256, 128), 1)
    fine, instances = draw_cityscapes(picture.size, cityscapes_polygons(picture.objects))
    again = coarse_polygons(fine, instances, Rng("coarse", 2))
    assert again == pairs[2][2]
    assert json.dumps([item.polygon for item in again])


def test_an_empty_picture_has_no_polygons():
    blank = np.zeros((64, 128), dtype=np.uint8)
    assert coarse_polygons(blank, blank.astype(np.uint16), Rng("blank")) == []
