"""The click audit: uniform draws, honest estimates, answers that survive."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hmsa_core.io.errors import ConfigError, InputError, IntegrityError
from pipeline.review.audit import Audit
from pipeline.review.spot_check import SpotFile
from pipeline.review.stats import Thresholds, parse_thresholds
from pipeline.review.view import StoreView
from tests.support.label_scenes import Scenes


@pytest.fixture(scope="module")
def view(scenes: Scenes) -> StoreView:
    return StoreView(scenes.store)


@pytest.fixture
def thresholds(view: StoreView) -> Thresholds:
    return parse_thresholds(view.classes, "0.8", ["car:0.95", "sky:withheld"])


def test_every_drawn_pixel_is_a_kept_pixel_of_its_class_and_the_same_for_the_same_seed(
    view: StoreView, thresholds: Thresholds
) -> None:
    audit, again, other = (Audit.draw(view, thresholds, per_class=4, seed=seed) for seed in (1, 1, 4))
    assert audit.value == again.value
    assert audit.value["items"] != other.value["items"]
    for number, item in enumerate(audit.value["items"]):
        label, code = view.read(item["name"])
        found = audit.located(view, number)
        assert label[found["y"], found["x"]] == item["class"]
        assert code[found["y"], found["x"]] == found["code"] >= thresholds.codes[item["class"]]
    drawn = {item["class"] for item in audit.value["items"]}
    assert view.classes.index("sky") not in drawn
    assert {0, view.classes.index("car")} <= drawn


def test_draws_are_uniform_over_kept_pixels(view: StoreView, thresholds: Thresholds) -> None:
    car = view.classes.index("car")
    audit = Audit.draw(view, thresholds, per_class=500, seed=0, classes=[car])
    kept = view.kept(thresholds.codes)[:, car]
    expected = 500 * kept / kept.sum()
    some = expected > 0
    for answered in (500, 100):  # all, and where somebody stops midway
        items = audit.value["items"][:answered]
        drawn = np.array([sum(item["name"] == name for item in items) for name in view.names])
        due = expected * answered / 500
        chi_square = float(((drawn - due)[some] ** 2 / due[some]).sum())
        assert chi_square < 20.5  # 99.9 % of chi-square with 5 degrees of freedom
        assert (drawn[~some] == 0).all()


def test_only_answers_about_what_is_kept_now_are_counted(view: StoreView, thresholds: Thresholds) -> None:
    car = view.classes.index("car")
    audit = Audit.draw(view, thresholds, per_class=20, seed=3, classes=[car])
    for item in range(20):
        audit.answer(view, item, "wrong" if item < 4 else "right")
    codes = [item["code"] for item in audit.value["items"]]
    cut = sorted(codes)[10]
    assert audit.judged("car", audit.value["strata"][0]["code"]) == (20, 4)
    assert audit.judged("car", cut) == (sum(c >= cut for c in codes), sum(c >= cut for c in codes[:4]))
    assert audit.judged("car", audit.value["strata"][0]["code"] - 1) == (0, 0), "a sample of surer pixels only"
    assert audit.judged("road", 0) == (0, 0)


def test_a_perfect_judge_finds_the_true_precision(view: StoreView, thresholds: Thresholds, scenes: Scenes) -> None:
    road = view.classes.index("road")
    audit = Audit.draw(view, thresholds, per_class=300, seed=5, classes=[road])
    right = kept = 0
    for name in view.names:
        label, code = view.read(name)
        mask = (label == road) & (code >= thresholds.codes[road])
        kept += int(mask.sum())
        right += int((scenes.truth[name][mask] == road).sum())
    for number in range(300):
        item = audit.located(view, number)
        truth = scenes.truth[item["name"]][item["y"], item["x"]]
        audit.answer(view, number, "right" if truth == road else "wrong")
    (result,) = audit.results()
    assert result["low"] <= right / kept <= result["high"]
    assert result["high"] - result["low"] < 0.12
    overall = audit.overall()
    assert overall is not None
    assert overall["precision"] == pytest.approx(result["precision"])


def test_unsure_counts_for_neither_side_but_is_reported(view: StoreView, thresholds: Thresholds) -> None:
    audit = Audit.draw(view, thresholds, per_class=4, seed=0, classes=[0])
    for number, verdict in enumerate(["right", "right", "unsure", "wrong"]):
        audit.answer(view, number, verdict)
    (row,) = audit.results()
    assert row["precision"] == pytest.approx(2 / 3)
    assert row["precision_if_unsure_is_wrong"] == pytest.approx(2 / 4)
    assert [a.right for a in audit.answers()] == [True, True, False]


def test_answers_are_on_disk_at_once_and_come_back(view: StoreView, thresholds: Thresholds, tmp_path: Path) -> None:
    path = Audit.path_of(tmp_path / "raw")
    assert path.name == "raw.audit.json"
    file = SpotFile(Audit, view, path)
    audit = file.start(Audit.draw(view, thresholds, per_class=3, seed=0))
    file.answer(audit.id, 2, "wrong")
    on_disk = json.loads(path.read_text())
    assert on_disk["items"][2]["verdict"] == "wrong"
    assert on_disk["results"][0]["wrong"] == 1
    again = SpotFile(Audit, view, path).current
    assert again is not None
    assert again.results() == file.current.results()
    file.answer(audit.id, 2, "right")  # a changed mind
    assert SpotFile(Audit, view, path).current.results()[0]["right"] == 1


def test_drawing_again_never_throws_answers_away(view: StoreView, thresholds: Thresholds, tmp_path: Path) -> None:
    file, other = (SpotFile(Audit, view, tmp_path / "raw.audit.json") for _ in range(2))
    first = file.start(Audit.draw(view, thresholds, per_class=2, seed=0))
    file.answer(first.id, 0, "right")
    assert file.start(Audit.draw(view, thresholds, per_class=2, seed=0)).answers() == file.current.answers()  # goes on
    assert len(file.current.answers()) == 1
    second = file.start(Audit.draw(view, thresholds, per_class=2, seed=1))
    kept = json.loads((tmp_path / f"raw.audit-{first.id}.json").read_text())
    assert kept["items"][0]["verdict"] == "right"
    for server in (file, other):
        with pytest.raises(InputError, match="another audit was drawn since"):
            server.answer(first.id, 0, "wrong")
    assert file.current.id == second.id
    again = file.start(
        Audit.draw(view, thresholds, per_class=2, seed=0)
    )  # the first draw is taken up where it was left
    assert (again.id, [answer.right for answer in again.answers()]) == (first.id, [True])


@pytest.mark.parametrize("verdict", ["right", "unsure"])
def test_an_audit_of_last_nights_labels_is_put_aside_by_the_next(
    view: StoreView, thresholds: Thresholds, tmp_path: Path, verdict: str
) -> None:
    path = tmp_path / "raw.audit.json"
    file = SpotFile(Audit, view, path)
    old = file.start(Audit.draw(view, thresholds, per_class=2, seed=0))
    file.answer(old.id, 0, verdict)
    value = json.loads(path.read_text()) | {"store": "f" * 64}  # the store has other labels since
    path.write_text(json.dumps(value))
    assert SpotFile(Audit, view, path).current is None, "it is no evidence about these"
    SpotFile(Audit, view, path).start(Audit.draw(view, thresholds, per_class=2, seed=1))
    assert json.loads((tmp_path / f"raw.audit-{old.id}.json").read_text())["items"][0]["verdict"] == verdict


def test_two_servers_of_one_store_add_their_answers_up(view: StoreView, thresholds: Thresholds, tmp_path: Path) -> None:
    one, two = (SpotFile(Audit, view, tmp_path / "raw.audit.json") for _ in range(2))
    audit = one.start(Audit.draw(view, thresholds, per_class=3, seed=0))
    assert two.start(Audit.draw(view, thresholds, per_class=3, seed=0)).id == audit.id
    one.answer(audit.id, 0, "right")
    two.answer(audit.id, 1, "wrong")
    assert [answer.right for answer in one.current.answers()] == [True, False]
    assert [answer.right for answer in one.answer(audit.id, 2, "right").answers()] == [True, False, True]


def test_an_audit_of_no_pixels_or_too_many_is_refused(view: StoreView, thresholds: Thresholds) -> None:
    for per_class in (0, 501, -1):
        with pytest.raises(ConfigError, match="expected 1 to 500"):
            Audit.draw(view, thresholds, per_class=per_class, seed=0)
    withheld = [f"{name}:withheld" for name in view.classes.classes]
    with pytest.raises(ConfigError, match="nothing is kept"):
        Audit.draw(view, parse_thresholds(view.classes, "0.9", withheld), per_class=3, seed=0)


ANSWERED = [{"name": "x", "class": 0, "rank": 0, "verdict": "right"}]  # without the code of its pixel


@pytest.mark.parametrize(
    ("key", "new"),
    [
        *((key, None) for key in ("id", "items", "strata", "codes", "store")),
        *(("items", new) for new in ({}, [3], [{"name": "x"}], ANSWERED)),
        *(("id", 3), ("strata", [[]])),
    ],
)
def test_a_damaged_audit_file_is_named(
    view: StoreView, thresholds: Thresholds, tmp_path: Path, key: str, new: object
) -> None:
    file = SpotFile(Audit, view, tmp_path / "raw.audit.json")
    audit = file.start(Audit.draw(view, thresholds, per_class=2, seed=0))
    value = json.loads(file.path.read_text())
    if new is None:
        del value[key]
    else:
        value[key] = new
    file.path.write_text(damaged := json.dumps(value))
    for act in (lambda: file.current, lambda: file.answer(audit.id, 0, "right"), lambda: file.start(audit)):
        with pytest.raises(IntegrityError, match=rf"raw\.audit\.json: damaged: .*'{key}'"):
            act()
    assert file.path.read_text() == damaged
