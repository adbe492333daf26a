"""The Prefect flow `auto-label`: one task a DVC stage, then the gate, the registry and the morning page.

DVC decides what has to run; Prefect shows it, retries what is worth a retry, and schedules. There are no
Prefect concurrency limits here: after a full kill their slots stay taken. One run at a time is a kernel
lock on the workspace and the worker's own `--limit 1`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import get_run_context
from prefect.settings import PREFECT_API_URL

from hmsa_core.errors import ConfigError
from hmsa_core.process import die_with_parent
from pipeline.flow import discover, morning, overrides
from pipeline.flow.reaper import nightly_lock, reap
from pipeline.flow.runner import StageFailedError, run_stage
from pipeline.gatekeeper import apply_verdict
from pipeline.machine import check_machine
from pipeline.stages import STAGES
from pipeline.workspace import Workspace

__all__ = ["auto_label"]


@flow(name="auto-label", description="Label new images, retrain the student, judge it, write the morning page.")
def auto_label(
    workspace: str | None = None,
    threshold: float | str | None = None,
    target_precision: float | None = None,
    promote: bool = True,
    params: dict[str, Any] | None = None,
    stages: list[str] | None = None,
) -> str:
    """Run a night.

    Args:
        workspace: folder with dvc.yaml; default: AUTO_LABEL_ROOT, else the current folder.
        threshold: `pseudo_label.threshold` for this run ("policy", a number, or a policy file).
        target_precision: `calibrate.target` for this run.
        promote: let an accepted student teach from tomorrow on.
        params: any other dotted key of params.yaml for this run, e.g. {"student_train.epochs": 4}.
        stages: only these stages (names of dvc.yaml), in the chain's order; default: all.

    Returns:
        The verdict in a sentence.
    """
    # The worker may be killed; this process and all below it must not outlive it.
    die_with_parent(signal.SIGTERM)
    ws = Workspace.find(workspace or os.environ.get("AUTO_LABEL_ROOT") or None)
    chosen = _chosen(stages)
    changes = dict(params or {})
    if threshold is not None:
        changes["pseudo_label.threshold"] = threshold
    if target_precision is not None:
        changes["calibrate.target"] = target_precision
    with nightly_lock(ws.root):
        log = get_run_logger()
        for line in reap(ws.root, keep=_run_id()):
            log.warning(line)
        with overrides.overridden(ws.root, changes):
            return _night(ws, chosen, changes, promote=promote)


def _night(ws: Workspace, chosen: list[str], changes: dict[str, Any], *, promote: bool) -> str:
    check_machine_task(ws)
    arrived = discover_task(ws)
    unchanged = dvc_unchanged(ws.root)
    for stage in STAGES:
        if stage in chosen:
            stage_task.with_options(name=stage)(stage, ws, skip=unchanged)
    verdict = gate_task(ws, promote=promote) if "evaluate" in chosen else {}
    return publish_task(ws, arrived, verdict, changes)


def _chosen(stages: list[str] | None) -> list[str]:
    unknown = [s for s in stages or [] if s not in STAGES]
    if unknown:
        raise ConfigError(f"unknown stage {unknown[0]!r}; the stages are: {', '.join(STAGES)}")
    return list(stages or STAGES)


def _run_id() -> Any:
    context = get_run_context()
    flow_run = getattr(context, "flow_run", None)
    return None if flow_run is None else flow_run.id


@task(name="check-machine", cache_policy=NO_CACHE)
def check_machine_task(ws: Workspace) -> None:
    """Refuse to start on a machine or disk that cannot finish."""
    for line in check_machine(ws):
        get_run_logger().info(line)


@task(name="discover", cache_policy=NO_CACHE)
def discover_task(ws: Workspace) -> dict[str, Any]:
    """Find images that the last index does not know, by content."""
    found = discover.discover(ws)
    get_run_logger().info(found["sentence"])
    return found


def _worth_a_retry(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return not isinstance(error, StageFailedError) or error.is_worth_a_retry


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=1, retry_condition_fn=_worth_a_retry)
def stage_task(stage: str, ws: Workspace, *, skip: bool) -> float:
    """Run one stage under DVC; the task bears the stage's name."""
    log = get_run_logger()
    if skip:
        log.info("%s: unchanged, nothing to do", stage)
        return 0.0
    return run_stage(stage, ws.root, say=log.info, alive=_api_watch())


def _api_watch() -> Any:
    """A function that says whether the API still answers: False after it was silent for about ten seconds."""
    url = PREFECT_API_URL.value()
    silent = 0

    def alive() -> bool:
        nonlocal silent
        if not url:
            return True
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):  # noqa: S310 - Prefect's own API
                silent = 0
        except (urllib.error.URLError, OSError):
            silent += 1
        return silent < 3

    return alive


def dvc_unchanged(root: Path) -> bool:
    """Whether DVC has nothing to do in the whole workspace (one call instead of one a stage)."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"], cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return False
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return bool(lines) and json.loads(lines[-1]) == {}


@task(name="gate", cache_policy=NO_CACHE)
def gate_task(ws: Workspace, *, promote: bool) -> dict[str, Any]:
    """Promote an accepted student, or say why not."""
    verdict = apply_verdict(ws, promote=promote)
    get_run_logger().info(verdict.get("sentence", "no verdict"))
    return verdict


@task(name="publish", cache_policy=NO_CACHE)
def publish_task(ws: Workspace, arrived: dict[str, Any], verdict: dict[str, Any], changes: dict[str, Any]) -> str:
    """Write the morning page and Prefect's artifacts."""
    page = morning.collect(ws, arrived, verdict, changes)
    path = morning.write(ws, page)
    create_markdown_artifact(key="auto-label-morning", markdown=morning.as_markdown(page, path))
    create_table_artifact(key="auto-label-funnel", table=page["funnel"], description="From arrived to kept")
    create_table_artifact(key="auto-label-trust", table=page["trust"], description="Thresholds and precision per class")
    get_run_logger().info("morning page: %s", path)
    return str(page["sentence"])
