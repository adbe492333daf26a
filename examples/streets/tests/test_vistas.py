import json
import re

import numpy as np
import pytest
from PIL import Image

from examples.streets.kinds import vistas


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def keys(root, split):
    return sorted(path.stem for path in (root / "mapillary" / split / "images").glob("*.jpg"))


def test_keys_have_22_characters_and_some_start_with_a_hyphen(small_set):
    found = keys(small_set, "training")
    assert len(found) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", key) for key in found)
    assert any(key.startswith("-") for key in found)


@pytest.mark.parametrize("version", ["v1.2", "v2.0"])
def test_label_images_keep_their_indices_behind_a_palette(small_set, version):
    table = vistas(version)
    for split in ("training", "validation"):
        for key in keys(small_set, split):
            with Image.open(small_set / "mapillary" / split / version / "labels" / f"{key}.png") as image:
                assert image.mode == "P"
                palette, ids = image.getpalette(), np.array(image)
            assert ids.max() < len(table.entries)
            for index in np.unique(ids).tolist():
                assert tuple(palette[3 * index : 3 * index + 3]) == table.entries[index].colour
            with Image.open(small_set / "mapillary" / split / "images" / f"{key}.jpg") as photo:
                assert photo.size == (ids.shape[1], ids.shape[0])


def test_sizes_vary_and_some_pictures_are_portrait(small_set):
    sizes = set()
    for path in (small_set / "mapillary").glob("*/images/*.jpg"):
        with Image.open(path) as photo:
            sizes.add(photo.size)
    assert sizes == {(96, 72), (72, 96)}


@pytest.mark.parametrize(("version", "count"), [("v1.2", 66), ("v2.0", 124)])
def test_the_config_lists_the_classes_in_id_order(small_set, version, count):
    config = json.loads((small_set / "mapillary" / f"config_{version}.json").read_text())
    assert [label["name"] for label in config["labels"]] == [entry.name for entry in vistas(version).entries]
    assert len(config["labels"]) == count
    assert set(config["labels"][0]) == {"name", "readable", "color", "instances", "evaluate"}


def test_instance_images_hold_label_times_256_plus_number(small_set):
    several = 0
    for key in keys(small_set, "training"):
        base = small_set / "mapillary" / "training" / "v1.2"
        labels, instances = pixels(base / "labels" / f"{key}.png"), pixels(base / "instances" / f"{key}.png")
        np.testing.assert_array_equal(instances // 256, labels)
        several += int((instances % 256).max() > 0)
    assert several > 0


def test_panoptic_segments_add_up_to_the_labelled_pixels(small_set):
    base = small_set / "mapillary" / "training" / "v1.2"
    content = json.loads((base / "panoptic" / "panoptic_2018.json").read_text())
    assert [row["id"] for row in content["images"]] == [row["image_id"] for row in content["annotations"]]
    assert not list((base / "panoptic").glob("*.part.json"))
    for row in content["annotations"]:
        rgb = pixels(base / "panoptic" / row["file_name"]).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        labels = pixels(base / "labels" / row["file_name"])
        np.testing.assert_array_equal(ids == 0, labels == 65)
        for segment in row["segments_info"]:
            inside = ids == segment["id"]
            assert inside.sum() == segment["area"]
            assert set(labels[inside]) == {segment["category_id"] - 1}


def test_the_v2_polygons_name_classes_of_v2(small_set):
    names = {entry.name for entry in vistas("v2.0").entries}
    for key in keys(small_set, "training"):
        content = json.loads((small_set / "mapillary/training/v2.0/polygons" / f"{key}.json").read_text())
        assert {item["label"] for item in content["objects"]} <= names
        assert set(content) == {"width", "height", "objects"}
