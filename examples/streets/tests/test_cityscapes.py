import json
import re
from collections import Counter

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image

from examples.streets.cityscapes import CityJob, write_city_picture
from examples.streets.kinds import KINDS, cityscapes, vistas
from examples.streets.spec import DemoSpec

STEM = re.compile(
    r"^([a-z-]+)_(\d{6})_(\d{6})_(leftImg8bit\.png|gt(Fine|Coarse)_(labelIds|instanceIds|color)\.png|gt(Fine|Coarse)_polygons\.json)$"
)
# Damaged on purpose (see defects.py).
PLANTED = ("_000900_", "_000901_", "_000902_", "_000903_", "_000904_", "troisdorf_000073_")


def sound(paths):
    return sorted(path for path in paths if not any(mark in path.name for mark in PLANTED))


def annotations(root):
    return sound((root / "cityscapes").glob("gt*/*/*/*_polygons.json"))


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def test_every_file_lies_where_the_release_has_it(small_set):
    ours = small_set / "cityscapes/ceiling"  # no folder of the release
    files = [path for path in (small_set / "cityscapes").rglob("*") if path.is_file() and path.parent != ours]
    for path in files:
        kind, split, city, name = path.relative_to(small_set / "cityscapes").parts
        match = STEM.match(name)
        assert match, name
        assert match[1] == city
        assert name.split("_")[3].startswith(kind)
        assert split in {"train", "val", "test", "train_extra"}


def test_each_split_has_the_annotation_it_should(small_set):
    root = small_set / "cityscapes"

    def stems(kind, split, suffix):
        found = sound((root / kind / split).glob(f"*/*{suffix}"))
        return {path.name.removesuffix(suffix) for path in found}

    for split, fine, coarse in (("train", 5, 5), ("val", 2, 2), ("test", 2, 0), ("train_extra", 0, 5)):
        images = stems("leftImg8bit", split, "_leftImg8bit.png")
        assert len(images) == max(fine, coarse)
        assert stems("gtFine", split, "_gtFine_labelIds.png") == (images if fine else set())
        assert stems("gtCoarse", split, "_gtCoarse_labelIds.png") == (images if coarse else set())


def test_the_unlabelled_pictures_have_true_labels_beside_the_release(small_set):
    truth = sorted((small_set / "cityscapes/ceiling").iterdir())
    images = sound((small_set / "cityscapes/leftImg8bit/train_extra").glob("*/*.png"))
    assert [path.stem for path in truth] == [path.name.removesuffix("_leftImg8bit.png") for path in images]
    for path, image in zip(truth, images, strict=True):
        labels = pixels(path)
        coarse = pixels(
            small_set / f"cityscapes/gtCoarse/train_extra/{image.parent.name}/{path.stem}_gtCoarse_labelIds.png"
        )
        said = coarse != 0
        assert (labels[said] == coarse[said]).mean() > 0.9


def test_polygons_drawn_by_the_official_scripts_give_the_label_images(small_set):
    files = annotations(small_set)
    assert len(files) == 21
    for path in files:
        annotation = Annotation()
        annotation.fromJsonFile(str(path))
        for draw, suffix in ((createLabelImage, "labelIds"), (createInstanceImage, "instanceIds")):
            drawn = np.array(draw(annotation, "ids"))
            stored = pixels(path.with_name(path.name.replace("polygons.json", f"{suffix}.png")))
            np.testing.assert_array_equal(drawn, stored, err_msg=f"{path.name} {suffix}")


def test_pixel_formats_are_those_of_the_release(small_set):
    for path in annotations(small_set):
        modes = {}
        for suffix in ("labelIds", "instanceIds", "color"):
            with Image.open(path.with_name(path.name.replace("polygons.json", f"{suffix}.png"))) as image:
                modes[suffix] = image.mode
                assert image.size == (128, 64)
        assert modes == {"labelIds": "L", "instanceIds": "I;16", "color": "RGBA"}
    for path in sound((small_set / "cityscapes" / "leftImg8bit").rglob("*.png")):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (128, 64))


def test_instances_carry_their_class_and_colours_follow_the_table(small_set):
    table = {entry.id: entry for entry in cityscapes().entries}
    for path in annotations(small_set):
        labels = pixels(path.with_name(path.name.replace("polygons.json", "labelIds.png")))
        instances = pixels(path.with_name(path.name.replace("polygons.json", "instanceIds.png"))).astype(int)
        colours = pixels(path.with_name(path.name.replace("polygons.json", "color.png")))
        np.testing.assert_array_equal(np.where(instances >= 1000, instances // 1000, instances), labels)
        for class_id in np.unique(labels):
            assert {tuple(c) for c in colours[labels == class_id]} == {(*table[class_id].colour, 255)}
            numbered = instances[labels == class_id] >= 1000
            assert table[class_id].has_instances or not numbered.any()


def test_fine_labels_leave_nothing_unlabelled_and_mark_hood_and_border(small_set):
    for path in (p for p in annotations(small_set) if "gtFine" in p.name):
        labels = pixels(path.with_name(path.name.replace("polygons.json", "labelIds.png")))
        assert (labels == 0).mean() == 0
        assert (labels[-6:-2, 40:88] == 1).mean() > 0.7
        assert set(labels[:50, 0]) == {2}


def test_the_hood_stays_where_it_is_in_all_pictures_of_a_city(small_set):
    files = sorted((small_set / "cityscapes/gtFine/train").glob("aachen/*_labelIds.png"))
    hoods = {(pixels(path) == 1).tobytes() for path in files}
    assert len(files) == 3
    assert len(hoods) == 1


def test_licence_plates_are_in_the_json_but_not_in_the_labels(small_set):
    names = Counter(
        item["label"] for path in annotations(small_set) for item in json.loads(path.read_text())["objects"]
    )
    assert names["license plate"] > 3


def test_every_kind_has_a_class_in_both_tables():
    for kind, (city_name, vistas_name) in KINDS.items():
        assert city_name is None or cityscapes().by_name(city_name), kind
        assert vistas_name is None or vistas().by_name(vistas_name), kind


def test_a_picture_can_be_made_at_the_size_of_the_release(tmp_path):
    spec = DemoSpec(size=(2048, 1024), supersample=1)
    write_city_picture(spec, tmp_path, CityJob("train", "ulm", 4, 0))
    shapes = {path.name.split("_", 3)[3]: pixels(path).shape for path in tmp_path.rglob("*.png")}
    assert shapes["leftImg8bit.png"] == (1024, 2048, 3)
    assert shapes["gtFine_labelIds.png"] == shapes["gtCoarse_labelIds.png"] == (1024, 2048)


@pytest.mark.parametrize(("city", "number"), [("aachen", "000019"), ("hamburg", "000294")])
def test_cities_with_long_recordings_have_other_frame_numbers(city, number):
    assert CityJob("train", city, 0, 0).stem == f"{city}_000000_{number}"
