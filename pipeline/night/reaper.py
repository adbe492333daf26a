"""Settle flow runs whose process is gone: after a kill of all processes nothing else does.

A night holds the lock of its workspace for its whole life. A run that Prefect calls Running while that lock is free
is dead and becomes Crashed, or Cancelled if somebody cancelled it. A run is Running for a moment before it has the
lock, so another process looks twice. A run stays Pending for ever if its worker was killed before the run started:
`reap` schedules it again.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from hmsa_core.io.locks import FileLock

BEGINS_S = 15.0  # longest time from Running to the lock, on a busy machine
_LOST = "its process is gone (the workspace's lock is free): recorded by the reaper"
# State of a dead run -> name and message of its next state, and words for the log.
_SETTLED = {
    "RUNNING": ("Crashed", _LOST, "marked Crashed"),
    "CANCELLING": ("Cancelled", _LOST, "marked Cancelled"),
    "PENDING": ("Scheduled", "its worker was lost before it started", "scheduled again"),
}


def nightly_lock(workspace: Path) -> FileLock:
    """The lock that a nightly run of a workspace holds."""
    return FileLock(workspace / "work" / "locks" / "nightly.lock", what=f"the workspace {workspace}")


def reap(workspace: Path, *, keep: UUID | None = None, pending: bool = False) -> list[str]:
    """Settle dead runs of a workspace; return one line per run.

    Args:
        workspace: folder of the workspace.
        keep: id of the caller's run, which holds the lock. None: nothing is done while another process holds
            the lock, and a run that is Running without the lock has 15 seconds to take the lock.
        pending: also settle Pending runs (only while no worker can be starting a run).
    """
    if keep is None and not nightly_lock(workspace).is_free():
        return []
    return asyncio.run(_reap(workspace, keep, pending=pending))


async def _reap(workspace: Path, keep: UUID | None, *, pending: bool) -> list[str]:
    from prefect import states
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import filters

    wanted = [state for state in _SETTLED if pending or state != "PENDING"]
    flow = filters.FlowFilter(name={"any_": ["auto-label"]})
    runs = filters.FlowRunFilter(state={"type": {"any_": wanted}})

    async def dead() -> list[Any]:
        found = await client.read_flow_runs(flow_filter=flow, flow_run_filter=runs)
        return [run for run in found if run.id != keep and run.state_type and _belongs(run.parameters, workspace)]

    lines = []
    async with get_client() as client:
        first = await dead()
        if keep is None and any(run.state_type == "RUNNING" for run in first):
            await asyncio.sleep(BEGINS_S)
            if not nightly_lock(workspace).is_free():
                return []
            seen = {(run.id, run.state_type) for run in first}
            first = [run for run in await dead() if (run.id, run.state_type) in seen]
        for run in first:
            successor, message, action = _SETTLED[run.state_type.value]
            await client.set_flow_run_state(run.id, getattr(states, successor)(message=message), force=True)
            lines.append(f"run {run.name} was left behind as {run.state_name}: {action}")
        if keep is None:
            lines += await _cancel_missed(client, flow, workspace)
    return lines


async def _cancel_missed(client: Any, flow: Any, workspace: Path) -> list[str]:
    """Cancel overdue nights except the newest of the same parameters: all of them would give the same result."""
    from prefect import states
    from prefect.client.schemas import filters, sorting

    due = filters.FlowRunFilter(
        state={"type": {"any_": ["SCHEDULED"]}}, expected_start_time={"before_": datetime.now(UTC)}
    )
    order = sorting.FlowRunSort.EXPECTED_START_TIME_ASC
    found = await client.read_flow_runs(flow_filter=flow, flow_run_filter=due, sort=order)
    overdue = [run for run in found if run.auto_scheduled and _belongs(run.parameters, workspace)]
    newest = {(run.deployment_id, repr(run.parameters)): run.id for run in overdue}
    missed = [run for run in overdue if run.id not in newest.values()]
    for run in missed:
        await client.set_flow_run_state(run.id, states.Cancelled(message="missed: a newer night is due"), force=True)
    return [f"{len(missed)} missed nights are cancelled: the newest that is due will run"] if missed else []


def _belongs(parameters: dict[str, Any], workspace: Path) -> bool:
    given = parameters.get("workspace")
    return not given or Path(given).resolve() == workspace.resolve()
