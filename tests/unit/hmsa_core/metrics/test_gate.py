"""The gate: a worse student never gets through, chance rarely does, a clear gain does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from hmsa_core.config import GateConfig
from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.metrics import bootstrap_difference
from hmsa_core.metrics.gate import Judged, alpha_of_look, judge

CLASSES = ("road", "building", "person", "rider", "car")
BLOCKS = [f"city_{i // 4:03d}" for i in range(160)]
IMAGES = tuple(f"image_{i:04d}" for i in range(160))


def _confusions(
    rng: np.random.Generator, accuracy: NDArray[np.float64] | float, spread: float = 0.03
) -> NDArray[np.int64]:
    """Per-image confusions of a model with a given accuracy per class; blocks share their difficulty."""
    difficulty = np.random.Generator(np.random.PCG64(1)).normal(0, 0.05, 40)  # of the data: the same for all models
    result = np.zeros((160, 5, 5), np.int64)
    truth = np.array([4000, 3000, 400, 200, 1000])
    for i in range(160):
        p = np.clip(np.broadcast_to(accuracy, 5) + difficulty[i // 4] + rng.normal(0, spread, 5), 0.01, 0.99)
        for c in range(5):
            hits = rng.binomial(truth[c], p[c])
            result[i, c, c] = hits
            wrong = rng.multinomial(truth[c] - hits, [0.25] * 4)
            result[i, c, [k for k in range(5) if k != c]] = wrong
    return result


def _judged(name: str, confusions: NDArray[np.int64], blocks: Sequence[str] = BLOCKS) -> Judged:
    return Judged(name, IMAGES, tuple(blocks), confusions)


CONFIG = GateConfig(seed_sd=0.002, draws=400)


def _models(*accuracies: NDArray[np.float64] | float, seed: int = 0) -> list[NDArray[np.int64]]:
    """Confusions of models with these accuracies."""
    rng = np.random.default_rng(seed)
    return [_confusions(rng, accuracy) for accuracy in accuracies]


def _verdict(
    new: NDArray[np.int64], old: NDArray[np.int64], config: GateConfig = CONFIG, **more: Any
) -> dict[str, Any]:
    blocks, classes = more.pop("blocks", BLOCKS), more.pop("classes", CLASSES)
    return judge(_judged("student", new, blocks), _judged("teacher", old, blocks), classes, config, **more)


@pytest.mark.parametrize("allowed", [{"class_allowance": 0.0}, {"class_allowances": {"car": 0.0}}])
def test_an_allowance_of_nothing_which_no_image_can_show_is_refused(allowed: dict[str, Any]) -> None:
    """With it every class would be too noisy to be judged: the strictest number would switch the guard off."""
    with pytest.raises(ValidationError, match="greater than 0"):
        GateConfig(**allowed)


def test_a_clearly_better_student_is_promoted_with_its_interval() -> None:
    verdict = _verdict(*_models(0.85, 0.78))
    assert verdict["promote"], verdict["reasons"]
    assert verdict["gain"]["low"] > 0
    assert "Promote" in verdict["sentence"]
    assert {row["verdict"] for row in verdict["classes"]} == {"non-inferior"}


def test_a_worse_student_is_kept_out_and_every_reason_is_named() -> None:
    verdict = _verdict(*_models(0.7, 0.8))
    assert not verdict["promote"]
    assert any("person" in reason and "recall" in reason for reason in verdict["reasons"])
    assert any("gain" in reason for reason in verdict["reasons"])


def test_riders_are_a_veto_even_when_the_mean_rises() -> None:
    verdict = _verdict(*_models(np.array([0.95, 0.95, 0.92, 0.6, 0.95]), 0.8))
    assert verdict["gain"]["low"] > 0
    assert not verdict["promote"]
    assert [row["verdict"] for row in verdict["classes"] if row["name"] == "rider"] == ["veto"]


def test_a_set_of_few_blocks_promotes_nothing_however_large_the_gain() -> None:
    new, old = _models(0.95, 0.5, seed=3)
    for count in (1, CONFIG.min_blocks - 1):
        few = [f"b{i % count}" for i in range(len(BLOCKS))]
        verdict = _verdict(new, old, blocks=few)
        assert not verdict["promote"]
        assert f"the report set has {count} blocks, {CONFIG.min_blocks} are needed" in "; ".join(verdict["reasons"])
    assert _verdict(new, old)["promote"]


def test_names_in_the_gate_that_are_no_class_are_reported() -> None:
    new, old = _models(0.9, 0.5, seed=3)
    with pytest.raises(ConfigError, match="no class is called 'buliding'"):
        _verdict(new, old, CONFIG.model_copy(update={"class_allowances": {"Buliding": 0.1}}))
    assert _verdict(new, old, CONFIG.model_copy(update={"veto_recall": (CLASSES[0],)}))["notes"] == []
    with pytest.raises(ConfigError, match=r"veto_recall: no class is called 'bycicle'"):
        _verdict(new, old, CONFIG.model_copy(update={"veto_recall": (CLASSES[0], "bycicle")}))
    assert "no class is called person or rider" in _verdict(new, old, classes=tuple("abcde"))["notes"][0]


def test_a_class_in_few_blocks_is_not_judged_and_says_so() -> None:
    new, old = _models(0.85, 0.78)
    for confusions in (new, old):
        confusions[12:, 4] = 0
    car = _verdict(new, old)["classes"][4]
    assert car["verdict"] == "not judged"
    assert "3 blocks" in car["why"]


def _found(hits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Confusions (N, C, C + 1) of 1,000 pixels a class, of which these were found; the others are called no class."""
    images, classes = hits.shape
    confusions = np.zeros((images, classes, classes + 1), np.int64)
    confusions[:, range(classes), range(classes)], confusions[:, :, classes] = hits, 1000 - hits
    return confusions


@pytest.mark.parametrize("looks", [1, 3, 10])
def test_a_student_that_lost_nothing_is_never_called_inferior(looks: int) -> None:
    """Levels fall with looks and classes: a class too noisy for its level is not judged, whatever the level is."""
    rng = np.random.default_rng(9)
    hits = np.clip(rng.normal(0.8, 0.09, (2, 160, 5)), 0, 1) * 1000
    hits = np.where(hits[0].sum(0) > hits[1].sum(0), hits, hits[::-1]).astype(np.int64)  # the first is better in all
    verdict = _verdict(*map(_found, hits), looks=looks)
    assert all(row["gain"] > 0 for row in verdict["classes"])
    assert not [row for row in verdict["classes"] if row["verdict"] == "inferior"]


@pytest.mark.parametrize("looks", [1, 5, 50])
def test_a_large_loss_of_a_noisy_class_stops_at_every_look(looks: int) -> None:
    """Found worse in twelve blocks of 40, so its noise is nearly as large as its loss; all else gains five points."""
    rng = np.random.default_rng(11)
    old = np.clip(rng.normal(800, 20, (160, 5)), 0, 1000).astype(np.int64)
    new = old + 50
    new[:48, 4] = 480
    verdict = _verdict(_found(new), _found(old), looks=looks)
    car = verdict["classes"][4]
    assert car["gain"] < -0.06
    assert 2.4 * car["se"] > -car["gain"], "it is significant among all classes, too: this test proves little"
    assert (car["verdict"], verdict["promote"]) == ("inferior", False)


@pytest.mark.parametrize(("blocks", "most"), [(1, 0), (2, 12), (6, 12)])
def test_recall_that_noise_explains_is_no_veto(blocks: int, most: int) -> None:
    """Riders in few blocks: of one, all draws say the same, and a single pixel would stop the promotion."""
    config = GateConfig(seed_sd=0.002, draws=200, recall_allowance=0.5)
    vetoed = 0
    for trial in range(80):
        rng = np.random.default_rng(trial)
        old = np.full((160, 5), 800)
        new = old + np.rint(rng.normal(0, 20, (40, 5))).astype(int)[np.arange(160) // 4]
        shown = np.arange(160) < 4 * blocks
        counts = []
        for hits in (new, old):
            counts.append(_found(hits))
            counts[-1][~shown, 3] = 0
        vetoed += _verdict(*counts, config)["classes"][3]["verdict"] == "veto"
    # 4 expected of 80 at 5 %; 13 or more has a chance below 0.02 %.
    assert vetoed <= most


def test_what_a_class_lost_that_cannot_be_judged_is_reported() -> None:
    rng = np.random.default_rng(12)
    old = np.clip(rng.normal(800, 20, (160, 5)), 0, 1000).astype(np.int64)
    new = old + 50
    new[:24, 4] = 0
    verdict = _verdict(_found(new), _found(old))
    assert [row["verdict"] for row in verdict["classes"]] == [*["non-inferior"] * 4, "not judged"]
    assert "1 of 5 classes could not be judged; the most that one of them lost: car -7.8 points" in verdict["notes"][-1]


def test_a_loss_of_its_allowance_is_called_harmless_no_more_often_than_alpha() -> None:
    """Six blocks know their own spread badly: by the normal quantile, many more are called harmless."""
    blocks = tuple(f"b{i % 6}" for i in range(12))
    images = tuple(f"i{i}" for i in range(12))
    config = GateConfig(alpha=0.01, min_blocks=2, seed_sd=0.0, draws=400, class_allowance=0.1, recall_allowance=0.5)
    harmless = normal = 0
    for trial in range(400):
        rng = np.random.default_rng(trial)
        old = np.full((12, 1), 800)
        new = old - 100 + np.rint(rng.normal(0, 30, 6)).astype(int)[np.arange(12) % 6, None]
        judged = (Judged(name, images, blocks, _found(hits)) for name, hits in (("s", new), ("t", old)))
        (row,) = judge(*judged, ("road",), config)["classes"]
        harmless += row["verdict"] == "non-inferior"
        normal += row["gain"] + row["allowance"] > 2.326 * row["se"]
    # 4 expected of 400 at 1 %; 12 or more has a chance below 0.1 %.
    assert harmless <= 11
    assert normal > 11, "the normal quantile would have done: this test proves nothing"


def test_a_loss_that_chance_does_not_explain_counts_in_few_blocks_too() -> None:
    old, new = _models(0.8, 0.9, seed=5)
    rare = np.arange(160) < 36  # 9 of 40 blocks show class 4
    for confusions in (old, new):
        confusions[~rare, 4, :] = 0
    lost = new.copy()
    lost[:, 4, 0] += lost[:, 4, 4]
    lost[:, 4, 4] = 0
    same = _verdict(new, old)["classes"][4]
    assert (same["verdict"], same["blocks"]) == ("not judged", 9)
    verdict = _verdict(lost, old)
    assert verdict["classes"][4]["verdict"] == "inferior"
    assert not verdict["promote"]


def test_a_few_pixels_of_a_class_that_no_truth_shows_move_no_mean() -> None:
    """The class has no IoU for a model that never predicts it and 0 for one that does."""
    rng = np.random.default_rng(6)
    wide = [np.zeros((160, 6, 6), np.int64) for _ in range(2)]
    for confusions in wide:
        confusions[:, :5, :5] = _confusions(rng, 0.8)
    stray = wide[1].copy()
    stray[::32, 0, 5] += 1
    clean, strewn = (_verdict(wide[0], old, classes=(*CLASSES, "train")) for old in (wide[1], stray))
    assert strewn["gain"]["value"] == pytest.approx(clean["gain"]["value"], abs=1e-4)
    assert strewn["gain"]["low"] == pytest.approx(clean["gain"]["low"], abs=1e-3)
    plain = bootstrap_difference(wide[0], stray, BLOCKS, draws=200)
    assert plain.value == pytest.approx(clean["gain"]["value"], abs=1e-4)
    assert plain.high < 0.02


def test_without_a_known_seed_variance_nothing_is_promoted() -> None:
    new, old = _models(0.9, 0.7)
    two, three = (_verdict(new, old, GateConfig(draws=400), aa_mean_iou=[0.5, 0.52, 0.54][:n]) for n in (2, 3))
    assert (two["promote"], two["gain"]["seed_sd"]) == (False, None)
    assert (three["promote"], three["gain"]["seed_sd"]) == (True, pytest.approx(0.02))
    assert "2 of 3 A/A trainings are there" in two["reasons"][0]
    assert "spread of 3 A/A trainings)" in three["sentence"]
    (unasked,) = _verdict(new, old, GateConfig(draws=400))["reasons"]
    assert unasked.startswith("the spread between trainings is not judged here")
    by_hand = _verdict(new, old, GateConfig(draws=400, seed_sd=0.003), aa_mean_iou=[0.5, 0.6, 0.7])
    assert "spread as set (evaluate.gate.seed_sd))" in by_hand["sentence"]


def test_a_pinned_champion_catches_losses_that_add_up() -> None:
    candidate, incumbent, champion = _models(0.80, 0.76, 0.9)
    assert _verdict(candidate, incumbent)["promote"]
    verdict = _verdict(candidate, incumbent, champion=_judged("v0001", champion))
    assert not verdict["promote"]
    assert any("champion v0001" in reason for reason in verdict["reasons"])
    # Where trainings do not differ, the champion is judged as an incumbent is.
    alone = _verdict(candidate, champion, GateConfig(seed_sd=0.0, draws=400))["gain"]
    assert verdict["champion"]["high"] == pytest.approx(-alone["low"])


def test_later_looks_ask_for_more_evidence_and_all_looks_spend_alpha_once() -> None:
    assert sum(alpha_of_look(0.05, k) for k in range(1, 5000)) == pytest.approx(0.05, rel=1e-3)
    new, old = _models(0.82, 0.8)
    lows = [_verdict(new, old, looks=k)["gain"]["low"] for k in (1, 5, 50)]
    assert lows[0] > lows[1] > lows[2]


def test_results_on_other_images_are_refused() -> None:
    old, new = _models(0.8, 0.8)
    with pytest.raises(InputError, match="different images"):
        judge(_judged("s", new), Judged("t", tuple(reversed(IMAGES)), tuple(BLOCKS), old), CLASSES, CONFIG)


def test_two_trainings_of_one_recipe_are_promoted_no_more_often_than_alpha_because_their_spread_is_known() -> None:
    """A/A: same accuracy, but each training has luck of its own (the seed variance) and fresh noise."""
    seed_luck = 0.01
    promoted = without = 0
    for trial in range(120):
        rng = np.random.default_rng(trial)
        pair = [_confusions(rng, 0.8 + rng.normal(0, seed_luck)) for _ in range(2)]
        # d mIoU / d accuracy is about 1.3 here; the gate is told the seed sd of the mIoU itself.
        config = GateConfig(seed_sd=1.3 * seed_luck, draws=200, class_allowance=0.5, recall_allowance=0.5)
        promoted += _verdict(*pair, config)["gain"]["low"] > 0
        if trial < 60:
            without += _verdict(*pair, config.model_copy(update={"seed_sd": 0.0}))["gain"]["low"] > 0
    # alpha of the first look is 2.5 %: 3 expected of 120; 9 or more has a chance below 0.5 %.
    assert promoted <= 8
    assert without >= 8, "the term is not decoration"


def test_three_trainings_know_their_spread_badly_and_the_gate_allows_for_it() -> None:
    """A/A as it is in practice: the spread itself is estimated from three trainings, and luck is most of the noise."""
    seed_luck = 0.02
    promoted = normal = 0
    trials = 150
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        pair = [_confusions(rng, 0.8 + rng.normal(0, seed_luck), spread=0.0) for _ in range(2)]
        aa = (0.6 + 1.3 * rng.normal(0, seed_luck, 3)).tolist()
        config = GateConfig(draws=200, class_allowance=0.5, recall_allowance=0.5)
        gain = _verdict(*pair, config, aa_mean_iou=aa)["gain"]
        promoted += gain["low"] > 0
        normal += gain["value"] > 1.96 * gain["standard_error"]
    # alpha of the first look is 2.5 %: 3.75 expected of 150; 11 or more has a chance below 0.2 %.
    assert promoted <= 10
    assert normal > 10, "the normal quantile would have done: this test proves nothing"
