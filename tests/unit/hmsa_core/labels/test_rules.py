from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hmsa_core.io.errors import ConfigError, InputError
from hmsa_core.labels import calibrate
from hmsa_core.labels.thresholds import rules, settings
from hmsa_core.labels.thresholds.curves import Curves
from hmsa_core.labels.thresholds.probabilities import calibration_table
from hmsa_core.labels.thresholds.rules.teach import shrunken_table
from hmsa_core.labels.thresholds.settings import CalibrateConfig
from hmsa_core.taxonomy import IGNORE
from tests.support.label_maps import toy_classes
from tests.support.label_worlds import world

CLASSES = toy_classes()
LINEAGE = {"teacher": "ab" * 32, "scales": [1.0], "flip": False, "precision": "fp32"}
CONFIG = CalibrateConfig(min_blocks=5, min_components=5, target=0.9)
LIKELY = '''"""The rule `likely`: the lowest code whose calibrated P(correct) reaches the target."""

import numpy as np

from hmsa_core.labels.thresholds.probabilities import calibration_table
from hmsa_core.labels.thresholds.choice import Choice, ClassThreshold


def choose(curves, config):
    codes = (calibration_table(curves) < config.target).sum(axis=1)
    return Choice([ClassThreshold(int(c), "estimate", "P(correct) reaches the target", {}) for c in codes], {"target": config.target})
'''


def test_images_or_their_curves_become_a_table_and_a_policy_bound_to_their_teacher() -> None:
    found = calibrate(world(24, 2, seed=3), CLASSES, config=CONFIG, lineage=LINEAGE)
    assert len(found.curves.images) == 48
    assert np.array_equal(found.table, calibration_table(found.curves))
    assert found.policy.binding == LINEAGE
    assert found.policy.settings["rule"] == "promise"
    assert {e.status for e in found.policy.entries} <= {"measured", "estimate", "pooled", "withheld"}
    assert calibrate(found.curves, config=CONFIG).policy.digest == found.policy.digest


def test_outside_of_coarse_labels_only_pixels_that_people_left_out_count() -> None:
    images = [
        i._replace(human=np.where(np.arange(64) < 40, i.truth, IGNORE).astype(np.uint8)) for i in world(6, 1, seed=1)
    ]
    without = [i._replace(human=None) for i in world(6, 1, seed=2)]
    config = CONFIG.model_copy(update={"region": "outside_coarse"})
    found = calibrate([*images, *without], CLASSES, config=config).curves
    assert len(found.images) == 6
    assert found.counts["total"].sum() == sum(np.count_nonzero(i.truth[:, 40:] != IGNORE) for i in images)


def test_images_need_a_class_table_and_there_must_be_some() -> None:
    with pytest.raises(InputError, match="class table"):
        calibrate(world(1, 1, seed=0))
    with pytest.raises(InputError, match="no calibration images"):
        calibrate([], CLASSES)


def test_a_rule_is_one_more_file_and_its_name_is_all_that_the_settings_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "likely.py").write_text(LIKELY)
    folders = [*settings.RULES, str(tmp_path)]
    monkeypatch.setattr(settings, "RULES", folders)
    monkeypatch.setattr(rules, "__path__", folders)
    config = CalibrateConfig(rule="likely", target=0.9, overrides={"road": "withheld"})
    found = calibrate(world(24, 2, seed=3), CLASSES, config=config)
    assert found.policy.settings["rule"] == "likely"
    road, *others = found.policy.entries
    assert (road.status, road.threshold) == ("given", None)
    for c, entry in enumerate(others, 1):
        assert entry.status == "estimate"
        assert (found.table[c, entry.code :] >= 0.9).all()
        assert entry.code == 0 or found.table[c, entry.code - 1] < 0.9
        assert entry.evidence["pixels"] > 0
    (tmp_path / "plain.py").write_text(LIKELY.replace('{"target": config.target}', "{}"))
    found = calibrate(found.curves, config=CalibrateConfig(rule="plain", target=0.9))
    assert found.policy.evidence["target"] == 0.9, "of the settings, where a rule names none"


def test_an_unknown_rule_is_refused_with_the_names_of_all() -> None:
    assert settings.rule_names() == ["promise", "teach"]
    with pytest.raises(ValidationError, match="expected one of promise, teach, found 'luck'"):
        CalibrateConfig(rule="luck")
    with pytest.raises(ConfigError, match="no threshold rule 'luck'") as caught:
        rules.find_rule("luck")
    assert "promise" in (caught.value.hint or "")


def test_what_a_student_learns_from_keeps_each_class_that_is_right_often_enough_at_the_margin() -> None:
    curves = Curves.measure(world(24, 2, seed=3), CLASSES, config=CONFIG)
    scarce = curves.subset(range(2))  # so few blocks that `promise` withholds everything
    assert {e.status for e in calibrate(scarce, config=CONFIG).policy.entries} == {"withheld"}
    for found in (curves, scarce):
        entries = calibrate(found, config=CONFIG.model_copy(update={"rule": "teach"})).policy.entries
        present = found.counts["total"].sum(axis=(0, 2)) > 0
        assert all(e.status != "withheld" for e, there in zip(entries, present, strict=True) if there)


@given(tau=st.floats(0.05, 0.95), blocks=st.integers(1, 6), seed=st.integers(0, 9))
def test_a_higher_tau_never_keeps_more(tau: float, blocks: int, seed: int) -> None:
    curves = Curves.measure(world(blocks, 1, seed=seed), CLASSES, config=CONFIG)
    table = shrunken_table(curves)
    assert (np.diff(table, axis=1) >= 0).all()
    assert ((table >= 0) & (table <= 1)).all()
    low, high = (
        calibrate(curves, config=CONFIG.model_copy(update={"rule": "teach", "tau": t})).policy.codes()
        for t in (tau, min(0.99, tau + 0.04))
    )
    assert (low <= high).all()


def test_a_class_without_calibration_pixels_takes_the_curve_of_its_group() -> None:
    curves = Curves.measure(world(24, 2, seed=3), CLASSES, config=CONFIG)
    groups = np.array(CLASSES.groups)
    of = next(c for c in range(len(groups)) if groups[c] != "other" and (groups == groups[c]).sum() > 1)
    unseen = replace(curves, counts={n: a.copy() for n, a in curves.counts.items()})
    for array in unseen.counts.values():
        array[:, of] = 0
    members = np.flatnonzero((groups == groups[of]) & (np.arange(len(groups)) != of))
    table = shrunken_table(unseen)
    assert table[of].max() <= table[members].max() + 1e-9
    assert calibrate(unseen, config=CONFIG.model_copy(update={"rule": "teach"})).policy.entries[of].status == "pooled"
