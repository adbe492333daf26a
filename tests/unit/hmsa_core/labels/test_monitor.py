"""The alarm over nights of audits: seldom false, soon there."""

from __future__ import annotations

import math

import numpy as np

from hmsa_core.labels.thresholds.monitor import risen_errors

LEVEL = math.log(20)  # delta 0.05


def test_precision_that_stays_gives_a_false_alarm_in_at_most_one_of_twenty_histories() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(1000):
        judged = rng.integers(5, 60, 30)
        alarms += risen_errors(judged.tolist(), rng.binomial(judged, 0.05).tolist(), 0.05) >= LEVEL
    assert alarms <= 50


def test_a_fall_after_twenty_good_nights_is_noticed_within_a_few() -> None:
    rng = np.random.default_rng(1)
    noticed = []
    for _ in range(100):
        wrong = [*rng.binomial(30, 0.03, 20), *rng.binomial(30, 0.2, 10)]
        night = next((i for i in range(1, 31) if risen_errors([30] * i, wrong[:i], 0.05) >= LEVEL), 99)
        noticed.append(night)
    assert np.median(noticed) <= 23
    assert np.quantile(noticed, 0.9) <= 25


def test_an_alarm_stays_and_no_answer_is_no_evidence() -> None:
    assert risen_errors([], [], 0.05) == 0
    assert risen_errors([0, 0], [0, 0], 0.05) <= 1e-9
    bad = risen_errors([40], [12], 0.05)
    assert bad > LEVEL
    assert risen_errors([40, 400, 400], [12, 4, 4], 0.05) >= bad - 1e-9
