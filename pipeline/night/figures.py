"""Figures of the morning page: the cost of the night, and the images and classes that a person should check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hmsa_core.labels import ConfidenceCode, LabelStore, StoreStatistics, ThresholdPolicy
from hmsa_core.labels.store.codes import EDGE_VALUES, NUM_CODES
from hmsa_core.labels.thresholds.monitor import risen_errors
from pipeline.jobs.devices import visible_devices
from pipeline.report.results import json_of
from pipeline.review.audit import Audit
from pipeline.workspace.table import section_of
from pipeline.workspace.workspace import Workspace

# Confidences that divide the kept pixels into cells; within a cell all images share one error rate.
_EDGES = ("0.5", "0.7", "0.8", "0.9", "0.95", "0.99", "0.999")


def cost_of(ws: Workspace, seconds: Mapping[str, float], statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Device hours of tonight, of labelling 1,000 images, and of a million kept pixels.

    A device is a GPU, or a computing process on a machine without a GPU. The cost of labelling comes from the
    last job of auto-infer, whether the job ran tonight or earlier.

    Args:
        ws: the workspace.
        seconds: {stage: seconds} of the stages that ran tonight.
        statistics: labels/final/statistics.json.

    Returns:
        {"unit", "hours", "stages": {stage: seconds}, "per_1000_images", "per_million_kept"}; None = unknown.
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
    runtime = getattr(getattr(ws.params, section_of(stage), None), "runtime", None)
    return 1 if runtime is None else int(runtime.ranks) * int(runtime.nodes)


def _hours_per_image(ws: Workspace) -> float | None:
    keys = json_of(ws, "work/auto-infer/keys.json")
    job = json_of(ws, f"work/auto-infer/{keys['auto-infer'][-1]}/summary.json") if keys else {}
    return float(job["seconds"]) * _devices(ws, "auto-infer") / 3600 / job["images"] if job.get("images") else None


def expected_loss(statistics: StoreStatistics, policy: ThresholdPolicy) -> NDArray[np.float64]:
    """Share of each image's pixels that is kept and expected to be wrong, (N,): 0/1 loss of the training labels.

    The policy's calibration table gives the error rate of each class and confidence; without a table the raw
    confidence gives the error rate. No pixel is read: the store's sidecar tables hold the counts.
    """
    code = ConfidenceCode()
    need = policy.codes().astype(np.int64)
    right = table_of(policy, len(need))
    totals = statistics.totals()
    bounds = [need, *(np.maximum(need, code.code_for(e)) for e in _EDGES), np.full_like(need, NUM_CODES)]
    loss = np.zeros(len(statistics.names))
    above = statistics.kept(bounds[0])
    for low, high in pairwise(bounds):
        inside, above = above, statistics.kept(high)
        wrong = [_error_rate(totals[c, a:b], right[c, a:b]) for c, (a, b) in enumerate(zip(low, high, strict=True))]
        loss += (inside - above) @ np.array(wrong)
    return loss / np.maximum(1, statistics.pixels)


def table_of(policy: ThresholdPolicy, classes: int) -> NDArray[np.float64]:
    """P(right) of each class and code, (C, 256): the policy's table, or the raw confidence if the policy has none."""
    return policy.table if policy.table is not None else np.broadcast_to(EDGE_VALUES, (classes, NUM_CODES))


def wrong_regions(
    store: LabelStore, codes: NDArray[np.integer], right: NDArray[np.float64], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Connected regions of kept pixels whose error rate is at least their class's mean, most wrong pixels first.

    Args:
        store: the raw store.
        codes: lowest kept confidence code of each class, (C,); 256 keeps no pixel.
        right: P(right) of each class and code, (C, 256).
        names: images to search.

    Returns:
        Rows with "image", "class", "x", "y" (middle of its box), "wrong" (expected wrong pixels) and "pixels".
    """
    totals = StoreStatistics.open(store.path).totals()
    least_codes = np.asarray(codes, np.int64)
    error = np.zeros((256, NUM_CODES))
    unsure = np.zeros((256, NUM_CODES), np.bool_)
    for c, least in enumerate(least_codes):
        error[c, least:] = 1 - right[c, least:]
        mean = _error_rate(totals[c, least:], right[c, least:])
        unsure[c, least:] = (error[c, least:] >= mean - 1e-9) & (error[c, least:] > 0)
    found: list[dict[str, Any]] = []
    for name in names:
        label, code = store.read(name)
        doubtful = unsure[label, code]
        wrong = np.where(doubtful, error[label, code], 0.0)
        for c in np.unique(label[doubtful]):
            piece = (doubtful & (label == c)).astype(np.uint8)
            count, ids, boxes, _ = cv2.connectedComponentsWithStats(piece, connectivity=8)
            sums = np.bincount(ids.reshape(-1), weights=wrong.reshape(-1), minlength=count)
            for i in range(1, count):
                x, y, width, height, pixels = (int(v) for v in boxes[i])
                where = {"image": name, "class": store.classes.classes[c], "x": x + width // 2, "y": y + height // 2}
                found.append(where | {"wrong": float(sums[i]), "pixels": pixels})
    return sorted(found, key=lambda row: (-row["wrong"], row["image"], row["class"], row["x"], row["y"]))


def precision_alarms(audits: Sequence[Audit], least: Mapping[str, float], thresholds: Mapping[str, int]) -> list[str]:
    """One sentence for each class whose audits of all nights contradict the measured lower bound of its precision.

    `least`: lower bound of the precision of pixels that a class keeps from its code of `thresholds` on. Only answers
    about such pixels count. With probability at least 95 % no sentence of any class and night is false.
    """
    found = []
    for name, precision in least.items():
        answers = [audit.judged(name, thresholds[name]) for audit in audits]
        judged, wrong = [n for n, _ in answers], [n for _, n in answers]
        if risen_errors(judged, wrong, 1 - precision) >= np.log(len(least) / 0.05):
            nights = sum(n > 0 for n in judged)
            found.append(
                f"{name}: {sum(wrong)} of {sum(judged)} audited pixels of {nights} audits are wrong; calibration said "
                f"at least {precision:.1%} right: calibrate anew, or raise its threshold"
            )
    return found


def _error_rate(pixels: NDArray[np.int64], right: NDArray[np.float64]) -> float:
    return float(1 - np.average(right, weights=pixels)) if pixels.any() else 0.0
