"""The review file: append-only, whole lines, last word counts."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa_core.io.errors import InputError, IntegrityError
from hmsa_core.labels.review import UNTOUCHED, Mark, Patch, ReviewFile, labels_id, marked_store, reviewed
from hmsa_core.taxonomy import cityscapes
from tests.support.label_maps import toy_classes

BOX = [[2, 1], [6, 1], [6, 4], [2, 4]]


def test_marks_are_lines_next_to_the_store_that_carry_no_time_so_the_same_marks_are_the_same_bytes(
    tmp_path: Path,
) -> None:
    for folder in ("one", "two"):
        review = ReviewFile(tmp_path / folder / "raw")
        for _ in range(2):
            review.add("a", "flag", region=BOX, note="ghost <b>car</b>", reviewer="kim")
        review.add("b", "accept")
    one, two = ((tmp_path / folder / "raw.review.jsonl").read_bytes() for folder in ("one", "two"))
    assert one == two
    lines = [json.loads(line) for line in one.splitlines()]
    assert [line["name"] for line in lines] == ["a", "a", "b"]
    assert lines[0]["region"] == BOX
    assert lines[0]["note"] == "ghost <b>car</b>"
    assert set(lines[0]) == {"id", "name", "verdict", "region", "note", "reviewer"}
    assert len({line["id"] for line in lines}) == 3  # the same mark twice is still two marks


def test_a_withdrawn_mark_no_longer_counts_but_stays_in_the_file(tmp_path: Path) -> None:
    review = ReviewFile(tmp_path / "raw")
    first = review.add("a", "flag")
    review.withdraw("a", first.id)
    assert review.marks() == []
    assert len(review.path.read_text().splitlines()) == 2
    with pytest.raises(InputError, match="no mark"):
        review.withdraw("a", first.id)


def test_marks_are_of_the_picture_that_was_looked_at(tmp_path: Path) -> None:
    old = ReviewFile(tmp_path / "raw")
    of_any = old.add("a", "flag", note="from before marks named pictures")
    first = ReviewFile(tmp_path / "raw", {"a": "1" * 64, "b": "2" * 64})
    flagged, other = first.add("a", "flag", region=BOX), first.add("b", "flag")
    assert (flagged.image_sha256, of_any.image_sha256) == ("1" * 64, "")
    replaced = ReviewFile(tmp_path / "raw", {"a": "9" * 64, "b": "2" * 64})
    assert [mark.id for mark in replaced.marks()] == [of_any.id, other.id]
    assert [mark.id for mark in replaced.foreign()] == [flagged.id]
    assert replaced.statuses() == {"a": "flag", "b": "flag"}
    back = ReviewFile(tmp_path / "raw", {"a": "1" * 64, "b": "2" * 64})
    assert [mark.id for mark in back.marks()] == [of_any.id, flagged.id, other.id]
    assert "image_sha256" not in of_any.to_json()
    replaced.add("a", "accept")
    assert replaced.foreign() == [], "somebody looked at the picture of now"


def test_what_was_accepted_of_other_labels_is_not_reviewed_and_flags_stand(tmp_path: Path) -> None:
    first = ReviewFile(tmp_path / "raw", labels="first")
    first.add("a", "accept")
    first.add("b", "flag")
    first.add("c", "accept")
    assert first.statuses() == {"a": "accept", "b": "flag", "c": "accept"}
    anew = ReviewFile(tmp_path / "raw", labels="anew")
    assert anew.statuses() == {"b": "flag"}
    assert [anew.shown(mark).get("earlier") for mark in anew.marks()] == [True, True, True]
    anew.add("c", "accept")
    assert anew.statuses() == {"b": "flag", "c": "accept"}
    assert ReviewFile(tmp_path / "raw").statuses() == {"a": "accept", "b": "flag", "c": "accept"}
    older = tmp_path / "old.review.jsonl"
    older.write_text('{"id": "1", "name": "a", "verdict": "accept", "region": null, "note": "", "reviewer": ""}\n')
    assert ReviewFile(tmp_path / "old", labels="anew").statuses() == {"a": "accept"}, "it does not say of which labels"


def test_labels_are_told_apart_by_teacher_setting_and_fusion() -> None:
    base = {"teacher": "a" * 64, "scales": [0.5, 1.0], "flip": True, "precision": "fp32"}
    base["parameters"] = {"kind": "single"}
    kinds = [{"parameters": {"kind": kind}} for kind in ("average", "max")]
    others = [base | change for change in ({"teacher": "b" * 64}, {"scales": [1.0]}, {"flip": False}, *kinds)]
    assert len({labels_id(lineage) for lineage in (base, *others)}) == 6
    assert labels_id(base) == labels_id(base | {"parameters": {"kind": "single", "threads": 3}, "code_version": "9"})


def test_a_file_fixed_by_hand_takes_marks_as_before(tmp_path: Path) -> None:
    review = ReviewFile(tmp_path / "raw")
    for name, verdict in (("x", "flag"), ("y", "flag"), ("b", "flag"), ("b", "accept")):
        review.add(name, verdict)
    review.path.write_text("\n" + "".join(review.path.read_text().splitlines(keepends=True)[2:]).rstrip("\n"))
    review.add("b", "flag")  # lines were taken out, and the last line break was lost
    assert [mark.verdict for mark in review.marks()] == ["flag", "accept", "flag"]
    assert review.statuses() == {"b": "flag"}
    review.path.write_text('{"id": [1], "name": "a", "verdict": "flag"}\n')  # an id of another kind
    review.add("b", "flag")
    assert review.statuses() == {"a": "flag", "b": "flag"}


def test_marks_of_final_labels_go_to_raw_though_it_is_being_made_anew(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "manifest.json").write_text("{}")
    final = tmp_path / "final"
    assert marked_store(final, "final") == tmp_path / "raw"
    ReviewFile(tmp_path / "raw").add("a", "flag")
    (tmp_path / "raw" / "manifest.json").unlink()  # `auto-infer` runs
    assert marked_store(final, "final") == tmp_path / "raw"
    assert marked_store(tmp_path / "elsewhere" / "final", "final") == tmp_path / "elsewhere" / "final"


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 12))
def test_corrected_pixels_are_the_ones_that_were_given_and_the_last_word_counts(
    seed: int, height: int, width: int
) -> None:
    rng, table = np.random.default_rng(seed), cityscapes()
    expected, marks = np.full((height, width), UNTOUCHED, np.uint8), []
    for step in range(3):
        given_now = rng.choice(np.array([0, 5, 18, 255, UNTOUCHED], np.uint8), (height, width))
        given_now[rng.integers(height), rng.integers(width)] = 7
        marks.append(Mark(str(step), "a", "correct", pixels=Patch.of(given_now, table)))
        expected = np.where(given_now == UNTOUCHED, expected, given_now)
    flagged, corrected = reviewed([Mark("f", "a", "flag"), *marks], height, width, table)
    assert np.array_equal(corrected, expected)
    assert np.array_equal(flagged, expected == UNTOUCHED)


def test_a_correction_means_its_class_by_name_whatever_its_number_is_now() -> None:
    patch = Patch.of(np.array([[2, UNTOUCHED, 255]], np.uint8), toy_classes(5))
    mark = Mark("1", "a", "correct", pixels=patch)
    assert toy_classes(5).classes[2] == "building"
    moved = replace(toy_classes(5), classes=("building", "road", "sidewalk", "wall", "fence"))
    assert reviewed([mark], 1, 3, moved)[1].tolist() == [[0, UNTOUCHED, 255]]


PLACES = st.tuples(st.sampled_from(["flag", "accept"]), st.none() | st.integers(0, 9), st.integers(0, 7))


@given(st.lists(PLACES, max_size=6))
def test_a_pixel_is_flagged_exactly_when_the_last_mark_over_it_is_a_flag(steps: list[tuple]) -> None:
    marks, expected = [], np.zeros((8, 10), bool)
    for verdict, x, y in steps:
        region = None if x is None else ((x, y), (x + 3, y), (x + 3, y + 2), (x, y + 2))
        marks.append(Mark("1", "a", verdict, region))
        expected[(...) if x is None else np.s_[y : y + 3, x : x + 4]] = verdict == "flag"
    assert np.array_equal(reviewed(marks, 8, 10, cityscapes())[0], expected)


@pytest.mark.parametrize(
    "region",
    [
        [[0, 0]],
        [[0, 0], [1, 1], [2]],
        [[0, 0], [1, float("nan")], [2, 2]],
        "box",
        [[0, 0], [1e9, 0], [1, 1]],
        [[0, 0], [10**400, 0], [1, 1]],
        [[0, 0], ["x", 0], [1, 1]],
        [[0, 0], [[1], 0], [1, 1]],
        [[0, 0]] * 501,
    ],
)
def test_a_region_that_is_none_is_refused_and_nothing_is_written(tmp_path: Path, region: object) -> None:
    review = ReviewFile(tmp_path / "raw")
    with pytest.raises(InputError):
        review.add("a", "flag", region=region)
    assert not review.path.exists()


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    def write(who: str) -> None:
        review = ReviewFile(tmp_path / "raw")
        for i in range(10):
            review.add(f"{who}{i}", "flag")

    threads = [threading.Thread(target=write, args=(who,)) for who in "ab"]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(ReviewFile(tmp_path / "raw").marks()) == 20


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '"x"',
        '"withdraws"',
        "3",
        "null",
        '{"id": 1, "verdict"',
        '{"id": 1, "name": "a", "verdict": []}',
        "[" * 100_000,
        '{"id": "1", "name": "a", "verdict": "flag", "region": [[1, 1], [1%s, 1], [2, 2]]}' % ("0" * 400),
    ],
)
def test_a_line_that_is_json_but_no_mark_is_named(tmp_path: Path, line: str) -> None:
    review = ReviewFile(tmp_path / "raw")
    review.add("a", "flag")
    review.path.write_text(damaged := f"{review.path.read_text()}{line}\n")
    for act in (review.marks, review.foreign, lambda: review.add("b", "flag")):
        with pytest.raises(IntegrityError, match=r"raw\.review\.jsonl: line 2 is not a review mark") as error:
            act()
        assert "correct or remove that line" in error.value.hint
    assert review.path.read_text() == damaged
