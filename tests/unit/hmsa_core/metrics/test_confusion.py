"""Confusion counts and IoU against the released numbers, the official Cityscapes scripts and brute force."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hmsa_core.io.errors import InputError
from hmsa_core.metrics import ConfusionMatrix, by_category, confusion_counts, iou_of, mean_iou_of
from hmsa_core.taxonomy import cityscapes, cityscapes_categories, from_file

# Confusion and IoU that the released code gives for a 7-class case with ignored pixels, one class that is in
# neither map (2) and one that is only predicted (4): the project's reference numbers, rebuilt from the counts.
RELEASED_IOU = [
    0.5238828967642527,
    0.3116883116883117,
    math.nan,
    0.47092198581560285,
    0.0,
    0.4581497797356828,
    0.5069984447900466,
]
RELEASED_MEAN = 0.3786069031323161
GOLDEN = Path(__file__).parents[3] / "reference" / "iou.npz"


def brute_force(pred, label, num_classes, ignore=255):
    counts = np.zeros((num_classes, num_classes + 1), np.int64)
    for p, t in zip(pred.ravel().tolist(), label.ravel().tolist(), strict=True):
        if t != ignore:
            counts[t, p if 0 <= p < num_classes else num_classes] += 1
    return counts


def test_the_released_code_counts_the_same_confusions_and_iou():
    with np.load(GOLDEN) as golden:
        pred, label, hist = golden["pred"], golden["gt"], golden["hist"]
    matrix = ConfusionMatrix(7).update(pred, label)
    np.testing.assert_array_equal(matrix.counts[:, :-1], hist)
    np.testing.assert_allclose(matrix.iou(), RELEASED_IOU, rtol=1e-12)
    assert matrix.mean_iou() == pytest.approx(RELEASED_MEAN, rel=1e-12)


def test_a_class_in_neither_is_nan_and_one_only_predicted_scores_zero():
    matrix = ConfusionMatrix(4).update(np.array([0, 1, 1, 3]), np.array([0, 1, 0, 255]))
    iou = matrix.iou()
    assert iou[0] == 0.5
    assert iou[1] == 0.5
    assert np.isnan(iou[2])
    assert np.isnan(iou[3]), "a prediction on an ignored pixel counts nowhere"
    assert matrix.mean_iou() == 0.5
    assert ConfusionMatrix(2).update(np.array([1]), np.array([0])).iou().tolist() == [0.0, 0.0]
    unanswered = ConfusionMatrix(2).update(np.array([0, 255], np.uint8), np.array([0, 0], np.uint8))
    assert unanswered.iou()[0] == 0.5, "missed, not ignored"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(ConfusionMatrix(3).mean_iou())
        assert np.isnan(ConfusionMatrix(3).iou()).all()


def test_torch_tensors_and_numpy_arrays_of_any_integer_type_count_the_same():
    rng = np.random.default_rng(3)
    pred, label = rng.integers(0, 5, (40, 30)), rng.integers(0, 5, (40, 30))
    label[rng.random(label.shape) < 0.2] = 255
    expected = brute_force(pred, label, 5)
    for convert in (
        lambda a: a.astype(np.uint8),
        lambda a: a.astype(np.int16),
        lambda a: a,
        lambda a: torch.from_numpy(a),
        lambda a: torch.from_numpy(a).to(torch.uint8),
    ):
        matrix = ConfusionMatrix(5).update(convert(pred), convert(label))
        np.testing.assert_array_equal(matrix.counts, expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(0, 2**32 - 1), st.sampled_from([255, -1, 99]))
def test_counts_equal_brute_force_and_torchmetrics_for_any_ignore_value(num_classes, seed, ignore):
    from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 20, 2))
    pred = rng.integers(-1, num_classes + 2, shape)
    label = rng.integers(0, num_classes, shape)
    label[rng.random(shape) < 0.3] = ignore
    counts = confusion_counts(pred, label, num_classes, ignore)
    np.testing.assert_array_equal(counts, brute_force(pred, label, num_classes, ignore))
    if num_classes > 1:
        answered = torch.from_numpy(pred % num_classes), torch.from_numpy(label)
        options = {"num_classes": num_classes, "ignore_index": ignore}
        matrix = ConfusionMatrix(num_classes, ignore).update(*answered)
        theirs = multiclass_confusion_matrix(*answered, **options).numpy()
        np.testing.assert_array_equal(matrix.counts[:, :-1], theirs)
        theirs = multiclass_jaccard_index(*answered, average="none", **options).numpy()
        np.testing.assert_allclose(np.nan_to_num(matrix.iou()), theirs, rtol=1e-6)  # they call an absent class 0


def test_blocks_add_up_beyond_the_exact_range_of_float32_counters(monkeypatch):
    monkeypatch.setattr("hmsa_core.metrics.confusion._BLOCK_PIXELS", 7)
    rng = np.random.default_rng(0)
    pred, label = rng.integers(0, 3, (11, 13), np.uint8), rng.integers(0, 3, (11, 13), np.uint8)
    np.testing.assert_array_equal(confusion_counts(pred, label, 3), brute_force(pred, label, 3))


@pytest.mark.parametrize(
    ("pred", "label", "message"),
    [
        (np.zeros(3, np.uint8), np.zeros(4, np.uint8), "differ in shape"),
        (np.zeros(2, np.uint8), np.array([0, 200], np.uint8), "label 200 is neither a class 0..2 nor 255"),
        (np.zeros(2, np.int64), np.array([0, -7]), "label -7 is neither"),
        (np.zeros(2, np.float32), np.zeros(2, np.uint8), "must hold integers"),
    ],
)
def test_maps_that_cannot_be_scored_and_more_classes_than_a_byte_can_hold_are_refused_in_one_line(pred, label, message):
    with pytest.raises(InputError, match=message):
        ConfusionMatrix(3).update(pred, label)
    with pytest.raises(InputError, match=r"num_classes must be 1\.\.255, found 256"):
        ConfusionMatrix(256)


def test_scores_of_many_matrices_at_once_equal_those_one_by_one():
    counts = np.random.default_rng(1).integers(0, 9, (6, 4, 4))
    counts[0, 2], counts[0, :, 2] = 0, 0
    many = iou_of(counts)
    for one, row in zip(counts, many, strict=True):
        np.testing.assert_array_equal(iou_of(one), row)
    np.testing.assert_allclose(mean_iou_of(many), np.nanmean(many, axis=1))


def random_pair(rng, table):
    """A truth of label ids (some ignored ids, some classes absent) and a noisy prediction of trainIds."""
    present = rng.permutation(34)[: rng.integers(2, 34)]
    truth = np.repeat(np.repeat(rng.choice(present, (6, 8)), 8, 0), 8, 1).astype(np.uint8)
    answer = table.id_to_train[truth]
    guess = rng.choice(rng.permutation(19)[: rng.integers(1, 6)], truth.shape)
    change = (rng.random(truth.shape) < rng.random()) | (answer == 255)
    return truth, np.where(change, guess, answer).astype(np.uint8)


def official_scores(pairs, folder, table):
    """Class and category IoU of the benchmark's own scripts, from PNG files of label ids."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    official.args.evalInstLevelScore = False
    confusion = official.generateMatrix(official.args)
    ids = np.array(table.train_to_id, np.uint8)
    for i, (truth, pred) in enumerate(pairs):
        Image.fromarray(truth).save(folder / f"{i}_gt.png")
        Image.fromarray(ids[pred]).save(folder / f"{i}_pred.png")
        official.evaluatePair(
            str(folder / f"{i}_pred.png"), str(folder / f"{i}_gt.png"), confusion, {}, {}, official.args
        )
    classes = [official.getIouScoreForLabel(i, confusion, official.args) for i in table.train_to_id]
    categories = {
        name: official.getIouScoreForCategory(name, confusion, official.args) for name in set(cityscapes_categories())
    }
    mean = official.getScoreAverage(dict(enumerate(classes)), official.args)
    return classes, categories, mean


def test_the_official_cityscapes_scripts_give_the_same_iou_on_50_pairs(tmp_path):
    table = cityscapes()
    rng = np.random.default_rng(2020)
    pairs = [random_pair(rng, table) for _ in range(50)]
    absent = 0
    for pair in pairs:  # one by one, then all together
        absent += check_against_official([pair], tmp_path, table)
    assert absent > 20, "absent classes must occur"
    check_against_official(pairs, tmp_path, table)


def test_classes_without_a_group_are_no_category_together(tmp_path):
    rows = [{"id": i, "name": f"kind {i}", "colour": [i, 0, 0]} for i in range(3)]
    (tmp_path / "classes.json").write_text(json.dumps({"dataset": "woods", "classes": rows, "ignore_id": 255}))
    table = from_file(tmp_path / "classes.json")
    assert set(table.groups) == {"other"}
    assert by_category(np.roll(np.eye(3, dtype=np.int64), 1, axis=0), table) == {}, "not one pixel is right"


def check_against_official(pairs, folder, table):
    ours = ConfusionMatrix(19)
    for truth, pred in pairs:
        ours.update(pred, table.id_to_train[truth])
    classes, categories, mean = official_scores(pairs, folder, table)
    np.testing.assert_allclose(ours.iou(), classes, atol=1e-6, rtol=0)
    assert ours.mean_iou() == pytest.approx(mean, abs=1e-6, nan_ok=True)
    for name, value in by_category(ours.counts, cityscapes()).items():
        theirs = None if math.isnan(categories[name]) else pytest.approx(categories[name], abs=1e-6)
        assert value == theirs, name
    return int(np.isnan(ours.iou()).sum())
