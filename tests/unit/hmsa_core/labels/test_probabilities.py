from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmsa_core.io import sealed
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.probabilities import calibration_table, save_table
from tests.support.label_maps import toy_classes
from tests.support.label_worlds import world

CLASSES = toy_classes()


def test_probabilities_never_fall_with_the_code_and_predict_fresh_images() -> None:
    table = calibration_table(Curves.measure(world(20, 2, seed=0), CLASSES))
    assert table.shape == (5, 256)
    assert (np.diff(table, axis=1) >= 0).all()
    assert 0 <= table.min() <= table.max() <= 1
    fresh = Curves.measure(world(30, 2, seed=5), CLASSES)
    total, correct = fresh.counts["total"].sum(axis=0), fresh.counts["correct"].sum(axis=0)
    assert (table * total).sum() / total.sum() == pytest.approx(correct.sum() / total.sum(), abs=0.04)
    for c in range(5):  # the last class is rare and over-confident
        assert (table[c] * total[c]).sum() / total[c].sum() == pytest.approx(
            correct[c].sum() / total[c].sum(), abs=0.15
        )


def test_codes_that_a_class_never_had_take_the_curve_of_all_classes() -> None:
    curves = Curves.measure(world(10, 2, seed=0, absent=(4,), overconfident=0.0), CLASSES)
    assert curves.counts["total"][:, 4].sum() == 0
    table = calibration_table(curves)
    assert table[4, 255] > 0.9 > table[4, 20]


def test_the_table_file_keeps_values_classes_and_binding(tmp_path: Path) -> None:
    table = np.linspace(0, 1, 5 * 256).reshape(5, 256)
    save_table(tmp_path / "t.json", table, CLASSES, {"teacher": "t", "scales": [2.0, 1.0]})
    value = sealed.read(tmp_path / "t.json")
    assert np.allclose([value["table"][name] for name in CLASSES.classes], table, atol=1e-6)
    assert value["binding"] == {"teacher": "t", "scales": [1.0, 2.0], "flip": "unknown", "precision": "unknown"}
