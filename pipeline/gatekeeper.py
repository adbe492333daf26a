"""After `evaluate`: let an accepted student teach, once, or keep the incumbent and say why."""

from __future__ import annotations

from typing import Any

from hmsa_core import atomic
from hmsa_core.errors import IntegrityError
from pipeline.registry import Registry
from pipeline.workspace import Workspace

__all__ = ["apply_verdict"]


def apply_verdict(ws: Workspace, *, promote: bool = True, by: str = "gate") -> dict[str, Any]:
    """Read evaluation/verdict.json; register and promote the student it accepted.

    Args:
        ws: the workspace.
        promote: False reports what would have happened.
        by: who decides, for the history.

    Returns:
        The verdict with `promoted` (version name, or null) and `decision` in words.

    Raises:
        IntegrityError: the verdict belongs to other weights than models/student holds.
    """
    verdict = atomic.read_json(ws.path("evaluation/verdict.json"))
    registry = Registry(ws.root)
    verdict["promoted"] = None
    if not verdict.get("promote"):
        verdict["decision"] = f"kept {registry.current()}"
        return verdict
    if not promote:
        verdict["decision"] = f"kept {registry.current()}: promotion is switched off for this run"
        return verdict
    student = ws.path("models/student")
    weights = atomic.read_json(student / "model.json")["weights_sha256"]
    if verdict.get("candidate_weights_sha256") not in (None, weights):
        raise IntegrityError(
            f"{ws.path('evaluation/verdict.json')}: judged other weights than {student} holds",
            hint="run `dvc repro evaluate`",
        )
    metrics = {"mean_iou": verdict["gain"]["candidate"], "gain": verdict["gain"]["value"]}
    version = registry.register(student, role="student", metrics=metrics, verdict=verdict)
    if registry.current().endswith(f"/{version.name}"):
        verdict["decision"] = f"{version.name} teaches already"
        return verdict
    registry.promote(version, by=by, reason=str(verdict.get("sentence", "")))
    verdict["promoted"] = version.name
    verdict["decision"] = f"promoted {version.name}"
    return verdict
