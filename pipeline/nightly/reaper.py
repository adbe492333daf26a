"""Settle flow runs whose process is gone: after a full kill nobody else ever will.

A run holds the workspace's `nightly` lock for its whole life. A run that Prefect calls Running while
the lock is free, or is held by another run, is dead: Crashed, or Cancelled if that was asked for; only, it
is Running for a moment before it has the lock, so whoever is not a run looks twice. A run that
a worker had taken but not started when it was killed stays Pending for ever: it is scheduled again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from hmsa_core.io.locks import FileLock

__all__ = ["nightly_lock", "reap"]

FLOW = "auto-label"
BEGINS_S = 15.0  # longest time from Running to the lock: a moment, but the machine may be busy


def nightly_lock(workspace: Path) -> FileLock:
    """The lock that a nightly run of a workspace holds."""
    return FileLock(workspace / "work" / "locks" / "nightly.lock", what=f"a nightly run of {workspace}")


async def _reap(workspace: Path, keep: UUID | None, *, pending: bool) -> list[str]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelled, Crashed, Scheduled

    lost = "its process is gone (the workspace's lock is free): told by the reaper"
    settled: dict[StateType, tuple[Any, str]] = {
        StateType.RUNNING: (Crashed(message=lost), "marked Crashed"),
        StateType.CANCELLING: (Cancelled(message=lost), "marked Cancelled"),
    }
    if pending:
        settled[StateType.PENDING] = (Scheduled(message="its worker was lost before it started"), "scheduled again")
    asked_for = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(settled))))
    named = FlowFilter(name=FlowFilterName(any_=[FLOW]))
    said = []
    async with get_client() as client:
        runs = await client.read_flow_runs(flow_filter=named, flow_run_filter=asked_for)
        if keep is None and any(r.state_type == StateType.RUNNING and _belongs(r.parameters, workspace) for r in runs):
            await asyncio.sleep(BEGINS_S)
            if not nightly_lock(workspace).is_free():
                return []
            seen = {(run.id, run.state_type) for run in runs}
            again = await client.read_flow_runs(flow_filter=named, flow_run_filter=asked_for)
            runs = [run for run in again if (run.id, run.state_type) in seen]
        for run in runs:
            if run.id == keep or run.state_type is None or not _belongs(run.parameters, workspace):
                continue
            state, done = settled[run.state_type]
            await client.set_flow_run_state(run.id, state, force=True)
            said.append(f"run {run.name} was left behind as {run.state_name}: {done}")
    return said


def _belongs(parameters: dict[str, Any], workspace: Path) -> bool:
    given = parameters.get("workspace")
    return not given or Path(given).resolve() == workspace.resolve()


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


def main(argv: list[str] | None = None) -> int:
    """Command line: `python -m pipeline.nightly.reaper --workspace DIR`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=Path())
    parser.add_argument("--pending", action="store_true", help="no worker is running: also runs about to start")
    args = parser.parse_args(argv)
    for line in reap(args.workspace.resolve(), pending=args.pending):
        sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
