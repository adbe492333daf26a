"""In a workspace the calibration is found by itself; one of another teacher is never used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hmsa_core.labels import ThresholdPolicy
from pipeline.review.precision import calibration_policy
from pipeline.review.session import Session, policy_setting, policy_target, start_policy
from tests.support.label_scenes import Scenes


@pytest.fixture
def raw(copied: Scenes, tmp_path: Path) -> Path:
    """The raw store of a workspace with a calibration."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "calibration").mkdir()
    shutil.copy(copied.policy, tmp_path / "calibration/policy.json")
    shutil.copytree(copied.store, tmp_path / "labels/raw")
    return tmp_path / "labels/raw"


def test_a_plain_threshold_shows_the_precision_that_the_workspaces_calibration_knows(raw: Path, inspect) -> None:
    alone = inspect(raw, "--threshold", "0.9")
    policy = raw.parents[1] / "calibration/policy.json"
    together = inspect(raw, "--threshold", "0.9", "--policy", policy)["thresholds"][0]
    assert (alone["threshold"], alone["precision_source"]) == ("0.90", "expected")
    assert alone["precision"] == together["precision"] > 0.5
    assert alone["classes"] == together["classes"]


def test_a_calibration_of_another_teacher_is_not_used_and_the_reason_is_reported(raw: Path, inspect, said) -> None:
    path = raw.parents[1] / "calibration/policy.json"
    policy = ThresholdPolicy.load(path)
    policy.binding = {**policy.binding, "teacher": "0" * 64}
    path.unlink()
    policy.save(path)
    assert inspect(raw, "--threshold", "0.9")["precision"] is None
    advice = said("inspect", raw, "--threshold", "0.9").out.splitlines()[-1]
    assert advice.startswith(f"No precision: {path}: the policy was measured with another teacher")


def test_without_workspace_or_calibration_nothing_is_said(copied: Scenes, raw: Path) -> None:
    assert calibration_policy(copied.store.parent / "raw") == (raw.parents[1] / "calibration/policy.json", "")
    (raw.parents[1] / "calibration/policy.json").unlink()
    assert calibration_policy(raw) == (None, "")
    (raw.parents[1] / "dvc.yaml").unlink()
    assert calibration_policy(raw) == (None, "")


def test_a_policy_of_a_workspace_is_saved_where_dvc_watches_and_named_as_params_want_it(raw: Path) -> None:
    root = raw.parents[1]
    target = policy_target(raw)
    assert target == root / "policies/raw.json"
    session = Session(raw, policy=root / "calibration/policy.json", save_to=target)
    session.draw_audit(session.thresholds(), per_class=1, seed=0, classes=[])
    assert list(root.rglob("*.audit.json")) == [raw.with_name("raw.audit.json")], "neither an output nor watched"
    path, _ = session.save_policy(session.thresholds("0.9"))
    assert policy_setting(raw, path) == "policies/raw.json"
    assert policy_target(raw, path) == root / "policies/raw-2.json", "never over the one it starts from"
    assert policy_setting(raw, root.parent / "elsewhere.json") == str(root.parent / "elsewhere.json")
    (root / "dvc.yaml").unlink()
    assert policy_target(raw) == raw.with_name("raw.policy.json")


def test_the_page_starts_with_the_workspaces_policy_else_the_saved_one_else_with_all_pixels(raw: Path, inspect) -> None:
    measured = raw.parents[1] / "calibration/policy.json"
    assert start_policy(raw) == (measured, "")
    assert inspect(raw)["policy"] == "policy"
    (raw.parents[1] / "dvc.yaml").unlink()
    assert start_policy(raw) == (None, "")
    alone = Session(raw)
    assert alone.describe()["start"] == 0
    assert (inspect(raw)["threshold"], inspect(raw)["kept_share"]) == ("0.00", 100.0)
    saved, _ = alone.save_policy(alone.thresholds("0.8"))
    assert start_policy(raw) == (saved, "")
    assert policy_target(raw) == saved, "the next session goes on with this file"
    assert inspect(raw)["kept"] == inspect(raw, "--threshold", "0.8")["kept"]
    of_another = ThresholdPolicy.load(saved)
    of_another.binding = {**of_another.binding, "teacher": "0" * 64}
    saved.unlink()
    of_another.save(saved)
    found, why = start_policy(raw)
    assert found is None
    assert "another teacher" in why
