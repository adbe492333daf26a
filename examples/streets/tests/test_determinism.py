import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from examples.streets import City, DemoSpec, generate
from examples.streets.annotate import cityscapes_polygons, draw_cityscapes
from examples.streets.scene import city_picture, vistas_picture

SIZE = (128, 64)


def city_digest(*key):
    picture = city_picture(*key, SIZE, 2)
    labels, instances = draw_cityscapes(picture.size, cityscapes_polygons(picture.objects))
    return hashlib.sha256(picture.rgb.tobytes() + labels.tobytes() + instances.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("key", "digest"),
    [
        ((1, "train", "aachen", 0, 0), "88509ab2306c4a0f"),
        ((1, "train", "hamburg", 0, 4), "df5e57193383fce7"),
        ((1, "test", "berlin", 7, 2), "7dea2f0d2cca1502"),
        ((2, "train", "aachen", 0, 0), "808302cc92099278"),
    ],
)
def test_pictures_have_the_recorded_pixels(key, digest):
    assert city_digest(*key) == digest


def test_vistas_pictures_have_the_recorded_pixels():
    rgb = vistas_picture(1, "training", 5, (96, 72), 2).rgb
    assert hashlib.sha256(rgb.tobytes()).hexdigest()[:16] == "98555903b6aca6ae"


def test_hash_seed_and_locale_do_not_matter():
    script = (
        "import hashlib; from examples.streets.scene import city_picture as c;"
        "print(hashlib.sha256(c(3, 'val', 'lindau', 1, 0, (64, 32), 2).rgb.tobytes()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "LC_ALL": locale, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, locale in (("0", "C"), ("123", "de_DE.UTF-8"))
    }
    assert len(outputs) == 1


def tree(root):
    """Pixels of every image and bytes of every other file but the stamp."""
    content = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name != "demo-data.json":
            name = path.relative_to(root).as_posix()
            if path.suffix == ".png":
                with Image.open(path) as image:
                    content[name] = np.array(image).tobytes()
            else:
                content[name] = path.read_bytes()
    return content


def test_the_number_of_workers_does_not_matter(tmp_path):
    spec = DemoSpec(size=(64, 32), cities=(City("train", "ulm", 6), City("val", "munster", 2)), vistas_training=2)
    for workers in (1, 2):
        generate(spec, tmp_path / str(workers), workers=workers)
    one, two = tree(tmp_path / "1"), tree(tmp_path / "2")
    assert len(one) > 60
    assert one == two


def test_pictures_stay_the_same_when_counts_grow(tmp_path):
    few = DemoSpec(size=(64, 32), cities=(City("train", "ulm", 2),), vistas_training=1)
    more = DemoSpec(size=(64, 32), cities=(City("train", "bremen", 1), City("train", "ulm", 3, 2)), vistas_training=2)
    generate(few, tmp_path / "few")
    generate(more, tmp_path / "more")
    grown = tree(tmp_path / "more")
    unchanged = {name: data for name, data in tree(tmp_path / "few").items() if "panoptic_2018" not in name}
    assert len(unchanged) == 2 * 9 + 5
    assert all(grown[name] == data for name, data in unchanged.items())
