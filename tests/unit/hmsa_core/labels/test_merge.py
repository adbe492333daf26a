from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hmsa_core.io.errors import InputError
from hmsa_core.labels.merge import HUMAN, IGNORED, TEACHER, MergeRules, corrected_precision, measure_rules, merge_labels
from hmsa_core.labels.thresholds.curves import CalibrationImage, Curves
from hmsa_core.labels.thresholds.intervals import lower_bound
from hmsa_core.labels.thresholds.settings import MergeConfig, PairRule
from tests.support.cases import CASES
from tests.support.label_maps import toy_classes

CLASSES = toy_classes()
IDS = st.sampled_from([0, 1, 2, 3, 4, 255])
LABELS = hnp.arrays(np.uint8, (6, 7), elements=IDS)
ACTIONS = hnp.arrays(np.uint8, (5, 5), elements=st.sampled_from([HUMAN, IGNORED, TEACHER]))


@given(LABELS, LABELS, ACTIONS)
@settings(max_examples=CASES)
def test_each_pair_does_what_its_rule_says_and_the_source_tells_whose_label_it_is(
    pseudo: np.ndarray, human: np.ndarray, actions: np.ndarray
) -> None:
    """So a human pixel changes only where a rule says so, and 255 only where a label of the teacher passed."""
    np.fill_diagonal(actions, HUMAN)
    rules = MergeRules(CLASSES, actions)
    final, source = merge_labels(pseudo, human, rules)
    for h, p, f in zip(human.flat, pseudo.flat, final.flat, strict=True):
        if h == 255:
            expected = p
        elif p in (255, h):
            expected = h
        else:
            expected = {HUMAN: h, IGNORED: 255, TEACHER: p}[int(rules.actions[h, p])]
        assert f == expected
    assert (final.dtype, source.dtype) == (np.uint8, np.uint8)
    assert np.array_equal(source == 0, final == 255)
    assert np.array_equal(final[source == 1], pseudo[source == 1])
    assert np.array_equal(final[source == 2], human[source == 2])
    assert np.array_equal(source == 3, (human == pseudo) & (human != 255))


def test_without_rules_a_conflict_is_ignored_and_without_a_human_label_the_teacher_fills() -> None:
    pseudo, human = np.array([[1, 2, 255]], np.uint8), np.array([[1, 3, 4]], np.uint8)
    rules = MergeRules.default(CLASSES)
    assert merge_labels(pseudo, human, rules)[0].tolist() == [[1, 255, 4]]
    assert merge_labels(pseudo, None, rules)[0].tolist() == pseudo.tolist()
    keep_human = MergeRules.default(CLASSES, MergeConfig(default="human"))
    assert merge_labels(pseudo, human, keep_human)[0].tolist() == [[1, 3, 4]]


def test_other_ids_than_the_classes_are_never_let_through() -> None:
    odd = np.array([[9, 9, 255, 0]], np.uint8)
    other = np.array([[0, 255, 9, 9]], np.uint8)
    assert merge_labels(odd, other, MergeRules.default(CLASSES))[0].tolist() == [[255] * 4]


def test_rules_by_hand_win_and_unknown_classes_are_refused() -> None:
    rule = PairRule(human="road", teacher="sidewalk", action="teacher")
    rules = MergeRules.default(CLASSES, MergeConfig(rules=(rule,)))
    assert rules.actions[0, 1] == TEACHER
    assert (rules.actions != IGNORED).sum() == 1 + 5  # and the diagonal
    with pytest.raises(InputError, match="unknown class"):
        MergeRules.default(CLASSES, MergeConfig(rules=(PairRule(human="x", teacher="road", action="human"),)))


def test_wrong_shapes_types_and_actions_are_refused() -> None:
    rules, label = MergeRules.default(CLASSES), np.zeros((2, 2), np.uint8)
    for pseudo, human in ((label, np.zeros((2, 3), np.uint8)), (label.astype(np.int64), label)):
        with pytest.raises(InputError, match="one shape"):
            merge_labels(pseudo, human, rules)
    for actions, message in (
        (np.zeros((4, 4), np.uint8), "merge rules must be"),
        (np.zeros((5, 5), np.int64), "merge rules must be"),
        (np.full((5, 5), TEACHER, np.uint8), "HUMAN on the diagonal"),
    ):
        with pytest.raises(InputError, match=message):
            MergeRules(CLASSES, actions)


def _images(count: int) -> list[CalibrationImage]:
    """Human says road where the teacher says sidewalk: the teacher is right. Human says building, teacher wall:
    the human is right. Human says building, teacher fence: nobody is."""
    images = []
    for i in range(count):
        human = np.repeat(np.array([0, 2, 2, 2], np.uint8), 25).reshape(4, 25)
        teacher = np.repeat(np.array([1, 3, 4, 2], np.uint8), 25).reshape(4, 25)
        truth = np.repeat(np.array([1, 2, 0, 2], np.uint8), 25).reshape(4, 25)
        code = np.full((4, 25), 240, np.uint8)
        code[2, :5] = 10  # below the policy's code: never merged, so never counted
        images.append(CalibrationImage(f"i{i}", f"b{i // 2}", teacher, code, truth, human))
    return images


def test_measured_rules_follow_whoever_is_right_and_need_blocks() -> None:
    curves = Curves.measure(_images(16), CLASSES)
    codes = np.full(5, 100)
    rules = measure_rules(curves, codes, MergeConfig(min_blocks=5), 0.95)
    assert rules.actions[0, 1] == TEACHER
    assert rules.actions[2, 3] == HUMAN
    assert rules.actions[2, 4] == IGNORED
    fence = next(e for e in rules.evidence if e["teacher"] == "fence")
    assert (fence["pixels"], fence["human_right"], fence["teacher_right"], fence["blocks"]) == (16 * 20, 0, 0, 8)
    few = measure_rules(Curves.measure(_images(6), CLASSES), codes, MergeConfig(min_blocks=5), 0.95)
    assert (few.actions[~np.eye(5, dtype=bool)] == IGNORED).all()
    off = measure_rules(curves, codes, MergeConfig(measure=False), 0.95)
    assert (off.actions[~np.eye(5, dtype=bool)] == IGNORED).all()
    by_hand = MergeConfig(rules=(PairRule(human="road", teacher="sidewalk", action="human"),))
    assert measure_rules(curves, codes, by_hand, 0.95).actions[0, 1] == HUMAN


def test_coarse_precision_is_corrected_by_what_coarse_labels_hide_up_to_one_where_all_figures_are_known() -> None:
    curves, codes = Curves.measure(_images(8), CLASSES), np.full(5, 100)
    nothing, sure, mixed = np.zeros((3, 6, 5, 256), np.int64)
    sure[2, 2, 240] = 100
    mixed[2, 2, 240], mixed[4, 2, 240], mixed[5, 2, 240] = 90, 10, 500  # 500 pixels without a human label
    assert corrected_precision(mixed, sure, curves, codes)[2] == pytest.approx(0.9)
    assert corrected_precision(mixed, sure, curves, np.full(5, 256))[2] is None
    assert corrected_precision(sure, mixed, curves, codes)[2] == 1.0
    assert corrected_precision(sure, nothing, curves, codes)[2] is None


def _mixed(count: int) -> list[CalibrationImage]:
    """Human says road, teacher sidewalk: of 24 pixels the human is right in 7, the teacher in 16, nobody in one."""
    human, teacher = np.zeros((1, 24), np.uint8), np.ones((1, 24), np.uint8)
    truth = np.repeat(np.array([0, 1, 2], np.uint8), [7, 16, 1])[None]
    code = np.full((1, 24), 100, np.uint8)
    return [CalibrationImage(f"i{i}", f"b{i}", teacher, code, truth, human) for i in range(count)]


def test_what_a_measured_rule_stands_on_is_written_next_to_it() -> None:
    curves = Curves.measure(_mixed(6), CLASSES)
    total = np.full((6, 1), 24)
    low = [round(float(lower_bound(total, np.full((6, 1), right), 0.95)[0]), 4) for right in (7, 16)]
    rules = measure_rules(curves, np.full(5, 100), MergeConfig(min_blocks=3, win_rate=0.6), 0.95)  # at the cut: kept
    pair = {
        "human": "road",
        "teacher": "sidewalk",
        "action": "teacher",
        "source": "measured",
        "blocks": 6,
        "pixels": 144,
    }
    shares = {"human_right": 0.2917, "teacher_right": 0.6667, "human_lower": low[0], "teacher_lower": low[1]}
    assert rules.evidence == [pair | shares]
    assert measure_rules(curves, np.full(5, 101), MergeConfig(min_blocks=3), 0.95).evidence == []


def test_a_pair_of_one_pixel_is_reported_and_decides_nothing() -> None:
    image = _mixed(1)[0]
    one = image._replace(**{name: getattr(image, name)[:, :1] for name in ("label", "code", "truth", "human")})
    rules = measure_rules(Curves.measure([one], CLASSES), np.full(5, 100), MergeConfig(), 0.95)
    assert [(e["pixels"], e["human_right"], e["action"]) for e in rules.evidence] == [(1, 1.0, "ignore")]


def test_exactly_enough_blocks_and_exactly_the_win_rate_suffice() -> None:
    curves, codes = Curves.measure(_mixed(5), CLASSES), np.full(5, 100)
    low = float(lower_bound(np.full((5, 1), 24), np.full((5, 1), 16), 0.95)[0])
    enough = MergeConfig(min_blocks=5).model_copy(update={"win_rate": low})
    assert measure_rules(curves, codes, enough, 0.95).actions[0, 1] == TEACHER
    for more in ({"min_blocks": 6}, {"win_rate": np.nextafter(low, 1.0)}):
        assert measure_rules(curves, codes, enough.model_copy(update=more), 0.95).actions[0, 1] == IGNORED


def test_rules_by_hand_are_reported_once_and_the_default_holds_where_nothing_was_measured() -> None:
    config = MergeConfig(
        default="human", min_blocks=3, rules=(PairRule(human="wall", teacher="fence", action="ignore"),)
    )
    rules = measure_rules(Curves.measure(_images(16), CLASSES), np.full(5, 100), config, 0.95)
    assert rules.actions[0, 1] == TEACHER
    assert rules.actions[3, 4] == IGNORED
    assert rules.actions[1, 0] == HUMAN, "the default"
    by_hand = {"human": "wall", "teacher": "fence", "action": "ignore", "source": "set by hand"}
    assert [e for e in rules.evidence if e["source"] != "measured"] == [by_hand]
