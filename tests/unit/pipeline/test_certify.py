"""`autolabel certify` and `verify --certificate`: a real store, true labels, and files that lie."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hmsa_core.io import sealed
from hmsa_core.labels import LabelStore, ThresholdPolicy
from hmsa_core.labels.finalise import Recipe, finalise
from hmsa_core.labels.store.format import read_manifest
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.labels.thresholds.sequential import pilot_of
from pipeline.cli.main import main
from pipeline.review.audit import Audit
from pipeline.review.certificate import Certificate
from pipeline.review.certification import begin
from pipeline.review.session import Session
from pipeline.review.spot_check import SpotFile
from pipeline.review.stats import Thresholds
from pipeline.review.view import StoreView
from tests.support.label_scenes import Scenes, make_scenes

CLASSES = ("road", "sky", "vegetation", "wall")


@pytest.fixture(scope="module")
def certified(made: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of the scenes that true labels give; read only."""
    file = tmp_path_factory.mktemp("certified") / "raw.certificate.json"
    assert main([str(part) for part in by_labels(made, "--out", file)]) == 0
    return file


def by_labels(scenes: Scenes, *options: object) -> tuple[object, ...]:
    """The arguments of a command that answers by true label maps."""
    base = ("--answers", scenes.maps, "--target", 0.9, "--budget", 500, "--classes", *CLASSES)
    return "certify", scenes.store, *base, *options


def test_true_labels_certify_classes_that_are_as_right_as_promised(copied: Scenes, said) -> None:
    classes = json.loads(said(*by_labels(copied, "--json")).out)["classes"]
    assert set(classes) == set(CLASSES)
    assert sum(row["draws"] for row in classes.values()) <= 500
    passed = {name: row for name, row in classes.items() if row["certified"]}
    assert passed
    store = LabelStore.open(copied.store)
    for name, row in passed.items():
        right = kept = every = 0
        for image in store.names():
            label, code = store.read(image)
            mine = label == store.classes.index(name)
            every += int(mine.sum())
            kept += int((mine & (code >= row["code"])).sum())
            right += int((mine & (code >= row["code"]) & (copied.truth[image] == label)).sum())
        assert right / kept >= 0.9
        assert row["lower"] >= 0.9
        assert row["coverage"] == pytest.approx(kept / every, abs=1e-5)


def test_the_same_seed_gives_the_same_certificate(copied: Scenes, tmp_path: Path, said) -> None:
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        said(*by_labels(copied, "--seed", seed, "--budget", 40, "--out", file))
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_a_certificate_is_recomputed_from_its_draws_and_a_changed_byte_refused(
    made: Scenes, certified: Path, tmp_path: Path, said
) -> None:
    assert "draws recomputed" in said("verify", made.store, "--certificate", certified).out
    file = tmp_path / "raw.certificate.json"
    file.write_text(certified.read_text().replace('"right"', '"wrong"', 1))
    assert "damaged or edited" in said("verify", "--certificate", file, status=4).err


def _wrong(value: dict[str, Any]) -> dict[str, Any]:
    return next(draw for draw in value["items"] if draw["verdict"] == "wrong")


ALTERED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an answer": lambda value: _wrong(value).update(verdict="right"),
    "a pixel": lambda value: value["items"][0].update(x=value["items"][0]["x"] + 1),
    "a wrong draw less": lambda value: value["items"].remove(_wrong(value)),
    "all certified": lambda value: [row.update(certified=True) for row in value["results"].values()],
    "a number too large": lambda value: value.update(target=10**400),
    "a negative class": lambda value: value["classes"][0].update({"class": -1}),
    "a pixel more in a class": lambda value: value["classes"][0]["pixels"].append(
        value["classes"][0]["pixels"].pop() + 1
    ),
    "candidates out of order": lambda value: value["classes"][0]["codes"].reverse(),
    "a list for a code": lambda value: value["items"][0].update(low=[[]]),
    "no such bound": lambda value: value.update(bound="none"),
    "very many draws": lambda value: value.update(items=value["items"] * 100),
    "no results": lambda value: value.pop("results"),
}


@pytest.mark.parametrize("change", ALTERED)
def test_a_certificate_that_was_altered_and_sealed_again_is_refused(
    made: Scenes, certified: Path, tmp_path: Path, said, change: str
) -> None:
    file, value = tmp_path / "raw.certificate.json", sealed.read(certified)
    ALTERED[change](value)
    sealed.write(file, value)
    error = said("verify", made.store, "--certificate", file, status=4).err
    assert "refused" in error
    assert error.count("error:") == 1


def test_a_certificate_is_void_once_the_store_is_made_anew(certified: Path, tmp_path: Path, said) -> None:
    make_scenes(tmp_path, frames=1, teacher_seed=1)
    file = shutil.copy(certified, tmp_path)
    assert "void: the store has changed" in said("verify", "--certificate", file, status=4).err
    assert Session(tmp_path / "raw").certificate() == {
        "current": None,
        "void": "void: the store has changed since this certificate was drawn",
    }


def test_certified_cuts_become_a_policy_and_training_labels_name_the_certificate(
    copied: Scenes, tmp_path: Path, said
) -> None:
    policy = tmp_path / "certified.json"
    said(*by_labels(copied, "--save-policy", policy))
    saved, raw = ThresholdPolicy.load(policy), LabelStore.open(copied.store)
    passed = [entry.name for entry in saved.entries if entry.status == "certified"]
    assert passed
    assert {entry.status for entry in saved.entries} <= {"certified", "withheld"}
    session = Session(copied.store, policy=policy)
    known = session.sources().of_classes(session.thresholds().codes)
    for name in passed:
        found = known[saved.classes.index(name)]
        assert found is not None
        assert found.source == "certificate"
        assert (found.low or 0) >= 0.9
    assert saved.on(raw.digest) is saved
    finalise(raw, Recipe(saved), tmp_path / "final")
    proof = read_manifest(tmp_path / "final")["policy"]["certificate"]
    assert proof["digest"] == sealed.read(Certificate.path_of(copied.store))["digest"]
    assert proof["classes"] == passed
    elsewhere = saved.on("0" * 64)
    assert [entry.code for entry in elsewhere.entries] == [entry.code for entry in saved.entries]
    assert {entry.status for entry in elsewhere.entries} == {"estimate", "withheld"}, "other labels void it"
    finalise(raw, Recipe(elsewhere), tmp_path / "other")
    assert "certificate" not in read_manifest(tmp_path / "other")["policy"]


def test_only_classes_of_this_certificate_are_certified_and_the_others_keep_their_own_target(
    copied: Scenes, tmp_path: Path, said
) -> None:
    low, high = tmp_path / "low.json", tmp_path / "high.json"
    said(*by_labels(copied, "--target", 0.6, "--save-policy", low))
    said(*by_labels(copied, "--target", 0.97, "--policy", low, "--save-policy", high))
    first, second = ThresholdPolicy.load(low), ThresholdPolicy.load(high)
    passed = {entry.name for entry in second.entries if entry.status == "certified"}
    others = [entry for entry, was in zip(second.entries, first.entries, strict=True) if was.status == "certified"]
    others = [entry for entry in others if entry.name not in passed]
    assert others, "else this says nothing"
    assert {entry.status for entry in others} == {"estimate"}
    assert {entry.evidence["target"] for entry in others} == {0.6}
    assert {entry.evidence["target"] for entry in second.entries if entry.name in passed} <= {0.97}
    assert second.evidence["target"] == 0.97, "what the page and the table of shift compare with"
    error = said(*by_labels(copied, "--policy", low, "--save-policy", low), status=2).err
    assert "the certificate starts from this policy" in error
    assert ThresholdPolicy.load(low).evidence == first.evidence


def test_answers_of_people_are_put_aside_and_go_on_when_their_plan_comes_back(copied: Scenes, said) -> None:
    plan = ("certify", copied.store, "--target", 0.9, "--budget", 500, "--classes", *CLASSES)
    file = Certificate.path_of(copied.store)
    said(*plan)
    kept = SpotFile(Certificate, StoreView(copied.store))
    for number in range(6):
        kept.answer(Certificate.load(file).id, number, "right")
    file.with_name(f"{file.stem}-{'0' * 16}.json").write_text("damaged")
    noted = said("certify", copied.store, "--target", 0.8).err
    assert "note: the answers of another certificate are kept in " in noted
    said(*plan)
    assert [draw["verdict"] for draw in Certificate.load(file).items[:6]] == ["right"] * 6
    noted = said(*by_labels(copied)).err  # the same plan, answered by label maps
    aside = Path(noted.split("are kept in ")[1].strip())
    said("verify", "--certificate", aside)  # its store is found by its name
    assert [draw["verdict"] for draw in Certificate.load(aside).items[:7]] == ["right"] * 6 + [None]


def test_label_maps_of_other_proportions_answer_nothing(copied: Scenes, tmp_path: Path, said) -> None:
    (tmp_path / "turned").mkdir()
    for name, truth in copied.truth.items():
        cv2.imwrite(str(tmp_path / "turned" / f"{name}.png"), np.rot90(truth))
    error = said("certify", copied.store, "--answers", tmp_path / "turned", "--ids", "train", status=3).err
    assert "is 128x256, the labels of " in error
    assert "are 256x128: they do not show the same" in error
    assert not Certificate.path_of(copied.store).exists()


def test_a_finished_store_is_certified_as_it_is(made: Scenes, tmp_path: Path, said) -> None:
    raw = LabelStore.open(made.store)
    finalise(raw, Recipe(from_threshold("0.9", raw.classes)), tmp_path / "final")
    given = ("--answers", made.maps, "--target", 0.9, "--classes", "sky", "road", "--json")
    classes = json.loads(said("certify", tmp_path / "final", *given).out)["classes"]
    assert classes["sky"]["certified"]


def test_two_people_answer_one_certificate_and_no_answer_is_lost(copied: Scenes) -> None:
    views = [StoreView(copied.store) for _ in range(2)]
    files = [SpotFile(Certificate, view) for view in views]
    plan = {"target": 0.9, "delta": 0.05, "budget": 60, "seed": 0, "classes": CLASSES}
    certificate = files[0].start(begin(views[0], **plan))
    assert files[1].start(begin(views[1], **plan)).id == certificate.id

    def answer(who: int) -> None:
        for number in range(who, 10, 2):
            files[who].answer(certificate.id, number, "right" if who else "unsure")

    people = [threading.Thread(target=answer, args=(who,)) for who in range(2)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    kept = Certificate.load(Certificate.path_of(copied.store))
    assert [draw["verdict"] for draw in kept.items[:10]] == ["unsure", "right"] * 5
    kept.check(views[0], "it")


def test_an_answer_that_is_left_out_stops_the_count_and_no_draw_is_wasted(copied: Scenes) -> None:
    view = StoreView(copied.store)
    certificate = begin(view, target=0.9, delta=0.05, budget=300, seed=0, classes=["sky"])
    while certificate.plan_draws(view):
        for number, draw in enumerate(certificate.items):
            if draw["verdict"] is None and number:  # the first one is hard, and left out
                certificate.answer(view, number, "right")
    assert not certificate.results()["sky"]["certified"]
    assert len(certificate.items) == pilot_of(certificate.value["budget"]), (
        "what comes next depends on the answer that is missing"
    )
    certificate.answer(view, 0, "unsure")
    while certificate.plan_draws(view):
        for number, draw in enumerate(certificate.items):
            if draw["verdict"] is None:
                certificate.answer(view, number, "right")
    assert certificate.results()["sky"]["certified"]


def test_an_audit_of_the_same_seed_draws_other_pixels(copied: Scenes) -> None:
    view = StoreView(copied.store)
    sky = view.classes.index("sky")
    thresholds = Thresholds(np.zeros(view.classes.num_classes, np.int64), ("0.00",) * view.classes.num_classes, "0.00")
    audit = Audit.draw(view, thresholds, per_class=1, seed=0, classes=[sky])
    certificate = begin(view, target=0.9, delta=0.05, budget=300, seed=0, classes=["sky"])
    (first, *_) = certificate.plan_draws(view)
    drawn = [(item["name"], item["rank"]) for item in (audit.items[0], first)]
    assert first["low"] == min(certificate.classes[0]["codes"])
    assert drawn[0] != drawn[1]


def test_a_changed_answer_counts_as_if_it_had_been_given_at_once(copied: Scenes) -> None:
    view = StoreView(copied.store)
    plan = {"target": 0.9, "delta": 0.05, "budget": 120, "seed": 0, "classes": ["sky"]}
    mistaken = begin(view, **plan)
    while len(mistaken.items) < 60 and mistaken.plan_draws(view):
        for number, draw in enumerate(mistaken.items):
            if draw["verdict"] is None:
                mistaken.answer(view, number, "wrong" if number < 5 else "right")
    before = mistaken.results()["sky"]
    for number in range(5):
        mistaken.answer(view, number, "right")
    other = begin(view, **plan)
    other.items.extend(dict(item) for item in mistaken.items)
    assert mistaken.results() == other.results() != {"sky": before}


@pytest.mark.parametrize(
    ("option", "value", "words", "status"),
    [
        ("--target", "1.2", "target 1.2", 2),
        ("--delta", "0", "delta 0", 2),
        ("--classes", "roda", "roda", 3),
        ("--answers", "/nowhere", "no such folder", 3),
    ],
)
def test_a_wrong_option_is_reported_in_one_line(
    copied: Scenes, said, option: str, value: str, words: str, status: int
) -> None:
    assert words in said("certify", copied.store, option, value, status=status).err
    assert not Certificate.path_of(copied.store).exists()


def test_without_answers_it_says_how_many_are_wanted_where(copied: Scenes, said) -> None:
    printed = said("certify", copied.store, "--target", 0.9, "--classes", "sky").out
    assert "sky: about" in printed
    assert "more answers until it is certified" in printed
    assert np.all([d["verdict"] is None for d in Certificate.load(Certificate.path_of(copied.store)).items])
