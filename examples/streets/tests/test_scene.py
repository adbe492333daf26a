import numpy as np
import pytest

from examples.streets.annotate import cityscapes_polygons, draw_cityscapes
from examples.streets.kinds import cityscapes
from examples.streets.scene import city_picture
from examples.streets.street import THEMES

TRAINED = [entry for entry in cityscapes().entries if 0 <= entry.train_id < 19]


def labels_of(picture):
    return draw_cityscapes(picture.size, cityscapes_polygons(picture.objects))[0]


@pytest.fixture(scope="module")
def drives():
    """One picture of each theme."""
    return [city_picture(1, "train", "stuttgart", k, 0, (256, 128), 1) for k in range(len(THEMES))]


def test_one_round_of_themes_shows_every_trained_class(drives):
    labels = np.stack([labels_of(picture) for picture in drives])
    missing = [entry.name for entry in TRAINED if (labels == entry.id).sum() < 30]
    assert missing == []


def test_classes_are_as_unequal_as_on_streets(drives):
    labels = np.stack([labels_of(picture) for picture in drives])
    share = {entry.name: (labels == entry.id).mean() for entry in TRAINED}
    assert share["road"] > 0.15
    assert share["road"] > 20 * share["bicycle"]
    assert share["building"] > 10 * share["traffic sign"]


def test_something_near_fills_the_frame(drives):
    big = [cityscapes().by_name(name).id for name in ("bus", "truck", "train")]
    assert max(max((labels_of(p) == number).mean() for number in big) for p in drives) > 0.2


def test_poles_are_a_few_pixels_wide_in_the_distance(drives):
    pole = cityscapes().by_name("pole").id
    with_poles = narrow = 0
    for picture in drives:
        mask = labels_of(picture) == pole
        edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(int), axis=1)
        widths = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
        with_poles += widths.size > 0
        narrow += (widths <= 3).sum() >= 5
    assert with_poles > len(drives) // 2
    assert narrow > with_poles // 2


def test_the_next_frame_shows_the_same_street_a_little_later():
    first, second, other = (
        city_picture(1, "train", "ulm", sequence, frame, (256, 128), 2) for sequence, frame in ((3, 0), (3, 1), (4, 0))
    )
    same, different = (np.mean(labels_of(first) == labels_of(p)) for p in (second, other))
    assert 0.7 < same < 1.0
    assert same > different + 0.1


def test_colour_alone_does_not_tell_sidewalk_from_road(drives):
    table = cityscapes()
    apart = []
    for picture in drives:
        labels = labels_of(picture)
        means = [
            picture.rgb[labels == table.by_name(name).id].mean()
            for name in ("road", "sidewalk")
            if (labels == table.by_name(name).id).sum() > 200
        ]
        if len(means) == 2:
            apart.append(abs(means[0] - means[1]))
    assert len(apart) > 5
    assert np.median(apart) < 40


def test_light_differs_from_drive_to_drive(drives):
    brightness = [picture.rgb.mean() for picture in drives]
    assert max(brightness) - min(brightness) > 50
