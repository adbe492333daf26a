"""Class names in the files of other tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa_core.data.layouts import load_classes
from hmsa_core.io.errors import InputError
from hmsa_core.taxonomy import from_file
from hmsa_core.taxonomy.class_files import KNOWN, Named, class_list, find_class_file, is_void, known_classes

SKY, ROAD = Named("sky", 0), Named("road", 1)
BLUE, GREY = (0, 0, 255), (9, 9, 9)


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("classes.txt", "sky\nroad\n", [Named("sky"), Named("road")]),
        ("labels.txt", "# names\n0: sky\n1: 'road'\n", [SKY, ROAD]),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nsky:0,0,255::\nroad:9,9,9::\n", None),
        ("label_colors.txt", "0 0 255\t\tsky\n9 9 9\t\troad\n", None),
        ("classes.txt", "sky 0 0 255\nroad 9,9,9\n", None),
        ("classes.txt", "sky #0000ff\nroad #090909\n", None),
        ("classes.txt", "sky, road\n", [Named("sky"), Named("road")]),
        ("classes.txt", "7 car 1 1 2 3\n", [Named("car 1", 7, (1, 2, 3))]),
        ("classes.csv", "id;name;color\n0;sky;#0000ff\n", [Named("sky", 0, BLUE)]),
        ("class_list.json", '{"#0000ff": "sky", "#090909": "road"}', None),
        ("meta.json", '{"classes": [{"title": "sky", "color": "#0000ff"}]}', [Named("sky", 0, BLUE)]),
        ("data.yaml", "classes: [sky, road]\n", [Named("sky"), Named("road")]),
        ("_classes.csv", "Pixel Value, Class\n0, sky\n1, road\n", [SKY, ROAD]),
        ("class_dict.csv", "name,r,g,b\nsky,0,0,255\nroad,9,9,9\n", None),
        ("data.yaml", "train: x\nnames: [sky, road]\n", [Named("sky"), Named("road")]),
        ("data.yaml", "names:\n  1: road\n  0: sky\n", [SKY, ROAD]),
        ("id2label.json", '{"0": "sky", "1": "road"}', [SKY, ROAD]),
        ("config.json", '{"id2label": {"1": "road", "0": "sky"}, "label2id": {}}', [SKY, ROAD]),
        ("classes.json", '["sky", "road"]', [Named("sky"), Named("road")]),
        (
            "config.json",
            '{"labels": [{"name": "x--sky", "readable": "sky", "color": [0, 0, 255]}]}',
            [Named("sky", 0, BLUE)],
        ),
        (
            "classes.json",
            '{"classes": [{"id": 0, "name": "sky", "colour": "#0000ff"}], "ignore_id": 9}',
            [Named("sky", 0, BLUE), Named("void", 9, is_void=True)],
        ),
    ],
)
def test_names_ids_and_colours_are_read(name: str, text: str, rows: list[Named] | None, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    found = find_class_file([tmp_path / "none", tmp_path])
    assert found is not None
    assert list(found.rows) == (rows or [Named("sky", None, BLUE), Named("road", None, GREY)])
    if sum(not row.is_void for row in found.rows) > 1:
        table = from_file(tmp_path / name)
        assert (table.classes, table.train_to_id) == (("sky", "road"), (0, 1))
        assert table.colours == (BLUE, GREY) or not found.has_colours
        assert table.valid_ids.nonzero()[0].tolist() == [0, 1, 255]


def test_a_name_that_means_no_class_keeps_its_id_and_its_colour(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text("background:1,1,1::\nunlabeled:0,0,0::\ncar:2,2,2::\n")
    table = from_file(tmp_path / "labelmap.txt")
    assert (table.classes, table.train_to_id, table.void_colours) == (("background", "car"), (0, 2), ((0, 0, 0),))
    assert [int(table.id_to_train[value]) for value in (0, 1, 2, 255)] == [0, 255, 1, 255]


@pytest.mark.parametrize(("name", "classes"), [("voc", 21), ("ade20k", 150), ("camvid", 11), ("cityscapes", 19)])
def test_public_label_sets_need_no_file(name: str, classes: int, tmp_path: Path) -> None:
    assert load_classes(tmp_path, name).num_classes == classes


def test_a_config_without_names_is_passed_over_and_a_broken_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    assert find_class_file([tmp_path]) is None
    (tmp_path / "classes.txt").write_text("road\nRoad\n")
    with pytest.raises(InputError, match="two classes are named road"):
        find_class_file([tmp_path])
    for name, text in (
        ("a.csv", "x,y\n1,2\n"),
        ("a.yaml", "nc: 3\n"),
        ("a.json", "{"),
        ("a.txt", ""),
        ("a.py", "C = ()"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="no class names can be read"):
            class_list(tmp_path / name)


def test_public_label_sets_are_whole() -> None:
    sizes = {name: [is_void(row) for row in known.rows] for name in KNOWN if (known := known_classes(name))}
    counts = {name: void.count(False) for name, void in sizes.items()}
    assert counts == {
        **{"cityscapes": 19, "mapillary_v1.2": 65, "mapillary_v2.0": 123, "camvid": 11, "camvid32": 31},
        **{"voc": 21, "ade20k": 150},
    }
    ade = known_classes("ade20k", has_255=True)
    assert ade is not None
    assert (ade.rows[0], len(ade.rows)) == (Named("wall", 0), 150)
