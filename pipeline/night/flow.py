"""The Prefect flow `auto-label`: one task per DVC stage, then the gate, the registry and the morning page.

DVC decides which stages have to run. Prefect schedules nights, shows stages, and retries a stage that may recover.
Prefect's concurrency limits are not used: after a kill of all processes their slots stay taken. A kernel lock on the
workspace and the worker's option `--limit 1` allow one run at a time.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import get_run_context
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL

from hmsa_core.io.errors import ConfigError, HmsaError, LockedError, one_line
from hmsa_core.io.process import die_with_parent
from pipeline.night import discover, history, morning
from pipeline.night.gatekeeper import apply_verdict
from pipeline.night.parameters import parameters_of_night
from pipeline.night.reaper import nightly_lock, reap
from pipeline.night.stage_process import DVC, ServerGoneError, ServerWatch, StageFailedError, run_stage
from pipeline.report.render import Table
from pipeline.report.sections import trust
from pipeline.report.since import Tonight, artifacts, as_markdown
from pipeline.stages.disk import check_machine
from pipeline.workspace.dvc_yaml import SETTINGS_STAGE
from pipeline.workspace.registry import Registry
from pipeline.workspace.table import STAGES
from pipeline.workspace.workspace import Workspace

_ENGINE = "prefect/engine.py"  # the program of a run that a worker has started


def _without_traceback(record: logging.LogRecord) -> bool:
    """Log an error that names its cause and fix in one line: Prefect would add 30 lines of its own calls."""
    if record.exc_info and isinstance(record.exc_info[1], HmsaError):
        record.exc_info = None
    return True


for _logger in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_logger).addFilter(_without_traceback)


@flow(name="auto-label", description="Label new images, retrain the student, judge it, write the morning page.")
def auto_label(
    workspace: str | None = None,
    threshold: float | str | None = None,
    target_precision: float | None = None,
    promote: bool = True,
    params: dict[str, Any] | None = None,
    stages: list[str] | None = None,
) -> str:
    """Run one night.

    Args:
        workspace: folder with dvc.yaml; default: AUTO_LABEL_ROOT, else the current folder.
        threshold: `pseudo_label.threshold` for this run ("policy", "teach", a number, or a policy file).
        target_precision: `calibrate.target` for this run.
        promote: let an accepted student teach from tomorrow on.
        params: any other dotted key of params.yaml for this run, e.g. {"student_train.epochs": 4}.
        stages: only these stages (names of dvc.yaml), in the chain's order; default: all.

    Returns:
        The verdict as sentences.
    """
    # If the worker is killed, this process and its children must end, too.
    die_with_parent(signal.SIGTERM)
    ws = Workspace.find(workspace or os.environ.get("AUTO_LABEL_ROOT") or None)
    thresholds = {"pseudo_label.threshold": threshold, "calibrate.target": target_precision}
    given = {"workspace": workspace, "stages": stages, "promote": None if promote else False}
    changes = {**(params or {}), **{key: value for key, value in thresholds.items() if value is not None}}
    arguments = {name: value for name, value in given.items() if value is not None}
    lock = nightly_lock(ws.root)
    try:
        lock.acquire()
    except LockedError as error:
        if _ENGINE not in lock.owner():  # a night that is under way writes its page itself
            _publish_failure(ws, _failed(Tonight({}, {}, changes, arguments=arguments), error), error)
        raise
    try:
        _settle_dead_runs(ws)
        return _night(ws, stages, changes, arguments)
    except ServerGoneError as error:
        _leave(error)
        raise
    finally:
        lock.release()


def _settle_dead_runs(ws: Workspace) -> None:
    try:
        for line in reap(ws.root, keep=_run_id()):
            get_run_logger().warning(line)
    except (httpx.HTTPError, PrefectException) as error:  # an error about other runs must not end this run
        get_run_logger().warning("runs that were left behind are not settled: %s", one_line(error))


def _leave(error: ServerGoneError) -> None:
    """End this process if it was started for this run: Prefect would wait for minutes for the missing server."""
    if str(_run_id()) == os.environ.get("PREFECT__FLOW_RUN_ID"):
        sys.stderr.write(f"error: {error.message}\n")
        sys.stderr.flush()
        os._exit(1)


def _night(ws: Workspace, stages: list[str] | None, changes: dict[str, Any], arguments: dict[str, Any]) -> str:
    arrived: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    tonight = Tonight(arrived, {}, changes, seconds, arguments=arguments)
    try:
        left = history.begin(ws, tonight.began)
        if left:
            tonight = replace(tonight, before=f"the night of {left['began']} ended without a page: {left['why']}")
        chosen = _chosen(stages)
        with parameters_of_night(ws.root, changes):
            _ = ws.params  # read now: a page written after the block must show these parameters
            history.check_readable(ws)
            unchanged = dvc_unchanged(ws.root)
            check_machine_task(ws, [] if unchanged else chosen)
            arrived |= discover.joined(left.get("arrived", {}), discover_task(ws))
            history.note(ws, arrived=arrived)
            tonight = replace(tonight, teacher=Registry(ws.root).current())  # the gate may put another in its place
            if not unchanged:  # this stage writes the settings that DVC compares
                log = get_run_logger()
                run_stage(SETTINGS_STAGE, ws.root, say=log.info, alive=ServerWatch(PREFECT_API_URL.value()).alive)
            for stage in chosen:
                history.note(ws, stage=stage)
                took = stage_task.with_options(name=stage, task_run_name=stage)(stage, ws, skip=unchanged)
                seconds |= {stage: took} if took else {}
            if "evaluate" in chosen:
                tonight = replace(tonight, verdict=gate_task(ws, promote=arguments.get("promote", True)))
    except (HmsaError, OSError) as error:
        _publish_failure(ws, _failed(tonight, error), error)
        raise
    return publish_task(ws, tonight)


def _failed(tonight: Tonight, error: HmsaError | OSError) -> Tonight:
    """The night with what ended it early."""
    hint = error.hint if isinstance(error, HmsaError) else ""
    tail = tuple(error.tail) if isinstance(error, StageFailedError) else ()
    return replace(tonight, failed=morning.reason_of(error), hint=hint, tail=tail)


def _publish_failure(ws: Workspace, tonight: Tonight, error: HmsaError | OSError) -> None:
    """Write the page of a night that ended early; an error here must not hide why the night failed."""
    if isinstance(error, ServerGoneError):
        morning.publish(ws, tonight)  # without a server nothing receives artifacts
        return
    try:
        publish_task(ws, tonight)
    except (HmsaError, OSError, httpx.HTTPError, PrefectException):
        get_run_logger().exception("no morning page")


def _chosen(stages: list[str] | None) -> list[str]:
    unknown = [s for s in stages or [] if s not in STAGES]
    if unknown:
        raise ConfigError(f"unknown stage {unknown[0]!r}; the stages are: {', '.join(STAGES)}")
    return [stage for stage in STAGES if stage in (stages or STAGES)]


def _run_id() -> Any:
    context = get_run_context()
    flow_run = getattr(context, "flow_run", None)
    return None if flow_run is None else flow_run.id


@task(name="check-machine", task_run_name="check-machine", cache_policy=NO_CACHE)
def check_machine_task(ws: Workspace, stages: list[str]) -> None:
    """Refuse to start on a machine or disk that cannot finish these stages."""
    for line in check_machine(ws, stages):
        get_run_logger().info(line)


@task(name="discover", task_run_name="discover", cache_policy=NO_CACHE)
def discover_task(ws: Workspace) -> dict[str, Any]:
    """Find images that the last index does not know, by content."""
    found = discover.discover(ws)
    get_run_logger().info(found["sentence"])
    return found


def _worth_a_retry(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    if isinstance(error, StageFailedError):
        return error.is_worth_a_retry
    return not isinstance(error, HmsaError)  # an HmsaError names its fix, which is never a retry


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=1, retry_condition_fn=_worth_a_retry)
def stage_task(stage: str, ws: Workspace, *, skip: bool) -> float:
    """Run one stage under DVC, as a task of the stage's name; return seconds, 0 when DVC found nothing to do."""
    log = get_run_logger()
    if skip:
        log.info("%s: unchanged, nothing to do", stage)
        return 0.0
    ran = False

    def say(line: str) -> None:
        nonlocal ran
        ran = ran or line.startswith("Running stage")
        log.info(line)

    seconds = run_stage(stage, ws.root, say=say, alive=ServerWatch(PREFECT_API_URL.value()).alive)
    return seconds if ran else 0.0


def dvc_unchanged(root: Path) -> bool:
    """Whether DVC has nothing to do in the whole workspace (one call instead of one per stage)."""
    result = subprocess.run([*DVC, "status", "--json"], cwd=root, capture_output=True, text=True, check=False)
    if result.returncode:
        return False
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    return bool(lines) and json.loads(lines[-1]) == {}


@task(name="gate", task_run_name="gate", cache_policy=NO_CACHE)
def gate_task(ws: Workspace, *, promote: bool) -> dict[str, Any]:
    """Promote an accepted student, or say why not."""
    verdict = apply_verdict(ws, promote=promote)
    get_run_logger().info(verdict.get("sentence", "no verdict"))
    return verdict


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE)
def publish_task(ws: Workspace, tonight: Tonight) -> str:
    """Write the morning page and Prefect's artifacts."""
    since, facts = morning.publish(ws, tonight)
    path = ws.path(morning.PAGE)
    create_markdown_artifact(key="auto-label-morning", markdown=as_markdown(since, str(path)))
    table = Table([], []) if facts is None else trust(facts, since.coverage)
    for key, (description, rows) in artifacts(since, table).items():
        create_table_artifact(key=key, table=rows, description=description)
    if hindered := history.track_night(ws, since.nights[-1] if since.nights else {}, path):
        get_run_logger().warning(hindered)
    get_run_logger().info("morning page: %s", path)
    return " ".join(since.sentences)
