"""A night in MLflow: its figures, its policy and its page, where `student_train.runtime.tracking` names mlflow."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmsa_core.io.errors import HmsaError
from hmsa_core.runtime.tracking import Mlflow
from pipeline.stages.precision import policy_file
from pipeline.workspace import Workspace


def track_night(ws: Workspace, page: Mapping[str, Any], path: Path) -> str:
    """Keep a night as a run of its own, beside those of the trainings.

    Args:
        ws: the workspace.
        page: content of the morning page; its last line holds tonight's figures.
        path: the page itself.

    Returns:
        What hindered it, in a line; "" where nothing did, or where nobody asked for it.
    """
    try:
        if "mlflow" not in ws.params.student_train.runtime.trackers:
            return ""
        key = secrets.token_hex(8)
        run = Mlflow(ws.path("work"), f"night-{key[:8]}", key)
        figures = (page.get("lines") or [{}])[-1]
        policy = policy_file(ws)
        run.keep({"page": path} | ({"policy": policy} if policy and policy.is_file() else {}), figures)
        run.tell({"event": "night", "time": time.time(), **figures})
        run.tell({"event": "finished", "time": time.time()})
    except HmsaError as error:
        return f"the night is not in MLflow: {error.message}"
    return ""
