"""How public networks are used best: classes by name and label, input, scales, combination; written as one teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hmsa_core.config import MEAN, STD, Passes, RuntimeConfig
from hmsa_core.inference.adopt.adopt import Adoption, adopt_folder
from hmsa_core.inference.adopt.combination import combine
from hmsa_core.inference.adopt.report import table as table_of
from hmsa_core.inference.adopt.report import to_yaml
from hmsa_core.inference.adopt.samples import Pixels
from hmsa_core.inference.evaluation.labelled_files import Ids
from hmsa_core.inference.teachers.combining import UNKNOWN, average, cool, stack
from hmsa_core.inference.teachers.sources import digest_of, lineage_of, made_by, parse
from hmsa_core.inference.teachers.teacher import Teacher, open_teacher
from hmsa_core.inference.teachers.teacher_files import Stacking
from hmsa_core.io.atomic import sha256_file
from hmsa_core.io.errors import ConfigError, DecodeError, InputError
from hmsa_core.runtime.ranks import JobContext
from hmsa_core.taxonomy import ClassTable, cityscapes
from hmsa_core.taxonomy.concepts import propose
from tests.support.teachers import colour_network, nearest_colour, table
from tests.support.training import CLASSES, class_table, picture

TABLE = class_table()
RUNTIME = RuntimeConfig(precision="fp32", threads=1)
ENGLISH = ("Sky, cloud", "automobile", "dog", "house", "street")
TO_OURS = {"Sky, cloud": "sky", "automobile": "car", "house": "building", "street": "road"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of two drives, with label maps."""
    root = tmp_path_factory.mktemp("adopt")
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for i in range(8):
        image, label = picture(i, len(CLASSES), (96, 128))
        name = f"drive{i // 4}_{10 * i:04d}.png"
        Image.fromarray(image).save(root / "images" / name)
        Image.fromarray(label).save(root / "labels" / name)
    return root


def _adopt(
    root: Path, *specs: str, labels: bool | str = True, classes: ClassTable = TABLE, ids: Ids = "auto"
) -> tuple[Adoption, list[str]]:
    said: list[str] = []
    maps = root / ("labels" if labels is True else labels) if labels else None
    return adopt_folder(specs, root / "images", maps, classes, RUNTIME, said.append, ids=ids), said


def _written(found: Adoption, folder: Path) -> Path:
    out = folder / "teacher.yaml"
    out.write_text(to_yaml(found.confirmed(), out))
    return out


def _opened(out: Path) -> Teacher:
    return open_teacher((str(out),), Passes((1.0,), False), TABLE, JobContext.alone(RUNTIME))


def _english(folder: Path, **graph: Any) -> Path:
    graph = {"metadata": {"classes": list(ENGLISH)}} | graph
    return colour_network(folder / "net.onnx", names=ENGLISH, ours=TO_OURS, **graph)


def _targets(found: Adoption) -> dict[str, str | None]:
    ours = found.adopted.classes
    return {one.name: None if one.target is None else ours[one.target] for one in found.maps[0]}


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "agreement"])
def test_other_names_and_a_normalisation_that_nothing_tells_are_found(
    photographs: Path, tmp_path: Path, labels: bool
) -> None:
    network = _english(tmp_path)
    found, said = _adopt(photographs, f"onnx:{network}", labels=labels)
    digests = sorted(map(sha256_file, (photographs / "images").iterdir()))
    assert list(found.adopted.images) == (digests if labels else [])
    wanted = {name: TO_OURS.get(name) for name in ENGLISH}
    assert _targets(found) == wanted
    assert any("nothing says how it takes an image" in line for line in said)
    assert found.is_by_labels == labels
    if labels:
        assert found.rows[-1].mean_iou > 0.8


def test_an_interval_is_about_the_mean_that_stands_before_it(photographs: Path, tmp_path: Path) -> None:
    """A network may know classes that the labelled images do not show: they count in neither."""
    (tmp_path / "images").symlink_to(photographs / "images")
    (tmp_path / "labels").mkdir()
    for path in (photographs / "labels").iterdir():
        label = np.array(Image.open(path))
        label[label == CLASSES.index("car")] = CLASSES.index("road")
        Image.fromarray(label).save(tmp_path / "labels" / path.name)
    found, _ = _adopt(tmp_path, f"onnx:{colour_network(tmp_path / 'net.onnx')}")
    for row in found.rows:
        assert row.interval is not None
        assert row.interval[0] <= row.mean_iou <= row.interval[1]
        assert "car" not in row.iou


def _torch_network(path: Path, *, kind: str) -> Path:
    """The nearest of the classes' colours, as a module of torch alone, exported by torch; pixels lie in [-1, 1].

    Those of kind "blue first" are BGR with ImageNet's mean and deviation.
    """
    import torch

    ours = [TO_OURS.get(name) for name in ENGLISH]
    colours = [
        [60 * c, 255 - 60 * c, 20 + 30 * c] if (c := CLASSES.index(o) if o else None) is not None else [999] * 3
        for o in ours
    ]
    centres = torch.tensor(colours)[:, :, None, None] / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    class Nearest(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            image = image.permute(0, 3, 1, 2) if kind == "channels last" else image
            values = image * 0.5 + 0.5
            if kind == "blue first":
                values = image.flip(1) * std + mean
            away = -50 * ((values - centres) ** 2).sum(1, keepdim=True).transpose(0, 1)
            scores = away.reshape(1, len(ENGLISH), *image.shape[2:])
            scores = torch.nn.functional.interpolate(scores, scale_factor=0.5)
            if kind == "weights by position":  # as of a vision transformer: it fails at any other size
                return scores + torch.ones(1, 1, 48, 64)
            if kind == "one channel":  # the street against all else
                return torch.sigmoid(scores[:, 4:] - scores[:, :4].amax(1, keepdim=True))
            return scores.permute(0, 2, 3, 1) if kind == "channels last" else scores

    given = torch.zeros(1, 96, 128, 3) if kind == "channels last" else torch.zeros(1, 3, 96, 128)
    sides = (1, 2) if kind == "channels last" else (2, 3)
    free = {"dynamic_axes": {"image": {sides[0]: "h", sides[1]: "w"}}} if kind != "fixed size" else {}
    torch.onnx.export(Nearest(), (given,), str(path), input_names=["image"], dynamo=False, **free)
    model = onnx.load(path)
    names = ENGLISH[4:] if kind == "one channel" else ENGLISH
    onnx.helper.set_model_props(model, {"classes": ",".join(name.replace(",", ";") for name in names)})
    onnx.save(model, path)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "kind", ["plain", "blue first", "fixed size", "weights by position", "channels last", "one channel"]
)
def test_a_network_of_plain_torch_is_recovered_and_labels_as_its_file_says(
    photographs: Path, tmp_path: Path, kind: str
) -> None:
    network = _torch_network(tmp_path / "net.onnx", kind=kind)
    found, said = _adopt(photographs, f"onnx:{network}")
    way = "ImageNet's mean bgr" if kind == "blue first" else "[-1, 1] rgb"
    assert any(f"taken: {way}" in line for line in said), said
    wanted = {name.replace(",", ";"): TO_OURS.get(name) for name in ENGLISH}
    if kind == "one channel":
        assert _targets(found)["street"] == "road"
        assert any("taken for probabilities" in line for line in said)
    else:
        assert _targets(found) == wanted
        assert found.rows[-1].mean_iou > 0.8
    assert kind not in ("fixed size", "weights by position") or found.adopted.members[0].scales == (1.0,)
    assert any("scale 0.5 is left out: " in line for line in said) == (kind == "weights by position")
    out = _written(found, tmp_path)
    teacher = _opened(out)
    image, label = picture(3, len(CLASSES), (96, 128))
    road = CLASSES.index("road")
    right = (teacher.predict("x", image)[road] > 0.5) == (label == road)
    assert right[label != 255].mean() > 0.9
    if kind == "one channel":  # what it takes for no road has no class, whatever labels say
        assert set(np.unique(teacher.label("x", image)[0])) == {road, 255}


@pytest.mark.parametrize("named", [{}, {"classes": [f"LABEL_{i}" for i in range(len(ENGLISH))]}], ids=["no", "LABEL_0"])
def test_channels_without_names_are_found_by_labels_and_must_be_confirmed(
    photographs: Path, tmp_path: Path, named: dict[str, list[str]]
) -> None:
    network = _english(tmp_path, metadata=named)
    found, _ = _adopt(photographs, f"onnx:{network}")
    assert found.adopted.unconfirmed == (f"onnx:{network}",)
    assert {one.channel: one.why for one in found.maps[0] if one.target is not None} == dict.fromkeys(
        (0, 1, 3, 4), "labels"
    )


def test_what_differs_from_a_map_that_a_person_wrote_is_said(photographs: Path, tmp_path: Path) -> None:
    network = _english(tmp_path)
    table(network, "classes: {street: road, house: road, automobile: null, 'Sky, cloud': sky}")
    found, said = _adopt(photographs, f"onnx:{network}")
    assert _targets(found)["house"] == "building"
    assert any("net.onnx.teacher.yaml these are mapped otherwise: ['automobile', 'house']" in line for line in said)


def test_label_maps_of_another_size_are_read_at_the_same_places(photographs: Path, tmp_path: Path) -> None:
    network = _english(tmp_path)
    (tmp_path / "images").symlink_to(photographs / "images")
    for folder, size in (("twice", (256, 192)), ("half", (64, 48)), ("tall", (64, 96))):
        (tmp_path / folder).mkdir()
        for path in (photographs / "labels").iterdir():
            Image.open(path).resize(size, Image.Resampling.NEAREST).save(tmp_path / folder / path.name)
    usual = _adopt(photographs, f"onnx:{network}")[0].rows[-1].mean_iou
    for folder in ("twice", "half"):
        found, said = _adopt(tmp_path, f"onnx:{network}", labels=folder)
        assert found.rows[-1].mean_iou == pytest.approx(usual, abs=0.06)
        assert any("another size" in line for line in said)
    with pytest.raises(InputError, match="do not show the same"):
        _adopt(tmp_path, f"onnx:{network}", labels="tall")


def test_label_maps_may_hold_train_ids(photographs: Path, tmp_path: Path) -> None:
    network = _english(tmp_path)
    classes = TABLE.with_ids([10 * (i + 1) for i in range(len(CLASSES))], (0,))
    with pytest.raises(DecodeError) as caught:
        _adopt(photographs, f"onnx:{network}", classes=classes)
    assert "--ids train" in (caught.value.hint or "")
    assert _adopt(photographs, f"onnx:{network}", classes=classes, ids="train")[0].rows[-1].mean_iou > 0.8


@pytest.mark.parametrize("numbers", [False, True], ids=["names", "numbers"])
def test_a_folder_of_pictures_by_class_is_a_network(photographs: Path, tmp_path: Path, numbers: bool) -> None:
    for path in (photographs / "labels").iterdir():
        label = np.array(Image.open(path))
        (tmp_path / "scores" / path.stem).mkdir(parents=True)
        for c, name in enumerate(CLASSES):
            scores = np.where(label == c, 200, 10).astype(np.uint8)
            Image.fromarray(scores).save(tmp_path / "scores" / path.stem / f"{c if numbers else name}.png")
    found, _ = _adopt(photographs, f"scores:{tmp_path / 'scores'}")
    assert found.rows[-1].mean_iou > 0.95
    assert bool(found.adopted.unconfirmed) == numbers
    out = _written(found, tmp_path)
    assert made_by(str(out), Passes((0.5, 1.0), True)) == {"teacher": digest_of(str(out)), "scales": None, "flip": None}
    teacher = _opened(out)
    image, label = np.array(Image.open(next((photographs / "images").iterdir()))), np.array(Image.open(path))
    known = label != 255
    assert (teacher.label(path.stem, image)[0] == label)[known].mean() > 0.99


def test_scores_that_leave_something_open_are_measured_as_they_label(photographs: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "scores").mkdir()
    for path in (photographs / "labels").iterdir():
        label = np.array(Image.open(path))
        given = random.uniform(0.7, 1.0, label.shape) * (label < len(CLASSES))  # the rest is no class of ours
        scores = np.stack([np.where(label == c, given, 0) for c in range(len(CLASSES))])
        np.save(tmp_path / "scores" / f"{path.stem}.npy", scores.astype(np.float32))
    found, _ = _adopt(photographs, f"scores:{tmp_path / 'scores'}")
    out = _written(found, tmp_path)
    teacher = _opened(out)
    kept = []
    for path in (photographs / "images").iterdir():
        known = np.array(Image.open(photographs / "labels" / f"{path.stem}.png")) != 255
        kept.append((teacher.label(path.stem, np.array(Image.open(path)))[1] >= 0.9)[known].mean())
    assert found.kept[0][1] == pytest.approx(np.mean(kept), abs=0.02)
    assert found.kept[0][1] < 0.9


def test_scores_of_other_classes_are_one_line_and_figures_of_two_images_are_called_their_own(
    photographs: Path, tmp_path: Path
) -> None:
    names = sorted(path.name for path in (photographs / "images").iterdir())[:2]
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).symlink_to(photographs / folder / name)
    _, said = _adopt(tmp_path, f"onnx:{_english(tmp_path)}")
    assert any("too few labelled images to hold any out" in line for line in said)
    (tmp_path / "scores").mkdir()
    for name, count in zip(names, (5, 4), strict=True):
        np.save(tmp_path / "scores" / name.replace(".png", ".npy"), np.full((count, 96, 128), 0.1, np.float32))
    with pytest.raises(InputError, match="4 classes, images before it 5"):
        _adopt(tmp_path, f"scores:{tmp_path / 'scores'}")


def test_a_network_that_cannot_be_used_stops_before_another_one_is_run(photographs: Path, tmp_path: Path) -> None:
    good, bad = (colour_network(tmp_path / f"{name}.onnx") for name in ("good", "bad"))
    table(bad, "scores: logits")
    said: list[str] = []
    images, labels = photographs / "images", photographs / "labels"
    with pytest.raises(ConfigError, match="bad.onnx: has the outputs scores; none is called 'logits'"):
        adopt_folder((f"onnx:{good}", f"onnx:{bad}"), images, labels, TABLE, RUNTIME, said.append)
    assert said == []


def test_a_threshold_that_keeps_nothing_is_not_called_right(photographs: Path, tmp_path: Path) -> None:
    network = _english(tmp_path)
    found, _ = _adopt(photographs, f"onnx:{network}")
    text = "\n".join(table_of(replace(found, kept=((0.9, 0.0, 0.0),))))
    assert "threshold 0.9 keeps no pixel" in text
    assert "no threshold keeps 1% of the pixels or more with 95% of them right" in text


def test_without_names_and_labels_one_line_says_what_to_give(photographs: Path, tmp_path: Path) -> None:
    network = _english(tmp_path, metadata={})
    with pytest.raises(ConfigError, match="none of its 5 classes") as caught:
        _adopt(photographs, f"onnx:{network}", labels=False)
    assert "--labels" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="is given twice"):
        _adopt(photographs, *[f"onnx:{network}"] * 2)


def test_a_name_that_the_labels_contradict_is_overruled_and_said(photographs: Path, tmp_path: Path) -> None:
    swapped = ("street", "automobile", "dog", "house", "Sky, cloud")  # sky and road have each other's name
    centres = {"Sky, cloud": "road", "street": "sky", "automobile": "car", "house": "building"}
    network = colour_network(tmp_path / "net.onnx", names=swapped, ours=centres, metadata={"classes": list(swapped)})
    found, _ = _adopt(photographs, f"onnx:{network}")
    why = {one.name: one.why for one in found.maps[0]}
    assert (why["street"], why["Sky, cloud"]) == ("labels against the name",) * 2
    assert _targets(found)["street"] == "sky"


def test_the_written_file_is_a_teacher_that_labels_as_it_was_measured(photographs: Path, tmp_path: Path) -> None:
    good = colour_network(tmp_path / "good.onnx", names=ENGLISH, ours=TO_OURS, metadata={"classes": list(ENGLISH)})
    rng = np.random.default_rng(0)
    poor = nearest_colour(tmp_path / "poor.onnx", CLASSES, rng.random((len(CLASSES), 3)), metadata={"classes": CLASSES})
    found, _ = _adopt(photographs, f"onnx:{good}", f"onnx:{poor}")
    out = _written(found, tmp_path)
    assert yaml.safe_load(out.read_text())["members"][0]["teacher"] == "onnx:good.onnx"  # may be moved together
    teacher = _opened(out)
    image, label = picture(3, len(CLASSES), (96, 128))
    predicted, _ = teacher.label("x", image)
    known = label != 255
    assert (predicted[known] == label[known]).mean() > 0.9
    assert "onnx" in lineage_of(str(out)).unknown[0]


def test_an_edit_of_the_file_or_of_a_network_makes_another_teacher(photographs: Path, tmp_path: Path) -> None:
    network = _english(tmp_path)
    found, _ = _adopt(photographs, f"onnx:{network}")
    out = _written(found, tmp_path)
    (before,) = parse(str(out))
    out.write_text(out.read_text() + "# a comment\n")
    (commented,) = parse(str(out))
    assert commented.digest == before.digest
    out.write_text(out.read_text().replace("temperature:", "weight: 2.0\n  temperature:"))
    (edited,) = parse(str(out))
    assert edited.digest != before.digest
    _english(tmp_path, softmax=True)
    (other,) = parse(str(out))
    assert other.digest != edited.digest


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("members: []\nclasses: [a, b]", "members"),
        ("classes: [a, b]\nmembers:\n- {teacher: x, scale: [1]}", "scale"),
        (
            "classes: [a, b]\nmembers:\n- {teacher: x}\nstacking: {weights: [[1.0]], bias: [0.0, 0.0]}",
            "1 rows of 2 weights",
        ),
        ("classes: [a, b\n", "is no YAML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "teacher.yaml"
    path.write_text(text)
    (source,) = parse(str(path))
    with pytest.raises(ConfigError, match=wrong) as caught:
        _ = source.adopted
    assert "\n" not in caught.value.message


def test_nineteen_names_of_cityscapes_become_the_eleven_of_camvid() -> None:
    camvid = (
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    )
    found = {cityscapes().classes[i]: camvid[j] for i, j in propose(cityscapes().classes, camvid).items()}
    assert len(found) == 19
    assert (found["terrain"], found["train"], found["wall"]) == ("Tree", "Car", "Building")
    assert (found["rider"], found["bicycle"], found["traffic light"]) == ("Bicyclist", "Bicyclist", "SignSymbol")


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("road, route", "road"),
        ("tree-merged", "vegetation"),
        ("building-other-merged", "building"),
        ("Lane_Marking", "road"),
        ("n/a", None),
        ("Traffic Sign (Front)", "traffic sign"),
        ("SUVPickupTruck", "car"),
        ("Column_Pole", "pole"),
        ("bird", None),
        ("Traffic Light - General (Upright)", "traffic light"),
        ("Lane Marking (only) - Stop Line", "road"),
        ("Person Group", "person"),
        ("Side Walk", "sidewalk"),
        ("trafficlight", "traffic light"),
        ("wall-panel", "wall"),
        ("Buses", "bus"),
    ],
)
def test_names_of_the_fields_label_sets(name: str, target: str | None) -> None:
    classes = cityscapes().classes
    found = propose([name], classes)
    assert (classes[found[0]] if found else None) == target


probabilities = st.integers(2, 5).flatmap(
    lambda c: st.lists(st.lists(st.floats(0.01, 1.0), min_size=c, max_size=c), min_size=1, max_size=4)
)


@given(probabilities, st.floats(0.3, 3.0))
def test_combinations_are_probabilities_and_keep_the_order_of_one_member(
    rows: list[list[float]], temperature: float
) -> None:
    one = np.array(rows, np.float32).T
    one /= one.sum(0)
    cooled = cool(one, temperature)
    assert np.allclose(cooled.sum(0), 1, atol=1e-4)
    assert (cooled.argmax(0) == one.argmax(0)).mean() > 0.99 or np.ptp(one) < 1e-5
    same = stack([one, one], Stacking(weights=((0.5,) * len(one),) * 2, bias=(0.0,) * len(one)))
    assert np.allclose(same, one, atol=1e-3)
    unknown = Stacking(weights=((0.5,) * len(one),) * 2, bias=(UNKNOWN, *(0.0,) * (len(one) - 1)))
    less = stack([one / 2, one / 4], unknown)  # half of each pixel at least is of no class of ours
    assert np.allclose(less.sum(0), 0.5, atol=1e-4)
    assert not less[0].any()
    assert np.allclose(average([one, one], [1.0, 3.0]), one, atol=1e-5)


def test_a_temperature_gives_no_probability_to_a_class_that_no_network_knows() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 4000).astype(np.uint8)  # no network knows class 2
    member = np.zeros((len(truth), 3), np.float32)
    said = np.where(rng.random(len(truth)) < 0.6, truth % 2, 1 - truth % 2)
    member[np.arange(len(truth)), said] = 0.999  # too sure: a high temperature is chosen
    member[np.arange(len(truth)), 1 - said] = 0.001
    blocks = tuple(str(i) for i in range(10))
    found = combine([member], Pixels(truth, np.arange(len(truth)) % 10, blocks))
    assert found.temperatures[0] > 2
    assert not found.held_out[:, 2].any()
    assert found.stacking is None or found.stacking.bias[2] == UNKNOWN
