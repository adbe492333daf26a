"""What the night cost: device hours of the stages that had something to do, and the price of a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hmsa_core.io import atomic
from pipeline.devices import visible_devices
from pipeline.stages import section_of
from pipeline.workspace import Workspace

__all__ = ["cost_of"]


def cost_of(ws: Workspace, seconds: Mapping[str, float], statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Device hours of tonight and of labelling 1,000 images and a million kept pixels.

    A device is a GPU, or on a machine without one a process that computes. Labelling is priced by the last
    run of auto-infer (start-up included), whether that was tonight or not.

    Args:
        ws: the workspace.
        seconds: of each stage that ran tonight.
        statistics: labels/final/statistics.json.

    Returns:
        {"unit", "hours", "stages": {stage: seconds}, "per_1000_images", "per_million_kept"}; None = not known.
    """
    hours = sum(s * _devices(ws, stage) for stage, s in seconds.items()) / 3600
    per_image = _hours_per_image(ws)
    images, kept = statistics.get("images", 0), statistics.get("labelled", 0)
    return {
        "unit": "GPU-h" if visible_devices() else "CPU-process-h",
        "hours": round(hours, 4),
        "stages": {stage: round(s, 1) for stage, s in seconds.items()},
        "per_1000_images": None if per_image is None else round(1000 * per_image, 4),
        "per_million_kept": round(1e6 * per_image * images / kept, 4) if per_image is not None and kept else None,
    }


def _devices(ws: Workspace, stage: str) -> int:
    section = getattr(ws.params, section_of(stage), None)
    runtime = getattr(section, "runtime", None)
    return 1 if runtime is None else int(runtime.ranks) * int(runtime.nodes)


def _hours_per_image(ws: Workspace) -> float | None:
    ledger, times = ws.path("work/auto-infer/keys.json"), ws.path("work/times/auto-infer.json")
    if not ledger.exists() or not times.exists():
        return None
    key = atomic.read_json(ledger)["auto-infer"][-1]
    summary = ws.path(f"work/auto-infer/{key}/summary.json")
    images = atomic.read_json(summary)["images"] if summary.exists() else 0
    if not images:
        return None
    return float(atomic.read_json(times)["seconds"]) * _devices(ws, "auto-infer") / 3600 / int(images)
