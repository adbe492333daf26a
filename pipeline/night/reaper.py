"""Settle flow runs whose process is gone: after a full kill nobody else does.

A night holds the lock of its workspace for its whole life. A run that Prefect calls Running while that lock is free
is dead and becomes Crashed, or Cancelled if that was asked for. A run is Running for a moment before it has the lock,
so another process looks twice. A run that a worker had taken but not started when the worker was killed would stay
Pending for ever: it is scheduled again.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from hmsa_core.io.locks import FileLock

BEGINS_S = 15.0  # longest time from Running to the lock: a moment, but the machine may be busy
_LOST = "its process is gone (the workspace's lock is free): told by the reaper"
# State -> name and message of its successor, and what is said of it.
_SETTLED = {
    "RUNNING": ("Crashed", _LOST, "marked Crashed"),
    "CANCELLING": ("Cancelled", _LOST, "marked Cancelled"),
    "PENDING": ("Scheduled", "its worker was lost before it started", "scheduled again"),
}


def nightly_lock(workspace: Path) -> FileLock:
    """The lock that a nightly run of a workspace holds."""
    return FileLock(workspace / "work" / "locks" / "nightly.lock", what=f"a nightly run of {workspace}")


def reap(workspace: Path, *, keep: UUID | None = None, pending: bool = False) -> list[str]:
    """Settle dead runs of a workspace; return a line for each.

    Args:
        workspace: whose runs.
        keep: the run that holds the lock (the caller), if any; without it nothing is done while somebody holds
            the lock, and a run that is Running without it has 15 seconds to take it.
        pending: also runs that were about to start (only while no worker can be starting one).
    """
    if keep is None and not nightly_lock(workspace).is_free():
        return []
    return asyncio.run(_reap(workspace, keep, pending=pending))


async def _reap(workspace: Path, keep: UUID | None, *, pending: bool) -> list[str]:
    from prefect import states
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import filters

    asked = [state for state in _SETTLED if pending or state != "PENDING"]
    flow = filters.FlowFilter(name={"any_": ["auto-label"]})
    runs = filters.FlowRunFilter(state={"type": {"any_": asked}})

    async def dead() -> list[Any]:
        found = await client.read_flow_runs(flow_filter=flow, flow_run_filter=runs)
        return [run for run in found if run.id != keep and run.state_type and _belongs(run.parameters, workspace)]

    said = []
    async with get_client() as client:
        first = await dead()
        if keep is None and any(run.state_type == "RUNNING" for run in first):
            await asyncio.sleep(BEGINS_S)
            if not nightly_lock(workspace).is_free():
                return []
            seen = {(run.id, run.state_type) for run in first}
            first = [run for run in await dead() if (run.id, run.state_type) in seen]
        for run in first:
            successor, message, done = _SETTLED[run.state_type.value]
            await client.set_flow_run_state(run.id, getattr(states, successor)(message=message), force=True)
            said.append(f"run {run.name} was left behind as {run.state_name}: {done}")
        if keep is None:
            said += await _cancel_missed(client, flow, workspace)
    return said


async def _cancel_missed(client: Any, flow: Any, workspace: Path) -> list[str]:
    """Of alike nights whose time has passed the newest will run: each one before it would make the same."""
    from prefect import states
    from prefect.client.schemas import filters, sorting

    late = filters.FlowRunFilter(
        state={"type": {"any_": ["SCHEDULED"]}}, expected_start_time={"before_": datetime.now(UTC)}
    )
    order = sorting.FlowRunSort.EXPECTED_START_TIME_ASC
    found = await client.read_flow_runs(flow_filter=flow, flow_run_filter=late, sort=order)
    ours = [run for run in found if run.auto_scheduled and _belongs(run.parameters, workspace)]
    newest = {(run.deployment_id, repr(run.parameters)): run.id for run in ours}
    missed = [run for run in ours if run.id not in newest.values()]
    for run in missed:
        await client.set_flow_run_state(run.id, states.Cancelled(message="missed: a newer night is due"), force=True)
    return [f"{len(missed)} missed nights are cancelled: the newest that is due will run"] if missed else []


def _belongs(parameters: dict[str, Any], workspace: Path) -> bool:
    given = parameters.get("workspace")
    return not given or Path(given).resolve() == workspace.resolve()
