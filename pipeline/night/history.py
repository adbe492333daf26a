"""Keep a record of each night: a line in work/nightly/history.jsonl for the next page, and a run in MLflow."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmsa_core import __version__
from hmsa_core.io import atomic, records
from hmsa_core.io.errors import HmsaError, IntegrityError
from hmsa_core.runtime.tracking import Mlflow
from pipeline.jobs.measure import policy_file
from pipeline.jobs.provenance import REPOSITORY, commit_of
from pipeline.night.gatekeeper import looks, measured_aa
from pipeline.workspace.registry import Registry, damage
from pipeline.workspace.workspace import Workspace

HISTORY = "work/nightly/history.jsonl"
_RUNNING = "work/nightly/running.json"  # the night under way; one that was killed leaves it behind
NIGHTS = 30
_NAMED = 4  # most changed parameters that are written out


def nights(ws: Workspace) -> list[dict[str, Any]]:
    """All nights so far, oldest first."""
    return records.read(ws.path(HISTORY), "a night", ("night",))


def remember(ws: Workspace, line: Mapping[str, Any]) -> None:
    """Append a night."""
    nights(ws)  # nothing is written behind a damaged line
    records.append(ws.path(HISTORY), line)


def carried(ws: Workspace, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A failed night of unknown inputs: the next night is compared with the last night of known ones."""
    before = (nights(ws) or [{}])[-1]
    known = {key: before[key] for key in ("counts", "coverage") if key in before}
    return known | {"night": {**before.get("night", {}), "overrides": dict(overrides)}, "kind": "failed"}


def begin(ws: Workspace, began: str) -> dict[str, Any]:
    """Note that a night runs. One that ended without its page joins the history; its note is returned, or {}."""
    path = ws.path(_RUNNING)
    left: dict[str, Any] = atomic.read_json(path) if path.exists() else {}
    if left:
        where = f"in stage {left['stage']}" if "stage" in left else "before its first stage"
        left["why"] = f"it was stopped or killed, or its disk was full, {where}"
        remember(ws, carried(ws, {}) | {"began": left["began"], "why": left["why"]})
    atomic.write_json(path, {"began": began})
    return left


def note(ws: Workspace, **facts: Any) -> None:
    """Add facts to the note of the night that runs: what arrived, the stage that it has reached."""
    atomic.write_json(ws.path(_RUNNING), atomic.read_json(ws.path(_RUNNING)) | facts)


def end(ws: Workspace, began: str) -> None:
    """Remove the note of the night that began then: it has a page."""
    path = ws.path(_RUNNING)
    if path.exists() and atomic.read_json(path)["began"] == began:
        path.unlink()


def check_readable(ws: Workspace) -> None:
    """Check that the history, the A/A figures and the pinned reference can be read.

    Otherwise the gate or the morning page would fail hours later. A/A figures come from trainings of one recipe.

    Raises:
        IntegrityError: a file cannot be read; the message names the file and the line.
    """
    nights(ws)
    registry = Registry(ws.root)
    registry.history()
    champion = registry.champion()
    if champion is not None and (error := damage(champion.path)):
        fix = "`autolabel models register` of the same weights repairs it, `autolabel models pin` names another"
        raise IntegrityError(f"the pinned reference {champion.name}: {error}", hint=fix)
    looks(ws)
    measured_aa(ws)


def describe(ws: Workspace, overrides: Mapping[str, Any], teacher: str) -> dict[str, Any]:
    """Inputs of a night, for the comparison with the night before: images, parameters, code, its `teacher`.

    Without an index the images of the night before are taken: DVC removes the index before `prepare` runs.
    """
    index, summary = ws.path("data/index/target.parquet"), ws.path("data/index/summary.json")
    before = (nights(ws) or [{}])[-1].get("night", {})
    return {
        "data": atomic.sha256_file(index)[:12] if index.exists() else before.get("data", ""),
        "roles": atomic.read_json(summary)["target"]["by_role"] if summary.exists() else before.get("roles", {}),
        "params": _flat(ws.params.model_dump(mode="json")),
        "code": _code(),
        "teacher": teacher or Registry(ws.root).current(),
        "overrides": dict(overrides),
    }


def differs(ws: Workspace, night: Mapping[str, Any]) -> list[str]:
    """One sentence for each difference from the night before."""
    before = nights(ws)
    if not before:
        return ["this is the first night"]
    old = before[-1]["night"]
    found = [*_data(old, night), *_params(old.get("params"), night["params"])]
    for key, label in (("code", "program"), ("teacher", "teacher")):
        if old.get(key) != night[key]:
            found.append(f"{label}: {old.get(key) or 'none'} → {night[key]}")
    if night["overrides"]:
        given = ", ".join(f"{key} = {json.dumps(value)}" for key, value in night["overrides"].items())
        found.append(f"for this run only: {given}")
    return found or ["nothing differs from last night: images, parameters, program and teacher are the same"]


def _data(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    if old.get("data") == new["data"]:
        return []
    before, now = old.get("roles") or {}, new["roles"]
    counts = [
        f"{role} {before.get(role, 0)} → {now.get(role, 0)}"
        for role in sorted({*before, *now})
        if before.get(role, 0) != now.get(role, 0)
    ]
    return [f"images: {', '.join(counts) or 'the same number, other content'}"]


def _params(old: Any, new: Mapping[str, Any]) -> list[str]:
    if not isinstance(old, dict):  # a night whose params.yaml could not be read
        return []
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    lines = [f"{key}: {json.dumps(old.get(key))} → {json.dumps(new.get(key))}" for key in changed[:_NAMED]]
    return lines + ([f"and {len(changed) - _NAMED} more parameters"] if len(changed) > _NAMED else [])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a tree to dotted keys; lists and empty sections stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _code() -> str:
    """Version of the program, with the commit if the program runs from a git checkout."""
    found = commit_of(REPOSITORY, ("hmsa_core", "pipeline"))
    commit, dirty = found["commit"], "-dirty" if found["uncommitted"] else ""
    return f"{__version__} ({commit[:7]}{dirty})" if commit else __version__


def track_night(ws: Workspace, figures: Mapping[str, Any], path: Path) -> str:
    """Record a night in MLflow, next to the trainings, if `student_train.runtime.tracking` names mlflow.

    Args:
        ws: the workspace.
        figures: tonight's line of the history; {} if the line could not be written.
        path: the page of the night.

    Returns:
        One line with the error; "" if the night was recorded or mlflow is not named.
    """
    try:
        if "mlflow" not in ws.params.student_train.runtime.trackers:
            return ""
        key = secrets.token_hex(8)
        run = Mlflow(ws.path("work"), f"night-{key[:8]}", key)
        policy = policy_file(ws)
        run.keep({"page": path} | ({"policy": policy} if policy and policy.is_file() else {}), figures)
        run.tell({"event": "night", "time": time.time(), **figures})
        run.tell({"event": "finished", "time": time.time()})
    except HmsaError as error:
        return f"the night is not in MLflow: {error.message}"
    return ""
