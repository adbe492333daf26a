"""`autolabel ask --alike`: what answers teach about regions that nobody was asked about."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from hmsa_core.labels import LabelStore, LabelStoreWriter
from hmsa_core.labels.finalise import Recipe, finalise
from hmsa_core.labels.review import UNTOUCHED, reviewed
from hmsa_core.labels.store.format import SOURCES
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.taxonomy import cityscapes
from pipeline.cli.main import main
from pipeline.review import alike
from pipeline.review.questions import Questions, review_of
from pipeline.review.view import StoreView
from pipeline.stages.pseudo_label import alike_of
from pipeline.stages.pseudo_label import review_of as review_of_image
from tests.support.label_scenes import LINEAGE

TABLE = cityscapes()
ROAD, BUILDING, WALL, SKY = map(TABLE.index, ("road", "building", "wall", "sky"))
COLOURS = {ROAD: (90, 80, 90), BUILDING: (60, 70, 150), WALL: (70, 140, 90), SKY: (230, 200, 190)}
OTHER_TEACHER = {**LINEAGE, "teacher": "51d0" * 16}
ASK = ("--budget", "250", "--ids", "train", "--alike", "--json")


class Town(NamedTuple):
    """Sixty pictures of four textures, of which the teacher calls each wall a building."""

    store: Path
    images: Path
    truth: dict[str, np.ndarray]
    noise: Path  # label maps that say any class


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Town:
    folder = tmp_path_factory.mktemp("alike")
    rng, truths = np.random.default_rng(5), {}
    for name in ("images", "truth", "noise"):
        (folder / name).mkdir()
    with LabelStoreWriter(folder / "raw", LINEAGE, images_per_shard=20) as writer:
        for number in range(60):
            name, truth = f"town_{number:03d}", np.full((96, 160), SKY, np.uint8)
            truth[64:] = ROAD
            for x in range(0, 160, 40):
                truth[24:64, x : x + 40] = rng.choice((BUILDING, WALL))
            stripes = np.where(np.arange(160) // 3 % 2, 60, 0)[None, :].repeat(96, 0)
            picture = rng.normal(0, 12, (96, 160, 3))
            for c, colour in COLOURS.items():
                picture[truth == c] += colour
            picture[truth == BUILDING] += stripes[truth == BUILDING][:, None]
            cv2.imwrite(str(folder / "images" / f"{name}.png"), np.clip(picture, 0, 255).astype(np.uint8))
            cv2.imwrite(str(folder / "truth" / f"{name}.png"), truth)
            noise = rng.choice((ROAD, BUILDING, WALL, SKY), (12, 20)).astype(np.uint8)
            cv2.imwrite(str(folder / "noise" / f"{name}.png"), noise.repeat(8, 0).repeat(8, 1))
            label, sure = np.where(truth == WALL, np.uint8(BUILDING), truth), rng.uniform(0.6, 1, truth.shape)
            writer.add(name, label, sure.astype(np.float32), image_path=f"{name}.png")
            truths[name] = truth
    return Town(folder / "raw", folder / "images", truths, folder / "noise")


@pytest.fixture
def copied(made: Town, tmp_path: Path) -> Town:
    shutil.copytree(made.store, tmp_path / "raw")
    return made._replace(store=tmp_path / "raw")


def spread(copied: Town, answers: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    folder = copied.images.parent / answers
    assert main(["ask", str(copied.store), "--images", str(copied.images), "--answers", str(folder), *ASK]) == 0
    found = json.loads(capsys.readouterr().out)["alike"]
    assert isinstance(found, dict)
    return found


def final_of(copied: Town) -> LabelStore:
    raw, review = LabelStore.open(copied.store), review_of(StoreView(copied.store))
    people = partial(review_of_image, review.by_name(), raw.classes)
    concluded = partial(alike_of, review.alike(), raw.classes)
    out = copied.store.parent / "final"
    shutil.rmtree(out, ignore_errors=True)
    finalise(raw, Recipe(from_threshold("0.5", raw.classes), reviewed=people, alike=concluded), out)
    return LabelStore.open(out)


def alike_marks(copied: Town) -> dict[str, object]:
    return {name: mark.pixels for name, mark in review_of(StoreView(copied.store)).alike().items()}


def test_regions_that_are_like_the_answered_ones_are_corrected_and_say_so(
    copied: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    found = spread(copied, "truth", capsys)
    assert "are right" in str(found["words"])
    final, wrong, changed, pixels = final_of(copied), 0, 0, 0
    for name, truth in copied.truth.items():
        label, source = final.read_label(name), final.read_source(name)
        wall = truth == WALL
        changed += int(((label == WALL) & wall).sum())
        wrong += int(((label != truth) & ~wall).sum())
        pixels += int((source == SOURCES["alike"]).sum())
    walls = sum(int((truth == WALL).sum()) for truth in copied.truth.values())
    assert changed > 0.8 * walls, "250 answers name at most a tenth of these regions"
    assert wrong < 0.05 * walls
    assert pixels == found["pixels"]


def test_an_answer_of_a_person_wins_and_each_fit_replaces_the_last(
    copied: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    spread(copied, "truth", capsys)
    first, lines = alike_marks(copied), review_of(StoreView(copied.store)).path.read_bytes()
    spread(copied, "truth", capsys)
    assert alike_marks(copied) == first, "the same answers teach the same"
    assert review_of(StoreView(copied.store)).path.read_bytes().startswith(lines)
    view = StoreView(copied.store)
    review = review_of(view)
    items = Questions.load(Questions.path_of(copied.store)).items
    for item in items:  # a person takes every wall back
        if item.get("answer") == "wall":
            review.withdraw(item["name"], item["mark"])
    name, patch = next(iter(first.items()))
    final = final_of(copied)
    for mark in review.of(name):
        said = reviewed([mark], 96, 160, TABLE)[1]
        assert (final.read_label(name)[said != UNTOUCHED] == said[said != UNTOUCHED]).all()
        assert (final.read_source(name)[said != UNTOUCHED] == SOURCES["human"]).all()
    assert patch is not None
    assert alike.spread(StoreView(copied.store, images=copied.images))["regions"] == 0
    assert not alike_marks(copied), "what was withdrawn teaches nothing"


def test_answers_teach_under_the_labels_of_another_teacher_too(
    copied: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    spread(copied, "truth", capsys)
    shutil.rmtree(copied.store)
    with LabelStoreWriter(copied.store, OTHER_TEACHER, images_per_shard=20) as writer:
        for name, truth in copied.truth.items():
            label = np.where(truth == WALL, np.uint8(SKY), truth)
            writer.add(name, label, np.full(label.shape, 0.8, np.float32), image_path=f"{name}.png")
    found = alike.spread(StoreView(copied.store, images=copied.images))
    assert found["answers"] == 250, "nobody was asked about these labels"
    final = final_of(copied)
    changed = sum(int((final.read_label(name)[truth == WALL] == WALL).sum()) for name, truth in copied.truth.items())
    assert changed > 0.8 * sum(int((truth == WALL).sum()) for truth in copied.truth.values())


def test_answers_at_random_change_nothing(copied: Town, capsys: pytest.CaptureFixture[str]) -> None:
    found = spread(copied, "noise", capsys)
    assert found["regions"] == 0
    assert "do not show" in str(found["words"])
    assert not alike_marks(copied)


def test_corrections_of_alike_regions_are_of_these_labels_alone_and_no_word_of_people(
    copied: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    spread(copied, "truth", capsys)
    view = StoreView(copied.store)
    review = review_of(view)
    answered = {item["name"] for item in Questions.load(Questions.path_of(copied.store)).items if item["verdict"]}
    assert set(review.by_name()) <= answered
    other = review_of(view)
    other._labels = "0" * 16  # of another teacher
    assert other.alike() == {}
    assert other.by_name() == review.by_name()
