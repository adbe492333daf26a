from __future__ import annotations

import pytest
from pydantic import ValidationError

from hmsa_core.labels.thresholds.settings import CalibrateConfig, MergeConfig, PairRule


@pytest.mark.parametrize("value", [0.5, "0.93", "withheld", 0, "0", "0.9995"])
@pytest.mark.parametrize("wrong", ["high", 1.0, -0.1, "1.5", None, 0.905001, "0.9996"])
def test_an_override_is_a_threshold_or_withheld_and_nothing_else(value: object, wrong: object) -> None:
    assert CalibrateConfig.model_validate({"overrides": {"road": value}}).overrides["road"] == value
    with pytest.raises(ValidationError):
        CalibrateConfig.model_validate({"overrides": {"road": wrong}})


@pytest.mark.parametrize(
    "wrong", [{"floor": 0.99}, {"target": 1.0}, {"target": 0.3}, {"min_blocks": 1}, {"targt": 0.9}, {"folds": 1}]
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        CalibrateConfig.model_validate(wrong)


def test_rules_come_from_plain_lists_as_in_yaml() -> None:
    config = MergeConfig.model_validate({"rules": [{"human": "wall", "teacher": "fence", "action": "teacher"}]})
    assert config.rules == (PairRule(human="wall", teacher="fence", action="teacher"),)
    with pytest.raises(ValidationError):
        MergeConfig.model_validate({"rules": [{"human": "wall", "teacher": "fence", "action": "guess"}]})
    with pytest.raises(ValidationError, match="must be different classes"):
        MergeConfig.model_validate({"rules": [{"human": "Wall", "teacher": "wall", "action": "human"}]})
    with pytest.raises(ValidationError):
        MergeConfig.model_validate({"win_rate": 0.4})
