"""What the morning page says of answers: where the next ones pay, which regions to look at, and when to be alarmed."""

from __future__ import annotations

import numpy as np

from hmsa_core.labels import LabelStore, ThresholdPolicy
from pipeline.night.figures import precision_alarms, wrong_regions
from pipeline.review.audit import Audit
from pipeline.review.certification import begin
from pipeline.review.spot_check import SpotFile
from pipeline.review.stats import Thresholds
from pipeline.review.view import StoreView
from tests.support.label_scenes import Scenes


def test_regions_hold_the_kept_pixels_that_are_least_sure(made: Scenes) -> None:
    policy, store = ThresholdPolicy.load(made.policy), LabelStore.open(made.store)
    assert policy.table is not None
    rows = wrong_regions(store, policy.codes(), policy.table, store.names())
    assert rows
    assert [row["wrong"] for row in rows] == sorted((row["wrong"] for row in rows), reverse=True)
    kept = expected = 0.0
    for name in store.names():
        label, code = store.read(name)
        is_kept = code >= np.append(policy.codes(), np.full(256 - len(policy.codes()), 999))[label]
        kept += is_kept.sum()
        expected += (1 - policy.table[label[is_kept], code[is_kept]]).sum()
    assert sum(row["pixels"] for row in rows) < kept
    assert sum(row["wrong"] for row in rows) <= expected
    share = sum(row["wrong"] for row in rows) / sum(row["pixels"] for row in rows)
    assert share > expected / kept  # the regions are worse than what is kept on average


def test_answers_change_what_the_next_ones_are_worth_and_where_errors_are_expected(made: Scenes) -> None:
    view, policy = StoreView(made.store), ThresholdPolicy.load(made.policy)
    assert policy.table is not None
    certificate = begin(view, target=0.9, delta=0.05, budget=400, seed=0, classes=["sky"], policy=made.policy)
    (before,) = certificate.pays(view, policy.codes())
    while certificate.plan_draws(view):
        pass
    for number in range(len(certificate.items)):
        certificate.answer(view, number, "right")
    (after,) = certificate.pays(view, policy.codes())
    assert after["answers"] < before["answers"]
    assert after["confirm"] + after["bring"] >= before["confirm"] + before["bring"]
    bad = begin(view, target=0.9, delta=0.05, budget=400, seed=0, classes=["sky"], policy=made.policy)
    bad.plan_draws(view)
    for number in range(10):
        bad.answer(view, number, "wrong")
    sky = view.classes.index("sky")
    counts = view.totals[sky]
    errors = [np.average(1 - c.refined(view, policy.table)[sky], weights=counts) for c in (certificate, bad)]
    assert errors[0] < errors[1]


def test_audits_of_several_nights_raise_an_alarm_when_precision_falls(copied: Scenes) -> None:
    view = StoreView(copied.store)
    thresholds = Thresholds(np.zeros(view.classes.num_classes, np.int64), ("0.00",) * view.classes.num_classes, "0.00")
    files = SpotFile(Audit, view)
    sky = view.classes.index("sky")
    messages = []
    for night in range(5):
        audit = files.start(Audit.draw(view, thresholds, per_class=40, seed=night, classes=[sky]))
        for item in range(40):
            audit.answer(view, item, "wrong" if item < (1 if night < 3 else 12) else "right")
        audit.save(files.path)
        messages.append(precision_alarms(files.every(), {"sky": 0.95, "road": 0.9}, dict.fromkeys(["sky", "road"], 0)))
    assert len(files.every()) == 5
    assert messages[:3] == [[], [], []]
    assert "sky: " in messages[4][0]
    assert "at least 95.0% right" in messages[4][0]
    assert precision_alarms(files.every(), {"sky": 0.95}, {"sky": 256}) == []  # of what is not kept nothing was said
