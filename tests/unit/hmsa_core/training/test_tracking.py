"""TensorBoard and MLflow get what the log gets, and change nothing: read back with their own libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hmsa_core.config import RuntimeConfig, key_material
from hmsa_core.models import read_meta
from hmsa_core.runtime.tracking import follow
from hmsa_core.spec import TrainSpec
from tests.conftest import REPO
from tests.support.training import events, run, train_spec, write_data

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


@pytest.fixture(autouse=True)
def _in_tmp_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def mlflow_runs(root: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient((root / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("auto-label")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def mlflow_history(root: Path, run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    found = MlflowClient((root / "mlruns").as_uri()).get_metric_history(run.info.run_id, name)
    return [(each.step, each.value) for each in found]


def tracked(data: Path, work: Path, tracking: Any) -> TrainSpec:
    spec = train_spec(data, work)
    runtime = spec.config.runtime.model_copy(update={"tracking": tracking})
    return spec.model_copy(update={"config": spec.config.model_copy(update={"runtime": runtime})})


def test_both_trackers_hold_the_figures_of_the_log_and_the_weights_and_key_are_the_same(tmp_path: Path) -> None:
    write_data(tmp_path)
    plain = read_meta(run(tracked(tmp_path, tmp_path / "plain", "none")))
    spec = tracked(tmp_path, tmp_path / "both", ("tensorboard", "mlflow"))
    both = read_meta(run(spec))
    assert both["weights_sha256"] == plain["weights_sha256"]
    assert both["extra"]["key"] == plain["extra"]["key"]
    losses = [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in events(spec, "train")]
    (folder,) = (spec.work / "tensorboard").iterdir()
    assert scalars(folder)["train/loss"] == losses
    assert "epoch/pixels/road" in scalars(folder)
    (found,) = mlflow_runs(spec.work)
    assert mlflow_history(spec.work, found, "train/loss") == losses
    assert found.info.status == "FINISHED"
    assert not [p.name for p in (tmp_path / "plain").iterdir() if p.name in ("mlruns", "tensorboard")]


def line(step: int, loss: float) -> dict[str, Any]:
    return {"event": "train", "time": 1.0, "step": step, "loss": loss}


def test_a_run_that_goes_on_is_one_run_and_shows_no_step_twice_in_tensorboard(tmp_path: Path) -> None:
    names = ("tensorboard", "mlflow")
    tell = follow(names, tmp_path, "t", "k", 0)
    for step in (10, 20, 30):
        tell(line(step, 1.0))
    tell({"event": "stopped", "time": 2.0, "step": 10})
    again = follow(names, tmp_path, "t", "k", 10)
    again(line(20, 2.0))
    assert scalars(tmp_path / "tensorboard" / "t")["train/loss"] == [(10, 1.0), (20, 2.0)]
    (found,) = mlflow_runs(tmp_path)
    assert found.info.status == "RUNNING"


def test_a_tracker_that_fails_is_left_alone_and_the_other_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tell = follow(("mlflow", "tensorboard"), tmp_path, "t", "k", 0)
    for path in sorted((tmp_path / "mlruns").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    tell(line(10, 1.0))
    tell(line(20, 1.0))
    assert caplog.text.count("Mlflow gets no more lines") == 1
    assert len(scalars(tmp_path / "tensorboard" / "t")["train/loss"]) == 2


def test_tracking_is_in_no_key() -> None:
    assert key_material(RuntimeConfig()) == key_material(RuntimeConfig(tracking=("tensorboard", "mlflow")))


def test_without_the_packages_one_line_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['mlflow'] = None\n"
        "from pathlib import Path\nfrom hmsa_core.runtime.tracking import follow\n"
        f"try:\n    follow(('mlflow',), Path({str(tmp_path)!r}), 't', 'k', 0)\n"
        "except Exception as error:\n    print(type(error).__name__, error, error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stdout.startswith(
        "ConfigError mlflow is not installed; this command needs the optional packages [tracking]"
    )
    assert "pip install 'hmsa-autolabel[tracking]'" in done.stdout
