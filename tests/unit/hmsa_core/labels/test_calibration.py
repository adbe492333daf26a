from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmsa_core.io.errors import StoreError
from hmsa_core.labels.thresholds.calibration import calibration_table, isotonic, load_table, save_table
from hmsa_core.labels.thresholds.curves import Curves
from tests.support.label_maps import toy_classes
from tests.support.label_worlds import world

CLASSES = toy_classes()


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 100)), min_size=1, max_size=40))
def test_the_isotonic_fit_never_falls_and_keeps_the_weighted_mean(pairs: list[tuple[float, float]]) -> None:
    values, weights = (np.array(v) for v in zip(*pairs, strict=True))
    fit = isotonic(values, weights)
    assert (np.diff(fit) >= -1e-12).all()
    assert np.average(fit, weights=weights) == pytest.approx(np.average(values, weights=weights))
    assert np.array_equal(isotonic(np.sort(values), weights), np.sort(values))


def test_pooling_gives_the_least_squares_answer() -> None:
    assert isotonic(np.array([1.0, 3, 2, 4]), np.array([1.0, 1, 3, 1])).tolist() == [1, 2.25, 2.25, 4]
    assert isotonic(np.array([3.0, 1.0]), np.array([1.0, 1.0])).tolist() == [2, 2]


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
    back, bound = load_table(tmp_path / "t.json")
    assert np.allclose(back, table, atol=1e-6)
    assert bound == {"teacher": "t", "scales": [1.0, 2.0], "flip": "unknown", "precision": "unknown"}
    data = (tmp_path / "t.json").read_bytes()
    (tmp_path / "t.json").write_bytes(data.replace(b"0.5", b"0.6", 1))
    with pytest.raises(StoreError):
        load_table(tmp_path / "t.json")


def test_a_foreign_or_misshapen_table_is_refused(tmp_path: Path) -> None:
    from hmsa_core.io import sealed

    sealed.write(tmp_path / "x.json", {"format": "x", "version": 1})
    with pytest.raises(StoreError, match="not a calibration table"):
        load_table(tmp_path / "x.json")
    save_table(tmp_path / "short.json", np.zeros((5, 9)), CLASSES, {})
    with pytest.raises(StoreError, match="table is"):
        load_table(tmp_path / "short.json")
