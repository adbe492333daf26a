"""`autolabel ask`: questions about regions, answers that become labels, and people who change their mind."""

from __future__ import annotations

import io
import json
import shutil
from functools import partial

import cv2
import numpy as np
import pytest

from hmsa_core.labels import LabelStore
from hmsa_core.labels.finalise import Recipe, finalise
from hmsa_core.labels.review import UNTOUCHED
from hmsa_core.labels.store.format import SOURCES
from hmsa_core.labels.thresholds.policy import from_threshold
from pipeline.review.price import price
from pipeline.review.questions import MIXED, UNSURE, Questions, review_of
from pipeline.review.spot_check import SpotFile
from pipeline.review.view import StoreView
from pipeline.stages.pseudo_label import review_of as review_of_image
from tests.support.label_scenes import Scenes, corrected


def test_answers_of_label_maps_are_human_pixels_that_win_over_the_teacher(copied: Scenes, said) -> None:
    options = ("--answers", copied.maps, "--budget", 60, "--ids", "train", "--json")
    rows = json.loads(said("ask", copied.store, *options).out)["price"]
    assert [row["labelled"] for row in rows] == sorted(row["labelled"] for row in rows)
    assert rows[-1]["corrected"] > 0
    raw, view = LabelStore.open(copied.store), StoreView(copied.store)
    marks = partial(review_of_image, review_of(view).by_name(), raw.classes)
    out = copied.store.parent / "final"
    finalise(raw, Recipe(from_threshold("0.9", raw.classes), reviewed=marks), out)
    final, agree, pixels = LabelStore.open(out), 0, 0
    for name in raw.names():
        given = corrected(view, name)
        by_hand = given < raw.classes.num_classes
        assert (final.read(name)[0][by_hand] == given[by_hand]).all()
        assert (final.read_source(name)[by_hand] == SOURCES["human"]).all()
        agree += int((given == copied.truth[name])[by_hand].sum())
        pixels += int(by_hand.sum())
    assert pixels == rows[-1]["labelled"]
    assert agree / pixels > 0.85


def test_images_without_a_label_map_are_named(copied: Scenes, said, tmp_path) -> None:
    name, maps = sorted(copied.truth)[0], shutil.copytree(copied.maps, tmp_path / "maps")
    (maps / f"{name}.png").unlink()
    shown = said("ask", copied.store, "--answers", maps, "--budget", 5, "--ids", "train")
    assert f'1 of {len(copied.truth)} images have no label map, such as {name}: "can\'t tell"' in shown.err
    assert "now run `autolabel export` of this store" in shown.out


def test_the_mixture_favours_rare_classes_and_the_aim_gets_half(copied: Scenes) -> None:
    view = StoreView(copied.store)
    aimed = Questions.draw(view, budget=600, aim=["pole"])
    pole = view.classes.index("pole")
    assert np.mean([item["class"] == pole for item in aimed.items]) > 0.45
    area = view.totals[pole].sum() / view.totals.sum()
    plain = Questions.draw(view, budget=600)
    assert np.mean([item["class"] == pole for item in plain.items]) > area
    assert min(item["share"] for item in plain.items) > 0.2 / view.totals.sum(), "nothing is out of reach"
    assert Questions.draw(view, budget=600).id == plain.id != aimed.id


def test_a_changed_answer_replaces_the_first_and_a_region_that_is_shown_again_counts_no_pixel_twice(
    copied: Scenes,
) -> None:
    view = StoreView(copied.store)
    file = SpotFile(Questions, view)
    found = file.start(Questions.draw(view, budget=40))
    number = next(found.open())
    item, region = found.located(view, number), found.region(view, number)
    found = file.answer(found.id, number, "wall", "kim")
    found = file.answer(found.id, number, "pole", "kim")
    said = corrected(view, item["name"])
    assert (said[said != UNTOUCHED] == view.classes.index("pole")).all()
    assert (said != UNTOUCHED).sum() == region.mask.sum()
    assert [mark.reviewer for mark in review_of(view).of(item["name"])] == ["kim"]
    found = file.answer(found.id, number, UNSURE, "kim")
    assert (corrected(view, item["name"]) == UNTOUCHED).all()
    found = file.answer(found.id, number, MIXED, "kim")
    assert (corrected(view, item["name"]) == 255).sum() == region.mask.sum()
    again = file.start(Questions.draw(view, budget=40, seed=1, aim=[view.classes.classes[item["class"]]]))
    assert file.aside is not None
    again.items[0] = {key: item[key] for key in ("name", "class", "low", "rank", "share")} | {"verdict": None}
    assert next(again.open()) == 0, "its cross is evidence"
    again.answer(view, 0, "wall", "kim")
    assert again.items[0]["pixels"] == 0
    assert (corrected(view, item["name"]) == view.classes.index("wall")).sum() == region.mask.sum()
    again.undo(view, 0)
    assert (corrected(view, item["name"]) == 255).sum() == region.mask.sum()


def test_a_person_answers_in_the_terminal_undoes_leaves_and_goes_on(
    copied: Scenes, said, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("ask", copied.store, "--images", copied.images, "--budget", 8, "--who", "kim")
    monkeypatch.setattr("sys.stdin", io.StringIO("\nnonsense\nwall\nu\nm\nq\n"))
    assert "'nonsense' is no answer" in said(*command).err
    view = StoreView(copied.store)
    items = Questions.load(Questions.path_of(copied.store)).items
    assert [item["answer"] for item in items if item["verdict"]][-1] == MIXED
    assert sum(item["verdict"] is not None for item in items) == 2
    picture = cv2.imread(str(copied.store.with_name("raw.question.png")))
    assert picture is not None
    assert picture.shape[1] > 256
    assert ((picture == (255, 0, 255)).all(axis=2)).sum() > 8
    monkeypatch.setattr("sys.stdin", io.StringIO("x\n"))
    said(*command)
    items = Questions.load(Questions.path_of(copied.store)).items
    assert sum(item["verdict"] is not None for item in items) == 3
    assert all(mark.reviewer == "kim" and mark.when for mark in review_of(view).marks())
    assert review_of(view).statuses() == {}, "an answer about a region is no look at the whole image"


def test_an_answer_that_another_person_gave_meanwhile_stands(
    copied: Scenes, said, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = StoreView(copied.store)
    file = SpotFile(Questions, view)

    class Slow(io.StringIO):
        def readline(self, size: int = -1) -> str:
            if self.tell() == 0:  # kim looks at the first question, and ada is faster
                found = file.current
                assert found is not None
                file.answer(found.id, next(found.open("kim")), "pole", "ada")
            return super().readline(size)

    monkeypatch.setattr("sys.stdin", Slow("wall\nwall\nq\n"))
    said("ask", copied.store, "--images", copied.images, "--budget", 8, "--who", "kim")
    items = Questions.load(Questions.path_of(copied.store)).items
    assert sorted((item["who"], item["answer"]) for item in items if item["verdict"]) == [
        ("ada", "pole"),
        ("kim", "wall"),
    ]
    assert sorted(mark.reviewer for mark in review_of(view).marks()) == ["ada", "kim"]


def test_the_price_counts_minutes_without_pauses_and_says_what_was_wrong(copied: Scenes) -> None:
    view = StoreView(copied.store)
    assert price(Questions({"items": []}), view)["words"].startswith("too few answers")
    at = ["2026-11-01T10:00:00+00:00", "2026-11-01T10:00:30+00:00", "2026-11-01T18:00:00+00:00"]
    said = [("road", "right"), ("sky", "wrong"), (MIXED, "wrong")]
    items = [
        {"verdict": v, "answer": a, "pixels": 10, "when": w, "share": 1e-6} for w, (a, v) in zip(at, said, strict=True)
    ]
    (row,) = price(Questions({"items": items}), view)["price"]
    assert row.items() >= {"answers": 3, "minutes": 1.5, "labelled": 20, "corrected": 10, "ignored": 10}.items()
    assert row["before"][0] == pytest.approx(1 / 3, abs=1e-4)
    assert row["before"][0] < row["after"][0] < row["before"][0] + 1e-3


def test_minutes_are_those_of_each_person_and_the_last_answers_have_a_row(copied: Scenes) -> None:
    said = [("kim", 0), ("ada", 10), ("kim", 20), ("ada", 40)]  # 20 s of kim, 30 s of ada
    items = [
        {
            "verdict": "right",
            "answer": "road",
            "pixels": 10,
            "share": 1e-6,
            "who": who,
            "when": f"2026-11-01T10:00:{s:02}+00:00",
        }
        for who, s in said
    ]
    found = price(Questions({"items": items}), StoreView(copied.store))
    assert found["price"][-1]["minutes"] == found["last"]["minutes"] == 0.8
    many = [items[0] | {"when": f"2026-11-01T10:{i:02}:00+00:00", "verdict": "wrong"} for i in range(30)]
    assert price(Questions({"items": many}), StoreView(copied.store))["last"] == {
        "answers": 25,
        "minutes": 24.0,
        "labelled": 250,
        "corrected": 250,
        "ignored": 0,
    }


def test_the_price_holds_the_true_share_of_right_labels_whatever_was_aimed_at(copied: Scenes) -> None:
    view, file = StoreView(copied.store), {name: LabelStore.open(copied.store).read(name)[0] for name in copied.names}
    right = {name: file[name] == copied.truth[name] for name in copied.names}
    true = np.mean([right[name].mean() for name in copied.names])
    held, values = 0, []
    for seed in range(40):
        questions = Questions.draw(view, budget=120, seed=seed, aim=["pole"] if seed % 2 else [])
        for number in range(120):
            item = questions.located(view, number)
            is_right = right[item["name"]][item["y"], item["x"]]
            item |= {"verdict": "right" if is_right else "wrong", "answer": "road", "pixels": 1}
            item["when"] = "2026-11-01T10:00:00+00:00"
        value, low, high = price(questions, view)["price"][-1]["before"]
        held += low <= true <= high
        values.append(value)
    assert held >= 36
    assert np.mean(values) == pytest.approx(true, abs=0.02)


@pytest.mark.parametrize(
    ("wrong", "size", "said"),
    [(0, 40, "stop: 9"), (100, 1, "stop: drawing"), (50, 100, "go on: drawing")],
    ids=["right", "tiny", "large"],
)
def test_the_price_says_when_to_stop(copied: Scenes, wrong: int, size: int, said: str) -> None:
    view = StoreView(copied.store)
    questions = Questions.draw(view, budget=600)
    for number, item in enumerate(questions.items):
        item |= {"verdict": "wrong" if number % 100 < wrong else "right", "answer": "road", "pixels": size}
        item |= {"when": "2026-11-01T10:00:00+00:00", "code": 0}
    found = price(questions, view)
    assert said in found["words"]
    assert ("--alike" in found["words"]) == (wrong > 0), "nothing is left to correct"
    assert "at 3 s each" in found["words"], "label maps answer in no time"
    value, low, high = found["next"]["points"]
    assert low <= value <= high
    assert value == pytest.approx(wrong * size / view.predicted.sum() * 100, abs=1e-3)


@pytest.mark.parametrize(
    ("option", "value", "words", "status"),
    [
        ("--aim", "roda", "roda", 3),
        ("--budget", "0", "budget 0", 2),
        ("--noise", "2", "--noise 2", 2),
        ("--answers", "/nowhere", "no such folder", 3),
    ],
)
def test_a_wrong_option_is_reported_in_one_line(
    copied: Scenes, said, option: str, value: str, words: str, status: int
) -> None:
    assert words in said("ask", copied.store, option, value, status=status).err
    assert not Questions.path_of(copied.store).exists()
