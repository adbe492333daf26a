"""A night in MLflow, read back with its own client."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.night.history import track_night
from pipeline.workspace.workspace import Workspace
from research.tests.ablations import bare_workspace
from tests.support.chain import set_params

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
LINE = {
    "kind": "kept",
    "gain": 0.012,
    "kept": 0.61,
    "images": 40,
    "promoted": False,
    "coverage": {"road": 0.9, "car": 0.4},
}


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    bare_workspace(tmp_path)
    set_params(tmp_path, {"student_train.runtime.tracking": ["mlflow"], "pseudo_label.threshold": "policies/ours.json"})
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/ours.json").write_text('{"policy": "ours"}')
    (tmp_path / "morning.html").write_text("<p>kept</p>")
    return Workspace(tmp_path)


def test_a_night_is_a_run_with_its_figures_its_policy_and_its_page(ws: Workspace, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    assert track_night(ws, LINE, tmp_path / "morning.html") == ""
    client = MlflowClient((tmp_path / "work/mlruns").as_uri())
    experiment = client.get_experiment_by_name("auto-label")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    expected = {"gain": 0.012, "kept": 0.61, "images": 40.0, "coverage/road": 0.9, "coverage/car": 0.4}
    assert run.data.metrics == {f"night/{name}": value for name, value in expected.items()}
    kept = {name: client.download_artifacts(run.info.run_id, name) for name in ("page", "policy", "figures.json")}
    assert Path(kept["page"], "morning.html").read_text() == "<p>kept</p>"
    assert Path(kept["policy"], "ours.json").read_text() == '{"policy": "ours"}'
    assert json.loads(Path(kept["figures.json"]).read_text()) == LINE


def test_a_server_that_is_not_there_is_a_warning_of_one_line(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    printed = track_night(ws, LINE, tmp_path / "morning.html")
    assert printed.startswith("the night is not in MLflow: MLflow at http://127.0.0.1:9: ")
    assert "\n" not in printed


def test_nobody_who_did_not_ask_gets_a_run(ws: Workspace, tmp_path: Path) -> None:
    assert track_night(bare_workspace(tmp_path), LINE, tmp_path / "morning.html") == ""
    assert not (tmp_path / "work").exists()
