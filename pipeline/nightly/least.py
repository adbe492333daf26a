"""The morning page of a night that failed on what the whole page would need: params.yaml, or a history."""

from __future__ import annotations

from typing import Any

from hmsa_core.io.errors import HmsaError, one_line
from pipeline.nightly import history
from pipeline.nightly.morning import Tonight
from pipeline.workspace import Workspace

__all__ = ["collect_least"]

_CARRIED = ("counts", "coverage")  # what the next night subtracts from its own


def collect_least(ws: Workspace, tonight: Tonight, hindered: Exception) -> dict[str, Any]:
    """Why the night failed and what to type; remembers the night where its history can be read.

    Args:
        ws: the workspace; its parameters are not asked for.
        tonight: a night with `failed`.
        hindered: why there is no whole page.
    """
    why = hindered.message if isinstance(hindered, HmsaError) else one_line(f"{type(hindered).__name__}: {hindered}")
    warnings = [] if why in tonight.failed else [f"the rest of this page is missing: {why}"]
    page: dict[str, Any] = {
        "least": True,
        "kind": "failed",
        "sentence": f"The night ended early: {tonight.failed}",
        "decision": "",
        "tail": list(tonight.tail),
        "night": {"overrides": dict(tonight.overrides)},
        "arguments": dict(tonight.arguments),
        "differs": [],
        "funnel": [],
        "trust": [],
        "verdict": {},
        "queue": [],
        "health": {"warnings": warnings},
        "lines": [],
        "cost": {"stages": {stage: round(s, 1) for stage, s in tonight.seconds.items()}},
    }
    try:
        before = (history.nights(ws) or [{}])[-1]
    except HmsaError as error:
        if error.message not in (why, tonight.failed):
            warnings.append(error.message)
        return page
    # What this night was made with is not known: the next one is compared with the last of which it is.
    night = {**before.get("night", {}), **page["night"]}
    line = {key: before[key] for key in _CARRIED if key in before}
    page["lines"] = history.remember(ws, {**line, "night": night, "kind": "failed"})
    return page
