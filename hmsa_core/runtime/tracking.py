"""Log lines for external trackers: TensorBoard and MLflow, one class each with a method `tell(line)`.

Each line is written to `log.jsonl` first and then sent to the trackers. Nothing is read back from a tracker, and no
result depends on one. The numbers of a line become scalars `EVENT/NAME` at the line's step. A tracker that fails in
the middle of a run gets no further lines, and the log of the process says so.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hmsa_core.io.errors import ConfigError, needs_extra, one_line

_LOG = logging.getLogger(__name__)
_NOT_FIGURES = {"event", "time", "step", "epoch"}
_FOREIGN = re.compile(r"[^\w\-. :/]")  # characters that MLflow refuses in a name
_BATCH = 500  # metrics; MLflow takes 1,000 a call
_EXPERIMENT = "auto-label"
Line = Mapping[str, Any]  # a line of the log: `event`, `time` (unix seconds) and usually `step`


def follow(names: tuple[str, ...], root: Path, run: str, key: str, step: int) -> Callable[[Line], None]:
    """Open the named trackers for a run and return the function that sends a line to all of them.

    Args:
        names: "tensorboard", "mlflow".
        root: folder of `tensorboard/` and `mlruns/`; MLFLOW_TRACKING_URI names another place for MLflow.
        run: name of the run on the tracker's page.
        key: identifies the run; a resumed run is found by this key.
        step: the run continues after this step.

    Raises:
        ConfigError: the optional packages [tracking] are missing, or the tracker cannot be reached.
    """
    trackers: list[TensorBoard | Mlflow] = [
        TensorBoard(root / "tensorboard" / run, step) if n == "tensorboard" else Mlflow(root, run, key) for n in names
    ]

    def tell(line: Line) -> None:
        for tracker in list(trackers):
            try:
                tracker.tell(line)
            except Exception as error:  # noqa: BLE001 - of a foreign library, maybe over a network: training goes on
                _LOG.warning("%s gets no more lines: %s", type(tracker).__name__, one_line(error)[:200])
                trackers.remove(tracker)

    return tell


def figures(line: Line, at: str = "") -> Iterator[tuple[str, float]]:
    """Names and values of all numbers of a line; a number in a nested object is named `NAME/KEY`."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from figures(value, f"{at}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and (at or name not in _NOT_FIGURES):
            yield f"{at}{name}", float(value)


class TensorBoard:
    """Event files of one run. Weights & Biases reads the same files by `wandb.init(sync_tensorboard=True)`."""

    def __init__(self, folder: Path, step: int) -> None:
        with needs_extra("tracking"):
            from torch.utils.tensorboard.writer import SummaryWriter
        # Repeated steps of a resumed run are not shown twice.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def tell(self, line: Line) -> None:
        """Write the figures of a line."""
        if "step" not in line:
            return
        for name, value in figures(line):
            self._writer.add_scalar(f"{line['event']}/{name}", value, line["step"], line["time"])
        self._writer.flush()


class Mlflow:
    """One run of experiment `auto-label`, in the file store ROOT/mlruns or at MLFLOW_TRACKING_URI."""

    def __init__(self, root: Path, run: str, key: str) -> None:
        for name, value in (
            ("MLFLOW_ALLOW_FILE_STORE", "true"),  # MLflow 3 needs this opt-in
            ("MLFLOW_DISABLE_TELEMETRY", "true"),
            ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),  # an unreachable server must not delay a training
        ):
            os.environ.setdefault(name, value)
        with needs_extra("tracking"):
            from mlflow import MlflowClient
        self._where = os.environ.get("MLFLOW_TRACKING_URI") or (root.resolve() / "mlruns").as_uri()
        with self._config_errors():
            self._client = MlflowClient(self._where)
            self._run: str = self._open(run, key)

    @contextmanager
    def _config_errors(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            raise ConfigError(
                f"MLflow at {self._where}: {one_line(error)[:200]}",
                hint="set MLFLOW_TRACKING_URI, or runtime.tracking: none",
            ) from error

    def _open(self, run: str, key: str) -> str:
        found = self._client.get_experiment_by_name(_EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(_EXPERIMENT)
        known = self._client.search_runs([experiment], f"tags.key = '{key}'", max_results=1)
        if known:
            self._client.update_run(known[0].info.run_id, status="RUNNING")
            return str(known[0].info.run_id)
        return str(self._client.create_run(experiment, run_name=run, tags={"key": key}).info.run_id)

    def tell(self, line: Line) -> None:
        """Write the figures of a line; the last line of a run ends it."""
        from mlflow.entities import Metric

        time_ms, step = round(1000 * line["time"]), int(line.get("step", 0))
        metrics = [
            Metric(_FOREIGN.sub("_", f"{line['event']}/{name}"), value, time_ms, step) for name, value in figures(line)
        ]
        for first in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run, metrics[first : first + _BATCH])
        status = {"finished": "FINISHED", "stopped": "KILLED"}.get(line["event"])
        if status:
            self._client.set_terminated(self._run, status)

    def keep(self, files: Mapping[str, Path], values: Mapping[str, Any]) -> None:
        """Store files (by target folder) and a JSON object `figures.json` with the run."""
        with self._config_errors():
            for folder, path in files.items():
                self._client.log_artifact(self._run, str(path), folder)
            self._client.log_dict(self._run, dict(values), "figures.json")
