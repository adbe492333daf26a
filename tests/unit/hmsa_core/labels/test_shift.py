from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hmsa_core.labels.calibration import choose_policy
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.policy import from_threshold
from hmsa_core.labels.thresholds.settings import CalibrateConfig
from hmsa_core.labels.thresholds.shift import compare, reweight, shift_report
from tests.support.label_maps import toy_classes
from tests.support.label_worlds import world

CLASSES = toy_classes()


def _histogram(images) -> np.ndarray:
    counts = np.zeros((5, 256), np.int64)
    for image in images:
        np.add.at(counts, (image.label, image.code), 1)
    return counts


@pytest.fixture(scope="module")
def curves() -> Curves:
    return Curves.measure(world(30, 2, seed=0), CLASSES)


def test_a_shifted_prior_is_found_from_labels_and_codes_alone(curves: Curves) -> None:
    bias = (0.8, 0, 0, -0.5, -1.5)
    images = list(world(30, 2, seed=9, bias=bias))
    found = reweight(curves.joint, _histogram(images))[0]
    true = np.bincount(np.concatenate([i.truth.ravel() for i in images]), minlength=256)[:5]
    true = true / true.sum()
    before = curves.joint.sum(axis=(1, 2)) / curves.joint.sum()
    assert found.sum() == pytest.approx(1)
    assert np.abs(found - true).max() < np.abs(before - true).max() / 2
    assert found[0] == pytest.approx(true[0], abs=0.04)


def test_images_like_the_calibration_images_are_covered(curves: Curves) -> None:
    policy = choose_policy(curves, CalibrateConfig(target=0.9, min_components=5, cross_fit=False))
    same = compare(curves, _histogram(world(30, 2, seed=4)), policy, 0.25)
    kept = [row for row in same if row["status"] != "nothing kept"]
    assert len(kept) >= 4
    assert {row["status"] for row in kept} <= {"covered"}
    for row in kept:
        assert row["adjusted"] == pytest.approx(row["precision"], abs=0.03)


def test_a_class_is_held_to_the_target_that_its_cut_was_chosen_for(curves: Curves) -> None:
    """A certificate has a target for its classes; the others keep the one of the policy that they are from."""
    cut, unlabelled = from_threshold(0.5, CLASSES), _histogram(world(30, 2, seed=4))
    row = compare(curves, unlabelled, cut, 0.25)[1]
    assert row["status"] == "covered"
    above = dataclasses.replace(cut, evidence={"target": row["adjusted"] + 0.01})
    assert compare(curves, unlabelled, above, 0.25)[1]["status"] == "below target"
    own = tuple(dataclasses.replace(e, evidence={"target": row["adjusted"] - 0.01}) for e in above.entries)
    assert compare(curves, unlabelled, dataclasses.replace(above, entries=own), 0.25)[1]["status"] == "covered"


def test_a_class_with_other_confidences_is_not_covered_by_evidence(curves: Curves) -> None:
    policy = from_threshold(0.5, CLASSES)
    histogram = _histogram(world(30, 2, seed=4))
    histogram[1] = 0
    histogram[1, 255] = 50_000  # suddenly sure of everything
    rows = compare(curves, histogram, policy, 0.25)
    assert rows[1]["status"] == "not covered by evidence"
    assert rows[1]["distance"] > 0.25
    assert rows[0]["status"] == "covered"
    few = np.zeros((5, 256), np.int64)
    few[0, 200] = 20
    rows = compare(curves, few, policy, 0.25)
    assert (rows[0]["status"], rows[0]["distance"]) == ("not covered by evidence", None), "few pixels say nothing"
    assert {row["status"] for row in rows[1:]} == {"nothing kept"}


def test_a_rarer_class_is_kept_less_precisely_after_adjustment(curves: Curves) -> None:
    """The same label is wrong more often where the class is rarer: Bayes."""
    policy = from_threshold(0.5, CLASSES)
    rare = _histogram(world(40, 2, seed=8, bias=(0, 0, 0, -0.5, -2.2)))
    row = compare(curves, rare, policy, 0.9)[4]
    assert row["prior"] < row["calibration_prior"]
    assert row["adjusted"] < row["precision"]


def test_a_report_lists_every_city_and_all_of_them(curves: Curves) -> None:
    histograms = {"b": _histogram(world(5, 1, seed=2)), "a": _histogram(world(5, 1, seed=3))}
    report = shift_report(curves, histograms, from_threshold(0.5, CLASSES), 0.25)
    assert list(report) == ["all", "a", "b"]
    assert report["all"][0]["pixels"] == report["a"][0]["pixels"] + report["b"][0]["pixels"]
    assert np.isclose(reweight(curves.joint, np.zeros((5, 256), np.int64))[0].sum(), 1)
