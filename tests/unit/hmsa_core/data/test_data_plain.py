"""Plain folders: patterns of names, and roles that later images do not move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa_core.data.decode import read_label
from hmsa_core.data.found import Found
from hmsa_core.data.plain import NamePattern, deal_roles, pair, read_table, scan_plain, unit_of
from hmsa_core.data.source import Deal, SourceSpec
from hmsa_core.io.errors import ConfigError, DecodeError
from hmsa_core.taxonomy import from_file, plain
from tests.support.own_folders import cityscapes_like, save, scene


def images(labelled: bool, frames: st.SearchStrategy[int]) -> st.SearchStrategy[list[Found]]:
    def found(drive: str, frame: int) -> Found:
        kind = "label" if labelled else "bare"
        return Found(f"{kind} {drive} {frame}", "i", "l" if labelled else "", "", "all", "", drive, frame)

    return st.lists(st.builds(found, st.sampled_from(["a", "b", "c"]), frames), unique_by=lambda f: f.name)


FRAMES = st.integers(0, 60)
DEALS = st.builds(Deal, number=st.integers(0, 5), frames=st.sampled_from([0, 1, 4, 10]), guard_frames=st.integers(0, 3))


@given(images(True, FRAMES), images(False, FRAMES), images(True, FRAMES), images(False, FRAMES), DEALS)
def test_images_that_arrive_later_move_no_labelled_image(
    labels: list[Found], bare: list[Found], later: list[Found], more: list[Found], deal: Deal
) -> None:
    source = SourceSpec(kind="plain", deal=deal)
    first = [*labels, *bare]
    known = {f.name for f in first}
    all_of_them = [*first, *(f for f in (*later, *more) if f.name not in known)]
    before = dict(zip((f.name for f in first), deal_roles(first, source), strict=True))
    after = dict(zip((f.name for f in all_of_them), deal_roles(all_of_them, source), strict=True))
    for f in first:
        # An unlabelled image may only leave, when images of its own place begin to judge.
        assert after[f.name] == before[f.name] or (not f.label and after[f.name] == "guard")
    only_bare = [*first, *(f for f in more if f.name not in known)]
    unmoved = dict(zip((f.name for f in only_bare), deal_roles(only_bare, source), strict=True))
    assert {name: unmoved[name] for name in before} == before


@given(images(True, FRAMES), images(False, FRAMES), DEALS)
def test_no_model_learns_from_a_judged_unit(labels: list[Found], bare: list[Found], deal: Deal) -> None:
    found = [*labels, *bare]
    roles = deal_roles(found, SourceSpec(kind="plain", deal=deal))
    judged = {unit_of(f, deal) for f, role in zip(found, roles, strict=True) if role in ("calibrate", "report")}
    assert all(
        unit_of(f, deal) not in judged for f, r in zip(found, roles, strict=True) if r in ("learn", "unlabelled")
    )
    near = [(f.sequence, f.frame) for f, role in zip(found, roles, strict=True) if role in ("calibrate", "report")]
    learned = [f for f, role in zip(found, roles, strict=True) if role == "learn"]
    if deal.frames > deal.guard_frames:
        assert all(abs(f.frame - at) > deal.guard_frames for f in learned for drive, at in near if f.sequence == drive)


def test_shares_of_a_deal_are_kept_over_many_units() -> None:
    found = [Found(f"n{i}", "i", "l") for i in range(2000)]
    deal = Deal(calibrate=0.2, report=0.3, unlabelled=0.1)
    roles = deal_roles(found, SourceSpec(kind="plain", deal=deal))
    shares = {role: roles.count(role) / 2000 for role in set(roles)}
    assert shares == pytest.approx({"learn": 0.4, "calibrate": 0.2, "report": 0.3, "unlabelled": 0.1}, abs=0.03)
    with pytest.raises(ConfigError, match="leave no unit to learn from"):
        Deal.checked({"calibrate": 0.5, "report": 0.5}, "deal")


@pytest.mark.parametrize(
    ("image_name", "label_name", "image", "label"),
    [
        ("*", "*", "a/x.jpg", "a/x.png"),
        ("*", "*", "a/x.jpg", "x.png"),
        ("*_leftImg8bit", "*_gtFine_labelIds", "train/u/u_1_leftImg8bit.png", "train/u/u_1_gtFine_labelIds.png"),
        ("images/*", "masks/*_m", "train/images/x.jpg", "train/masks/x_m.png"),
        ("img*", "mask*", "img01.jpg", "mask01.png"),
        ("*", "*_labels/*_L", "train/x.png", "train_labels/x_L.png"),
        ("*_camera_*", "*_label_*", "a/camera/a_camera_front_1.png", "a/label/a_label_front_1.png"),
    ],
)
def test_names_pair_by_what_the_star_stands_for(image_name: str, label_name: str, image: str, label: str) -> None:
    found = pair([image, "other.jpg"], [label], NamePattern.parse(image_name), NamePattern.parse(label_name))
    assert found.labels == {image: label}
    assert str(NamePattern.parse(image_name)) == image_name


def test_label_maps_of_no_single_image_are_listed() -> None:
    any_name = NamePattern.parse("*")
    found = pair(["a/x.jpg", "b/x.jpg"], ["x.png", "y.png"], any_name, any_name)
    assert (found.labels, found.stray) == ({}, ["y.png"])
    assert found.unclear == {"x.png": "fits a/x.jpg and b/x.jpg"}
    found = pair(["x.jpg"], ["x.png", "x.tif"], any_name, any_name)
    assert found.unclear == {"x.tif": "x.png is the label map of x.jpg, too"}
    for wrong in ("mask", "**", "a*b*c*d"):
        with pytest.raises(ConfigError, match="pattern of names such as"):
            NamePattern.parse(wrong)
    with pytest.raises(ConfigError, match=r"at most one \* in the folder"):
        NamePattern.parse("*a*/*")


def test_a_table_says_what_names_do_not(tmp_path: Path) -> None:
    own = cityscapes_like(tmp_path)
    table = tmp_path / "images.csv"
    name = "train__city0__city0_000000_000019_leftImg8bit"
    table.write_text(f"name,split,sequence,frame\n{name},val,drive 9,7\n")
    values = {"images": "leftImg8bit", "labels": "gtFine", "image_name": "*_leftImg8bit", "names": "path"}
    source = SourceSpec(kind="plain", **values, label_name="*_gtFine_labelIds", table=str(table))
    found = {f.name: f for f in scan_plain(own.images.parent, source, plain(["a", "b"])).found}
    assert (found[name].split, found[name].sequence, found[name].frame) == ("val", "drive 9", 7)
    assert found["train__city1__city1_000001_000019_leftImg8bit"].sequence == "city1"
    table.write_text("name,split\nx,val\n")
    with pytest.raises(ConfigError, match="expected the columns name, split, sequence, frame"):
        read_table(table)


def test_colours_that_a_class_file_calls_void_are_ignored(tmp_path: Path) -> None:
    rows = '{"id": 0, "name": "a", "colour": [1, 2, 3]}, {"id": 1, "name": "b", "colour": [4, 5, 6]}'
    void = '{"id": 2, "name": "edge", "trainId": 255, "colour": [224, 224, 192]}'
    (tmp_path / "classes.json").write_text(f'{{"classes": [{rows}, {void}]}}')
    table = from_file(tmp_path / "classes.json")
    colours = np.array([(1, 2, 3), (4, 5, 6), (224, 224, 192), (0, 0, 0)], np.uint8)
    save(tmp_path / "map.png", colours[scene(1)[1]])
    assert set(np.unique(read_label(tmp_path / "map.png", table))) == {0, 1, 255}
    assert table.from_json(table.to_json()).void_colours == table.void_colours
    (tmp_path / "classes.json").write_text(f'{{"classes": [{rows}]}}')
    with pytest.raises(DecodeError, match="colours of no class"):
        read_label(tmp_path / "map.png", from_file(tmp_path / "classes.json"))
