"""Figures of compared teachers, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmsa_core.data.decode import read_label
from hmsa_core.data.index import Index
from research.teachers import coverage_at, measure
from research.thresholds import best_by_class
from tests.support.training import write_data


def test_coverage_is_the_largest_share_above_one_threshold_that_is_right_often_enough() -> None:
    kept = np.zeros((2, 256), np.int64)
    kept[:, [10, 100, 200]] = [[50, 30, 20], [10, 25, 20]]
    assert coverage_at(kept, 1.0) == pytest.approx(0.2)
    assert coverage_at(kept, 0.9) == pytest.approx(0.5)
    assert coverage_at(kept, 0.5) == pytest.approx(1.0)
    assert coverage_at(kept[:, :150], 0.9) == 0.0


def test_the_truth_as_a_teacher_that_is_less_sure_than_right_has_that_calibration_error(tmp_path: Path) -> None:
    write_data(tmp_path, images=3, size=(24, 32))
    index = Index.load(tmp_path / "toy.parquet")
    (tmp_path / "scores").mkdir()
    for sample in index.samples:
        truth = read_label(tmp_path / sample.label, index.classes)
        scores = [np.where(truth == c, 0.8, 0.0) for c in range(index.classes.num_classes)]
        np.save(tmp_path / "scores" / f"{sample.name}.npy", np.array(scores, np.float32))
    found = measure(tmp_path / "toy.parquet", tmp_path, (f"scores:{tmp_path / 'scores'}",), (1.0,), 0.95)
    assert found == pytest.approx((1.0, 0.2, 1.0), abs=1e-3)


def test_thresholds_by_class_keep_more_than_one_for_all_at_equal_precision() -> None:
    counts = np.zeros((2, 2, 256), np.int64)
    counts[:, 0, [50, 150]] = [[40, 10], [40, 10]]  # right from the lowest code on
    counts[:, 1, [50, 150]] = [[40, 10], [0, 10]]  # right at high codes alone
    assert coverage_at(counts.sum(axis=1), 1.0) == pytest.approx(0.2)
    assert best_by_class(counts, 1.0) == pytest.approx(0.6)
    assert best_by_class(counts, 0.5) == pytest.approx(1.0)
