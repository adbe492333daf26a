"""Class tables: the facts of the data sets, and class files of users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmsa_core import taxonomy
from hmsa_core.io.errors import InputError


def test_cityscapes_has_its_19_classes_and_maps_every_other_id_to_ignore() -> None:
    table = taxonomy.cityscapes()
    assert table.num_classes == 19
    assert table.classes[0] == "road"
    assert table.classes[18] == "bicycle"
    assert table.id_to_train[7] == 0
    assert table.id_to_train[33] == 18
    assert sorted(set(table.id_to_train.tolist())) == [*range(19), 255]
    assert table.valid_ids.sum() == 34
    assert not table.valid_ids[34]
    assert [int(table.id_to_train[i]) for i in table.train_to_id] == list(range(19))
    assert set(table.groups) <= set(taxonomy.GROUPS)


@pytest.mark.parametrize(("version", "classes"), [("v1.2", 65), ("v2.0", 123)])
def test_vistas_ignores_its_last_class_and_has_two_versions(version: str, classes: int) -> None:
    table = taxonomy.mapillary(version)
    assert table.num_classes == classes
    assert table.id_to_train[classes] == 255
    assert table.valid_ids[classes]
    assert not table.valid_ids[255]
    assert set(table.groups) <= set(taxonomy.GROUPS)
    with pytest.raises(InputError, match=r"v3\.0"):
        taxonomy.mapillary("v3.0")


def test_a_table_survives_json_and_compares_by_content() -> None:
    table = taxonomy.cityscapes()
    again = taxonomy.ClassTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table
    assert again != taxonomy.mapillary()
    assert np.array_equal(again.valid_ids, table.valid_ids)


def class_file(folder: Path, **more: object) -> Path:
    rows = [{"id": i, "name": f"class {i}", "colour": [1, 2, 3]} for i in (0, 1)]
    (folder / "classes.json").write_text(json.dumps({"classes": rows, **more}))
    return folder / "classes.json"


def test_a_class_file_of_more_classes_than_a_byte_has_values_is_refused(tmp_path: Path) -> None:
    rows = [{"id": i, "name": f"class {i}", "colour": [1, 2, 3]} for i in range(1000)]
    with pytest.raises(InputError, match="1000 classes.*at most 254"):
        taxonomy.from_file(class_file(tmp_path, classes=rows))
    with pytest.raises(InputError, match="one class: every pixel would be labelled as it"):
        taxonomy.from_file(class_file(tmp_path, classes=rows[:1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 0}, "two classes are of id 0"),
        ({"id": 0.6}, "0.6 is no whole number"),
        ({"id": 256}, "class 'car' has id 256"),
        ({"id": 255}, "255 is the id of class 'car' and the ignore_id"),
        ({"name": " "}, "the class with id 1 has an empty name"),
        ({"name": "Road"}, "two classes are named 'Road'"),
        ({"colour": [1, 2]}, "colour of class 'car'"),
        ({"colour": [1, 2, 3, 4]}, "colour of class 'car'"),
        ({"colour": [0, 0, 256]}, "colour of class 'car'"),
        ({"colour": [-1, 0, 0]}, "colour of class 'car'"),
        ({"colour": "red"}, "each class needs a whole id, a name, and a colour"),
        ({"group": "vehicel"}, "unknown group 'vehicel'"),
    ],
)
def test_a_class_that_cannot_be_told_or_drawn_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows: list[dict[str, Any]] = [
        {"id": 0, "name": "road", "colour": [128, 64, 128]},
        {"id": 1, "name": "car", "colour": [0, 0, 142]},
    ]
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"classes": rows}))
    assert taxonomy.from_file(path).classes == ("road", "car")
    path.write_text(json.dumps({"classes": [rows[0], rows[1] | change]}))
    with pytest.raises(InputError, match=f"classes\\.json.*{message}"):
        taxonomy.from_file(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *((number, "is the id of class .* and the ignore_id") for number in (0, 1)),
        *((other, "ignore_id is .* from 0 to 255") for other in (256, 300, -2, None, 2.5, True)),
        ("void", "ignore_id is 'void', which names no class"),
    ],
)
def test_an_ignore_id_that_is_a_class_or_no_byte_is_refused(tmp_path: Path, given: object, message: str) -> None:
    with pytest.raises(InputError, match=rf"classes\.json: .*{message}"):
        taxonomy.from_file(class_file(tmp_path, ignore_id=given))


@pytest.mark.parametrize(
    ("rows", "ignore", "ids", "void"),
    [
        ([(1, "a"), (2, "b"), (3, "c")], 0, (1, 2, 3), [0]),
        ([(26, "c"), (0, "a"), (7, "b")], 255, (0, 7, 26), [255]),
        ([(0, "void"), (1, "a"), (2, "b"), (3, "c")], "void", (1, 2, 3), [0]),
        ([(0, "a"), (9, "b"), (255, "c")], 1, (0, 9, 255), [1]),
        ([(9, "b", 1), (4, "c", 2), (7, "a", 0), (3, "d", 255), (5, "e", -1)], 255, (7, 9, 4), [3, 5, 255]),
    ],
)
def test_ids_that_are_no_train_ids_are_mapped_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: list[Any], ignore: Any, ids: Any, void: list[int]
) -> None:
    keys = ("id", "name", "trainId")
    given = [dict(zip(keys, row, strict=False)) | {"colour": "#0a0b0c"} for row in rows]
    table = taxonomy.from_file(class_file(tmp_path, classes=given, ignore_id=ignore))
    assert (table.classes, table.train_to_id) == (("a", "b", "c"), ids)
    assert table.id_to_train[list(ids)].tolist() == [0, 1, 2]
    assert np.flatnonzero(table.valid_ids & (table.id_to_train == taxonomy.IGNORE)).tolist() == void
    assert table.colours == ((10, 11, 12),) * 3
    assert "become the classes 0 to 2" in caplog.text


def test_missing_colours_are_made_up_and_differ(tmp_path: Path) -> None:
    given = [{"id": i, "name": str(i)} for i in range(9)]
    assert len(set(taxonomy.from_file(class_file(tmp_path, classes=given)).colours)) == 9


@pytest.mark.parametrize(("given", "marked"), [(2, 2), (255, 255), (-1, 255)])
def test_the_ignore_id_is_a_valid_value_and_no_class(tmp_path: Path, given: int, marked: int) -> None:
    table = taxonomy.from_file(class_file(tmp_path, ignore_id=given))
    assert np.flatnonzero(table.valid_ids).tolist() == [0, 1, marked]
    assert table.id_to_train[marked] == taxonomy.IGNORE


def test_an_unknown_class_name_lists_the_known_ones() -> None:
    assert taxonomy.cityscapes().index("Rider") == 12
    with pytest.raises(InputError, match="unknown class 'ridder'.*rider"):
        taxonomy.cityscapes().index("ridder")


def test_a_release_config_is_read_in_its_own_order(tmp_path: Path) -> None:
    labels = [{"name": f"construction--flat--x{i}", "readable": f"X{i}", "color": [i, i, i]} for i in range(66)]
    path = tmp_path / "config_v1.2.json"
    path.write_text(json.dumps({"labels": labels}))
    assert taxonomy.from_vistas_config(path).classes[3] == "X3"
    path.write_text(json.dumps({"labels": labels[:10]}))
    with pytest.raises(InputError, match="66 or 124"):
        taxonomy.from_vistas_config(path)
